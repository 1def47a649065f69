"""Is a student worth having? Whatever else one could use, on the same real questions, one model after the other.

report = run_benchmark(context, version, Path("questions.jsonl"), BenchmarkConfig(quantizations=("q8_0",)))
report.rows[0].bits_per_byte, report.notes

The rivals are the student's base, its SFT baseline where that was published, its teacher, the teacher with its context in a
reused prefix cache, a download of the student's size, and that download fine-tuned on the domain's references: each as it
is, and in every quantization that can be written.
"""

from __future__ import annotations

import gc
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from factory.config.schema import DistillConfig, DomainSpec, FamilySpec, TeacherContext, TeacherSpec
from factory.data.history import history_of
from factory.data.splitting import cluster_of
from factory.errors import DataError, ExportError, RegistryError, UsageError
from factory.evaluation.answers import generate_answers
from factory.evaluation.benchmark import (
    LONGEST,
    WHOLE,
    Measurement,
    Question,
    Questions,
    Row,
    benchmark_rows,
    bits_per_byte,
    load_questions,
    question_clusters,
    reference_bytes,
    seen_in,
)
from factory.evaluation.fidelity import fixed_model
from factory.evaluation.golden_set import Question as GoldenQuestion
from factory.evaluation.golden_set import asked_questions, golden_set_report, load_golden_set
from factory.evaluation.lm_eval import run_tasks, task_metrics
from factory.evaluation.stats import by_cluster
from factory.evaluation.teacher_check import MIN_REFERENCES
from factory.export.gguf import load_gguf_weights, write_base_gguf
from factory.export.parity import SPEED_TOKENS, tokens_per_second
from factory.inference import matching_family
from factory.models.base import count_parameters
from factory.models.chat import NO_CONTEXT, prompt_ids, split_prefix
from factory.models.device import compute_dtype
from factory.models.generation import sample
from factory.models.kv_cache import prefix_cache
from factory.models.lora import merged_adapters
from factory.models.references import ResolvedModel
from factory.pipeline.context import BuildContext
from factory.pipeline.dataset import published_rows
from factory.pipeline.fine_tuning import FineTuning, fine_tune
from factory.pipeline.rivals import Rival, downloads, model_files, students, teachers
from factory.registry.manifest import MetricValue, StudentManifest
from factory.registry.versions import Version

EXACT = "golden set, exact"  # the column
TIMED_PROMPTS = 4  # questions that take turns: no more of one than the shared prefix is in a cache


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to compare a student with."""

    limit: int = 200  # questions
    quantizations: Sequence[str] = ()  # of factory.export.gguf, for every model
    download: TeacherSpec | None = None  # the family's teacher, if left out
    references: Path | None = None  # to fine-tune the download on; the training rows with their own answers, if left out
    minutes: float | None = None  # of fine-tuning, for each learning rate; as long as the student's distillation, if left out
    others: Sequence[FamilySpec] = ()  # families whose teachers are measured too


@dataclass(frozen=True)
class BenchmarkReport:
    """The table, what it was measured on, and lines on what was left out or could not be measured."""

    student: str
    download: str  # its reference
    questions: Questions
    clusters: int
    fine_tuning: FineTuning | None
    rows: list[Row]
    notes: tuple[str, ...]


def run_benchmark(context: BuildContext, version: Version, questions: Path, config: BenchmarkConfig) -> BenchmarkReport:
    """``run_benchmark(context, version, Path("questions.jsonl"), BenchmarkConfig()).rows``: a row for every model and format.

    No question is asked that the student or the fine-tuned download was trained on.
    Raises: RegistryError for a base; DataError where no question is left, or the student's training rows are not on disk.
    """
    manifest = _student(version)
    matching_family(version, context.specs)
    learnt, references = _training_questions(manifest, config.references)
    asked = load_questions(questions, context.say).without([*learnt, *references]).sample(config.limit, context.seed)
    if not asked.rows:
        raise DataError(f"no question of {questions} is left: {asked.seen} are in training rows; ask others")
    download = config.download or context.family.weights
    files = model_files(context, download)
    tuned = _fine_tune(context, manifest, files, references, config.minutes)
    domain = context.specs.domain(manifest.domain)
    rivals = [
        *students(context, version),
        *teachers(context, domain, config.others),
        *downloads(context, files, tuned),
    ]
    conditions = _Conditions(
        context,
        domain,
        questions=asked.rows,
        clusters=question_clusters(asked.rows),
        exact=_exact_questions(context, domain, [*learnt, *references]),
        max_new_tokens=manifest.max_completion_tokens,
        quantizations=config.quantizations,
    )
    found, problems = _measure_all(conditions, rivals)
    clusters = len(set(conditions.clusters))
    return BenchmarkReport(
        student=version.reference,
        download=download.model,
        questions=asked,
        clusters=clusters,
        fine_tuning=tuned,
        rows=benchmark_rows(found, by_cluster(reference_bytes(asked.rows), conditions.clusters), context.bootstrap),
        notes=(
            _describe_questions(asked, clusters, len(conditions.exact)),
            _describe_fine_tuning(download, tuned, len(references)),
            *problems,
        ),
    )


def _student(version: Version) -> StudentManifest:
    if version.manifest.kind != "student":
        raise RegistryError(f"{version.reference} is a base; a benchmark needs a student")
    return version.manifest


def _training_questions(manifest: StudentManifest, file: Path | None) -> tuple[list[Question], list[Question]]:
    """The student's training rows, and the references: those of ``file``, else the rows that came with their own answer."""
    rows = published_rows(manifest)["train"]
    learnt = [Question(row["prompt"], row["completion"], cluster_of(row), history_of(row)) for row in rows]
    if file is not None:
        return learnt, list(load_questions(file).rows)
    return learnt, [question for question, row in zip(learnt, rows, strict=True) if row["own_completion"]]


def _exact_questions(context: BuildContext, domain: DomainSpec, training: Sequence[Question]) -> list[GoldenQuestion]:
    """Those of the golden set's test split that have an exact answer and are not in training rows."""
    every = asked_questions(load_golden_set(domain.golden_set, context.specs.root), None) if domain.golden_set else []
    exact = [question for question in every if question.exact]
    seen = seen_in([Question(one.prompt, one.reference) for one in exact], training)
    return [one for number, one in enumerate(exact) if number not in seen]


def _fine_tune(
    context: BuildContext,
    manifest: StudentManifest,
    files: ResolvedModel,
    references: Sequence[Question],
    minutes: float | None,
) -> FineTuning | None:
    """None where there are too few references."""
    if len(references) < MIN_REFERENCES:
        return None
    seconds = manifest.seconds.get("distill", 0.0) if minutes is None else 60 * minutes
    if seconds == 0:
        raise UsageError(f"the manifest of {manifest.name} does not say how long it was distilled; pass --minutes")
    config = DistillConfig.model_validate(manifest.settings["distill"])
    return fine_tune(context, files, references, config, seconds)


def _describe_questions(asked: Questions, clusters: int, exact: int) -> str:
    counts = {
        "without a reference": asked.without_reference,
        f"longer than {LONGEST} characters": asked.too_long,
        "beyond the limit": asked.not_drawn,
    }
    left_out = [f"{asked.seen} seen in training", *(f"{count} {why}" for why, count in counts.items() if count)]
    also = f", and {exact} of the golden set with an exact answer" if exact else ""
    return f"{len(asked.rows)} questions in {clusters} clusters{also}; left out: {', '.join(left_out)}"


def _describe_fine_tuning(download: TeacherSpec, tuned: FineTuning | None, references: int) -> str:
    if tuned is None:
        return (
            f"{download.model} was not fine-tuned: {references} references, at least {MIN_REFERENCES} are needed; "
            "--references FILE names others"
        )
    best, edge = tuned.best, ", which is at the edge of them" if tuned.at_edge else ""
    return (
        f"the download, {download.model}, was fine-tuned on {tuned.references} references for {best.steps} steps; of the rates "
        f"{', '.join(f'{one.learning_rate:g}' for one in tuned.attempts)}, {best.learning_rate:g} was best{edge}: on held-out "
        f"references {tuned.before.value:.3f} → {best.held_out.value:.3f} bits per byte"
    )


# -------------------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True)
class _Conditions:
    """What is the same for every model."""

    context: BuildContext
    domain: DomainSpec
    questions: Sequence[Question]
    clusters: Sequence[str]  # of each question
    exact: Sequence[GoldenQuestion]  # of the golden set, with an exact answer
    max_new_tokens: int  # of their answers
    quantizations: Sequence[str]


def _measure_all(conditions: _Conditions, rivals: Sequence[Rival]) -> tuple[list[Measurement], list[str]]:
    """All measurements, one model in memory at a time, and a line for each model that cannot be quantized."""
    found: list[Measurement] = []
    problems: list[str] = []
    with conditions.context.progress(f"{conditions.domain.name}: benchmark", len(rivals)) as advance:
        for rival in rivals:
            measurements, problem = _measure(conditions, rival)
            found += measurements
            problems += [problem] if problem else []
            gc.collect()  # peft's models are part of reference cycles
            advance(1)
    return found, problems


def _measure(conditions: _Conditions, rival: Rival) -> tuple[list[Measurement], str]:
    """As it is and in each quantization; a line that says why, where it cannot be quantized."""
    model, tokenizer = rival.load(conditions.context.device), rival.tokenizer
    found = _rows(conditions, rival, model, tokenizer, WHOLE, rival.bytes, partial(transformers_speed, model))
    if not conditions.quantizations:
        return found, ""
    model = _merged(model)
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.gguf" for kind in conditions.quantizations}
        try:
            for kind, file in files.items():
                write_base_gguf(model, tokenizer, file, kind, name=next(iter(rival.rows)), license=rival.license)
        except ExportError as error:
            return found, f"{', '.join(rival.rows)}: not quantized, since {error}"
        model.to(compute_dtype(conditions.context.device))
        for kind, file in files.items():
            load_gguf_weights(model, file)
            size, speed = file.stat().st_size, partial(llamacpp_speed, file)
            found += _rows(conditions, rival, model, tokenizer, kind, size, speed)
    return found, ""


def _merged(model: Any) -> Any:
    """Without an adapter: one that there is gets merged in float32, as an export merges it."""
    return model.float().merge_and_unload() if isinstance(model, PeftModel) else model


def _rows(
    conditions: _Conditions,
    rival: Rival,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    format: str,
    size: int,
    speed: Callable[[list[list[int]]], float | None],
) -> list[Measurement]:
    """A measurement for each of the rival's contexts."""
    asked, device, found = conditions.questions, conditions.context.device, []
    for name, shown in rival.rows.items():
        bits, _ = bits_per_byte(model, tokenizer, asked, context=shown, device=device)
        found.append(
            Measurement(
                name=name,
                format=format,
                parameters=count_parameters(model),
                bytes=size,
                bits=by_cluster(bits, conditions.clusters),
                tasks=_tasks(conditions, model, tokenizer, shown),
                tokens_per_second=speed([prompt_ids(tokenizer, one.prompt, shown) for one in asked[:TIMED_PROMPTS]]),
            )
        )
    return found


def _tasks(
    conditions: _Conditions, model: Any, tokenizer: PreTrainedTokenizerBase, shown: TeacherContext
) -> dict[str, MetricValue]:
    """The share of right answers: exact answers of the golden set, and the domain's tasks, which have prompts of their own."""
    context, exact, found = conditions.context, conditions.exact, dict[str, MetricValue]()
    if exact:
        answers = generate_answers(model, tokenizer, [one.prompt for one in exact], shown, conditions.max_new_tokens)
        found[EXACT] = golden_set_report(exact, {"student": answers}, context.bootstrap).metrics["golden_set_exact"]
    if shown == NO_CONTEXT:
        results = run_tasks({"student": fixed_model(model)}, tokenizer, conditions.domain.tasks, root=context.specs.root)
        found |= {one.name: task_metrics(one, context.bootstrap)[f"task_{one.name}_accuracy"] for one in results}
    return found


# ---------------------------------------------------------------------------------------------------------------- speed


def transformers_speed(model: Any, prompts: Sequence[list[int]]) -> float:
    """``transformers_speed(model, prompts)``: tokens/s of one stream; what the prompts share is in the cache already."""
    prefix, rest = split_prefix(prompts)
    turns = cycle(rest)
    with merged_adapters(model):
        cache = prefix_cache(model, prefix)

        def answer() -> int:
            [ids] = sample(model, [next(turns)], prefix=prefix, prefilled=cache, max_new_tokens=SPEED_TOKENS, stop=())
            return len(ids)

        return tokens_per_second(answer)


def llamacpp_speed(file: Path, prompts: Sequence[list[int]]) -> float | None:
    """``llamacpp_speed(Path("q4.gguf"), prompts)``: the same in llama.cpp; None where it is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    from factory.models.llama_server import LlamaServer

    turns, longest = cycle(prompts), max(map(len, prompts)) + SPEED_TOKENS
    with LlamaServer(file, context=longest, threads=torch.get_num_threads()) as server:
        return tokens_per_second(lambda: len(server.generate(next(turns), SPEED_TOKENS, cached=True)))
