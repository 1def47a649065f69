"""Does a domain's data fit its domain, and does the teacher know such text? Warnings name examples; nothing is refused.

report = merge_reports([check_templates(rows, "legal", bootstrap), check_routing(prompts, router, "legal", bootstrap)])
report.metrics["routed_elsewhere"].value
report.warnings
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from factory.data.cleaning import words
from factory.data.router import DomainRouter
from factory.evaluation.benchmark import Question, bits_per_byte
from factory.evaluation.stats import BootstrapConfig, mean, ratio, unpaired_quotient
from factory.models.teacher import Teacher
from factory.registry.manifest import MetricValue

MAX_ELSEWHERE = 0.1  # share of prompts that the router may send elsewhere without a warning
MAX_BITS_RATIO = 1.5  # bits per byte, domain over general text, without a warning
BOUNDARY = 0.1  # a prompt is near the boundary if its domain's probability is this close to the threshold or the runner-up
MIN_TEMPLATE_ROWS, MAX_TEMPLATE_ROWS = 5, 20  # completions by which a template is judged
MAX_JACCARD = 0.8  # mean over pairs of a template's completions, the words of its slots left out
MIN_WORDS, MIN_DISTINCT = 3, 0.4  # a completion with fewer words, or a smaller share of distinct ones, is degenerate


@dataclass(frozen=True)
class DataFitReport:
    """How a domain's data fits the domain and the teacher."""

    metrics: dict[str, MetricValue]
    warnings: tuple[str, ...]


def merge_reports(reports: Iterable[DataFitReport]) -> DataFitReport:
    """``merge_reports([templates, routing])``: all metrics and warnings, in order."""
    metrics: dict[str, MetricValue] = {}
    warnings: list[str] = []
    for report in reports:
        metrics |= report.metrics
        warnings += report.warnings
    return DataFitReport(metrics, tuple(warnings))


# ------------------------------------------------------------------------------------------------------------- routing


def check_routing(prompts: Sequence[str], router: DomainRouter, domain: str, bootstrap: BootstrapConfig) -> DataFitReport:
    """``check_routing(prompts, router, "legal", bootstrap)``: shares routed elsewhere, and near the router's boundary."""
    routes = router.route(list(prompts))
    elsewhere = np.array([float(route.domain != domain) for route in routes])
    near = np.array([float(_margin(route.score, route.threshold, route.scores) < BOUNDARY) for route in routes])
    metrics = {"routed_elsewhere": mean(elsewhere, bootstrap), "near_boundary": mean(near, bootstrap)}
    if not metrics["routed_elsewhere"].value > MAX_ELSEWHERE:
        return DataFitReport(metrics, ())
    first = int(np.argmax(elsewhere))
    warning = (
        f"the router sends {elsewhere.mean():.0%} of {domain}'s prompts elsewhere, for example {prompts[first]!r} to "
        f"{routes[first].domain or 'no domain'}; check that its sources belong to this domain"
    )
    return DataFitReport(metrics, (warning,))


def _margin(score: float, threshold: float, scores: Mapping[str, float]) -> float:
    """How far the best domain's probability is from the threshold, or from the runner-up if that is closer."""
    best = sorted(scores.values(), reverse=True)
    return min([abs(score - threshold), *([best[0] - best[1]] if len(best) > 1 else [])])


# ------------------------------------------------------------------------------------------------------- bits per byte


def check_bits_per_byte(
    teacher: Teacher, domain: Sequence[str], general: Sequence[str], name: str, bootstrap: BootstrapConfig
) -> DataFitReport:
    """``check_bits_per_byte(teacher, texts, general_texts, "legal", bootstrap)``: of the teacher, domain over general text.

    By byte, not by token: unfamiliar text is cut into more tokens, each of which may be easy to predict. Texts are scored
    as documents, without a context, in the student's vocabulary.
    """
    own, other = _bits_and_bytes(teacher, domain), _bits_and_bytes(teacher, general)
    metrics = {
        "domain_bits_per_byte": ratio(*own, bootstrap),
        "general_bits_per_byte": ratio(*other, bootstrap),
        "bits_per_byte_ratio": unpaired_quotient(own, other, bootstrap),
    }
    quotient = metrics["bits_per_byte_ratio"].value
    if not quotient > MAX_BITS_RATIO:
        return DataFitReport(metrics, ())
    worst = domain[int(np.argmax(own[0] / own[1]))]
    warning = (
        f"the teacher needs {metrics['domain_bits_per_byte'].value:.2f} bits per byte for {name}'s texts, {quotient:.1f} times "
        f"as many as for general text, and most for {worst!r}; it may not know this domain well enough to teach it"
    )
    return DataFitReport(metrics, (warning,))


def _bits_and_bytes(teacher: Teacher, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(E,) bits of each text under the teacher, and (E,) its bytes in UTF-8."""
    documents = [Question("", text) for text in texts]
    return bits_per_byte(teacher.model, teacher.tokenizer, documents, device=teacher.device)


# ----------------------------------------------------------------------------------------------------------- templates


def check_templates(rows: Sequence[Mapping[str, Any]], name: str, bootstrap: BootstrapConfig) -> DataFitReport:
    """``check_templates(rows["train"], "legal", bootstrap)``: shares of templates with near-identical or degenerate answers.

    Near-identical: the mean Jaccard index of the completions' word sets is above ``MAX_JACCARD``. Degenerate: most
    completions have fewer than ``MIN_WORDS`` words, or repeat a few.
    """
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["template"]:
            groups[row["template"]].append(row)
    judged = {template: group for template, group in groups.items() if len(group) >= MIN_TEMPLATE_ROWS}
    alike = [_jaccard(group[:MAX_TEMPLATE_ROWS]) > MAX_JACCARD for group in judged.values()]
    degenerate = [np.mean([_is_degenerate(row["completion"]) for row in group]) > 0.5 for group in judged.values()]
    warnings = [
        f"template {template!r} of {name} gets {fault}, for example {group[0]['completion'][:120]!r}"
        for (template, group), *flags in zip(judged.items(), alike, degenerate, strict=True)
        for flag, fault in zip(flags, ("nearly the same answer for every slot", "empty or repetitive answers"), strict=True)
        if flag
    ]
    metrics = {
        "alike_templates": mean(np.array(alike, dtype=float), bootstrap),
        "degenerate_templates": mean(np.array(degenerate, dtype=float), bootstrap),
    }
    return DataFitReport(metrics, tuple(warnings))


def _jaccard(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean over pairs of completions, as sets of words without those of the slots."""
    sets = [set(words(row["completion"])) - set(words(" ".join(row["topic"]))) for row in rows]
    return float(np.mean([len(a & b) / max(1, len(a | b)) for a, b in combinations(sets, 2)]))


def _is_degenerate(completion: str) -> bool:
    found = words(completion)
    return len(found) < MIN_WORDS or len(set(found)) / len(found) < MIN_DISTINCT
