"""Bases and adapters: trim a teacher, save and load a base, attach a LoRA adapter."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from factory.config.schema import DistillConfig, SizeSpec
from factory.errors import TrainingError
from factory.models.adapter import load_adapter
from factory.models.attention import load_causal_model
from factory.models.chat import stop_tokens
from factory.models.folders import load_tokenizer
from factory.models.forward import Batch, check_head, hidden_states, logits
from factory.models.teacher import Teacher
from factory.models.vocabulary import kept_tokens, trim_embeddings, trim_tokenizer
from factory.registry.versions import Version

SHAPE = "factory-base.json"  # in a base's folder: its ``Shape``


@dataclass(frozen=True)
class Shape:
    """The part of the teacher that a base is. No layers: it is a model of its own. No tokens: it has the whole vocabulary."""

    layers: tuple[int, ...] | None
    tokens: tuple[int, ...] | None


@dataclass(frozen=True)
class Base:
    """A base in memory. While it is healed, ``shape.layers`` are layers of the teacher that heals it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: Shape


def choose_tokens(teacher: Teacher, texts: Iterable[str], size: SizeSpec) -> tuple[int, ...] | None:
    """``choose_tokens(teacher, texts, size)``: the token ids to keep, or None for the whole vocabulary."""
    tokenizer: Any = teacher.tokenizer
    if size.vocabulary is None or size.vocabulary >= len(tokenizer):
        return None
    return tuple(kept_tokens(tokenizer, texts, size.vocabulary))


def trim_teacher(teacher: Teacher, tokens: Sequence[int] | None) -> Teacher:
    """``trim_teacher(teacher, shape.tokens)``: a teacher with the student's vocabulary; the given one is unchanged."""
    if tokens is None:
        return teacher
    kept, config = list(tokens), copy.deepcopy(teacher.config)
    config.get_text_config().vocab_size = len(kept)

    def load_model() -> PreTrainedModel:
        whole = teacher.load_model()
        shared: dict[int, Any] = {
            id(weight): weight for weight in whole.parameters()
        }  # shared, because trimming replaces only embedding and head
        model = copy.deepcopy(whole, shared)
        trim_embeddings(model, kept)
        return model

    tokenizer = trim_tokenizer(_fast(teacher.tokenizer), kept)
    return replace(teacher, load_model=load_model, tokenizer=tokenizer, config=config)


def assistant_teacher(version: Version, base: Base, device: torch.device) -> Teacher:
    """``assistant_teacher(version, base, device)``: a published base as the teacher of a smaller one."""
    revision = str(version.manifest.manifest_sha256)
    config = base.model.config
    return Teacher(
        lambda: load_causal_model(version.folder, base.tokenizer, device),
        base.tokenizer,
        revision,
        config,
        device,
    )


def layers_of_teacher(pruned: Base, assistant: Base) -> tuple[int, ...] | None:
    """``layers_of_teacher(pruned, assistant)``: the original teacher's layers in a base that was cut from an assistant."""
    if pruned.shape.layers is None or assistant.shape.layers is None:
        return None
    return tuple(assistant.shape.layers[layer] for layer in pruned.shape.layers)


def load_external_base(folder: Path, teacher: Teacher) -> Base:
    """``load_external_base(resolve(size.base).folder, teacher)``: another causal model as base.

    Raises: TrainingError if its vocabulary is not the teacher's.
    """
    tokenizer = load_tokenizer(folder)
    model: Any = load_causal_model(folder, tokenizer, teacher.device, torch.float32)
    check_vocabularies(tokenizer, teacher.tokenizer)
    tokenizer.chat_template = teacher.tokenizer.chat_template
    model.generation_config.eos_token_id = stop_tokens(tokenizer)
    check_head(model)
    return Base(model, tokenizer, Shape(None, None))


def check_vocabularies(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """``check_vocabularies(student, teacher)``: raises TrainingError unless every token has the same id in both."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        differing = len(set(ours.items()) ^ set(theirs.items()))
        raise TrainingError(
            f"student and teacher have different vocabularies ({len(ours)} and {len(theirs)} tokens, {differing} entries "
            "differ), so their distributions cannot be compared; use a base of the teacher's family, or `layers`, or put the "
            "teacher behind an API (Ollama, llama-server), where the two may differ"
        )


def save_base(base: Base, folder: Path) -> None:
    """``save_base(base, folder)``: a plain transformers folder in bfloat16, with the shape beside it."""
    half: Any = copy.deepcopy(base.model)
    half.to(torch.bfloat16).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    shape = {"layers": base.shape.layers, "tokens": base.shape.tokens}
    (folder / SHAPE).write_text(json.dumps(shape), encoding="utf-8")


def load_base(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Base:
    """``load_base(version.folder, device)``: a published base, in evaluation mode."""
    tokenizer = load_tokenizer(folder)
    return Base(load_causal_model(folder, tokenizer, device, dtype), tokenizer, load_shape(folder))


def load_shape(folder: Path) -> Shape:
    """``load_shape(version.folder).tokens``: what a published base is of its teacher, without loading it."""
    shape = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    layers, tokens = shape["layers"], shape["tokens"]
    return Shape(tuple(layers) if layers is not None else None, tuple(tokens) if tokens is not None else None)


def attach_adapter(base: Base, config: DistillConfig) -> PeftModel:
    """``attach_adapter(base, config)``: LoRA on every linear layer except the head, with float32 weights."""
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base.model, lora)
    if not isinstance(model, PeftModel):
        raise TrainingError(f"peft made no adapter for {type(base.model).__name__}")
    own: Any = model.peft_config["default"]
    own.target_modules = sorted(own.target_modules)  # a set, which each process would write in another order
    return model


def load_student(base: Base, adapter: Path) -> PeftModel:
    """``load_student(base, version.folder)``: the base with the adapter, in evaluation mode.

    Raises: ModelResolutionError for an adapter that does not fit.
    """
    return load_adapter(base.model, adapter)


@torch.no_grad()
def trimming_cost(
    teacher: Teacher, trimmed: Teacher, tokens: Sequence[int] | None, batches: Sequence[Batch]
) -> dict[str, float]:
    """``trimming_cost(teacher, trimmed, tokens, batches)``: the mass of the kept tokens, and KL(trimmed ‖ full) in nats.

    ``batches`` use the trimmed vocabulary. The trimmed teacher is the full one renormalised over the kept tokens, so at
    each position KL(trimmed ‖ full) = -log(kept mass); both are averaged over positions.
    """
    if tokens is None:
        return {
            "kept_mass": 1.0,
            "kl_to_full_teacher": 0.0,
            "positions": float(sum(int(b.predicts.sum()) for b in batches)),
        }
    index = torch.tensor(list(tokens), device=teacher.device)
    mass, kl, count = 0.0, 0.0, 0
    for batch in batches:
        full = replace(batch, input_ids=index[batch.input_ids])
        states = hidden_states(teacher.model, full).final[batch.predicts]
        log_kept = logits(teacher.model, states).float().log_softmax(-1)[:, index].logsumexp(-1)  # (N,)
        mass, kl, count = mass + log_kept.exp().sum().item(), kl - log_kept.sum().item(), count + len(log_kept)
    return {"kept_mass": mass / count, "kl_to_full_teacher": kl / count, "positions": float(count)}


def _fast(tokenizer: PreTrainedTokenizerBase) -> Any:
    if not getattr(tokenizer, "is_fast", False):
        raise TrainingError(
            f"trimming a vocabulary needs a fast tokenizer, not {type(tokenizer).__name__}; leave `vocabulary` out"
        )
    return tokenizer


def count_parameters(model: torch.nn.Module) -> int:
    """``count_parameters(base.model)``: a tied head counts once, as ``parameters()`` does."""
    return sum(parameter.numel() for parameter in model.parameters())
