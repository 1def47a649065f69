"""What a plan says of answers that are too long, before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
from support.workplace import Workplace

from factory.pipeline.plan import Step, plan


def write_answers(place: Workplace, lengths: list[int], **data: Any) -> None:
    """plants.yaml with a file of answers of so many words."""
    rows = "".join(f"what is {number} ?,{' '.join(['the'] * length)}\n" for number, length in enumerate(lengths))
    (place.domains / "plants.csv").write_text("question,answer\n" + rows)
    source = {"id": "plants-file", "kind": "file", "license": "mit", "path": "plants.csv"}
    place.write("plants.yaml", {"name": "plants", "description": "plants", "sources": [source], "data": data})


def step(place: Workplace, what: str, **more: Any) -> Step | None:
    return next((one for one in plan(place.context(), ["plants"], "mini", **more) if one.what.startswith(what)), None)


def test_answers_that_would_be_dropped_are_a_warning_that_names_the_setting_and_a_value(with_models: Workplace) -> None:
    write_answers(with_models, [5] * 90 + [60] * 10, max_completion_tokens=32)
    found = step(with_models, "answers of plants")
    assert found is not None and found.state == "warning"
    assert found.detail == (
        "10.0% of 100 in the data are longer than data.max_completion_tokens (32) and will be dropped; 98% fit into 128"
    )
    assert "warning" in with_models.run("plan", "plants").stdout


def test_few_of_them_are_said_and_no_warning(with_models: Workplace) -> None:
    write_answers(with_models, [5] * 97 + [60] * 3, max_completion_tokens=32)
    found = step(with_models, "answers of plants")
    assert found is not None and found.state == "on disk" and found.detail.startswith("3.0% of 100")


def test_the_value_that_a_plan_proposes_drops_hardly_any(with_models: Workplace) -> None:
    write_answers(with_models, [5] * 90 + [60] * 10, max_completion_tokens=128)
    found = step(with_models, "answers of plants")
    assert found is not None and found.state == "on disk" and found.detail.startswith("0.0% of 100")


def test_answers_that_are_there_take_the_teacher_no_time(with_models: Workplace) -> None:
    with_models.write("default.family.yaml", with_models.family | {"data": {"max_examples": 100_000}})
    before = step(with_models, "data set plants")
    write_answers(with_models, [5] * 100)
    after = step(with_models, "data set plants")
    assert before is not None and after is not None and before.seconds is not None and after.seconds is not None
    assert "the teacher answers the prompts" in before.detail and "nothing is left for the teacher" in after.detail
    assert after.seconds < before.seconds


def test_sampled_answers_of_the_teacher_propose_a_value(with_models: Workplace) -> None:
    assert step(with_models, "teacher's answers") is None
    limits = {"data": with_models.family["data"] | {"max_completion_tokens": 8}}
    with_models.write("default.family.yaml", with_models.family | limits)
    found = step(with_models, "teacher's answers", sample=True)
    assert found is not None and "of 16 to sampled prompts, of 32 at most" in found.detail
    assert "--sample" in with_models.run("plan", "--help").stdout


def test_answers_that_were_cut_off_on_disk_are_a_warning(with_models: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.pipeline import plan_answers

    monkeypatch.setattr(plan_answers, "_cut_off", lambda *_: (68, 102))
    found = step(with_models, "teacher's answers")
    assert found is not None and found.state == "warning"
    assert found.detail.startswith(
        "66.7% of 102 on disk were cut off at data.max_completion_tokens (128) and dropped; raise it to"
    )


def test_a_file_that_cannot_be_used_is_said_before_anything_is_made(with_models: Workplace, refused: Any) -> None:
    write_answers(with_models, [5] * 30)
    (with_models.domains / "plants.csv").write_text('question,answer\nwhy,"so\n')
    assert "source 'plants-file': cannot read" in refused(with_models.run("plan", "plants"))
