"""Errors are lines for a terminal, whatever they quote."""

from __future__ import annotations

import pickle
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from factory.errors import MAX_LINE, DataError, FactoryError, GateError, SpecError


@given(st.text(max_size=2 * MAX_LINE), st.sampled_from([DataError, GateError, SpecError]))
def test_a_message_is_one_printable_line_of_a_bounded_length(text: str, kind: type[FactoryError]) -> None:
    lines = str(kind(text)).split("\n")
    assert all(line.isprintable() and len(line) <= MAX_LINE for line in lines)
    assert len(lines) == 1


def test_what_is_printable_and_short_stays_as_it_is() -> None:
    assert str(DataError("ärger: 'x'")) == "ärger: 'x'"
    assert str(DataError("a\nb\x1b[31m\ud800")) == r"a\nb\x1b[31m\ud800"
    assert str(SpecError("a", "b\n")) == "a\nb\\n"  # a line for each mistake, whatever it quotes
    assert str(DataError("x" * 5000)) == "x" * (MAX_LINE - 4) + " ..."


def test_an_error_can_be_handed_to_another_process() -> None:
    for error in (DataError("a\nb"), SpecError("a", "b\n")):
        again: Any = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)
