"""Measures students beside their teacher on held-out text: one teacher pass for any number of candidates."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factory.config.schema import DataConfig, EvaluateConfig
from factory.distill.soft_targets import TokenizedExample
from factory.evaluation.stats import BootstrapConfig, ExampleSums, concatenate, paired_difference, ratio, summarize
from factory.models.chat import stop_tokens
from factory.models.forward import Batch, hidden_states, logits, make_batch, mean_pool
from factory.models.generation import sample
from factory.models.lora import merged_adapters
from factory.models.teacher import Teacher, split_prefix
from factory.registry.manifest import MetricValue

Candidate = Callable[[], AbstractContextManager[Any]]  # gives a model while it is measured: an adapter with_adapter on, or off
BATCH = 16
SAMPLES = 3  # answers of teacher and student side by side


@torch.inference_mode()
def measure(
    teacher: Teacher,
    candidates: Mapping[str, Candidate],
    sequences: Sequence[TokenizedExample],
    progress: Callable[[int], None] | None = None,
) -> dict[str, ExampleSums]:
    """``measure(teacher, {"student": on, "base": off}, sequences)["student"].kl``: per-example sums of every candidate.

    The teacher sees its context, candidates do not. Both in the student's vocabulary, at the same completion tokens.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].prompt) + len(sequences[i].completion))
    parts: dict[str, list[ExampleSums]] = {name: [] for name in candidates}
    for start in range(0, len(order), BATCH):
        chosen = [sequences[i] for i in order[start : start + BATCH]]
        lengths = [len(s.completion) for s in chosen]
        completion = torch.tensor([token for s in chosen for token in s.completion], device=teacher.device)
        prefix, rest = split_prefix([s.teacher_prompt for s in chosen])
        seen = make_batch(rest, [s.completion for s in chosen]).to(teacher.device)
        reference = _log_probs(teacher.model, hidden_states(teacher.model, seen, prefix).final, seen)
        batch = make_batch([s.prompt for s in chosen], [s.completion for s in chosen]).to(teacher.device)
        for name, candidate in candidates.items():
            with candidate() as model, torch.autocast(teacher.device.type, dtype=torch.bfloat16):
                states = hidden_states(model, batch).final
                own = _log_probs(model, states, batch)
            embeddings = mean_pool(states, batch.real).cpu().numpy()
            parts[name].append(_sums(reference, own, completion, lengths, embeddings))
        if progress is not None:
            progress(len(chosen))
    inverse = np.argsort(order)
    return {name: _reordered(concatenate(sums), inverse) for name, sums in parts.items()}


def _log_probs(model: Any, states: Tensor, batch: Batch) -> Tensor:
    """(N, V) float32 at the positions that predict."""
    return logits(model, states[batch.predicts]).float().log_softmax(dim=-1)


def _sums(teacher: Tensor, student: Tensor, completion: Tensor, lengths: Sequence[int], embeddings: np.ndarray) -> ExampleSums:
    """Log-probabilities (N, V) of both at the tokens of len(lengths) examples → sums by example."""
    both = [p.topk(5, dim=-1).indices for p in (teacher, student)]  # (N, 5)
    overlap = (both[0].unsqueeze(-1) == both[1].unsqueeze(-2)).any(dim=-1).float().mean(dim=-1)
    target = completion.unsqueeze(-1)
    columns = {
        "kl": (teacher.exp() * (teacher - student)).sum(dim=-1),
        "agree": both[0][:, 0] == both[1][:, 0],
        "top5": overlap,
        "correct": both[1][:, 0] == completion,
        "teacher_correct": both[0][:, 0] == completion,
        "nll": -student.gather(-1, target)[:, 0],
        "teacher_nll": -teacher.gather(-1, target)[:, 0],
        "entropy": -(student.exp() * student).sum(dim=-1),
        "teacher_entropy": -(teacher.exp() * teacher).sum(dim=-1),
    }
    summed = {
        name: np.array([float(part.double().sum()) for part in column.split(list(lengths))]) for name, column in columns.items()
    }
    return ExampleSums(tokens=np.array(lengths, dtype=float), embeddings=embeddings, **summed)


def _reordered(sums: ExampleSums, inverse: np.ndarray) -> ExampleSums:
    return ExampleSums(**{name: getattr(sums, name)[inverse] for name in ExampleSums.__dataclass_fields__})


def measure_speed(
    model: Any, prompts: Sequence[Sequence[int]], stop: Sequence[int], prefix: Sequence[int] = ()
) -> dict[str, float]:
    """``measure_speed(model, ids, stop)``: one stream and a batch; ``latency_ms`` is to the first token, a median of five."""
    latencies = []
    for prompt in list(prompts)[:5]:
        begun = time.perf_counter()
        sample(model, [prompt], prefix=prefix, stop=stop, max_new_tokens=1)
        latencies.append(1000 * (time.perf_counter() - begun))
    begun = time.perf_counter()
    written = sample(model, [prompts[0]], prefix=prefix, stop=(), max_new_tokens=24)
    single = sum(map(len, written)) / (time.perf_counter() - begun)
    begun = time.perf_counter()
    written = sample(model, [prompts[0]] * 16, prefix=prefix, stop=(), max_new_tokens=24)
    batched = sum(map(len, written)) / (time.perf_counter() - begun)
    return {"latency_ms": float(np.median(latencies)), "tokens_per_second": single, "batch_tokens_per_second": batched}


def generate_ids(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], prefix: Sequence[int] = (), max_new_tokens: int = 96
) -> list[list[int]]:
    """``generate_ids(model, tokenizer, ids)``: greedy answers in ids, with the penalty that keeps small models from looping."""
    return sample(
        model,
        prompts,
        prefix=prefix,
        stop=stop_tokens(tokenizer),
        max_new_tokens=max_new_tokens,
        repetition_penalty=DataConfig().repetition_penalty,
    )


def generate_text(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], prefix: Sequence[int] = (), max_new_tokens: int = 96
) -> list[str]:
    """``generate_text(model, tokenizer, ids)``: the same as text."""
    every = generate_ids(model, tokenizer, prompts, prefix, max_new_tokens)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in every]


def folder_bytes(folder: Path) -> int:
    """``folder_bytes(version.folder)``: what it takes on disk."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class HeldOut:
    """Text no student was trained on: a domain's test split and general prompts, in ids, with the encoder's view."""

    prompts: Sequence[str]  # of the domain's examples, as they were written
    domain: Sequence[TokenizedExample]
    embeddings: np.ndarray  # (E, D), of the domain's examples
    general: Sequence[TokenizedExample]
    others: Sequence[TokenizedExample] = ()  # held-out examples of the family's other domains


@dataclass(frozen=True)
class EvalReport:
    """Everything measured about one student; the manifest holds it, and every table, card and page is drawn from it."""

    metrics: dict[str, MetricValue]
    baselines: dict[str, dict[str, MetricValue]]  # candidate → metrics on the domain's held-out examples
    speed: dict[str, dict[str, float]]
    samples: list[dict[str, Any]]
    per_example: dict[str, Any]  # the student's sums, which a later comparison pairs with another's

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": {name: asdict(figure) for name, figure in self.metrics.items()},
            "baselines": {
                candidate: {name: asdict(figure) for name, figure in figures.items()}
                for candidate, figures in self.baselines.items()
            },
            "speed": self.speed,
            "samples": self.samples,
            "per_example": self.per_example,
        }


def evaluate(
    adapter: Any,
    teacher: Teacher,
    held_out: HeldOut,
    config: EvaluateConfig,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> EvalReport:
    """``evaluate(adapter, teacher, held_out, settings.evaluate, seed=0).metrics["kl"].value``

    ``adapter`` is a peft model; its further adapters (``sft``) are measured as baselines, and so is its base alone. The
    teacher is the one trimmed to the student's vocabulary. Speed is of both, one after the other, in this run.
    """
    bootstrap = BootstrapConfig(config.bootstrap, seed)
    candidates = {name: with_adapter(adapter, name) for name in ("default", *sorted(set(adapter.peft_config) - {"default"}))}
    candidates["base"] = base_only(adapter)
    sums = measure(teacher, candidates, held_out.domain, progress)
    both = {name: candidates[name] for name in ("default", "base")}
    general = measure(teacher, both, held_out.general, progress)
    others = [measure(teacher, both, held_out.others, progress)] if held_out.others else []
    figures = {name: summarize(one, held_out.embeddings, bootstrap) for name, one in sums.items()}
    metrics = dict(figures["default"])
    metrics |= {f"base_{name}": figures["base"][name] for name in ("kl", "top1_agreement", "relation_alignment")}
    for prefix, name in (("general", "default"), ("base_general", "base")):
        on_general = summarize(general[name], None, bootstrap)
        metrics |= {f"{prefix}_{metric}": on_general[metric] for metric in ("kl", "top1_agreement")}
    metrics["general_retained"] = ratio(general["default"].agree, general["base"].agree, bootstrap)
    own, base = (concatenate([part[name] for part in (general, *others)]) for name in both)
    for name in ("kl", "correct"):
        change = paired_difference(getattr(own, name), getattr(base, name), own.tokens, bootstrap)
        metrics[f"outside_{'accuracy' if name == 'correct' else name}_change"] = change
    if "sft" in sums:
        metrics["kl_below_sft"] = paired_difference(sums["sft"].kl, sums["default"].kl, sums["sft"].tokens, bootstrap)
    return EvalReport(
        metrics,
        {name: one for name, one in figures.items() if name != "default"},
        _speed(adapter, teacher, held_out),
        _samples(adapter, teacher, held_out),
        per_example(sums["default"], held_out.domain),
    )


def per_example(sums: ExampleSums, sequences: Sequence[TokenizedExample]) -> dict[str, Any]:
    """``per_example(sums, held_out.domain)``: lists, a number an example; versions of the same ``key`` saw the same ones."""
    key = hashlib.sha256(json.dumps([[s.prompt, s.teacher_prompt, s.completion] for s in sequences]).encode()).hexdigest()[:16]
    kept = ("tokens", "kl", "agree", "top5", "correct", "teacher_correct", "nll", "teacher_nll")
    return {"key": key} | {name: [round(float(value), 6) for value in getattr(sums, name)] for name in kept}


def with_adapter(adapter: Any, name: str) -> Candidate:
    """``with with_adapter(adapter, "sft")() as model``: the peft model with that adapter on, the first one afterwards."""

    @contextmanager
    def on() -> Iterator[Any]:
        adapter.set_adapter(name)
        try:
            yield adapter
        finally:
            adapter.set_adapter("default")

    return on


def base_only(adapter: Any) -> Candidate:
    """``with base_only(adapter)() as model``: the same model as its base alone."""

    @contextmanager
    def off() -> Iterator[Any]:
        with adapter.disable_adapter():
            yield adapter

    return off


def fixed_model(model: Any) -> Candidate:
    """``with fixed_model(base.model)() as model``: a model that nothing is with_adapter on or off in."""
    return lambda: nullcontext(model)


def teacher_model(teacher: Teacher) -> Candidate:
    """``with teacher_model(teacher)() as model``: the teacher, without any context, where a candidate is asked for."""
    return lambda: nullcontext(teacher.model)


def _speed(adapter: Any, teacher: Teacher, held_out: HeldOut) -> dict[str, dict[str, float]]:
    stop = stop_tokens(teacher.tokenizer)
    prompts = [s.prompt for s in held_out.domain[:5]]
    with merged_adapters(adapter):  # as an application that serves one student has it
        student = measure_speed(adapter, prompts, stop)
    return {"teacher": measure_speed(teacher.model, prompts, stop), "student": student}


def _samples(adapter: Any, teacher: Teacher, held_out: HeldOut) -> list[dict[str, Any]]:
    """Answers of both to the first prompts; of each token of one, whether the other would have gone on with it too."""
    sequences, tokenizer = held_out.domain[:SAMPLES], teacher.tokenizer
    own_prompts, full = [s.prompt for s in sequences], [s.teacher_prompt for s in sequences]
    prefix, rest = split_prefix(full)
    own = generate_ids(adapter, tokenizer, own_prompts)
    theirs = generate_ids(teacher.model, tokenizer, rest, prefix)
    agrees = {"student": agreement(teacher.model, full, own), "teacher": agreement(adapter, own_prompts, theirs)}
    return [
        {"prompt": prompt}
        | {
            who: str(tokenizer.decode(ids[i], skip_special_tokens=True)).strip()
            for who, ids in (("teacher", theirs), ("student", own))
        }
        | {
            f"{who}_tokens": [
                [str(tokenizer.decode([token])), same]
                for token, same in zip(ids[i], agrees[who][i], strict=True)
                if token not in stop_tokens(tokenizer)
            ]
            for who, ids in (("teacher", theirs), ("student", own))
        }
        for i, prompt in enumerate(held_out.prompts[:SAMPLES])
    ]


@torch.inference_mode()
def agreement(model: Any, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> list[list[bool]]:
    """``agreement(teacher.model, prompts, ids_of_the_student)``: at each token, whether it is this model's most likely one."""
    batch = make_batch(prompts, written).to(next(model.parameters()).device)
    with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16):
        top = logits(model, hidden_states(model, batch).final[batch.predicts]).argmax(dim=-1).tolist()
    found = []
    for ids in written:
        found.append([token == likely for token, likely in zip(ids, top, strict=False)])
        del top[: len(ids)]
    return found
