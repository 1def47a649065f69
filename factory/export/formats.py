"""Folders that other libraries load: peft's, transformers', sentence-transformers'.

What is merged is merged in float32 and rounded once, to bfloat16.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from factory.errors import ExportError
from factory.models.base import SHAPE, load_base, load_student
from factory.registry.registry import Registry
from factory.registry.versions import Version

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
REGISTRY_FILES = ("manifest.json", "records.jsonl", "README.md", SHAPE)  # of a base's folder, no part of the model


@dataclass(frozen=True)
class Registered:
    """A version in memory as it is registered: a base, with its adapter on it where it is a student."""

    version: Version
    base: Version  # of a base: itself
    model: Any  # peft's or transformers'
    tokenizer: PreTrainedTokenizerBase


def load_registered(version: Version, registry: Registry, device: torch.device, dtype: torch.dtype) -> Registered:
    """``load_registered(version, registry, device, torch.float32)``: the base in that type, its adapter always in float32."""
    base_version = version if version.kind == "base" else registry.resolve(version.base or "")
    base = load_base(base_version.folder, device, dtype)
    model = base.model if version.kind == "base" else load_student(base, version.folder)
    return Registered(version, base_version, model, base.tokenizer)


def merge_adapter(student: Registered) -> Any:
    """``merge_adapter(student)``: one transformers model, in float32; ``student`` cannot be used afterwards."""
    return student.model.merge_and_unload() if isinstance(student.model, PeftModel) else student.model


def write_peft(student: Registered, folder: Path) -> None:
    """``write_peft(student, folder)``: the adapter as it is registered, and its base in ``base/`` beside it.

    Raises: ExportError for a base, which has no adapter.
    """
    if student.version.kind == "base":
        raise ExportError(f"{student.version.reference} is a base without an adapter; export it as merged")
    for name in ADAPTER_FILES:
        shutil.copyfile(student.version.folder / name, folder / name)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "base"  # seen from this folder; where it lay here says nothing elsewhere
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "base").mkdir()
    for path in student.base.folder.iterdir():
        if path.is_file() and path.name not in REGISTRY_FILES:
            shutil.copyfile(path, folder / "base" / path.name)  # not its mode, which is read-only


def write_merged(student: Registered, folder: Path) -> None:
    """``write_merged(student, folder)``: a transformers folder; ``student`` cannot be used afterwards."""
    merge_adapter(student).to(torch.bfloat16).save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)


def write_sentence_transformer(student: Registered, folder: Path) -> None:
    """``write_sentence_transformer(student, folder)``: a text's final states, averaged over its tokens.

    A text is taken as it stands, not as a user's turn. ``student`` cannot be used afterwards.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    plain = folder / "plain"
    write_merged(student, plain)
    text: Any = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}  # no "message": no chat template
    transformer = Transformer(
        str(plain), model_kwargs={"dtype": torch.bfloat16}, modality_config=text, module_output_name="token_embeddings"
    )
    width = transformer.get_embedding_dimension()
    SentenceTransformer(modules=[transformer, Pooling(width, "mean")], device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(plain)


def conversation(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """``conversation(tokenizer, [*prompt, *answer])``: the text that the tokenizer cuts into these ids, begin of text apart."""
    bos = tokenizer.bos_token_id
    writes_bos = list(tokenizer("")["input_ids"])[:1] == [bos]
    return str(tokenizer.decode(ids[1:] if writes_bos and ids[0] == bos else ids))
