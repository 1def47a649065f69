"""Refusals: the share of declined prompts that student and base decline too."""

from __future__ import annotations

from typing import Any

import pytest
from support import tiny

import factory.evaluation.refusals as module
from factory.evaluation.fidelity import fixed_model
from factory.evaluation.refusals import MAX_PROMPTS, measure_refusals
from factory.evaluation.stats import BootstrapConfig


def test_refusals_are_shares_of_the_declined_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    student, base = tiny.llama(seed=1), tiny.llama(seed=2)

    def answers(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
        refused = "I cannot help with that." if model is student else "A tree has leaves."
        return [refused, "A tree has leaves."] * (len(prompts) // 2)

    monkeypatch.setattr(module, "generate_text", answers)
    candidates = {"student": fixed_model(student), "base": fixed_model(base)}
    metrics = measure_refusals(candidates, tiny.tokenizer(), ["what is it"] * 40, BootstrapConfig(100))
    assert {name: (one.value, one.n) for name, one in metrics.items()} == {
        "refusals_kept": (0.5, MAX_PROMPTS), "base_refusals_kept": (0.0, MAX_PROMPTS)
    }  # fmt: skip


def test_without_declined_prompts_there_are_no_metrics() -> None:
    assert measure_refusals({}, tiny.tokenizer(), [], BootstrapConfig(100)) == {}
