"""Names and shapes of weights in files, without the weights: are they the ones that a model needs?

misfit_of(stored_shapes(folder / "model.safetensors"), model_shapes(config))   # None where they are
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from factory.errors import ModelResolutionError, in_one_line
from factory.models.dimensions import empty_model
from factory.models.folders import load_config, weight_files

Shapes = Mapping[str, tuple[int, ...]]


def stored_shapes(path: Path) -> Shapes:
    """``stored_shapes(folder / "model.safetensors")``. Raises: ModelResolutionError for a file that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelResolutionError(f"{path} cannot be read ({in_one_line(error)}); build it again") from None


def model_shapes(config: PreTrainedConfig) -> Shapes:
    """``model_shapes(config)``: of the weights that a causal model saves; a tied head is none of its own."""
    model = empty_model(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def check_base(folder: Path) -> None:
    """``check_base(version.folder)``: its weights are those that its config needs. Raises: ModelResolutionError."""
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder, str(folder)):
        found |= stored_shapes(path)
    if misfit := misfit_of(found, model_shapes(load_config(folder))):
        raise ModelResolutionError(f"the weights in {folder} do not fit its config.json: {misfit}; build or fetch it again")


def misfit_of(found: Shapes, expected: Shapes) -> str | None:
    """``misfit_of(stored_shapes(path), expected)``: the first thing that is wrong, in words; None where nothing is."""
    if not expected:
        return "no module has one of its target_modules' names"
    foreign, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if foreign:
        return f"{len(foreign)} of its weights belong to no module, {foreign[0]} for one"
    if missing:
        return f"it lacks {len(missing)} of {len(expected)} weights, {missing[0]} for one"
    wrong = sorted(key for key in expected if found[key] != expected[key])
    return f"{wrong[0]} has shape {list(found[wrong[0]])}, and {list(expected[wrong[0]])} is needed" if wrong else None
