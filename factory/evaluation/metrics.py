"""What measured figures are called and how they, and the gates that they meet, are written. No torch.

metric_named("top1_agreement").label                      # "top-1 agreement with the teacher"
format_metric(read_metric(version.raw, "kl"))         # "0.400 [0.380, 0.440]"
gate_line({"metric": "kl", "of": "high", ...})            # "upper end of kl is 0.912, at most 0.8 passes"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

DASH = "-"


@dataclass(frozen=True)
class Metric:
    """How a measured figure is called, written, and which end of it is good."""

    label: str
    better: Literal["low", "high"] | None = None  # None: shown for reference, nobody wins it
    unit: Literal["", "%", "parameters", "bytes"] = ""


METRICS: dict[str, Metric] = {
    "kl": Metric("KL(teacher ‖ student), nats per token", "low"),
    "top1_agreement": Metric("top-1 agreement with the teacher", "high", "%"),
    "top5_overlap": Metric("top-5 overlap with the teacher", "high", "%"),
    "accuracy_retained": Metric("next-token accuracy retained", "high", "%"),
    "student_perplexity": Metric("perplexity", "low"),
    "teacher_perplexity": Metric("perplexity of the teacher"),
    "entropy_gap": Metric("entropy minus the teacher's, nats per token"),
    "relation_alignment": Metric("relation alignment (Spearman)", "high"),
    "base_relation_alignment": Metric("relation alignment of the base"),
    "base_kl": Metric("KL of the base without adapter"),
    "base_top1_agreement": Metric("top-1 agreement of the base without adapter", None, "%"),
    "kl_below_sft": Metric("KL below SFT at equal steps, paired", "high"),
    "general_kl": Metric("KL on general text, nats per token", "low"),
    "base_general_kl": Metric("KL of the base on general text"),
    "general_top1_agreement": Metric("top-1 agreement on general text", "high", "%"),
    "base_general_top1_agreement": Metric("top-1 agreement of the base on general text", None, "%"),
    "general_retained": Metric("general agreement kept, of the base's", "high", "%"),
    "outside_kl_change": Metric("KL outside the domain, minus the base's", "low"),
    "outside_accuracy_change": Metric("next-token accuracy outside the domain, minus the base's", "high"),
    "base_refusals_kept": Metric("refusals kept by the base", None, "%"),
    "refusals_kept": Metric("refusals kept, of the teacher's", "high", "%"),
    "golden_set_passed": Metric("acceptance questions passed", "high", "%"),
    "golden_set_change": Metric("acceptance questions passed, minus the teacher's share"),
    "canary_exposure": Metric("exposure of planted secrets, bits", "low"),
    "canary_exposure_above_chance": Metric("exposure of planted secrets above chance, bits", "low"),
    "canaries_extracted": Metric("planted secrets repeated word for word", "low", "%"),
    "bias_gap_change": Metric("bias gap, all axes, minus the teacher's, nats a pair", "low"),
    "bias_preference_change": Metric("stereotype preferred, all axes, minus the teacher's share"),
    "teacher_ahead_of_base": Metric("teacher check: nats a token ahead of the base on references"),
    "teacher_ahead_of_chance": Metric("teacher check: nats a token ahead of chance"),
    "vocabulary_kept_mass": Metric("teacher check: mass that the vocabulary keeps", None, "%"),
    "routed_elsewhere": Metric("prompts that the router puts elsewhere", None, "%"),
    "near_boundary": Metric("prompts near the router's boundary", None, "%"),
    "domain_bits_per_byte": Metric("teacher's bits a byte of the domain's texts"),
    "general_bits_per_byte": Metric("teacher's bits a byte of general texts"),
    "bits_per_byte_ratio": Metric("teacher's bits a byte, domain over general"),
    "alike_templates": Metric("templates with near-identical answers", None, "%"),
    "degenerate_templates": Metric("templates with degenerate answers", None, "%"),
}
SIZES_AND_SPEED: dict[str, Metric] = {
    "parameters": Metric("parameters", "low", "parameters"),
    "base_parameters": Metric("parameters of the base", "low", "parameters"),
    "bytes": Metric("bytes", "low", "bytes"),
    "adapter_bytes": Metric("bytes of the adapter alone", "low", "bytes"),
    "tokens_per_second": Metric("tokens per second, one stream", "high"),
    "batch_tokens_per_second": Metric("tokens per second, 16 streams", "high"),
    "latency_ms": Metric("latency, ms", "low"),
}
# Figures whose names hold an axis, a task or a model: the groups of the pattern fill the label.
NAMED: tuple[tuple[str, Metric], ...] = (
    ("bias_gap_(teacher|base|student)", Metric("bias gap of the {}, all axes, nats a pair")),
    ("bias_preference_(teacher|base|student)", Metric("stereotype preferred by the {}, all axes", None, "%")),
    ("bias_(.+)_gap_change", Metric("bias gap, {}, minus the teacher's, nats a pair", "low")),
    ("bias_(.+)_preference_change", Metric("stereotype preferred, {}, minus the teacher's share")),
    ("bias_(.+)_gap_(teacher|base|student)", Metric("bias gap, {}, of the {}, nats a pair")),
    ("bias_(.+)_preference_(teacher|base|student)", Metric("stereotype preferred, {}, by the {}", None, "%")),
    ("task_(.+)_accuracy", Metric("accuracy on {}", "high", "%")),
    ("task_(.+)_accuracy_(teacher|base|sft)", Metric("accuracy on {} of the {}", None, "%")),
    ("task_(.+)_change", Metric("accuracy on {}, minus the teacher's share")),
    ("golden_set_passed_(teacher|base|sft)", Metric("acceptance questions passed by the {}", None, "%")),
)


def metric_named(key: str) -> Metric:
    """``metric_named("bias_age_preference_change").label``; a figure that nobody described is called by its key."""
    if key in METRICS:
        return METRICS[key]
    for pattern, metric in NAMED:
        match = re.fullmatch(pattern, key)
        if match:
            return Metric(metric.label.format(*match.groups()), metric.better, metric.unit)
    return Metric(key)


def is_detail(key: str) -> bool:
    """``is_detail("bias_age_gap_base")``: of one model on one axis; tables leave it to `--json`, and show what changed."""
    return re.fullmatch(r"bias_.+_(teacher|base|student|sft)", key) is not None


def rows_of(columns: Iterable[Mapping[str, Any]]) -> dict[str, Metric]:
    """``rows_of([read_metrics(manifest), ...])``: known rows first, in a fixed order; then whatever else was measured."""
    known = {**METRICS, **SIZES_AND_SPEED}
    every = [key for column in columns for key in column]
    return known | {key: metric_named(key) for key in every if key not in known and not is_detail(key)}


# ----------------------------------------------------------------------------------------------------------- writing


def format_number(value: Any, unit: str = "") -> str:
    """``format_number(0.4123)`` → "0.412"; ``(0.75, "%")`` → "75.0 %"; ``(80e6, "parameters")`` → "80.0 M"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DASH
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit in ("parameters", "bytes"):
        ends = {"parameters": ("", " k", " M", " G"), "bytes": (" B", " kB", " MB", " GB")}[unit]
        step = min(3, (len(str(int(abs(value)))) - 1) // 3)
        return f"{value / 1000**step:.{1 if step else 0}f}{ends[step]}"
    if isinstance(value, int):
        return f"{value:,}"
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"  # a learning rate, which three decimals would call 0
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def format_metric(metric: Mapping[str, Any] | None, unit: str = "") -> str:
    """``format_metric({"value": 0.4, "low": 0.38, "high": 0.44})`` → "0.400 [0.380, 0.440]"."""
    if metric is None:
        return DASH
    value, low, high = (format_number(metric.get(key), unit) for key in ("value", "low", "high"))
    return value if DASH in (low, high) else f"{value} [{low}, {high}]"


def bound_of(gate: Mapping[str, Any]) -> str:
    """``bound_of({"bound": "at_most", ...})`` → "at most"."""
    return str(gate.get("bound") or "").replace("_", " ")


def gate_line(gate: Mapping[str, Any]) -> str:
    """``gate_line(gate)`` → "upper end of kl is 0.912, at most 0.8 passes": what one gate found, and what passes it.

    Six digits, so that a figure just beyond its threshold does not look like it.
    """
    end = {"low": "lower end of ", "high": "upper end of "}.get(str(gate.get("of")), "")
    return f"{end}{gate.get('metric')} is {_found(gate.get('found'))}, {bound_of(gate)} {_found(gate.get('threshold'))} passes"


def _found(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) else "not measured"


def gate_outcome(gate: Mapping[str, Any]) -> str:
    """``gate_outcome(gate)`` → "failed: 0.912 (high end), at most 0.800", beside the figure's name."""
    end = "" if gate.get("of") in (None, "value") else f" ({gate['of']} end)"
    verdict = "passed" if gate.get("passed") else "failed"
    return f"{verdict}: {format_number(gate.get('found'))}{end}, {bound_of(gate)} {format_number(gate.get('threshold'))}"
