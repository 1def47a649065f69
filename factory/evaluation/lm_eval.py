"""Tasks of lm-evaluation-harness on students beside their teacher, scored item by item.

    results = run_tasks({"student": student, "teacher": teacher_model(teacher)}, tokenizer, ["sciq"], root=specs.root)
    task_metrics(results[0], bootstrap)["task_sciq_accuracy"].value

The harness builds the prompts and marks the answers. Likelihoods are ours (``HarnessModel``): its own ``HFLM`` computes the
logits of every position, gigabytes with 262,144 tokens, and computes them in the model's dtype, where bfloat16 makes ties of
different choices (scripts/LOG.md).
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from factory.config.task_file import is_task_file, read_task
from factory.errors import DataError, in_one_line
from factory.evaluation.fidelity import BATCH, Candidate
from factory.evaluation.items import share_metrics
from factory.evaluation.stats import BootstrapConfig, FloatArray
from factory.models.chat import start_token, stop_tokens
from factory.models.forward import unwrap
from factory.models.generation import sample
from factory.models.scoring import score_completions
from factory.registry.manifest import MetricValue

TOKENS = 8192  # of one batch, padding included: a task with long few-shot prompts has fewer rows
LONGEST = 2048  # tokens of context and continuation, unless the model has fewer positions; the context is cut on the left
NEW_TOKENS = 256  # of a generated answer, where a task does not say: the harness's own default
EXAMPLES_SEED = 1234  # draws the few-shot examples: the harness's own default

Pair = tuple[list[int], list[int]]  # ids of a context, never empty, and of what follows it


@dataclass(frozen=True)
class TaskResult:
    """The scores of every candidate on the same items of one task."""

    name: str
    metric: str  # acc_norm, acc or the task's first
    chance: float | None  # expected score of guessing; None unless multiple choice
    scores: dict[str, FloatArray]  # (E,) by candidate; 0 or 1 for multiple choice


def run_tasks(
    candidates: Mapping[str, Candidate],
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    root: Path,
    limit: int | None = None,
) -> list[TaskResult]:
    """``run_tasks({"student": student}, tokenizer, ["evals/healthcare.task.yaml", "sciq"], root=specs.root)[0].scores``

    A task is a YAML file of the harness, relative to ``root``, or a name that the harness knows; the name of a group gives a
    result for each of its tasks. ``limit`` keeps the first items of each. Without a network, only tasks run whose data is
    cached. Multiple choice is scored by ``acc_norm``: the choice with the highest log-likelihood per character.

    Raises: DataError for a task that does not exist, cannot be loaded or marked, or has no score per item.
    """
    if not tasks or not candidates:
        return []
    from lm_eval.evaluator import evaluate

    logged: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with _quiet():
        loaded = load_tasks(tasks, root)
        for who, candidate in candidates.items():
            for task in loaded.values():
                task.set_fewshot_seed(seed=EXAMPLES_SEED)  # the same few-shot examples for every candidate
            with candidate() as model:
                lm = HarnessModel(model, tokenizer)
                try:
                    results = evaluate(lm=lm, task_dict={"tasks": loaded}, limit=limit, bootstrap_iters=0)
                except (KeyError, TypeError, ValueError) as error:  # from a task's metrics, filters or templates
                    raise DataError(f"the harness cannot mark {', '.join(loaded)} ({who}): {in_one_line(error)}") from error
            logged[who] = results["samples"]
    return [_result(name, task, {who: one[name] for who, one in logged.items()}) for name, task in loaded.items()]


def task_metrics(result: TaskResult, bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``task_metrics(result, bootstrap)["task_sciq_accuracy"].value``: mean scores, 0 to 1; n counts items.

    The student's, each other model's (``task_sciq_accuracy_teacher``), and ``task_sciq_change``: the student's minus the
    teacher's, paired.
    """
    name = f"task_{result.name}"
    return share_metrics(result.scores, f"{name}_accuracy", f"{name}_change", bootstrap)


# ------------------------------------------------------------------------------------------------------------ loading


def load_tasks(tasks: Sequence[str], root: Path) -> dict[str, Any]:
    """``load_tasks(["evals/legal.task.yaml", "gsm8k"], root)``: the harness's task objects by name, with their data.

    Raises: DataError for a task that does not exist, cannot be loaded, needs images or sound, or runs generated code.
    """
    from lm_eval.tasks import TaskManager

    named = [task for task in tasks if not is_task_file(task)]
    manager = TaskManager(include_defaults=bool(named))  # reads thousands of YAML files, for many seconds
    loaded: dict[str, Any] = {}
    for task in tasks:
        if is_task_file(task) and not (root / task).is_file():
            there = ", ".join(sorted(str(path.relative_to(root)) for path in root.rglob("*.task.yaml"))) or "none"
            raise DataError(f"no task file {root / task}; {root} has: {there}")
        if task in named and task not in manager.task_index:
            close = difflib.get_close_matches(task, manager.all_tasks, n=3)
            hint = f"close: {', '.join(close)}" if close else "`lm-eval ls tasks` prints those that exist"
            raise DataError(f"unknown task {task!r}; {hint}; or name the .yaml file of a task, its path from {root}")
        try:
            found = manager.load([_with_its_data(root / task) if is_task_file(task) else task])["tasks"]
        except Exception as error:  # from any library between the YAML and its data
            needs = "" if is_task_file(task) else " (its data comes from the Hugging Face hub: run it once with a network)"
            raise DataError(f"task {task!r} cannot be loaded{needs}: {in_one_line(error)}") from None
        for name, one in found.items():
            if name in loaded:
                raise DataError(f"two tasks are called {name!r}, the second in {task!r}; give each a name of its own")
            if getattr(one, "MULTIMODAL", False) or getattr(one, "UNSAFE_CODE", False):
                raise DataError(f"task {name!r} needs images or sound, or runs generated code; remove it from `tasks`")
            if one.get_config("num_fewshot") is None:
                one.set_config(key="num_fewshot", value=0)
        loaded |= found
    return loaded


def _with_its_data(path: Path) -> dict[str, Any]:
    """A task's YAML, with absolute paths of ``data_files`` beside it: the harness resolves them from the current folder."""
    config = read_task(path)
    given = config.get("dataset_kwargs") or {}
    if "data_files" in given:
        config["dataset_kwargs"] = given | {"data_files": _beside(path.parent.resolve(), given["data_files"])}
    return config


def _beside(folder: Path, files: Any) -> Any:
    """``files`` is a name, a list or a mapping of names, as ``data_files`` of ``datasets.load_dataset``."""
    match files:
        case str():
            return str(folder / files) if (folder / files).exists() else files
        case dict():
            return {split: _beside(folder, one) for split, one in files.items()}
        case _:
            return [_beside(folder, one) for one in files]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the harness's log and progress bars."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


# ------------------------------------------------------------------------------------------------------------ results


def _result(name: str, task: Any, logged: Mapping[str, list[dict[str, Any]]]) -> TaskResult:
    first = next(iter(logged.values()))
    kept = first[0]["filter"]  # a task may mark answers in several ways: the first is its default
    rows = {who: [item for item in items if item["filter"] == kept] for who, items in logged.items()}
    items = next(iter(rows.values()))
    metric = next((m for m in ("acc_norm", "acc", *items[0]["metrics"]) if _is_number(items[0].get(m))), None)
    if metric is None:
        raise DataError(f"task {name!r} has no score per item, only over all of them: {', '.join(items[0]['metrics'])}")
    chance = None
    if task.OUTPUT_TYPE == "multiple_choice":
        chance = float(np.mean([1 / len(task.doc_to_choice(item["doc"])) for item in items]))
    return TaskResult(name, metric, chance, {who: np.array([float(i[metric]) for i in one]) for who, one in rows.items()})


def _is_number(value: Any) -> bool:
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"


# -------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class HarnessModel:
    """``evaluate(lm=HarnessModel(model, tokenizer), ...)``: what the harness calls on a model (``lm_eval.api.model.LM``)."""

    model: Any
    tokenizer: PreTrainedTokenizerBase

    rank: ClassVar[int] = 0  # one process
    world_size: ClassVar[int] = 1

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(context, continuation) texts → log-likelihood of the continuation in nats, and whether greedy decoding yields it."""
        return log_likelihoods(self.model, [pair_ids(self.tokenizer, *request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Texts → log-likelihood of each in nats; a long text is split into windows that predict every token once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        start, longest = start_token(self.tokenizer), longest_input(self.model) - 1  # a window follows one token
        pairs: list[Pair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = list(self.tokenizer(request.args[0], add_special_tokens=False)["input_ids"])
            for window in get_rolling_token_windows(ids, start, longest, context_len=1):
                pairs.append(make_disjoint_window(window))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, log_likelihoods(self.model, pairs), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """(context, settings) → generated text, up to the first string of the settings' ``until``."""
        groups: dict[tuple[int, float], list[int]] = {}
        for index, request in enumerate(requests):
            settings = request.args[1]
            temperature = float(settings.get("temperature", 1)) if settings.get("do_sample") else 0.0
            groups.setdefault((int(settings.get("max_gen_toks", NEW_TOKENS)), temperature), []).append(index)
        answers = [""] * len(requests)
        for (length, temperature), rows in groups.items():
            room = max(1, longest_input(self.model) - length)
            contexts = [pair_ids(self.tokenizer, requests[row].args[0], "")[0][-room:] for row in rows]
            sampled = sample(
                self.model,
                contexts,
                stop=stop_tokens(self.tokenizer),
                max_new_tokens=length,
                temperature=temperature,
                batch=BATCH,
            )
            for row, ids in zip(rows, sampled, strict=True):
                text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
                answers[row] = cut(text, requests[row].args[1].get("until") or [])
        return answers


def cut(text: str, until: str | Sequence[str]) -> str:
    """``cut("12\\n\\nQuestion: …", ["\\n\\n"]) == "12"``: the text before the first of these strings."""
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text


def pair_ids(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """``pair_ids(tokenizer, "Question: Why?\\nAnswer:", " Because")``: tokenized as one text, then split.

    As the harness does it: spaces at the end of the context belong to the continuation, and an empty context becomes a start
    token.
    """
    begun = list(tokenizer(context.rstrip())["input_ids"])
    whole = list(tokenizer(context + continuation)["input_ids"])
    return begun or [start_token(tokenizer)], whole[len(begun) :]


def longest_input(model: Any) -> int:
    """``longest_input(model)``: tokens that one example may have."""
    positions = getattr(unwrap(model).config.get_text_config(), "max_position_embeddings", None)
    return min(LONGEST, positions or LONGEST)


def log_likelihoods(model: Any, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """``log_likelihoods(model, [([1, 2], [3, 4])])``: log p(3, 4 | 1, 2) in nats, and whether both are top-1 tokens.

    Raises: DataError for a continuation that is empty or longer than the model's positions.
    """
    longest = longest_input(model)
    for _, continuation in pairs:
        if not 0 < len(continuation) < longest:
            raise DataError(
                f"a task has an answer of {len(continuation)} tokens; only answers of 1 to {longest - 1} tokens can be scored; "
                "check its doc_to_choice and target_delimiter"
            )
    contexts = [context[-(longest - len(continuation)) :] for context, continuation in pairs]
    continuations = [continuation for _, continuation in pairs]
    widest = max((len(a) + len(b) for a, b in zip(contexts, continuations, strict=True)), default=1)
    device: torch.device = unwrap(model).device
    scores = score_completions(model, contexts, continuations, device, batch=max(1, min(BATCH, TOKENS // widest)))
    return [(float(score.log_probs.sum(dtype=float)), bool(score.top1.all())) for score in scores]
