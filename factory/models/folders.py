"""Folders of models: which of their files are loaded, and loading them. No code that is in them is ever run.

weight_files(folder, "path:./teacher")   # what the folder's checksum is of
load_tokenizer(folder)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from factory.cache import FULL_DISK
from factory.errors import ModelResolutionError, in_one_line

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}  # can run code when loaded
WEIGHTS = "model.safetensors"  # or, where there is no such file, the shards that WEIGHTS_INDEX names
WEIGHTS_INDEX = "model.safetensors.index.json"
LARGEST = {"num_hidden_layers": 1000, "hidden_size": 1 << 20, "vocab_size": 1 << 24}  # of any model so far, and then some
MODULES = "modules.json"  # of sentence-transformers: the folder of each module


def weight_files(folder: Path, name: str) -> list[Path]:
    """``weight_files(folder, spec.model)``: the files that transformers, or sentence-transformers, reads weights from.

    Raises: ModelResolutionError, which begins with ``name``, for a folder that is not a model, whose weights are pickled, lack
        a shard or lie elsewhere, or where another file would be loaded in their place.
    """
    folders = [folder]
    if (folder / MODULES).exists():
        paths = [str(module.get("path", "")) for module in _read(folder / MODULES, list, name) if isinstance(module, dict)]
        if outside := [path for path in paths if not _is_inside(path)]:
            raise ModelResolutionError(f"{name}: {MODULES} names {outside[0]!r}, which is not in the folder; do not use it")
        folders += sorted(path for path in folder.rglob("*") if path.is_dir())
    found = [path for one in folders for path in _weights_in(one, name)]
    if not found:
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        what = f"has {', '.join(others[:4])}, but neither {WEIGHTS} nor {WEIGHTS_INDEX}" if others else "has no weights"
        raise ModelResolutionError(f"{name} {what}; save it with transformers, or convert it to .gguf")
    if not any((folder / file).exists() for file in ("config.json", MODULES)):  # MODULES: an encoder without a transformer
        raise ModelResolutionError(f"{name} has no config.json, so it is not a transformers model")
    return found


def _weights_in(folder: Path, name: str) -> list[Path]:
    """Of one folder; [] where it has none, as that of a pooling module."""
    files = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in files:  # transformers would load the adapter too, and perhaps another base
        raise ModelResolutionError(f"{name} has an adapter (adapter_config.json); merge it into the model, or remove it")
    if "config.json" in files and "transformers_weights" in _read(folder / "config.json", dict, name):
        raise ModelResolutionError(f"{name}: its config.json names other weights (transformers_weights); use {WEIGHTS}")
    if WEIGHTS in files:
        return [folder / WEIGHTS]
    if WEIGHTS_INDEX in files:
        return _shards(folder, files, name)
    if pickled := sorted(file for file in files if Path(file).suffix in PICKLE_SUFFIXES):
        where = f"{', '.join(pickled)}, which can run code when loaded"
        raise ModelResolutionError(f"{name} has its weights only in {where}; convert them to .safetensors or .gguf")
    return []


def _shards(folder: Path, files: set[str], name: str) -> list[Path]:
    named = _read(folder / WEIGHTS_INDEX, dict, name).get("weight_map")
    if not isinstance(named, dict):
        raise ModelResolutionError(f"{name}: {WEIGHTS_INDEX} has no weight_map; fetch it again")
    shards = sorted(set(map(str, named.values())))
    if odd := [shard for shard in shards if "/" in shard or not shard.endswith(".safetensors")]:
        raise ModelResolutionError(f"{name}: {WEIGHTS_INDEX} names {odd[0]!r}, no .safetensors file beside it; do not use it")
    if missing := [shard for shard in shards if shard not in files]:
        raise ModelResolutionError(f"{name} lacks {', '.join(missing[:4])}, named in its index; fetch it again")
    return [folder / shard for shard in shards]


def _is_inside(path: str) -> bool:
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def _read(path: Path, kind: type, name: str) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelResolutionError(f"{name}: {path.name} cannot be read ({in_one_line(error)}); fetch it again") from None
    if not isinstance(content, kind):
        raise ModelResolutionError(f"{name}: {path.name} is not a JSON {kind.__name__}; fetch it again")
    return content


# ---------------------------------------------------------------------------------------------------------------- load


def load_config(folder: Path) -> PreTrainedConfig:
    """``load_config(resolved.folder).vocab_size``.

    Raises: ModelResolutionError where transformers refuses, and for sizes that no model has: an empty model of a billion layers
        would fill the memory.
    """
    with load_refusals(folder):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text = config.get_text_config()
        sizes = {name: getattr(text, name, 0) for name in LARGEST}
    for name, size in sizes.items():
        if isinstance(size, int) and not 0 <= size <= LARGEST[name]:
            raise ModelResolutionError(
                f"{folder / 'config.json'}: {name} is {size!r:.40}; at most {LARGEST[name]:,} are possible"
            )
    return config


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """``load_tokenizer(resolved.folder)``. Raises: ModelResolutionError where transformers refuses."""
    with load_refusals(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return tokenizer


def load_weights(folder: Path, dtype: torch.dtype) -> Any:
    """``load_weights(folder, torch.bfloat16)``: a causal model, on the CPU; ``load_causal_model`` is what others call.

    Raises: ModelResolutionError where transformers refuses, or would fill missing weights with random numbers.
    """
    load_config(folder)  # for its checks
    untyped: Any = AutoModelForCausalLM  # its stubs know no output_loading_info
    with load_refusals(folder):
        model, loading = untyped.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModelResolutionError(f"{folder} lacks {len(missing)} weights, {missing[0]} for one; fetch or build it again")
    return model


RUST_PANIC = "PanicException"  # of the tokenizers library, and no Exception


@contextmanager
def load_refusals(folder: Path) -> Iterator[None]:
    """``with load_refusals(folder):`` what transformers raises for it becomes one line, a ModelResolutionError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise ModelResolutionError(f"{folder} cannot be loaded: {in_one_line(error)}") from error
    except ModelResolutionError:
        raise
    except BaseException as error:  # its readers of odd settings raise dozens of kinds
        if not isinstance(error, Exception) and type(error).__name__ != RUST_PANIC:
            raise
        if "trust_remote_code" in str(error):
            raise ModelResolutionError(
                f"{folder} needs code of its own, which is never run; choose a model that transformers knows"
            ) from None
        raise ModelResolutionError(f"{folder} cannot be loaded: {in_one_line(error)}") from error
