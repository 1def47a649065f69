from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.versions import student, text

from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.console import list_json, list_table, show, show_json, sparkline


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    for _ in range(3):
        with registry.stage("healthcare-small") as folder:
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
            manifest = student("healthcare-small", base=None).manifest
            registry.publish("student", "healthcare-small", folder, manifest)
    registry.promote("healthcare-small@2", "champion", override="the table shall show it")
    return registry


def test_the_list_shows_alias_share_of_the_teacher_and_fidelity(registry: Registry) -> None:
    lines = text(list_table(registry.versions())).splitlines()
    assert len(lines) == 4
    for word in ("healthcare-small@2", "champion", "80.0 M", "59.5 %", "0.400", "76.0 %", "failed", "demo"):
        assert word in lines[2]
    assert "champion" not in lines[1]


def test_a_long_list_shows_its_newest_and_says_so(registry: Registry) -> None:
    written = text(list_table(registry.versions(), limit=2))
    assert "healthcare-small@1" not in written
    assert "healthcare-small@3" in written
    assert "the newest 2 of 3 versions" in written


def test_the_list_as_json_is_plain(registry: Registry) -> None:
    listed = json.loads(json.dumps(list_json(registry.versions())))
    assert listed[1]["reference"] == "healthcare-small@2"
    assert listed[1]["aliases"] == ["champion"]
    assert listed[0]["kl"] == 0.4
    assert listed[0]["sources"] == ["medquad"]


def test_a_version_without_figures_is_unchecked() -> None:
    assert "unchecked" in text(show(Version("base", "default-small", 1, Path("/b"), {})))


def test_show_has_lineage_data_figures_curve_samples_and_warnings() -> None:
    written = text(show(student("healthcare-small"), ["champion"]))
    for word in (
        "champion",
        "failed; KL 2.1 is above 1",
        "default-small@1",
        "source medquad",
        "800 examples, cc-by-4.0",
        "0.400 [0.380, 0.440], n = 5,120",
        "(teacher 3.900)",
        "8.000 █▇▆▅▄▃▂▁ 1.000",
        "What is [bold]asthma[/bold]?",  # a model's words are no markup
        "A lung disease.",
        "warning: the data set is thin",
    ):
        assert word in written


def test_show_as_json_is_the_manifest_and_where_it_is() -> None:
    shown = json.loads(json.dumps(show_json(student("healthcare-small"), ["champion"])))
    assert shown["reference"] == "healthcare-small@1"
    assert shown["aliases"] == ["champion"]
    assert shown["evaluation"]["metrics"]["kl"]["n"] == 5120
    assert shown["folder"].endswith("healthcare-small/1")


def test_a_sparkline_is_as_long_as_asked_and_survives_gaps() -> None:
    assert sparkline([3, 2, 1]) == "█▅▁"
    assert len(sparkline(range(1000))) == 48
    assert sparkline([]) == ""
    assert sparkline([None, 2, 2]) == "▁▁"
