"""docs/data.md: every sample is read as the page says, and every malformed file is refused in the line that it shows."""

from __future__ import annotations

import pytest
from data_files import FORMATS, MALFORMED, DataFile, read
from support.markdown import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def name_of(file: DataFile) -> str:
    return file.about


@pytest.mark.parametrize("file", FORMATS, ids=name_of)
def test_a_sample_of_each_format_is_read_as_the_page_says(file: DataFile) -> None:
    said = read(file)
    assert ("error" not in said and " of " in said) or "1 document" in said
    assert f"| {'<br>'.join(said.splitlines())} |" in PAGE


@pytest.mark.parametrize("file", MALFORMED, ids=name_of)
def test_a_malformed_file_gets_the_one_line_that_the_page_shows(file: DataFile) -> None:
    said = read(file)
    assert said.startswith("error: ") and len(said.splitlines()) == 1 and "FOLDER" in said
    assert f"| {file.about} | `{file.name}` | `` {said.replace('|', chr(92) + '|')} `` |" in PAGE


def test_the_page_shows_thirty_malformed_files_and_four_lines_of_each_format() -> None:
    assert len({(file.name, file.content) for file in MALFORMED}) >= 30
    assert {(file.sample or str(file.content)).count("\n") for file in FORMATS} == {4}
