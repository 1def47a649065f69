"""The catalogue as JSON, and a card as HTML in which all HTML of its own is escaped."""

from __future__ import annotations

import json
from math import nan
from pathlib import Path

import pytest
from support.manifests import evaluation, metric, publish
from support.workplace import Workplace

from factory.errors import RegistryError
from factory.registry.manifest import Verdict
from factory.registry.registry import Registry
from factory.serve.catalogue import card, card_html, catalogue

FAILED = Verdict(status="failed", reasons=("KL(teacher ‖ student), nats/token: 2.500 > 0.1",))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """healthcare-small@1, which is champion, and healthcare-small@2, which failed its gates."""
    here = Registry(tmp_path)
    publish(here)
    publish(here, verdict=FAILED, evaluation=evaluation(metrics={"kl": metric(2.5), "top1_agreement": metric(nan)}))
    here.promote("healthcare-small@1")
    return here


def test_a_student_is_listed_with_its_versions_newest_first(registry: Registry) -> None:
    found = catalogue(registry)
    assert found["problems"] == []
    (student,) = found["students"]
    assert (student["name"], student["domain"], student["current"]) == ("healthcare-small", "healthcare", "healthcare-small@1")
    assert (student["description"], student["questions"]) == ("Everyday questions on health", ["What is asthma?"])
    second, first = student["versions"]
    assert (second["reference"], second["verdict"], second["aliases"]) == ("healthcare-small@2", "failed", [])
    assert second["reasons"] == FAILED.reasons
    assert (first["reference"], first["verdict"], first["aliases"]) == ("healthcare-small@1", "passed", ["champion"])
    assert (first["parameters"], first["teacher_parameters"]) == (80_000_000, 134_515_008)
    assert (first["bytes"], first["adapter_bytes"]) == (165_000_000, 6_500_000)
    json.dumps(found, allow_nan=False)


def test_metrics_come_with_interval_label_and_unit(registry: Registry) -> None:
    measured = {"kl": metric(0.41), "golden_set_passed": metric(0.7, n=20), "perplexity": metric(9)}
    version = publish(registry, evaluation=evaluation(metrics=measured))
    metrics = catalogue(registry)["students"][0]["versions"][0]["metrics"]
    assert version.manifest.kind == "student"
    kl = version.manifest.evaluation.metrics["kl"]
    label = "KL(teacher ‖ student), nats/token"
    assert metrics == {
        "kl": {"value": 0.41, "low": kl.low, "high": kl.high, "n": 5120, "label": label, "unit": ""},
        "golden_set_passed": metric(0.7, n=20) | {"label": "golden set passed", "unit": "%"},
    }


def test_a_metric_that_was_not_measured_is_left_out(registry: Registry) -> None:
    second = catalogue(registry)["students"][0]["versions"][0]
    assert (second["reference"], list(second["metrics"])) == ("healthcare-small@2", ["kl"])


def test_a_student_whose_versions_all_failed_has_no_current_version(tmp_path: Path) -> None:
    publish(Registry(tmp_path), verdict=FAILED)
    assert catalogue(Registry(tmp_path))["students"][0]["current"] is None


def test_only_students_that_a_key_gives_access_to_are_listed(registry: Registry) -> None:
    assert catalogue(registry, lambda name: name != "healthcare-small") == {"students": [], "problems": []}


def test_an_empty_registry_has_no_students(tmp_path: Path) -> None:
    assert catalogue(Registry(tmp_path)) == {"students": [], "problems": []}


def test_an_invalid_version_is_a_problem_and_not_a_student(registry: Registry) -> None:
    (publish(registry).folder / "adapter_model.safetensors").unlink()
    found = catalogue(registry)
    assert len(found["students"][0]["versions"]) == 2
    assert len(found["problems"]) == 1 and "adapter_model.safetensors is missing" in found["problems"][0]


def test_a_card_comes_with_the_facts_of_its_version(built: Workplace) -> None:
    here = Registry(built.root / "registry")
    found = card(here, "plants-mini@1")
    assert (found["reference"], found["verdict"]) == ("plants-mini@1", here.resolve("plants-mini@1").verdict)
    assert "<h3>How close it is to its teacher</h3>" in found["html"]
    assert "<table>" in found["html"] and "library_name" not in found["html"]


def test_a_version_without_a_card_is_an_error_in_one_line(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"healthcare-small has no version 9"):
        card(registry, "healthcare-small@9")
    with pytest.raises(RegistryError, match=r"default-small-base@1 is a base; the page shows only students"):
        card(registry, "default-small-base")
    with pytest.raises(RegistryError, match=r"healthcare-small@1 has no README.md"):
        card(registry, "healthcare-small@1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"),
        ("a <img src=x onerror=alert(1)> b", "<p>a &lt;img src=x onerror=alert(1)&gt; b</p>\n"),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>\n"),
        ('[x](https://a.b/"onclick="c)', None),
        ("<b>\n\n- <i>", "<p>&lt;b&gt;</p>\n<ul>\n<li>&lt;i&gt;</li>\n</ul>\n"),
        ("```\n</code><script>\n```", "<pre><code>&lt;/code&gt;&lt;script&gt;\n</code></pre>\n"),
        ("![pixel](https://a.b/c.png)", None),
    ],
)
def test_html_in_a_card_is_escaped(text: str, expected: str | None) -> None:
    html = card_html(text)
    assert expected is None or html == expected
    assert "<script" not in html and "<img" not in html and ' onclick="' not in html and 'href="javascript' not in html


def test_a_card_has_no_front_matter_no_title_and_no_inline_style() -> None:
    text = "---\nlicense: mit\n---\n\n# name\n\n## Part\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n\n[link](https://a.b)\n"
    html = card_html(text)
    assert html.startswith("<h3>Part</h3>") and "license" not in html and "style=" not in html
    assert '<a href="https://a.b" rel="noopener noreferrer" target="_blank">link</a>' in html
    assert card_html("---\n\nno front matter") == "<hr />\n<p>no front matter</p>\n"
