"""Columns and templates of them: told apart by braces, and no trace of an empty column."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config.columns import check_named, columns_in, fill


@pytest.mark.parametrize(
    ("named", "columns"),
    [
        ("question", ("question",)),
        ("Issue text, long: really!", ("Issue text, long: really!",)),
        ("{question}", ("question",)),
        ("{Issue text}\n{b.c}: {b.c} {Ä: 1!r}", ("Issue text", "b.c", "Ä: 1!r")),
        ("{{{a}}} {{b}}", ("a",)),
    ],
)
def test_a_template_has_braces_and_a_column_has_none(named: str, columns: tuple[str, ...]) -> None:
    assert columns_in(check_named(named)) == columns


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("", "must not be blank"),
        (" \n", "must not be blank"),
        ("{question", "a brace that is text is written twice"),
        ("question}", "a brace that is text is written twice"),
        ("{}", "a brace that is text is written twice"),
        ("{a{b}}", "a brace that is text is written twice"),
        ("{{question}}", "a template, which needs a column, such as {question}"),
    ],
)
def test_what_is_neither_a_column_nor_a_template_is_refused(named: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check_named(named)


def test_a_brace_that_is_written_twice_is_text_and_braces_of_a_cell_stay() -> None:
    assert fill("{{{a}}} is {{x}}", {"a": "{b}{{"}) == "{{b}{{} is {x}"


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{a}\n{empty}", "A"),
        ("{a}\n\n{empty}\n\n{b}", "A\n\nB"),
        ("{empty}\n\n{a}", "A"),
        ("{a}\n\n{empty}\n{b}", "A\n\nB"),
        ("{a}\n{empty}\n\n{b}", "A\n\nB"),
        ("{a}\nInput: {empty}\n{b}", "A\nB"),
        ("### Input:\n{empty}\n\n### Task:\n{a}", "### Task:\nA"),
        ("Be brief.\n\n{a} {empty}{b}", "Be brief.\n\nA B"),
        ("Be brief: {empty}\nNow.", ""),
    ],
)
def test_an_empty_column_leaves_no_label_and_no_blank_line(template: str, filled: str) -> None:
    assert fill(template, {"a": "A", "b": "B", "empty": ""}) == filled


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["\n", "\n\n", " "])), min_size=1, max_size=8), st.data())
def test_whatever_is_empty_every_other_cell_is_there_in_order_without_gaps(
    parts: list[tuple[str, str]], data: st.DataObject
) -> None:
    template = "".join(f"{{{column}}}{gap}" for column, gap in parts).strip()
    cells = {column: data.draw(st.sampled_from(["", column.upper()])) for column in "abc"}
    filled = fill(template, cells)
    assert "".join(filled.split()) == "".join(cells[column] for column, _ in parts)
    assert "\n\n\n" not in filled and not filled.startswith("\n") and not filled.endswith("\n")
    if all(cells.values()):
        assert filled == template.format_map(cells)
