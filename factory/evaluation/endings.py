"""Does a student end its answers, where its domain has no golden set? A model that never learnt the end of a turn does not.

asked = ending_rows(suite.golden_set, data.domain.test, 120)
endings_part(asked, {"student": [...], "teacher": [...]}, bootstrap).metrics["answers_finished_change"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from factory.data.history import asked_alone
from factory.data.splitting import cluster_of
from factory.evaluation.answers import Answer
from factory.evaluation.items import Item, share_metrics
from factory.evaluation.parts import Part
from factory.evaluation.stats import BootstrapConfig

Row = Mapping[str, Any]


def ending_rows(golden_set: Sequence[Item], test: Sequence[Row], limit: int) -> list[Row]:
    """``ending_rows(suite.golden_set, data.domain.test, 120)``: the first held-out prompts that mean the same alone.

    None where a golden set is asked, whose answers tell, and none of documents, which have no prompts.
    """
    return [] if golden_set else [row for row in asked_alone(test) if row["prompt"]][:limit]


def endings_part(rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]], bootstrap: BootstrapConfig) -> Part:
    """``endings_part(asked, {"student": [...], "teacher": [...]}, bootstrap).metrics["answers_finished"].value``

    The share of answers that ended by themselves and not at the limit, and the student's minus the teacher's, paired. Templates
    or documents are resampled; n counts prompts. No prompts, no metrics.
    """
    finished = {name: [answer.finished for answer in given] for name, given in answers.items()}
    clusters = [cluster_of(row) for row in rows]
    return Part(metrics=share_metrics(finished, "answers_finished", "answers_finished_change", bootstrap, clusters))
