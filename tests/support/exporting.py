"""Published tiny students of both architectures, for tests of what is exported: an adapter that changes what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from factory.config.schema import DistillConfig
from factory.models.base import Base, Shape, attach_adapter, load_base, save_base
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.card import model_card
from support import tiny

QUESTIONS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'Question:\n' + m['content'] + '\n' }}"
    "{% else %}{{ 'Answer:\n' + m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:\n' }}{% endif %}"
)
MANIFEST: dict[str, Any] = {
    "teacher": {"reference": "path:./teacher", "license": "apache-2.0"},
    "dataset": {"sources": [{"id": "questions", "license": "cc-by-4.0", "n": 3}]},
}
SAMPLES = [{"prompt": "what is asthma", "teacher": "short breath and cough", "student": "cough and wheeze"}]


def student(root: Path, architecture: str = "llama", **manifest: Any) -> tuple[Registry, Version]:
    """``registry, version = student(tmp_path, "gemma")``: ``plants-mini@1`` on ``mini-base@1``."""
    registry = Registry(root / "registry")
    base_version = base(registry, architecture)
    model = attach_adapter(
        load_base(base_version.folder, tiny.CPU), DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8)
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    own = {"base": base_version.reference, "notice": "No advice.", "evaluation": {"samples": SAMPLES}}
    with registry.stage("plants-mini") as folder:
        model.save_pretrained(str(folder))
        content = MANIFEST | own | manifest
        card = model_card(content | {"kind": "student", "name": "plants-mini"})
        (folder / "README.md").write_text(card, encoding="utf-8")
        return registry, registry.publish("student", "plants-mini", folder, content)


def base(registry: Registry, architecture: str = "llama") -> Version:
    with registry.stage("mini-base") as folder:
        save_base(Base(*made(architecture), Shape(None, None)), folder)
        return registry.publish("base", "mini-base", folder, MANIFEST)


def made(architecture: str) -> tuple[Any, PreTrainedTokenizerFast]:
    """A model and its tokenizer: ChatML on byte-level tokens, or questions and answers on SentencePiece-style ones."""
    if architecture == "llama":
        return tiny.llama(), tiny.tokenizer()
    tokenizer = tiny.sentencepiece(QUESTIONS)
    return tiny.gemma(vocabulary=len(tokenizer)), tokenizer
