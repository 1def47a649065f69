"""How well a student predicts text that no model wrote: a domain's held-out references, or its held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from factory.data.history import history_of
from factory.data.splitting import cluster_of
from factory.evaluation.benchmark import Question as RealText
from factory.evaluation.benchmark import bits_per_byte
from factory.evaluation.fidelity import Candidate
from factory.evaluation.stats import BootstrapConfig, by_cluster, paired_difference, ratio
from factory.models.teacher import Teacher
from factory.registry.manifest import MetricValue

MIN_TEXTS, MAX_TEXTS = 8, 100  # held-out references; held-out texts behind the bits per byte


def real_text_metrics(
    student: Candidate, teacher: Teacher, whole: Teacher, held_out: Sequence[Mapping[str, Any]], bootstrap: BootstrapConfig
) -> dict[str, MetricValue]:
    """``real_text_metrics(student, teacher, whole, rows, bootstrap)["bits_per_byte_change"]``: beside the untrimmed teacher.

    KL on the teacher's own answers cannot see a vocabulary that is too small for what people write. Nobody sees a context.
    ``teacher`` has the student's vocabulary.
    """
    rows = real_texts(held_out)
    if not rows:
        return {}
    labels = [row.document for row in rows]
    with student() as model:
        bits, sizes = bits_per_byte(model, teacher.tokenizer, rows, device=teacher.device)
    teacher_bits, _ = bits_per_byte(whole.model, whole.tokenizer, rows, device=whole.device)
    own, theirs, bytes_ = (by_cluster(column, labels) for column in (bits, teacher_bits, sizes))
    return {
        "bits_per_byte": ratio(own, bytes_, bootstrap),
        "bits_per_byte_teacher": ratio(theirs, bytes_, bootstrap),
        "bits_per_byte_change": paired_difference(own, theirs, bytes_, bootstrap),
    }


def real_texts(held_out: Sequence[Mapping[str, Any]]) -> list[RealText]:
    """``real_texts(data.domain.test)``: held-out references, or the prompts where fewer than ``MIN_TEXTS`` have one.

    Their ``document`` is their cluster.
    """
    rows = held_out[:MAX_TEXTS]
    references = [
        RealText(row["prompt"], row["completion"], cluster_of(row), history_of(row)) for row in rows if row["own_completion"]
    ]
    if len(references) >= MIN_TEXTS:
        return references
    return [RealText("", row["prompt"], cluster_of(row)) for row in rows if row["prompt"].strip()]
