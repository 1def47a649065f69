"""Regular expressions that an engine holds, what they cost, and what is wrong with the others."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.serve.patterns import MAX_CHOICES, MAX_LENGTH, MAX_SIZE, Pattern, engine_pattern


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"^$", Pattern("^$")),
        (r"^\d{4}-\d{2}$", Pattern("^[0-9]{4}-[0-9]{2}$", size=7)),
        (r"^[\w.-]{1,64}$", Pattern("^[A-Za-z0-9_.-]{1,64}$", size=64, choices=1)),
        (r"^(?:ab|cd)+$", Pattern("^(ab|cd)+$", size=8, choices=3)),
        (r"^a?b*c{2,}$", Pattern("^a?b*c{2,}$", size=5, choices=3)),
        (r"^(a{1,3}){2}$", Pattern("^(a{1,3}){2}$", size=6, choices=2)),
        (r"^a\.b\-c\/d\$$", Pattern(r"^a\.b-c/d\$$", size=8)),
    ],
)
def test_a_pattern_is_written_for_the_engine_and_measured(pattern: str, expected: Pattern) -> None:
    assert engine_pattern(pattern) == expected
    assert engine_pattern(expected.text) == expected


@pytest.mark.parametrize(
    "pattern",
    ["^.$", "^[^a]$", '^"$', r"^\\$", r"^\s$", "^é$", "^(?=a)b$", r"^(a)\1$", "^a*?$", "^a++$", "^a{2}{3}$", "^*$", "^(|*)$",
     "^a)$", "^a^b$", "^a$b$", "^[z-a]$", "^[]$", "^a{0}$", "^a{3,2}$", "^a{,2}$", "^a{$", "^\n$", "^[a\n]$", "^(?i:a)$"],
)  # fmt: skip
def test_what_an_engine_would_take_for_something_else_is_named_with_its_place(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"at character [2-9], where an engine takes"):
        engine_pattern(pattern)


@pytest.mark.parametrize("pattern", ["", "^", "$", "a", "^a", "a$", r"^a\$x"])
def test_a_pattern_is_about_the_whole_string(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"must begin with \^ and end with \$"):
        engine_pattern(pattern)


@pytest.mark.parametrize("pattern", ["^(a$", "^((a)$"])
def test_groups_must_end(pattern: str) -> None:
    with pytest.raises(ValueError, match="a group that does not end"):
        engine_pattern(pattern)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (f"[a-z]{{{MAX_SIZE}}}", f"[a-z]{{{MAX_SIZE + 1}}}"),
        (f"(a?){{{MAX_CHOICES}}}", f"(a?){{{MAX_CHOICES + 1}}}"),
        ("(a{10}){100}", "(a{10}){101}"),
        ("a?" * MAX_CHOICES, "(a?){1500}"),
        ("a" * (MAX_LENGTH - 2), "a" * (MAX_LENGTH - 1)),
    ],
)
def test_bounds_hold_with_repetitions_written_out(inside: str, outside: str) -> None:
    engine_pattern(f"^{inside}$")
    with pytest.raises(ValueError, match="at most"):
        engine_pattern(f"^{outside}$")


@given(st.text("ab[]()|*+?{}1,-^$.\\d", max_size=12))
def test_what_is_taken_means_the_same_to_python(inside: str) -> None:
    try:
        found = engine_pattern(f"^{inside}$")
    except ValueError:
        return
    ours, theirs = re.compile(found.text), re.compile(f"^{inside}$", re.ASCII)
    for text in ("", "a", "b", "ab", "aab", "1", "a1", "-", "aa", "11", "ba1"):
        assert bool(ours.match(text)) == bool(theirs.match(text))
