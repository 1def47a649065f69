"""Published tiny students of both architectures, with an adapter that changes what they predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from factory.config.quantization import Grid
from factory.config.schema import DistillConfig
from factory.models.base import Base, Shape, attach_adapter, load_base, save_base
from factory.models.embedding_head import EmbeddingHead
from factory.models.forward import make_batch
from factory.models.quantization import round_base
from factory.registry.registry import Registry
from factory.registry.versions import Version
from support import manifests, tiny

QUESTIONS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'Question:\n' + m['content'] + '\n' }}"
    "{% else %}{{ 'Answer:\n' + m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:\n' }}{% endif %}"
)
SAMPLES = [{"prompt": "what is asthma", "teacher": "short breath and cough", "student": "cough and wheeze"}]
ORIGIN: dict[str, Any] = {
    "teacher": manifests.TEACHER | {"reference": "path:./teacher"},
    "dataset": manifests.COMMON["dataset"] | {"sources": [{"id": "questions", "license": "cc-by-4.0", "n": 3}]},
}
CARD = "---\nlibrary_name: peft\nlicense: apache-2.0\n---\n\n# plants-mini\n\n## How to load it\n\nwith peft\n"


def publish_student(
    root: Path, architecture: str = "llama", grid: Grid | None = None, head: EmbeddingHead | None = None
) -> tuple[Registry, Version]:
    """``registry, version = publish_student(tmp_path, "gemma")``: ``plants-mini@1`` on ``mini-base@1``."""
    registry = Registry(root / "registry")
    base_version = publish_base(registry, architecture, grid)
    base = load_base(base_version.folder, tiny.CPU)
    model = attach_adapter(base, DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    manifest = manifests.student_manifest(
        "plants-mini",
        base=base_version.reference,
        notice="No advice.",
        evaluation=manifests.evaluation(samples=SAMPLES),
        **ORIGIN,
    )
    with registry.stage("plants-mini") as folder:
        model.save_pretrained(str(folder))
        if head is not None:
            head.save(folder)
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        return registry, registry.publish(manifest, folder)


def publish_base(registry: Registry, architecture: str = "llama", grid: Grid | None = None) -> Version:
    """``publish_base(registry).reference``: ``mini-base@1``, rounded to a grid where one is given."""
    with registry.stage("mini-base") as folder:
        rounded = round_base(Base(*model_and_tokenizer(architecture), Shape(None, None)), grid, [make_batch([[5]], [[6, 7]])])
        save_base(rounded.base, folder)
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        own = {"quantization": rounded.grid, "quantization_kl": rounded.kl}
        return registry.publish(manifests.base_manifest("mini-base", **ORIGIN, **own), folder)


def model_and_tokenizer(architecture: str) -> tuple[Any, PreTrainedTokenizerFast]:
    """Llama with ChatML and byte-level BPE, or Gemma with questions and answers and a SentencePiece-style tokenizer.

    "narrow" is the Llama with half of its neurons.
    """
    if architecture != "gemma":
        return tiny.narrow() if architecture == "narrow" else tiny.llama(), tiny.tokenizer()
    tokenizer = tiny.sentencepiece(QUESTIONS)
    return tiny.gemma(vocabulary=len(tokenizer)), tokenizer
