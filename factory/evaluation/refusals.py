"""Does a student decline what its teacher declined?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from factory.data.cleaning import is_refusal
from factory.evaluation.fidelity import Candidate
from factory.evaluation.stats import BootstrapConfig, mean
from factory.models.chat import prompt_ids
from factory.models.generation import generate_text
from factory.registry.manifest import MetricValue

MAX_PROMPTS = 32
METRICS = {"student": "refusals_kept", "base": "base_refusals_kept"}


def measure_refusals(
    candidates: Mapping[str, Candidate], tokenizer: Any, prompts: Sequence[str], bootstrap: BootstrapConfig
) -> dict[str, MetricValue]:
    """``measure_refusals(candidates, tokenizer, declined, bootstrap)["refusals_kept"].value``

    ``prompts`` are those that the teacher declined; the metrics are the shares of the first ``MAX_PROMPTS`` that "student"
    and "base" of ``candidates`` decline too. No prompts, no metrics.
    """
    if not prompts:
        return {}
    asked = [prompt_ids(tokenizer, prompt) for prompt in prompts[:MAX_PROMPTS]]
    metrics = {}
    for name, key in METRICS.items():
        with candidates[name]() as model:
            answers = generate_text(model, tokenizer, asked)
        metrics[key] = mean(np.array([float(is_refusal(answer)) for answer in answers]), bootstrap)
    return metrics
