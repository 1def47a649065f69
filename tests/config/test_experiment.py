"""A file of methods: what a method starts from, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.config.experiment import ExperimentSpec
from factory.config.load import load_methods
from factory.config.schema import DistillConfig
from factory.errors import SpecError

SETTINGS = DistillConfig(steps=90, batch=32, learning_rate=5e-4, rank=8, feature=0.1, relation=0.05, beta=0.3, checks=6)
METHODS: dict[str, Any] = {
    "minutes": 10,
    "teacher_tokens": 1000,
    "learning_rates": [1e-3, 2e-4],
    "methods": [{"name": "forward KL"}, {"name": "SFT", "targets": "hard", "distill": {"relation": 0.5}}],
}


def load(folder: Path, *methods: dict[str, Any], **over: Any) -> ExperimentSpec:
    content = METHODS | over | ({"methods": list(methods)} if methods else {})
    (folder / "methods.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_methods(folder / "methods.yaml", SETTINGS)


def mistakes(folder: Path, *methods: dict[str, Any], **over: Any) -> list[str]:
    with pytest.raises(SpecError) as raised:
        load(folder, *methods, **over)
    return str(raised.value).replace(f"{folder}/", "").splitlines()


def test_a_method_has_the_family_s_optimiser_and_no_term_but_those_that_it_names(tmp_path: Path) -> None:
    first, second = load(tmp_path).methods
    plain = first.config(SETTINGS)
    assert (plain.batch, plain.rank) == (32, 8)
    assert (plain.response, plain.feature, plain.relation, plain.beta, plain.lmbda, plain.checks) == (1, 0, 0, 0, 0, 0)
    assert second.config(SETTINGS).relation == 0.5


def test_rates_are_tried_from_the_lowest(tmp_path: Path) -> None:
    assert load(tmp_path).learning_rates == (2e-4, 1e-3)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"distill": {"bta": 1}}, "methods.yaml:10: methods.1.distill.bta: unknown key; did you mean beta?"),
        ({"distill": {"beta": 2}}, "methods.yaml:10: methods.1.distill.beta: must be at most 1 (found 2)"),
        ({"distill": {"relation": 1, "batch": 8}}, "relation > 0 needs batch >= 32"),
        ({"distill": {"steps": 9}}, "steps is the same for all methods: a run ends with its budget"),
        ({"distill": {"checks": 4}}, "checks is the same for all methods: a run ends with its budget"),
        ({"distill": {"learning_rate": 1}}, "learning_rate is the same for all methods: `learning_rates` lists those to try"),
        (
            {"targets": "hard", "distill": {"beta": 1, "ground_truth": 1}},
            "with targets: hard, beta and ground_truth would",
        ),
        ({"targets": "hard", "distill": {"lmbda": 1}}, "with targets: hard, lmbda would"),
        ({"trainer": "trl_gkd"}, "trainer: trl_gkd needs targets: soft and teacher_context: false"),
        ({"trainer": "trl_gkd", "teacher_context": False, "distill": {"feature": 1}}, "with trainer: trl_gkd, feature would"),
        ({"name": "forward KL"}, "methods: two methods have the name forward KL; rename one"),
        ({"loss": "skew_kl"}, "methods.1.loss: unknown key"),
    ],
)
def test_what_would_have_no_effect_or_does_not_fit_is_refused(tmp_path: Path, method: dict[str, Any], expected: str) -> None:
    found = mistakes(tmp_path, {"name": "forward KL"}, {"name": "other"} | method)
    assert len(found) == 1 and expected in found[0]


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({"minutes": 0}, "methods.yaml:1: minutes: must be more than 0 (found 0)"),
        ({"teacher_tokens": 0}, "methods.yaml:2: teacher_tokens: must be at least 1 (found 0)"),
        ({"learning_rates": [1e-3, 1e-3]}, "learning rates must be above 0 and differ"),
        ({"learning_rates": []}, "must have at least 1 entry"),
        ({"methods": [{"name": "alone"}]}, "must have at least 2 entries"),
    ],
)
def test_a_budget_rates_and_two_methods_are_needed(tmp_path: Path, over: dict[str, Any], expected: str) -> None:
    (found,) = mistakes(tmp_path, **over)
    assert expected in found


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none.yaml: cannot be read"):
        load_methods(tmp_path / "none.yaml", SETTINGS)
