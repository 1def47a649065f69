"""Every link leads somewhere, and a newcomer finds the four usual questions at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.markdown import ROOT, anchors, links, name_of, pages

README = ROOT / "README.md"
INDEX = ROOT / "docs" / "index.md"


def linked(page: Path) -> set[str]:
    """The pages that a page links, seen from the root of the repository."""
    return {(page.parent / target.partition("#")[0]).resolve().relative_to(ROOT).as_posix() for target in links(page)}


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("wanted", ["my-own-data", "my-own-teacher", "serving", "evaluation"])
def test_the_usual_questions_are_one_click_from_the_readme_and_from_the_index(wanted: str) -> None:
    assert f"docs/{wanted}.md" in linked(README)
    assert f"docs/{wanted}.md" in linked(INDEX)


def test_the_index_links_every_page() -> None:
    missing = {name_of(page) for page in (ROOT / "docs").rglob("*.md")} - linked(INDEX) - {"docs/index.md"}
    assert not missing
