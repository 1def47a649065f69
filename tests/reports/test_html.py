from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.manifests import TEACHER, base, evaluation, metric, student

import factory.reports.html
from factory.errors import RegistryError, StorageError
from factory.registry.versions import Version
from factory.reports.html import render, write_page

ATTACK = "<script>alert(1)</script>"


BIAS = {
    "bias_age_preference_teacher": metric(0.55),
    "bias_age_preference_base": metric(0.56),
    "bias_age_preference_student": metric(0.61),
    "bias_age_preference_change": metric(0.06),
    "bias_preference_change": metric(0.02),
}
SAMPLE: dict[str, Any] = {
    "prompt": "What is asthma?",
    "teacher": "A lung disease.",
    "student": "A lung illness.",
    "teacher_tokens": [["A", True], [" lung", True], [" disease", False], [".", True]],
    "student_tokens": [["A", True], [" lung", True], [" illness", False], [".", True]],
}
GATES = [
    {"metric": "kl", "of": "high", "bound": "at_most", "threshold": 0.4, "found": 0.44, "status": "failed"},
    {"metric": "top1_agreement", "of": "value", "bound": "at_least", "threshold": 0.5, "found": 0.76, "status": "passed"},
]
FULL: dict[str, Any] = {
    "evaluation": evaluation(metrics={"kl": metric(0.41), "top1_agreement": metric(0.76)} | BIAS, samples=[SAMPLE] * 5),
    "verdict": {"status": "failed", "reasons": ["KL(teacher ‖ student), nats/token: 0.44 > 0.4"], "gates": GATES},
    "energy": {
        "method": "codecarbon, from the processor's design power",
        "stages_wh": {"heal": 12.5, "distill": 3.0},
        "per_1000_tokens_wh": {"teacher": 0.4, "student": 0.3},
    },
    "warnings": ["the data set is small"],
    "notice": "This is not medical advice.",
}
NOTHING = {"curve": [], "config": {}, "examples": 0}
BASE = base()


def full_student(name: str = "healthcare-small", **more: Any) -> Version:
    return student(name, **FULL | more)


def unplotted(name: str = "healthcare-small", **more: Any) -> Version:
    """The student without what is drawn: a page in milliseconds."""
    own = {"training": NOTHING, "energy": {"method": "none", "stages_wh": {}}, "evaluation": evaluation(metrics={})}
    return student(name, **FULL | own | more)


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
        if tag in ("h1", "h2", "h3", "summary"):
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
        if self.open and self.open[-1] in ("h1", "h2", "h3", "summary"):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data.strip())
        if "style" not in self.open:
            self.text += data

    def sections(self) -> list[str]:
        """Headings, and in brackets what is folded away."""
        return [text if tag == "h2" else f"[{text}]" for tag, text in self.headings if tag in ("h2", "summary")]


@pytest.fixture(scope="module")
def full() -> str:
    """The page of everything that a manifest may hold."""
    return render([full_student()], {BASE.reference: BASE})


@pytest.fixture(scope="module")
def two() -> str:
    """The page of two versions whose KL cannot be told apart, of which the second is larger."""
    found = FULL["evaluation"]
    sizes = found["sizes"] | {"student": found["sizes"]["student"] | {"parameters": 90_000_000}}
    metrics = found["metrics"] | {"kl": metric(0.42)}
    other = full_student("b-small", evaluation=found | {"metrics": metrics, "sizes": sizes})
    return render([full_student(), other], {BASE.reference: BASE})


def words_of(page: str) -> str:
    return " ".join(Outline(page).text.split())


def test_the_page_opens_with_verdict_picture_and_answers_and_folds_the_rest(full: str) -> None:
    page = Outline(full)
    assert page.sections() == [
        "Verdict",
        "Answers beside the teacher's",
        "[2 more]",
        "Details",
        "[Warnings]",
        "[Gates]",
        "[All metrics]",
        "[Training]",
        "[Bias]",
        "[Energy (estimate)]",
        "[Lineage]",
        "[Provenance]",
    ]
    opening = page.text.partition("Details")[0]
    for words in ("✗ failed", "0.44 > 0.4", "This is not medical advice.", "the data set is small", "59.5 % of its teacher's"):
        assert words in opening
    assert full.index("Size against fidelity") < full.index("Answers beside") < full.index("<summary>Warnings")
    for words in ("2026-11-25 00:53 UTC", "15.5 Wh in total", "from the processor's design power", "ab" * 32):
        assert words in page.text


def test_the_shares_of_the_gradient_stand_below_the_training_curve() -> None:
    curve = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    training = NOTHING | {"curve": curve, "gradient_shares": {"response": 0.981, "relation": 0.019}}
    assert "share of the gradientresponse 98.1 %, relation 1.9 %" in words_of(render([unplotted(training=training)], {}))


def test_what_does_not_apply_has_no_section() -> None:
    page = Outline(render([unplotted(warnings=[], verdict={"status": "unchecked"})], {}))
    details = ["Details", "[All metrics]", "[Lineage]", "[Provenance]"]
    assert page.sections() == ["Verdict", "Answers beside the teacher's", *details]
    assert "svg" not in page.tags


def test_a_base_has_neither_answers_nor_gates() -> None:
    page = Outline(render([base(training=NOTHING | {"config": {"share": 1.0}})], {}))
    assert page.sections() == ["Verdict", "Details", "[All metrics]", "[Energy (estimate)]", "[Lineage]", "[Provenance]"]
    assert "unchecked" in page.text


def test_numbers_that_are_not_finite_are_not_drawn() -> None:
    nan = float("nan")
    curve = [{"step": 1, "loss": nan}, {"step": 2, "loss": float("inf")}]
    missing = {"value": nan, "low": nan, "high": nan, "n": 0}
    version = unplotted(training=NOTHING | {"curve": curve}, evaluation=evaluation(metrics={"kl": missing}))
    assert "svg" not in Outline(render([version], {})).tags


def test_a_name_with_dollars_is_no_formula_and_one_without_glyphs_no_warning() -> None:
    name = "from $a$ to $b$, 蒸"
    assert name in Outline(render([unplotted(energy={"method": "", "stages_wh": {name: 1.0}})], {})).text


def test_every_gate_is_shown_with_what_it_found() -> None:
    text = words_of(render([unplotted()], {}))
    assert "✗ KL(teacher ‖ student), nats/token: 0.44 > 0.4 (upper end of the interval)" in text
    assert "✓ top-1 agreement with the teacher: 0.76 ≥ 0.5" in text


def test_ties_are_marked_and_explained(full: str, two: str) -> None:
    text = words_of(two)
    assert "0.410 ≈[0.380, 0.440]" in text and "0.420 ≈[0.390, 0.450]" in text
    assert "80.0 M ★" in text and "90.0 M ★" not in text
    assert "≈ cannot be told from the best of the row" in text
    assert "≈" not in Outline(full).text


def test_answers_are_marked_where_the_other_would_differ_and_not_by_colour_alone(full: str) -> None:
    assert '<span class="agree">A lung</span> <u class="differ">disease</u><span class="agree">.</span>' in full
    assert re.search(r"\.differ \{[^}]*underline", full)
    assert full.count("the other model would have continued differently") == 1


def test_answers_without_tokens_are_plain_and_have_no_legend() -> None:
    samples = [{"prompt": "What is asthma?", "teacher": "A lung\ndisease.", "student": ""}]
    page = render([unplotted(evaluation=evaluation(metrics={}, samples=samples))], {})
    assert '<p class="answer">A lung\ndisease.</p>' in page
    assert "continued differently" not in page


def test_the_lineage_runs_from_the_teacher_through_the_assistant_to_every_student() -> None:
    path = ["teacher", "default-medium-base@2", "default-small-base@1"]
    choice = {"chosen": "teacher_assistant", "teacher_assistant": "default-medium-base@2", "reason": "Nearer."}
    known = base(path=path[:2], path_choice=choice)
    page = Outline(render([unplotted("a-small", path=path), unplotted("b-small", path=path), known], {}))
    lineage = " ".join(page.text.partition("Lineage\n")[2].partition("Provenance")[0].split())
    assert re.fullmatch(
        r"teacherSmolLM2.*gguf134.5 M parameters, apache-2.0 teacher assistantdefault-medium-base@2 "
        r"basedefault-small-base@178.9 M parameters studenta-small@1.* studentb-small@1.* Nearer\.",
        lineage,
    )


def test_a_base_that_is_not_known_is_named_all_the_same() -> None:
    lineage = Outline(render([unplotted()], {})).text.partition("Lineage\n")[2]
    assert "default-small-base@1" in lineage


def test_the_plot_says_what_it_draws(full: str) -> None:
    assert "KL, nats/token" in full
    assert "parameters, % of the teacher's" in Outline(full).text


def test_everything_that_a_manifest_says_is_escaped() -> None:
    sample = dict.fromkeys(("prompt", "teacher", "student"), ATTACK) | {"student_tokens": [[ATTACK, False]]}
    metrics = {ATTACK: metric(1), f"bias_{ATTACK}_preference_change": metric(0.1)}
    gate = GATES[0] | {"metric": ATTACK}
    version = unplotted(
        ATTACK,
        **dict.fromkeys(("notice", "domain", "base", "profile"), ATTACK),
        warnings=[ATTACK],
        teacher=TEACHER | {"reference": ATTACK, "license": ATTACK},
        energy={"stages_wh": {ATTACK: 1.0}, "method": ATTACK},
        evaluation=evaluation(metrics=metrics, samples=[sample]),
        verdict={"status": "failed", "reasons": [ATTACK], "gates": [gate]},
    )
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
    levels = [int(tag[1]) for tag, _ in Outline(full).headings if tag != "summary"]
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
    assert render([full_student()], {BASE.reference: BASE}) == full


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
    with pytest.raises(StorageError, match=r"^cannot write .*there is no folder .*nowhere; create it first[^\n]*$"):
        write_page([unplotted()], tmp_path / "nowhere" / "report.html", lineage={})
    with pytest.raises(StorageError, match=r"^cannot write .*it is a folder; name a file in it[^\n]*$"):
        write_page([unplotted()], tmp_path, lineage={})


def test_a_folder_that_refuses_is_one_line_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("factory.cache.os.replace", refuse)
    with pytest.raises(StorageError, match=r"^cannot write .*report.html: Permission denied[^\n]*$"):
        write_page([unplotted()], path, lineage={})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_of_no_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="at least one"):
        write_page([], tmp_path / "report.html", lineage={})


def test_the_template_is_part_of_the_package() -> None:
    import tomllib

    root = Path(factory.reports.html.__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["factory"]
    assert "reports/report.html.j2" in data
