"""Does it pay to ask a small student first? Golden-set passes and compute of every pair, beside asking at random:

    python scripts/bench/cascade.py healthcare-tiny@1 healthcare-medium@1 --save cascade.json --plot cascade.svg

The students are of one domain, the smallest first; the teacher, shown the domain's context, is the last. Of each pair the
smaller one answers all questions, and those of which it is least sure are asked of the larger one, too: after the whole answer,
or after its first 8 tokens. Compute is parameters times tokens processed, prompt and context included, as a share of asking the
larger one alone; "cached" leaves out the teacher's context, which a prefix cache holds. At random, as many questions are asked
of the larger one, whatever the confidence.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.load import load_specs
from factory.errors import FactoryError
from factory.evaluation.answer_confidence import answer_with_signals
from factory.evaluation.answers import Answer, generate_answers
from factory.evaluation.confidence import FIRST, Confidence
from factory.evaluation.fidelity import fixed_model
from factory.evaluation.golden_set import Question, asked_questions, load_golden_set, marks
from factory.inference import load_version
from factory.models.base import trim_teacher
from factory.models.chat import NO_CONTEXT, prompt_ids
from factory.pipeline.context import BuildContext, make_context, resolve_models
from factory.registry.manifest import StudentManifest
from factory.registry.plain_json import plain_json, to_json
from factory.registry.registry import Registry

SHARES = np.linspace(0, 1, 21)
RESAMPLES = 1000


@dataclass(frozen=True)
class Asked:
    """What a model made of every question, (Q,) each."""

    name: str
    passed: np.ndarray  # bool
    compute: np.ndarray  # parameters times tokens
    cached: np.ndarray  # the same without the context
    begun: np.ndarray  # the same up to the end of the answer's beginning
    sure: dict[str, np.ndarray]  # "whole" and "beginning" → confidence; empty for the teacher
    thresholds: dict[str, float]  # for `keep`, as fitted on validation prompts


@dataclass(frozen=True)
class Point:
    """A pair where a share of the questions is asked of the larger one, too."""

    share: float
    passed: float
    at_random: float
    ahead: tuple[float, float, float]  # passed minus at random, and its 95 % interval over topics
    compute: float  # as a share of the larger one's
    cached: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", metavar="student", help="of one domain, the smallest first: healthcare-tiny@1")
    parser.add_argument("--keep", type=float, default=0.95)
    parser.add_argument("--questions", type=int, default=1000, help="of the golden set, at most")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--save", type=Path, metavar="FILE.json", required=True)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    given = parser.parse_args()
    specs, registry = load_specs(given.domains), Registry(given.registry)
    manifest = registry.resolve(given.students[0]).manifest
    if not isinstance(manifest, StudentManifest) or specs.domain(manifest.domain).golden_set is None:
        raise SystemExit(f"error: {given.students[0]} is not a student of a domain with a golden set")
    context = make_context(specs, specs.family(manifest.family), registry=registry, profile=manifest.profile)
    questions = asked_questions(load_golden_set(specs.domain(manifest.domain).golden_set, specs.root), given.questions)
    asked = [
        *(ask_student(context, one, questions, given.keep) for one in given.students),
        ask_teacher(context, manifest, questions),
    ]
    topics = [question.cluster for question in questions]
    pairs = [
        {"small": small.name, "large": large.name, "part": part, **describe(small, large, part, topics, given.keep)}
        for small, large in combinations(asked, 2)
        for part in small.sure
    ]
    report = {
        "questions": len(questions),
        "topics": len(set(topics)),
        "keep": given.keep,
        "git_commit": context.git_commit,
        "alone": {one.name: {"passed": float(one.passed.mean()), "compute": float(one.compute.mean())} for one in asked},
        "pairs": pairs,
    }
    given.save.write_bytes(to_json(plain_json(report, given.save.name)))
    for pair in pairs:
        print(json.dumps({key: pair[key] for key in ("small", "large", "part", "at_threshold", "cheapest")}))
    if given.plot:
        plot(pairs, given.plot)


# ------------------------------------------------------------------------------------------------------------------ asking


def ask_student(context: BuildContext, reference: str, questions: Sequence[Question], keep: float) -> Asked:
    """Raises: SystemExit for a student that does not know how sure it is."""
    version = context.registry.resolve(reference)
    confidence = Confidence.load(version.folder)
    if confidence is None:
        raise SystemExit(f"error: {reference} has no confidence.json; build it with `confidence: {{examples: 300}}`")
    models = resolve_models(context.family, context.specs.root, context.device)
    loaded = load_version(version, context.registry, context.device)
    teacher = trim_teacher(models.teacher, loaded.base.shape.tokens)
    prompts = [prompt_ids(teacher.tokenizer, one.prompt, NO_CONTEXT) for one in questions]
    limit = version.manifest.settings["data"]["max_completion_tokens"]
    answers, tokens = answer_with_signals(fixed_model(loaded.model), teacher, prompts, limit)
    parameters = version.manifest.evaluation.sizes.student.parameters  # type: ignore[union-attr]
    compute, begun = (
        parameters * np.array([len(p) + len(a[:longest]) for p, a in zip(prompts, answers, strict=True)], dtype=float)
        for longest in (None, FIRST)
    )
    sure = {
        "whole": np.array([confidence.of_answer(one) for one in tokens]),
        "beginning": np.array([confidence.of_beginning(one) for one in tokens]),
    }
    thresholds = {part: confidence.threshold(keep, beginning=part == "beginning") for part in sure}
    texts = [Answer(str(teacher.tokenizer.decode(ids, skip_special_tokens=True)).strip(), True) for ids in answers]
    return Asked(reference, np.array(marks(questions, texts), dtype=bool), compute, compute, begun, sure, thresholds)


def ask_teacher(context: BuildContext, manifest: StudentManifest, questions: Sequence[Question]) -> Asked:
    """With the domain's context before every question."""
    models = resolve_models(context.family, context.specs.root, context.device)
    shown, tokenizer = context.specs.domain(manifest.domain).teacher_context, models.tokenizer
    prompts = [prompt_ids(tokenizer, one.prompt, shown) for one in questions]
    bare = [prompt_ids(tokenizer, one.prompt, NO_CONTEXT) for one in questions]
    asked = [one.prompt for one in questions]
    answers = generate_answers(models.teacher.model, tokenizer, asked, shown, manifest.max_completion_tokens)
    costs = [
        models.teacher.parameters * np.array([len(p) + len(a.ids) for p, a in zip(read, answers, strict=True)], dtype=float)
        for read in (prompts, bare)
    ]
    return Asked("teacher", np.array(marks(questions, answers), dtype=bool), *costs, costs[0], {}, {})


# ----------------------------------------------------------------------------------------------------------------- a pair


def describe(small: Asked, large: Asked, part: str, topics: Sequence[str], keep: float) -> dict[str, Any]:
    """The curve, the fitted threshold's point, and the cheapest that keeps so many of the larger one's passes."""
    escalated = small.sure[part] < small.thresholds[part]
    points = [point(small, large, part, _least_sure(small.sure[part], share), topics) for share in SHARES]
    enough = [one for one in points if one.passed >= keep * large.passed.mean()]
    return {
        "points": [asdict(one) for one in points],
        "at_threshold": asdict(point(small, large, part, escalated, topics)),
        "cheapest": asdict(min(enough, key=lambda one: one.compute)) if enough else None,
    }


def _least_sure(sure: np.ndarray, share: float) -> np.ndarray:
    """(Q,) bool: so large a share of the questions, those with the least confidence."""
    chosen = np.zeros(len(sure), dtype=bool)
    chosen[np.argsort(sure, kind="stable")[: round(share * len(sure))]] = True
    return chosen


def point(small: Asked, large: Asked, part: str, escalated: np.ndarray, topics: Sequence[str]) -> Point:
    """Where the questions of ``escalated`` (Q,) are asked of the larger one, too."""
    share = float(escalated.mean())
    gain = large.passed.astype(float) - small.passed  # of asking the larger one
    ahead = escalated * gain - share * gain  # (Q,): beside asking as many at random
    names, places = np.unique(np.asarray(topics), return_inverse=True)
    rng = np.random.default_rng(0)
    sums, counts = (np.bincount(places, weights=one, minlength=len(names)) for one in (ahead, np.ones(len(ahead))))
    drawn = rng.integers(0, len(names), (RESAMPLES, len(names)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    own = [np.where(escalated, small.begun, one) if part == "beginning" else one for one in (small.compute, small.cached)]
    return Point(
        share=share,
        passed=float(np.where(escalated, large.passed, small.passed).mean()),
        at_random=float(small.passed.mean() + share * gain.mean()),
        ahead=(float(ahead.mean()), float(low), float(high)),
        compute=float((own[0] + escalated * large.compute).sum() / large.compute.sum()),
        cached=float((own[1] + escalated * large.cached).sum() / large.cached.sum()),
    )


def plot(pairs: Sequence[dict[str, Any]], target: Path) -> None:
    """Compute against passes, a line for each pair, dashed where questions are asked on at random."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for pair in (one for one in pairs if one["part"] == "whole"):
        compute = [one["compute"] for one in pair["points"]]
        [line] = axes.plot(compute, [one["passed"] for one in pair["points"]], label=f"{pair['small']} → {pair['large']}")
        axes.plot(compute, [one["at_random"] for one in pair["points"]], color=line.get_color(), linestyle="--", linewidth=1)
        chosen = pair["at_threshold"]
        axes.plot(chosen["compute"], chosen["passed"], marker="o", color=line.get_color())
    axes.set(xlabel="compute, as a share of asking the larger one alone", ylabel="golden set passed")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(target)


if __name__ == "__main__":
    try:
        main()
    except FactoryError as error:
        raise SystemExit(f"error: {error}") from error
