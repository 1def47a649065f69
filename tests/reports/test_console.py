"""What the terminal shows first, what it shows on request, and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.manifests import COMMON, base, evaluation, metric, publish, rendered, student

from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.console import list_json, list_table, show, show_json, sparkline

FAILED = {"status": "failed", "reasons": ["KL(teacher ‖ student), nats/token: 2.1 > 1"], "gates": []}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    for _ in range(3):
        publish(registry, verdict=FAILED)
    registry.promote("healthcare-small@2", "champion", override="the table needs one")
    return registry


def test_the_list_shows_alias_share_of_the_teacher_and_fidelity(registry: Registry) -> None:
    lines = rendered(list_table(registry.versions("student"))).splitlines()
    assert len(lines) == 4
    for word in ("healthcare-small@2", "champion", "80.0 M", "59.5 %", "0.410", "76.0 %", "failed", "demo"):
        assert word in lines[2]
    assert "champion" not in lines[1]


def test_a_long_list_shows_its_newest_and_says_so(registry: Registry) -> None:
    written = rendered(list_table(registry.versions("student"), limit=2))
    assert "healthcare-small@1" not in written
    assert "healthcare-small@3" in written
    assert "the newest 2 of 3 versions" in written


def test_the_list_as_json_is_plain(registry: Registry) -> None:
    listed = json.loads(json.dumps(list_json(registry.versions("student"))))
    assert listed[1]["reference"] == "healthcare-small@2"
    assert listed[1]["aliases"] == ["champion"]
    assert listed[0]["kl"] == 0.41
    assert listed[0]["sources"] == ["healthcare-conditions"]


def measured() -> Version:
    metrics = {key: metric(0.41) for key in ("entropy_gap", "golden_set_passed", "kl", "base_kl", "golden_set_passed_teacher")}
    metrics |= {"task_pubmedqa_accuracy": metric(0.5), "bias_gap_change": metric(0.01)}
    samples = [{"prompt": "What is [bold]asthma[/bold]?", "teacher": "A lung\ndisease.", "student": "Lungs."}]
    warnings = ["built although the teacher pre-check failed", "the data set is small"]
    return student(evaluation=evaluation(metrics=metrics, samples=samples), verdict=FAILED, warnings=warnings)


def test_show_begins_with_a_dozen_lines_that_matter() -> None:
    lines = rendered(show(measured(), ["champion"])).splitlines()
    assert [label_of(line) for line in lines[1:-1]] == [
        "verdict",
        "KL(teacher ‖ student), nats/token",
        "KL(teacher ‖ base without adapter), nats/token",
        "golden set passed",
        "accuracy on pubmedqa",
        "parameters",
        "size on disk",
        "tokens/s, one stream",
        "base",
        "profile",
        "aliases",
        "warning",
        "folder",
    ]
    assert "failed: KL(teacher ‖ student), nats/token: 2.1 > 1" in lines[1]
    assert "41.0 % [38.0 %, 44.0 %]   (teacher 41.0 % [38.0 %, 44.0 %])" in lines[4]
    assert "built although the teacher pre-check failed (and 1 more)" in lines[-3]
    assert "--all-metrics" in lines[-1]


def label_of(line: str) -> str:
    return line.partition("  ")[0]


def test_show_has_everything_on_request() -> None:
    written = rendered(show(measured(), ["champion"], all_metrics=True))
    for word in (
        "champion",
        "default-small-base@1",
        "entropy minus the teacher's",
        "0.410 [0.380, 0.440], n = 5,120",
        "source healthcare-conditions",
        "930 examples, Apache-2.0",
        "8.000 █▇▆▅▄▃▂▁ 1.000",
        "What is [bold]asthma[/bold]?",  # a model's words are not markup
        "A lung disease.",
        "warning: the data set is small",
    ):
        assert word in written


def test_the_shares_of_the_gradient_are_shown_on_request() -> None:
    version = student(training=COMMON["training"] | {"gradient_shares": {"response": 0.981, "relation": 0.019}})
    assert "share of the gradient  response 98.1 %, relation 1.9 %" in rendered(show(version, all_metrics=True))


def test_a_base_shows_what_healing_brought() -> None:
    written = rendered(show(base()))
    assert "unchecked" in written
    assert "KL 1.200 [1.170, 1.230] → 0.500 [0.470, 0.530] nats/token" in written


def test_an_override_is_shown_and_the_order_of_a_blind_review_is_not(registry: Registry) -> None:
    version = registry.record(registry.resolve("healthcare-small@2"), "review_key", {"review": "r1", "order": ["a", "b"]})
    share = {"value": 0.625, "low": 0.2, "high": 0.9, "n": 4}
    written = rendered(show(registry.record(version, "review", {"review": "r1", "share": share}), all_metrics=True))
    assert "the table needs one" in written
    assert "share 0.625 [0.200, 0.900]" in written
    assert "order" not in written


def test_show_as_json_is_the_manifest_and_where_it_is() -> None:
    shown = json.loads(json.dumps(show_json(student(), ["champion"])))
    assert shown["reference"] == "healthcare-small@1"
    assert shown["aliases"] == ["champion"]
    assert shown["evaluation"]["metrics"]["kl"]["n"] == 5120
    assert shown["training"]["curve"] == COMMON["training"]["curve"]
    assert shown["folder"].endswith("healthcare-small/1")


def test_a_sparkline_is_as_long_as_asked() -> None:
    assert sparkline([3, 2, 1]) == "█▅▁"
    assert len(sparkline(range(1000))) == 48
    assert sparkline([]) == ""
    assert sparkline([2, 2]) == "▁▁"
