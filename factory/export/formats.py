"""Writes folders that peft, transformers and sentence-transformers load.

Adapters are merged in float32 and rounded once, to bfloat16.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from factory.errors import ExportError
from factory.inference import LoadedVersion
from factory.models.base import SHAPE

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
REGISTRY_FILES = ("manifest.json", "records.jsonl", "README.md", SHAPE)  # in a base's folder, but not part of the model


def merge_adapter(loaded: LoadedVersion) -> Any:
    """``merge_adapter(loaded)``: one transformers model of the same dtype; ``loaded`` cannot be used afterwards."""
    return loaded.model.merge_and_unload() if isinstance(loaded.model, PeftModel) else loaded.model


def write_peft(loaded: LoadedVersion, folder: Path) -> None:
    """``write_peft(loaded, folder)``: the adapter's files as published, and its base in ``base/``.

    Raises: ExportError for a base, which has no adapter.
    """
    if loaded.version.kind == "base":
        raise ExportError(f"{loaded.version.reference} is a base and has no adapter; use --format merged")
    for name in ADAPTER_FILES:
        shutil.copyfile(loaded.version.folder / name, folder / name)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "base"  # relative to this folder, not a path on this machine
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "base").mkdir()
    for path in loaded.base_version.folder.iterdir():
        if path.is_file() and path.name not in REGISTRY_FILES:
            shutil.copyfile(path, folder / "base" / path.name)  # without its mode: the registry's files are read-only


def write_merged(loaded: LoadedVersion, folder: Path) -> None:
    """``write_merged(loaded, folder)``: a transformers folder; ``loaded`` cannot be used afterwards."""
    merge_adapter(loaded).to(torch.bfloat16).save_pretrained(folder)
    loaded.base.tokenizer.save_pretrained(folder)


def write_sentence_transformer(loaded: LoadedVersion, folder: Path) -> None:
    """``write_sentence_transformer(loaded, folder)``: embeds a text as the student does, by its head where it has one.

    Without a head it is the mean of the final hidden states. No chat template is applied. ``loaded`` cannot be used afterwards.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    merged = folder / "merged"
    write_merged(loaded, merged)
    text: Any = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}  # no "message": no chat template
    transformer = Transformer(
        str(merged),
        model_kwargs={"dtype": torch.bfloat16, "use_safetensors": True, "trust_remote_code": False},
        modality_config=text,
        module_output_name="token_embeddings",
    )
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    modules: list[Any] = [transformer, pooling]
    if (head := loaded.head) is not None:
        dimensions, width = head.weight.shape
        weight, bias = torch.tensor(head.weight), torch.tensor(head.bias)
        modules += [Dense(width, dimensions, activation_function=None, init_weight=weight, init_bias=bias), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(merged)


def conversation_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """``conversation_text(tokenizer, [*prompt, *answer])``: a text that the tokenizer turns into these ids again.

    A begin-of-text token that the tokenizer adds by itself is left out.
    """
    bos = tokenizer.bos_token_id
    adds_bos = list(tokenizer("")["input_ids"])[:1] == [bos]
    return str(tokenizer.decode(ids[1:] if adds_bos and ids[0] == bos else ids))
