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

from factory.evaluation.speed import compare_speed
from factory.evaluation.stats import BootstrapConfig, ExampleSums, by_cluster, concatenate, paired_difference, ratio, summarize
from factory.models.chat import split_prefix
from factory.models.device import mixed_precision
from factory.models.forward import hidden_states, make_batch, mean_pool, output_head, positions_at_once
from factory.models.scoring import teacher_batches
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample
from factory.registry.manifest import MetricValue, PerExample, Speeds

BATCH = 16
TOP = 5  # tokens of either model that are compared
SURE = 0.5  # probability of the teacher's top-1 token from which it is sure

Head = Callable[[Tensor], Tensor]  # states (N, H) → logits (N, V)

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
    whole: Teacher | None = None,
) -> dict[str, ExampleSums]:
    """``measure(teacher, {"student": student, "base": base}, examples)["student"].kl``: sums of every candidate, by example.

    The teacher sees its context, candidates do not. Both predict the same completion tokens over the student's vocabulary, with
    heads in float32: bfloat16 logits tie at 4 % of positions. ``whole`` is the teacher before its vocabulary was trimmed;
    without it, ``trimmed`` is 0. ``progress`` is told of every batch of examples.
    """
    batches = teacher_batches(examples, BATCH)
    parts: dict[str, list[ExampleSums]] = {name: [] for name in candidates}
    heads = _make_heads(teacher, candidates, whole)
    for batch in batches:
        chosen = [examples[i] for i in batch]
        for name, sums in _measure_batch(teacher, candidates, chosen, heads).items():
            parts[name].append(sums)
        if progress is not None:
            progress(len(chosen))
    inverse = np.argsort([i for batch in batches for i in batch])
    return {name: concatenate(sums).select(inverse) for name, sums in parts.items()}


@dataclass(frozen=True)
class _Heads:
    """Output heads in float32, cast once for all batches; no adapter changes a head."""

    teacher: Head
    whole: Head | None  # of the teacher before its vocabulary was trimmed, which differs in its rows alone
    candidates: dict[str, Head]
    positions: int  # for which logits may exist at once


def _make_heads(teacher: Teacher, candidates: Mapping[str, Candidate], whole: Teacher | None) -> _Heads:
    own, vocabulary = output_head(teacher.model, torch.float32)
    of_whole, largest = (None, vocabulary) if whole is None else output_head(whole.model, torch.float32)
    found = {}
    for name, candidate in candidates.items():
        with candidate() as model:
            found[name], _ = output_head(model, torch.float32)
    return _Heads(own, of_whole, found, positions_at_once(largest))


def _measure_batch(
    teacher: Teacher, candidates: Mapping[str, Candidate], examples: Sequence[TokenizedExample], heads: _Heads
) -> dict[str, ExampleSums]:
    device, completions = teacher.device, [example.completion for example in examples]
    target = torch.tensor([token for completion in completions for token in completion], device=device)  # (N,)
    prefix, rest = split_prefix([example.teacher_prompt for example in examples])
    seen = make_batch(rest, completions).to(device)
    reference = hidden_states(teacher.model, seen, prefix).final[seen.predicts]  # (N, H)
    batch = make_batch([example.prompt for example in examples], completions).to(device)
    states = {}
    for name, candidate in candidates.items():
        with candidate() as model, mixed_precision(device):
            states[name] = hidden_states(model, batch).final  # (B, T, H)
    columns: dict[str, list[dict[str, Tensor]]] = {name: [] for name in candidates}
    own = {name: final[batch.predicts] for name, final in states.items()}  # (N, H)
    for start in range(0, len(target), heads.positions):
        span = slice(start, start + heads.positions)
        log_probs, shared = _teacher_columns(reference[span], target[span], heads)
        for name, head in heads.candidates.items():
            student = head(own[name][span]).log_softmax(dim=-1)
            columns[name].append(shared | _student_columns(log_probs, student, target[span], shared["sure"]))
    lengths = [len(completion) for completion in completions]
    return {
        name: _example_sums(
            {key: torch.cat([part[key] for part in parts]) for key in parts[0]},
            lengths,
            mean_pool(states[name], batch.real).cpu().numpy(),
        )
        for name, parts in columns.items()
    }


def _teacher_columns(reference: Tensor, target: Tensor, heads: _Heads) -> tuple[Tensor, dict[str, Tensor]]:
    """Final states (N, H) and the completion tokens (N,) → log-probabilities (N, V), and what is summed, (N,) each."""
    scores = heads.teacher(reference)  # (N, V)
    log_probs = scores.log_softmax(dim=-1)
    sure = log_probs.amax(dim=-1).exp() >= SURE
    return log_probs, {
        "sure": sure,
        "trimmed": torch.zeros_like(sure)
        if heads.whole is None
        else heads.whole(reference).logsumexp(dim=-1) - scores.logsumexp(dim=-1),
        "teacher_correct": log_probs.argmax(dim=-1) == target,
        "teacher_nll": -log_probs.gather(-1, target.unsqueeze(-1))[:, 0],
        "teacher_entropy": -(log_probs.exp() * log_probs).sum(dim=-1),
    }


def _student_columns(teacher: Tensor, student: Tensor, target: Tensor, sure: Tensor) -> dict[str, Tensor]:
    """Log-probabilities (N, V) of both and the completion tokens (N,) → what is summed, (N,) each."""
    teacher_top, student_top = (log_probs.topk(TOP, dim=-1).indices for log_probs in (teacher, student))  # (N, TOP)
    agree = teacher_top[:, 0] == student_top[:, 0]
    return {
        "kl": (teacher.exp() * (teacher - student)).sum(dim=-1),
        "agree": agree,
        "sure_agree": sure & agree,
        "top5": (teacher_top.unsqueeze(-1) == student_top.unsqueeze(-2)).any(dim=-1).float().mean(dim=-1),
        "correct": student_top[:, 0] == target,
        "nll": -student.gather(-1, target.unsqueeze(-1))[:, 0],
        "entropy": -(student.exp() * student).sum(dim=-1),
    }


def _example_sums(columns: Mapping[str, Tensor], lengths: list[int], embeddings: np.ndarray) -> ExampleSums:
    """Columns (N,) over the completion tokens of B examples → their sums by example."""
    sums = {name: np.array([float(part.double().sum()) for part in column.split(lengths)]) for name, column in columns.items()}
    return ExampleSums(tokens=np.array(lengths, dtype=float), embeddings=embeddings, **sums)


# -------------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class HeldOut:
    """Text that no student was trained on."""

    domain: Sequence[TokenizedExample]  # of the domain's test split
    clusters: Sequence[str]  # of the domain's examples
    embeddings: np.ndarray  # (E, D) of the domain's examples, by the family's encoder
    general: Sequence[TokenizedExample]  # general prompts with the teacher's answers
    general_clusters: Sequence[str]
    others: Sequence[TokenizedExample] = ()  # of the family's other domains
    other_clusters: Sequence[str] = ()
    later_turn: Sequence[bool] = ()  # whether each of the domain's examples is a later turn of a chat


@dataclass(frozen=True)
class Fidelity:
    """How closely a student follows its teacher; the parts are the manifest's."""

    metrics: dict[str, MetricValue]
    baselines: dict[str, dict[str, MetricValue]]  # "base" and "sft" → their metrics on the domain's examples
    speed: Speeds
    per_example: PerExample  # of the student on the domain's examples


def measure_fidelity(
    adapter: Any,
    teacher: Teacher,
    held_out: HeldOut,
    bootstrap: BootstrapConfig,
    progress: Callable[[int], None] | None = None,
    whole: Teacher | None = None,
) -> Fidelity:
    """``measure_fidelity(adapter, teacher, held_out, bootstrap).metrics["kl"].value``

    ``adapter`` is a peft model: "default" is the student; its other adapters ("sft") and its base are baselines.
    ``teacher`` is trimmed to the student's vocabulary, ``whole`` is not. ``progress`` counts examples of ``held_out``.
    """
    baselines = {name: with_adapter(adapter, name) for name in sorted(adapter.peft_config) if name != "default"}
    student_and_base = {"default": with_adapter(adapter, "default"), "base": base_only(adapter)}
    domain = measure(teacher, student_and_base | baselines, held_out.domain, progress, whole)
    texts = [(held_out.general, held_out.general_clusters), (held_out.others, held_out.other_clusters)]
    outside = [
        {name: sums.by_cluster(labels) for name, sums in measure(teacher, student_and_base, examples, progress).items()}
        for examples, labels in texts
        if examples
    ]
    by_candidate = {name: summarize(sums, held_out.embeddings, bootstrap, held_out.clusters) for name, sums in domain.items()}
    rows = {name: sums.by_cluster(held_out.clusters) for name, sums in domain.items()}
    metrics = dict(by_candidate["default"])
    names = ("kl", "top1_agreement", "sure_agreement", "relation_alignment")
    metrics |= {f"base_{name}": by_candidate["base"][name] for name in names}
    metrics |= turn_metrics(domain["default"], held_out, bootstrap)
    metrics["kl_below_base"] = paired_difference(rows["base"].kl, rows["default"].kl, rows["base"].tokens, bootstrap)
    if held_out.general:
        metrics |= general_metrics(outside[0]["default"], outside[0]["base"], bootstrap)
    if outside:
        student, base = (concatenate([sums[name] for sums in outside]) for name in ("default", "base"))
        metrics["outside_kl_change"] = paired_difference(student.kl, base.kl, student.tokens, bootstrap)
        metrics["outside_accuracy_change"] = paired_difference(student.correct, base.correct, student.tokens, bootstrap)
    if "sft" in rows:
        metrics["kl_below_sft"] = paired_difference(rows["sft"].kl, rows["default"].kl, rows["sft"].tokens, bootstrap)
    return Fidelity(
        metrics,
        {name: summary for name, summary in by_candidate.items() if name != "default"},
        compare_speed(adapter, teacher, [example.prompt for example in held_out.domain]),
        per_example(domain["default"], held_out.domain, held_out.clusters),
    )


def turn_metrics(student: ExampleSums, held_out: HeldOut, bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``turn_metrics(sums, held_out, bootstrap)["kl_later_turns"]``: of chats' first and later turns; nothing without chats."""
    if not any(held_out.later_turn):
        return {}
    found = {}
    for name, later in (("kl_first_turns", False), ("kl_later_turns", True)):
        chosen = [number for number, one in enumerate(held_out.later_turn) if one == later]
        labels = [held_out.clusters[number] for number in chosen]
        found[name] = ratio(by_cluster(student.kl[chosen], labels), by_cluster(student.tokens[chosen], labels), bootstrap)
    return found


def general_metrics(student: ExampleSums, base: ExampleSums, bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``general_metrics(student, base, bootstrap)["general_retained"]``: on general text, and what is left of the base's."""
    metrics: dict[str, MetricValue] = {}
    for prefix, sums in (("general", student), ("base_general", base)):
        summary = summarize(sums, None, bootstrap)
        metrics |= {f"{prefix}_{name}": summary[name] for name in ("kl", "top1_agreement")}
    return metrics | {"general_retained": ratio(student.agree, base.agree, bootstrap)}


def per_example(sums: ExampleSums, examples: Sequence[TokenizedExample], clusters: Sequence[str]) -> PerExample:
    """``per_example(sums, held_out.domain, held_out.clusters).kl``: as the manifest holds them.

    Versions with one ``key`` were measured on the same examples.
    """
    ids = [[example.prompt, example.teacher_prompt, example.completion] for example in examples]
    columns = {
        name: tuple(round(float(value), 6) for value in getattr(sums, name))
        for name in PerExample.model_fields
        if name not in ("key", "cluster")
    }
    key = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
    return PerExample(key=key, cluster=tuple(short_labels(clusters)), **columns)


def short_labels(clusters: Sequence[str]) -> list[str]:
    """``short_labels(["What is {illness}?", "Who?"])``: a digest of each, so that a private domain's text stays private."""
    return [hashlib.sha256(one.encode()).hexdigest()[:8] for one in clusters]
