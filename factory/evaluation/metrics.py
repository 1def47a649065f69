"""What every metric is called, in which unit it is, and which end of it is good. No torch.

metric_named("top1_agreement").label          # "top-1 agreement with the teacher"
metric_named("task_pubmedqa_accuracy").label  # "accuracy on pubmedqa"
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """``Metric("perplexity", "low")``: how a metric is shown, and which direction is better."""

    label: str
    better: Literal["low", "high"] | None = None  # None: shown for reference, never ranked
    unit: Literal["", "%", "parameters", "bytes"] = ""
    items: bool = False  # a share of items that are 0 or 1 each, or a difference of two: a few decide nothing


METRICS: dict[str, Metric] = {
    # fidelity to the teacher, on held-out prompts of the domain
    "kl": Metric("KL(teacher ‖ student), nats/token", "low"),
    "base_kl": Metric("KL(teacher ‖ base without adapter), nats/token"),
    "kl_below_sft": Metric("KL below SFT after equal steps (paired), nats/token", "high"),
    "top1_agreement": Metric("top-1 agreement with the teacher", "high", "%"),
    "base_top1_agreement": Metric("top-1 agreement of the base without adapter", None, "%"),
    "sure_agreement": Metric("top-1 agreement where the teacher's p ≥ 0.5", "high", "%"),
    "base_sure_agreement": Metric("top-1 agreement of the base where the teacher's p ≥ 0.5", None, "%"),
    "nats_below_base": Metric("nats/token of the teacher's held-out texts, below the base (paired)", "high"),
    "kl_below_base": Metric("KL below the base without adapter (paired), nats/token", "high"),
    "kl_whole_teacher": Metric("KL to the whole teacher, trimming included, nats/token", "low"),
    "kl_first_turns": Metric("KL(teacher ‖ student) in first turns, nats/token", "low"),
    "kl_later_turns": Metric("KL(teacher ‖ student) in later turns of chats, nats/token", "low"),
    "bits_per_byte": Metric("bits per byte of held-out real text", "low"),
    "bits_per_byte_teacher": Metric("bits per byte of held-out real text, untrimmed teacher"),
    "bits_per_byte_change": Metric("bits per byte of held-out real text, minus the untrimmed teacher's", "low"),
    "top5_overlap": Metric("top-5 overlap with the teacher", "high", "%"),
    "accuracy_retained": Metric("next-token accuracy retained", "high", "%"),
    "student_perplexity": Metric("perplexity", "low"),
    "teacher_perplexity": Metric("perplexity of the teacher"),
    "entropy_gap": Metric("entropy minus the teacher's, nats/token"),
    "relation_alignment": Metric("relation alignment (Spearman)", "high"),
    "base_relation_alignment": Metric("relation alignment of the base"),
    # its embeddings, where it has a head
    "retrieval": Metric("recall@10 of a held-out prompt's own answer", "high", "%", items=True),
    "retrieval_encoder": Metric("recall@10 of a held-out prompt's own answer, encoder", None, "%", items=True),
    # how sure it is of its own answers to held-out prompts
    "answers_right": Metric("answers that the teacher finds as likely as the data set's own", "high", "%", items=True),
    "confidence_auroc": Metric("confidence, AUROC", "high"),
    "confidence_auroc_beginning": Metric("confidence from the first tokens, AUROC", "high"),
    "confidence_error": Metric("confidence, calibration error", "low"),
    "confidence_error_beginning": Metric("confidence from the first tokens, calibration error", "low"),
    # usefulness
    "golden_set_passed": Metric("golden set passed", "high", "%", items=True),
    "golden_set_change": Metric("golden set passed, minus the teacher's share", "high", items=True),
    "golden_set_exact": Metric("golden set, questions with an exact answer", "high", "%", items=True),
    "golden_set_exact_change": Metric("golden set, exact answers, minus the teacher's share", "high", items=True),
    "answers_finished": Metric("answers that end by themselves", "high", "%", items=True),
    "answers_finished_change": Metric("answers that end by themselves, minus the teacher's share", "high", items=True),
    # beside the champion, on this student's test split, paired
    "kl_behind_champion": Metric("KL minus the champion's (paired), nats/token", "low"),
    "golden_set_behind_champion": Metric("golden set passed, the champion's share minus its own", "low", items=True),
    # outside the domain
    "general_kl": Metric("KL on general text, nats/token", "low"),
    "base_general_kl": Metric("KL of the base on general text, nats/token"),
    "general_top1_agreement": Metric("top-1 agreement on general text", "high", "%"),
    "base_general_top1_agreement": Metric("top-1 agreement of the base on general text", None, "%"),
    "general_retained": Metric("general top-1 agreement retained, relative to the base", "high", "%"),
    "outside_kl_change": Metric("KL outside the domain, minus the base's, nats/token", "low"),
    "outside_accuracy_change": Metric("next-token accuracy outside the domain, minus the base's", "high"),
    # safety
    "refusals_kept": Metric("teacher's refusals kept", "high", "%", items=True),
    "refused": Metric("declined or referred, of prompts that ask for it", "high", "%", items=True),
    "refused_change": Metric("declined or referred, minus the teacher's share", "high", items=True),
    "over_refused": Metric("harmless look-alikes declined", "low", "%", items=True),
    "over_refused_change": Metric("harmless look-alikes declined, minus the teacher's share", "low", items=True),
    "injected": Metric("prompt injections obeyed", "low", "%", items=True),
    "injected_change": Metric("prompt injections obeyed, minus the teacher's share", "low", items=True),
    "jailbroken": Metric("jailbreaks not declined", "low", "%", items=True),
    "jailbroken_change": Metric("jailbreaks not declined, minus the teacher's share", "low", items=True),
    "canary_exposure": Metric("exposure of planted secrets, bits", "low"),
    "canary_exposure_above_chance": Metric("exposure of planted secrets above chance, bits", "low"),
    "canaries_extracted": Metric("planted secrets repeated verbatim", "low", "%", items=True),
    "verbatim_extracted": Metric("training text continued verbatim", "low", "%", items=True),
    "verbatim_extracted_held_out": Metric("held-out text continued verbatim", None, "%", items=True),
    "verbatim_extracted_base": Metric("training text continued verbatim by the base", None, "%", items=True),
    "verbatim_extraction_change": Metric("training text continued verbatim, minus the base's share", "low", items=True),
    "bias_gap_change": Metric("bias gap, all axes, minus the teacher's, nats/pair", "low"),
    "bias_preference_change": Metric("stereotype preferred, all axes, minus the teacher's share", items=True),
    # does the task match what the teacher knows?
    "teacher_ahead_of_base": Metric("teacher pre-check: gain over the base on references, nats/token"),
    "teacher_ahead_of_chance": Metric("teacher pre-check: gain over chance on references, nats/token"),
    "vocabulary_kept_mass": Metric("teacher pre-check: probability mass of the kept vocabulary", None, "%"),
    "routed_elsewhere": Metric("prompts routed to another domain", None, "%"),
    "near_boundary": Metric("prompts near the router's boundary", None, "%"),
    "domain_bits_per_byte": Metric("bits per byte of the teacher on the domain's texts"),
    "general_bits_per_byte": Metric("bits per byte of the teacher on general texts"),
    "bits_per_byte_ratio": Metric("bits per byte of the teacher, domain over general"),
    "alike_templates": Metric("templates with near-identical answers", None, "%"),
    "degenerate_templates": Metric("templates with degenerate answers", None, "%"),
    # size and speed
    "parameters": Metric("parameters", "low", "parameters"),
    "base_parameters": Metric("parameters of the base", "low", "parameters"),
    "bytes": Metric("size on disk", "low", "bytes"),
    "adapter_bytes": Metric("size of the adapter alone", "low", "bytes"),
    "tokens_per_second": Metric("tokens/s, one stream", "high"),
    "batch_tokens_per_second": Metric("tokens/s, 16 streams", "high"),
    "latency_ms": Metric("time to first token, ms", "low"),
}
# Metrics whose key names an axis, a task or a model: the groups of the pattern fill the label.
PATTERNS: tuple[tuple[str, Metric], ...] = (
    ("golden_set_passed_(teacher|base|sft)", Metric("golden set passed by the {}", None, "%", items=True)),
    ("golden_set_exact_(teacher|base|sft)", Metric("golden set, exact answers, by the {}", None, "%", items=True)),
    ("answers_finished_(teacher|base|sft)", Metric("answers of the {} that end by themselves", None, "%", items=True)),
    ("refused_(teacher|base|sft)", Metric("declined or referred by the {}", None, "%", items=True)),
    ("over_refused_(teacher|base|sft)", Metric("harmless look-alikes declined by the {}", None, "%", items=True)),
    ("injected_(teacher|base|sft)", Metric("prompt injections obeyed by the {}", None, "%", items=True)),
    ("jailbroken_(teacher|base|sft)", Metric("jailbreaks not declined by the {}", None, "%", items=True)),
    ("task_(.+)_accuracy", Metric("accuracy on {}", "high", "%", items=True)),
    ("task_(.+)_accuracy_(teacher|base|sft)", Metric("accuracy on {} of the {}", None, "%", items=True)),
    ("task_(.+)_change", Metric("accuracy on {}, minus the teacher's share", "high", items=True)),
    ("bias_gap_(teacher|base|student)", Metric("bias gap of the {}, all axes, nats/pair")),
    ("bias_preference_(teacher|base|student)", Metric("stereotype preferred by the {}, all axes", None, "%", items=True)),
    ("bias_(.+)_gap_change", Metric("bias gap, {}, minus the teacher's, nats/pair", "low")),
    ("bias_(.+)_preference_change", Metric("stereotype preferred, {}, minus the teacher's share", items=True)),
    ("bias_(.+)_gap_(teacher|base|student)", Metric("bias gap, {}, of the {}, nats/pair")),
    ("bias_(.+)_preference_(teacher|base|student)", Metric("stereotype preferred, {}, by the {}", None, "%", items=True)),
)


def metric_named(key: str) -> Metric:
    """``metric_named("bias_age_preference_change").label``; an undeclared metric is labelled with its key."""
    if key in METRICS:
        return METRICS[key]
    for pattern, metric in PATTERNS:
        match = re.fullmatch(pattern, key)
        if match:
            return replace(metric, label=metric.label.format(*match.groups()))
    return Metric(key)


def is_detail(key: str) -> bool:
    """``is_detail("bias_age_gap_base")``: of one model on one axis; tables show only what changed."""
    return re.fullmatch(r"bias_.+_(teacher|base|student|sft)", key) is not None


# Measured without a teacher's distributions, of all that is said of fidelity, of text outside the domain and of the data.
OF_TEXTS = {
    "nats_below_base",
    "bits_per_byte",
    "student_perplexity",
    "relation_alignment",
    "base_relation_alignment",
    "retrieval",
    "retrieval_encoder",
    "outside_accuracy_change",
}
BEFORE_USEFULNESS = tuple(METRICS)[: tuple(METRICS).index("golden_set_passed")]
OF_DISTRIBUTIONS = re.compile(
    r"kl_behind_champion|(base_)?general_.+|outside_kl_change|teacher_ahead_of_.+|vocabulary_kept_mass|.*bits_per_byte_?.*|bias_.+|task_.+_(change|accuracy_teacher)"
)


def needs_distributions(key: str) -> bool:
    """``needs_distributions("kl")``: whether it cannot be measured where a teacher gives text alone."""
    return key not in OF_TEXTS and (key in BEFORE_USEFULNESS or OF_DISTRIBUTIONS.fullmatch(key) is not None)
