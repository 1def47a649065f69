"""What a plan says of the memory that trainings need, before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
from support.workplace import Workplace

from factory.pipeline import plan_memory
from factory.pipeline.plan import Step, plan


def memory(place: Workplace, **distill: Any) -> dict[str, Step]:
    place.write("default.family.yaml", place.family | {"distill": place.family["distill"] | distill})
    return {step.what: step for step in plan(place.context(), ["plants"], "mini") if step.what.startswith("memory of")}


def test_a_plan_says_the_memory_of_each_training_with_batch_and_longest_row(with_models: Workplace) -> None:
    steps = memory(with_models)
    assert list(steps) == ["memory of healing", "memory of plants-mini"]
    assert {step.state for step in steps.values()} == {"needs"}
    assert "MB at the peak: 4 rows of at most 1" in steps["memory of plants-mini"].detail  # 128 tokens are an answer's
    assert "memory of plants-mini" in with_models.run("plan", "plants").stdout


def test_more_than_the_machine_has_is_a_warning_that_names_the_settings(
    with_models: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_memory, "machine_memory", lambda: 4_000_000_000)
    step = memory(with_models, batch=20_000, relation=0.1)["memory of plants-mini"]
    assert step.state == "warning" and "20000 rows of at most" in step.detail
    assert step.detail.endswith(
        "this machine has 4.0 GB: lower distill.batch (with distill.relation: 0, below 32) or data.max_completion_tokens"
    )


def test_answers_that_are_all_there_are_measured(with_models: Workplace) -> None:
    rows = "".join(f"what is {number} ?,the the the\n" for number in range(60))
    (with_models.domains / "plants.csv").write_text("question,answer\n" + rows)
    source = {"id": "plants-file", "kind": "file", "license": "mit", "path": "plants.csv"}
    with_models.write("plants.yaml", {"name": "plants", "description": "plants", "sources": [source]})
    detail = memory(with_models)["memory of plants-mini"].detail
    assert int(detail.rpartition("at most ")[2].split()[0]) < 60
