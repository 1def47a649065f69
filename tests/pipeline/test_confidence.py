"""A student's confidence: fitted on validation prompts alone, kept for a stopped build, published beside the adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.workplace import Workplace

from factory.evaluation.answer_confidence import HeldOutAnswers
from factory.evaluation.confidence import Confidence, TokenSignal
from factory.pipeline import build
from factory.pipeline import confidence as stage
from factory.pipeline.build import build_student
from factory.pipeline.context import resolve_models
from factory.pipeline.dataset import make_dataset
from factory.reports.card import model_card


class Planted:
    """Answers of which the surer ones are right, in place of a tiny student's, which are all alike."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        monkeypatch.setattr(stage, "ask_held_out", self)

    def __call__(self, student: Any, teacher: Any, rows: Any, contexts: Any, **settings: Any) -> HeldOutAnswers:
        self.asked.append([row["prompt"] for row in rows])
        rng = np.random.default_rng(0)
        right = rng.random(60) < 0.7
        tokens = [[TokenSignal(float(n), 0.5, 0.5) for n in rng.gamma(2, 0.1 if one else 0.4, 5)] for one in right]
        return HeldOutAnswers(tokens, right, [str(i) for i in range(60)])


@pytest.fixture
def asking(built: Workplace) -> Any:
    """A family whose students are asked how sure they are."""
    built.write("default.family.yaml", built.family | {"confidence": {"examples": 50, "margin": 0.3}})
    yield built
    built.write("default.family.yaml", built.family)


def test_a_student_is_published_with_its_confidence(asking: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Planted(monkeypatch)
    context = asking.context()
    version = build_student(context, "plants", "mini")
    info = version.manifest.confidence
    assert info is not None and (info.examples, info.margin) == (60, 0.3) and 0.6 < info.right < 0.8
    found = Confidence.load(version.folder)
    assert found is not None and found.margin == 0.3 and len(found.whole.held_out) == 60
    assert "confidence.json" in version.manifest.files and "confidence" in version.manifest.seconds
    models = resolve_models(context.family, context.specs.root, context.device)
    rows = make_dataset(context, models, context.specs.domain("plants")).rows
    assert planted.asked == [[row["prompt"] for row in rows["validation"]]]
    metrics = version.manifest.evaluation.metrics  # of its own answers to the test prompts
    assert metrics["answers_right"].n == len(rows["test"]) and len(version.manifest.evaluation.risk_coverage) == 10
    card = model_card(version.manifest)
    assert "| confidence | fitted on 60 answers, " in card and " of all" in card


def test_a_stopped_build_does_not_ask_again(asking: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Planted(monkeypatch)

    def stop(*given: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "evaluate_adapter", stop)
        with pytest.raises(KeyboardInterrupt):
            build_student(asking.context(), "plants", "mini")
    version = build_student(asking.context(), "plants", "mini")
    assert len(planted.asked) == 1 and version.manifest.confidence is not None


def test_too_few_prompts_are_a_warning_and_no_confidence(asking: Workplace) -> None:
    version = build_student(asking.context(), "plants", "mini")
    assert version.manifest.confidence is None and Confidence.load(version.folder) is None
    count = version.manifest.dataset.counts["validation"]
    [warning] = [one for one in version.manifest.warnings if "how sure it is" in one]
    assert f" of {count} answers to plants's validation prompts are right, and 40 answers are needed" in warning


def test_without_the_setting_nothing_is_asked(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Planted(monkeypatch)
    version = build_student(built.context(), "plants", "mini")
    assert planted.asked == [] and version.manifest.confidence is None
    assert not any("how sure" in warning for warning in version.manifest.warnings)
    assert "answers_right" not in version.manifest.evaluation.metrics
