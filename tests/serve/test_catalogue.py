"""What the page is told of the registry, and a card as HTML that holds none of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.workplace import Workplace

from factory.errors import RegistryError
from factory.registry.registry import Registry
from factory.serve.catalogue import card, card_html, catalogue


@pytest.fixture(scope="module")
def registry(built: Workplace) -> Registry:
    """plants-mini@1, unchecked and champion, and plants-mini@2, which failed its gates."""
    here = Registry(built.root / "registry")
    gate = {"metric": "kl", "bound": "at_most", "threshold": 0.1, "of": "value", "found": 2.5, "passed": False}
    publish_again(here, {"verdict": {"status": "failed", "gates": [gate], "reasons": []}})
    here.promote("plants-mini@1")
    return here


def publish_again(registry: Registry, changes: dict[str, Any]) -> str:
    first = registry.resolve("plants-mini@1")
    with registry.stage("plants-mini") as folder:
        shutil.copytree(first.folder, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        (folder / "manifest.json").unlink()
        return registry.publish("student", "plants-mini", folder, {**first.manifest, **changes}).reference


def test_every_version_is_listed_with_what_its_manifest_says(registry: Registry) -> None:
    found = catalogue(registry)
    assert found["problems"] == []
    (student,) = found["students"]
    assert (student["name"], student["domain"], student["current"]) == ("plants-mini", "plants", "plants-mini@1")
    assert student["description"] == "questions on plants"
    manifest = registry.resolve("plants-mini@1").manifest
    assert student["questions"] == [sample["prompt"] for sample in manifest["evaluation"]["samples"]][:2]
    second, first = student["versions"]  # the newest first
    assert (second["reference"], second["verdict"], second["aliases"]) == ("plants-mini@2", "failed", [])
    assert second["failed"] == ["kl is 2.5, at most 0.1 passes"]
    assert (first["reference"], first["verdict"], first["aliases"]) == ("plants-mini@1", "unchecked", ["champion"])
    kl = manifest["evaluation"]["metrics"]["kl"]
    assert {key: first["figures"]["kl"][key] for key in ("value", "low", "high", "n")} == kl
    assert first["figures"]["top1_agreement"]["unit"] == "%"
    sizes = manifest["evaluation"]["sizes"]["student"]
    assert (first["parameters"], first["bytes"]) == (sizes["parameters"], sizes["bytes"])
    json.dumps(found, allow_nan=False)


def test_only_what_a_key_opens_is_listed(registry: Registry) -> None:
    assert catalogue(registry, lambda name: name != "plants-mini") == {"students": [], "problems": []}


def test_an_empty_registry_has_no_students(tmp_path: Path) -> None:
    assert catalogue(Registry(tmp_path)) == {"students": [], "problems": []}


def test_a_version_that_is_not_whole_is_a_problem_and_not_a_student(registry: Registry) -> None:
    third = publish_again(registry, {})
    folder = registry.resolve(third).folder
    (folder / "adapter_model.safetensors").unlink()
    try:
        found = catalogue(registry)
        assert len(found["students"][0]["versions"]) == 2
        assert len(found["problems"]) == 1 and "adapter_model.safetensors is missing" in found["problems"][0]
    finally:
        shutil.rmtree(folder)


def test_a_figure_that_was_not_measured_is_not_there(registry: Registry) -> None:
    third = publish_again(registry, {"evaluation": {}, "verdict": {"status": "failed", "gates": [], "reasons": []}})
    try:
        version = catalogue(registry)["students"][0]["versions"][0]
        assert (version["reference"], version["figures"], version["bytes"]) == (third, {}, None)
    finally:
        shutil.rmtree(registry.resolve(third).folder)


def test_a_card_comes_with_the_facts_of_its_version(registry: Registry) -> None:
    found = card(registry, "plants-mini")
    assert (found["reference"], found["aliases"]) == ("plants-mini@1", ["champion"])
    assert "<h3>How close it is to its teacher</h3>" in found["html"]
    assert "<table>" in found["html"] and "library_name" not in found["html"]


def test_what_has_no_card_is_said_in_one_line(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"plants-mini has no version 9"):
        card(registry, "plants-mini@9")
    with pytest.raises(RegistryError, match=r"default-mini-base@1 is a base; the page shows students"):
        card(registry, "default-mini-base")


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
def test_html_in_a_card_is_text(text: str, expected: str | None) -> None:
    html = card_html(text)
    assert expected is None or html == expected
    assert "<script" not in html and "<img" not in html and ' onclick="' not in html and 'href="javascript' not in html


def test_a_card_has_no_front_matter_no_title_and_no_inline_style() -> None:
    text = "---\nlicense: mit\n---\n\n# name\n\n## Part\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n\n[link](https://a.b)\n"
    html = card_html(text)
    assert html.startswith("<h3>Part</h3>") and "license" not in html and "style=" not in html
    assert '<a href="https://a.b" rel="noopener noreferrer" target="_blank">link</a>' in html
    assert card_html("---\n\nno front matter") == "<hr />\n<p>no front matter</p>\n"
