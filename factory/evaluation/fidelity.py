"""How closely students follow their teacher on held-out text: one teacher pass for any number of candidates.

sums = measure(teacher, {"student": with_adapter(model, "default"), "base": base_only(model)}, examples)
summarize(sums["student"], None, bootstrap)["kl"].value  # nats/token
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factory.evaluation.samples import answer_samples
from factory.evaluation.speed import compare_speed
from factory.evaluation.stats import BootstrapConfig, ExampleSums, concatenate, paired_difference, ratio, summarize
from factory.models.chat import split_prefix
from factory.models.forward import Batch, hidden_states, logits, make_batch, mean_pool
from factory.models.scoring import length_batches
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample
from factory.registry.manifest import MetricValue, PerExample, Sample, Speeds

BATCH = 16
TOP = 5  # tokens of either model that are compared

# ---------------------------------------------------------------------------------------------------------- candidates

Candidate = Callable[[], AbstractContextManager[Any]]  # the model to measure, with its adapters set for as long as it is open


def with_adapter(adapter: Any, name: str) -> Candidate:
    """``with with_adapter(model, "sft")() as sft``: a peft model with this adapter active; "default" is active afterwards."""

    @contextmanager
    def opened() -> Iterator[Any]:
        adapter.set_adapter(name)
        try:
            yield adapter
        finally:
            adapter.set_adapter("default")

    return opened


def base_only(adapter: Any) -> Candidate:
    """``with base_only(model)() as base``: a peft model with its adapters disabled."""

    @contextmanager
    def opened() -> Iterator[Any]:
        with adapter.disable_adapter():
            yield adapter

    return opened


def fixed_model(model: Any) -> Candidate:
    """``with fixed_model(model)() as same``: a model that needs no adapter set."""
    return lambda: nullcontext(model)


def teacher_model(teacher: Teacher) -> Candidate:
    """``with teacher_model(teacher)() as model``: the teacher as a candidate, which sees no context."""
    return lambda: nullcontext(teacher.model)


# ------------------------------------------------------------------------------------------------------------- measure


@torch.inference_mode()
def measure(
    teacher: Teacher,
    candidates: Mapping[str, Candidate],
    examples: Sequence[TokenizedExample],
    progress: Callable[[int], None] | None = None,
) -> dict[str, ExampleSums]:
    """``measure(teacher, {"student": student, "base": base}, examples)["student"].kl``: sums of every candidate, by example.

    The teacher sees its context, candidates do not. Both predict the same completion tokens over the student's vocabulary.
    ``progress`` is told of every batch of examples.
    """
    batches = length_batches([len(one.prompt) + len(one.completion) for one in examples], BATCH)
    parts: dict[str, list[ExampleSums]] = {name: [] for name in candidates}
    for batch in batches:
        chosen = [examples[i] for i in batch]
        for name, sums in _measure_batch(teacher, candidates, chosen).items():
            parts[name].append(sums)
        if progress is not None:
            progress(len(chosen))
    inverse = np.argsort([i for batch in batches for i in batch])
    return {name: concatenate(sums).select(inverse) for name, sums in parts.items()}


def _measure_batch(
    teacher: Teacher, candidates: Mapping[str, Candidate], examples: Sequence[TokenizedExample]
) -> dict[str, ExampleSums]:
    device, completions = teacher.device, [example.completion for example in examples]
    target = torch.tensor([token for completion in completions for token in completion], device=device)  # (N,)
    prefix, rest = split_prefix([example.teacher_prompt for example in examples])
    seen = make_batch(rest, completions).to(device)
    reference = _log_probs(teacher.model, hidden_states(teacher.model, seen, prefix).final, seen)
    batch = make_batch([example.prompt for example in examples], completions).to(device)
    found = {}
    for name, candidate in candidates.items():
        with candidate() as model, torch.autocast(device.type, dtype=torch.bfloat16):
            states = hidden_states(model, batch).final  # (B, T, H)
            own = _log_probs(model, states, batch)
        embeddings = mean_pool(states, batch.real).cpu().numpy()
        found[name] = _example_sums(reference, own, target, [len(completion) for completion in completions], embeddings)
    return found


def _log_probs(model: Any, states: Tensor, batch: Batch) -> Tensor:
    """(B, T, H) → (N, V) float32, at the positions that predict a completion token."""
    return logits(model, states[batch.predicts]).float().log_softmax(dim=-1)


def _example_sums(teacher: Tensor, student: Tensor, target: Tensor, lengths: list[int], embeddings: np.ndarray) -> ExampleSums:
    """Log-probabilities (N, V) of both and the completion tokens (N,) → sums over each of the B examples' tokens."""
    teacher_top, student_top = (log_probs.topk(TOP, dim=-1).indices for log_probs in (teacher, student))  # (N, TOP)
    columns = {
        "kl": (teacher.exp() * (teacher - student)).sum(dim=-1),
        "agree": teacher_top[:, 0] == student_top[:, 0],
        "top5": (teacher_top.unsqueeze(-1) == student_top.unsqueeze(-2)).any(dim=-1).float().mean(dim=-1),
        "correct": student_top[:, 0] == target,
        "teacher_correct": teacher_top[:, 0] == target,
        "nll": -student.gather(-1, target.unsqueeze(-1))[:, 0],
        "teacher_nll": -teacher.gather(-1, target.unsqueeze(-1))[:, 0],
        "entropy": -(student.exp() * student).sum(dim=-1),
        "teacher_entropy": -(teacher.exp() * teacher).sum(dim=-1),
    }  # (N,) each
    sums = {name: np.array([float(part.double().sum()) for part in column.split(lengths)]) for name, column in columns.items()}
    return ExampleSums(tokens=np.array(lengths, dtype=float), embeddings=embeddings, **sums)


# -------------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class HeldOut:
    """Text that no student was trained on."""

    prompts: Sequence[str]  # of the domain's examples, before the chat template
    domain: Sequence[TokenizedExample]  # of the domain's test split
    embeddings: np.ndarray  # (E, D) of the domain's examples, by the family's encoder
    general: Sequence[TokenizedExample]  # general prompts with the teacher's answers
    others: Sequence[TokenizedExample] = ()  # of the family's other domains


@dataclass(frozen=True)
class Fidelity:
    """How closely a student follows its teacher; the parts are the manifest's."""

    metrics: dict[str, MetricValue]
    baselines: dict[str, dict[str, MetricValue]]  # "base" and "sft" → their metrics on the domain's examples
    speed: Speeds
    samples: tuple[Sample, ...]
    per_example: PerExample  # of the student on the domain's examples


def measure_fidelity(
    adapter: Any,
    teacher: Teacher,
    held_out: HeldOut,
    bootstrap: BootstrapConfig,
    progress: Callable[[int], None] | None = None,
) -> Fidelity:
    """``measure_fidelity(adapter, teacher, held_out, bootstrap).metrics["kl"].value``

    ``adapter`` is a peft model: "default" is the student; its other adapters ("sft") and its base are baselines.
    ``teacher`` is trimmed to the student's vocabulary. ``progress`` counts examples of ``held_out``.
    """
    baselines = {name: with_adapter(adapter, name) for name in sorted(adapter.peft_config) if name != "default"}
    student_and_base = {"default": with_adapter(adapter, "default"), "base": base_only(adapter)}
    domain = measure(teacher, student_and_base | baselines, held_out.domain, progress)
    general = measure(teacher, student_and_base, held_out.general, progress)
    outside = [general, *([measure(teacher, student_and_base, held_out.others, progress)] if held_out.others else [])]
    by_candidate = {name: summarize(sums, held_out.embeddings, bootstrap) for name, sums in domain.items()}
    metrics = dict(by_candidate["default"])
    metrics |= {f"base_{name}": by_candidate["base"][name] for name in ("kl", "top1_agreement", "relation_alignment")}
    metrics |= general_metrics(general["default"], general["base"], bootstrap)
    student, base = (concatenate([sums[name] for sums in outside]) for name in ("default", "base"))
    metrics["outside_kl_change"] = paired_difference(student.kl, base.kl, student.tokens, bootstrap)
    metrics["outside_accuracy_change"] = paired_difference(student.correct, base.correct, student.tokens, bootstrap)
    if "sft" in domain:
        metrics["kl_below_sft"] = paired_difference(domain["sft"].kl, domain["default"].kl, domain["sft"].tokens, bootstrap)
    return Fidelity(
        metrics,
        {name: summary for name, summary in by_candidate.items() if name != "default"},
        compare_speed(adapter, teacher, [example.prompt for example in held_out.domain]),
        answer_samples(adapter, teacher, held_out.prompts, held_out.domain),
        per_example(domain["default"], held_out.domain),
    )


def general_metrics(student: ExampleSums, base: ExampleSums, bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``general_metrics(student, base, bootstrap)["general_retained"]``: on general text, and what is left of the base's."""
    metrics: dict[str, MetricValue] = {}
    for prefix, sums in (("general", student), ("base_general", base)):
        summary = summarize(sums, None, bootstrap)
        metrics |= {f"{prefix}_{name}": summary[name] for name in ("kl", "top1_agreement")}
    return metrics | {"general_retained": ratio(student.agree, base.agree, bootstrap)}


def per_example(sums: ExampleSums, examples: Sequence[TokenizedExample]) -> PerExample:
    """``per_example(sums, held_out.domain).kl``: as the manifest holds them, so that versions can be compared in pairs.

    Versions with one ``key`` were measured on the same examples.
    """
    ids = [[example.prompt, example.teacher_prompt, example.completion] for example in examples]
    columns = {
        name: tuple(round(float(value), 6) for value in getattr(sums, name))
        for name in PerExample.model_fields
        if name != "key"
    }
    return PerExample(key=hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16], **columns)
