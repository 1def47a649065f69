"""LoRA adapters from files: one is loaded only where it fits its base weight for weight.

model = load_adapter(base.model, version.folder)

peft skips keys that it does not know and leaves those that are missing at zero, so an adapter of another base would answer as
the plain base. Its settings can name modules to import and patterns that take minutes to match. So only plain LoRA is loaded,
by the settings below alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedConfig

from factory.errors import ModelResolutionError, in_one_line
from factory.models.dimensions import empty_model
from factory.models.shapes import Shapes, misfit_of, stored_shapes

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
READ = {"peft_type", "r", "lora_alpha", "target_modules"}
IGNORED = {  # they change no answer, or concern training alone
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}
MAX_RANK = 1024
MAX_ALPHA = 2**16
MAX_TARGETS = 4096  # names of modules


def load_adapter(model: Any, folder: Path, name: str = "default") -> PeftModel:
    """``load_adapter(base.model, version.folder)``: peft's model with the adapter, in evaluation mode.

    A model that has adapters already gets one more, called ``name``. What does not fit is refused before the model is touched.
    Raises: ModelResolutionError for anything but plain LoRA, and for weights that are not those which the base's modules need.
    """
    settings = check_adapter(folder, model.config)
    if isinstance(model, PeftModel):
        model.add_adapter(name, settings)
        model.load_adapter(str(folder), name)
    else:
        model = PeftModel.from_pretrained(model, folder, adapter_name=name, config=settings)
    loaded: PeftModel = model.eval()
    return loaded


def check_adapter(folder: Path, base: PreTrainedConfig) -> LoraConfig:
    """``check_adapter(version.folder, model.config).r``: reads no weights, only their names and shapes.

    Raises: ModelResolutionError as ``load_adapter`` does.
    """
    settings = read_settings(folder)
    if misfit := misfit_of(stored_shapes(folder / WEIGHTS), _expected(folder, base, settings)):
        raise ModelResolutionError(f"the adapter in {folder} does not fit its base: {misfit}; build or fetch it again")
    return settings


def read_settings(folder: Path) -> LoraConfig:
    """``read_settings(version.folder).lora_alpha``. Raises: ModelResolutionError for anything but plain LoRA."""
    try:
        found = json.loads((folder / SETTINGS).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelResolutionError(f"{folder / SETTINGS} cannot be read ({in_one_line(error)}); build it again") from None
    if not isinstance(found, dict):
        raise ModelResolutionError(f"{folder / SETTINGS} has no settings of an adapter; build it again")
    rank: Any = found.get("r")
    alpha: Any = found.get("lora_alpha")
    targets = found.get("target_modules")
    plain = asdict(LoraConfig())
    others = {key: value for key, value in found.items() if key not in READ | IGNORED and value and value != plain.get(key)}
    checks = {
        "peft_type": found.get("peft_type") == "LORA",
        "r": type(rank) is int and 1 <= rank <= MAX_RANK,
        "lora_alpha": type(alpha) in (int, float) and 0 < alpha <= MAX_ALPHA,
        "target_modules": targets == "all-linear" or _are_names(targets),
    }
    wrong = [key for key, fine in checks.items() if not fine] + sorted(others)
    if wrong:
        value = f"{wrong[0]} {found.get(wrong[0])!r}"[:80]
        raise ModelResolutionError(
            f"{folder / SETTINGS}: {value} is not of a plain LoRA adapter: rank 1 to {MAX_RANK} on modules that are listed by "
            "name; build it again"
        )
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", inference_mode=True)


def _are_names(targets: Any) -> bool:
    """A list, which peft compares; a single text would be a regular expression."""
    return isinstance(targets, list) and 0 < len(targets) <= MAX_TARGETS and all(isinstance(one, str) for one in targets)


def _expected(folder: Path, base: PreTrainedConfig, settings: LoraConfig) -> Shapes:
    """What peft saves of an adapter with these settings; no weight is made."""
    model: Any = empty_model(base)
    rank, targets, head = settings.r, settings.target_modules or (), model.get_output_embeddings()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear)
        chosen = linear and module is not head if targets == "all-linear" else _is_named(name, targets)
        if chosen and not linear:
            raise ModelResolutionError(
                f"{folder / SETTINGS}: target_modules has {name}, which is no linear layer; build it again"
            )
        if chosen:
            shapes[f"base_model.model.{name}.lora_A.weight"] = (rank, module.in_features)
            shapes[f"base_model.model.{name}.lora_B.weight"] = (module.out_features, rank)
    return shapes


def _is_named(module: str, targets: Iterable[str]) -> bool:
    """As peft compares: the whole name, or its end."""
    return any(f".{module}".endswith(f".{target}") for target in targets)
