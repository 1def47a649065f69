from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from factory.errors import RegistryError
from factory.manifests import Version
from factory.registry import Registry
from factory.report import (
    BEST,
    compare_json,
    compare_table,
    list_json,
    list_table,
    show,
    show_json,
    sparkline,
    write_metric,
    write_number,
)


def student(name: str, kl: float | None = 0.4, **more: Any) -> Version:
    metrics = {"kl": {"value": kl, "low": 0.38, "high": 0.44, "n": 5120}, "top1_agreement": 0.76}
    metrics |= {"student_perplexity": 4.2, "teacher_perplexity": 3.9}
    sizes = {"student": {"parameters": 80_000_000}, "teacher": {"parameters": 134_515_008, "bytes": 269_000_000}}
    speed = {"student": {"tokens_per_second": 40.0}, "teacher": {"tokens_per_second": 28.0}}
    samples = [{"prompt": "What is [bold]asthma[/bold]?", "teacher": "A lung\ndisease.", "student": "Lungs."}]
    manifest = {
        "kind": "student",
        "name": name,
        "version": 1,
        "profile": "demo",
        "base": "default-small@1",
        "dataset": {"fingerprint": "f0", "sources": [{"id": "medquad", "license": "cc-by-4.0", "n": 800}]},
        "evaluation": {"metrics": metrics, "sizes": sizes, "speed": speed, "samples": samples},
        "training": {"curve": [{"step": n, "loss": 8.0 - n} for n in range(8)], "config": {"steps": 8}},
        "verdict": {"status": "failed", "reasons": ["KL 2.1 is above 1"]},
        "warnings": ["the data set is thin"],
    }
    return Version("student", name, 1, Path("/registry/students") / name / "1", manifest | more)


def text(renderable: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    for _ in range(3):
        with registry.stage("healthcare-small") as folder:
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
            manifest = student("healthcare-small", base=None).manifest
            registry.publish("student", "healthcare-small", folder, manifest)
    registry.promote("healthcare-small@2", "champion", force=True)
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


def test_versions_without_figures_are_dashes() -> None:
    bare = Version("base", "default-small", 1, Path("/b"), {})
    assert "verdict" in text(compare_table([bare]))
    assert "unchecked" in text(show(bare)) + text(compare_table([bare]))


def test_compare_marks_the_best_of_each_row() -> None:
    versions = [student("a-small", 0.4), student("b-small", 0.3)]
    rows = {row["key"]: row for row in compare_json(versions)["rows"]}
    assert rows["kl"]["best"] == ["b-small@1"]
    assert rows["top1_agreement"]["best"] == []  # equal
    assert rows["teacher_perplexity"]["best"] == []  # nobody wins it
    line = next(line for line in text(compare_table(versions)).splitlines() if line.startswith("KL("))
    assert line.count(BEST) == 1
    assert "0.300 [0.380, 0.440] " + BEST in line


def test_the_higher_agreement_and_the_lower_size_win() -> None:
    a, b = student("a-small"), student("b-small")
    b.manifest["evaluation"]["metrics"]["top1_agreement"] = 0.8
    b.manifest["evaluation"]["sizes"]["student"] = {"parameters": 90_000_000}
    rows = {row["key"]: row for row in compare_json([a, b])["rows"]}
    assert rows["top1_agreement"]["best"] == ["b-small@1"]
    assert rows["parameters"]["best"] == ["a-small@1"]


def test_the_teacher_is_taken_from_the_first_student_and_never_wins() -> None:
    versions = [student("a-small"), student("b-small", 0.3)]
    content = compare_json(versions, teacher=True)
    rows = {row["key"]: row for row in content["rows"]}
    assert content["columns"] == ["a-small@1", "b-small@1", "teacher"]
    assert rows["student_perplexity"]["values"]["teacher"]["value"] == 3.9
    assert rows["parameters"]["values"]["teacher"]["value"] == 134_515_008
    assert rows["bytes"]["best"] == []
    assert rows["kl"]["values"]["teacher"] is None
    assert "28.0" in text(compare_table(versions, teacher=True))


def test_students_of_two_teachers_have_a_column_for_each() -> None:
    other = {"evaluation": {"sizes": {"teacher": {"parameters": 268_098_176}}}, "teacher": {"sha256": "b"}}
    versions = [
        student("a-small", teacher={"sha256": "a"}),
        student("c-small", teacher={"sha256": "a"}),
        student("b-mini", **other),
    ]
    content = compare_json(versions, teacher=True)
    assert content["columns"][3:] == ["teacher of a-small@1", "teacher of b-mini@1"]
    values = next(row for row in content["rows"] if row["key"] == "parameters")["values"]
    assert values["teacher of b-mini@1"]["value"] == 268_098_176


def test_compare_warns_when_the_test_sets_differ() -> None:
    other = student("b-small", dataset={"fingerprint": "f1"})
    assert "compare only roughly" in " ".join(text(compare_table([student("a-small"), other])).split())
    assert "compare only" not in text(compare_table([student("a-small"), student("b-small")]))


def test_compare_without_versions_is_an_error() -> None:
    with pytest.raises(RegistryError, match="at least one"):
        compare_json([])


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


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0.41234, "", "0.412"),
        (1234.56, "", "1,234.6"),
        (5120, "", "5,120"),
        (0.755, "%", "75.5 %"),
        (134_515_008, "parameters", "134.5 M"),
        (999, "bytes", "999 B"),
        (0, "bytes", "0 B"),
        (2_500_000_000_000, "bytes", "2500.0 GB"),
        (None, "", "-"),
        ("high", "", "-"),
        (True, "", "-"),
    ],
)
def test_numbers_are_written_short(value: Any, unit: str, written: str) -> None:
    assert write_number(value, unit) == written


def test_a_metric_without_an_interval_is_its_value() -> None:
    assert write_metric({"value": 0.4, "low": None, "high": None, "n": 7}) == "0.400"
    assert write_metric(None) == "-"


def test_a_sparkline_is_as_long_as_asked_and_survives_gaps() -> None:
    assert sparkline([3, 2, 1]) == "█▅▁"
    assert len(sparkline(range(1000))) == 48
    assert sparkline([]) == ""
    assert sparkline([None, 2, 2]) == "▁▁"


def test_importing_the_report_loads_no_rich() -> None:
    code = "import sys, factory.report; print('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
