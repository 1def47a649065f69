"""YAML from anybody: read as PyYAML reads it, or refused in a moment with the line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from factory.config import yaml_text
from factory.config.yaml_text import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    YamlTextError,
    parse_yaml,
    read_mapping,
    read_yaml,
    yaml_files,
)

SHIPPED = Path(__file__).parents[2] / "domains"


@pytest.fixture(params=["libyaml", "Python"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML with libyaml and without."""
    if request.param == "libyaml" and not yaml.__with_libyaml__:
        pytest.skip("this PyYAML was built without libyaml")
    monkeypatch.setattr(yaml_text, "LOADER", yaml.CSafeLoader if request.param == "libyaml" else yaml.SafeLoader)


def bomb(item: str, wrapped: Callable[[str], str]) -> str:
    """Eight lines, each of which stands for nine of the line before it."""
    lines = [f"- &a0 {item}", *(f"- &a{n} {wrapped(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, 9))]
    return "\n".join(lines)


HOSTILE: dict[str, tuple[str | bytes, int | None, str]] = {
    # a key twice
    "a key twice": ("personal_data: refuse\nx: 1\npersonal_data: allow", 3, "personal_data: this key is in line 1, too"),
    "a key twice, quoted": ("a: 1\n'a': 2", 2, "a: this key is in line 1, too; remove one of them"),
    "a key twice, inside": ("- x\n- {b: {c: 1, c: 2}}", 2, "1.b.c: this key is in line 2, too"),
    "a key twice, behind an alias": ("- &a {b: 1, b: 2}\n- *a", 1, "0.b: this key is in line 1, too"),
    "two merges": ("<<: {a: 1}\n<<: {b: 1}", 2, "<<: this key is in line 1, too"),
    "a list as a key": ("x: 1\n? [a, b]\n: 1", 2, "a key must be text, not a list"),
    "a mapping as a key": ("? {a: b}\n: 1", 1, "a key must be text, not a list or keys and values"),
    # bombs
    "lists of lists": (bomb("[x, x, x]", "[{}]".format), 6, "has more than 100,000 keys and values"),
    "merges of merges": (bomb("{x: 1}", "{{<<: [{}]}}".format), 6, "has more than 100,000 keys and values"),
    "too many items": ("x:\n" + "- 1\n" * MAX_NODES, MAX_NODES - 1, "has more than 100,000 keys and values"),
    "an endless list": ("a: &a\n  - *a", 2, "an alias stands for what it is part of; write the value out"),
    "an endless mapping": ("&a b: &b\n  c: {d: *b}", 2, "an alias stands for what it is part of"),
    "deep lists": ("[" * 100_000, 1, f"nested more than {MAX_DEPTH} deep"),
    "deep blocks": ("- " * 100_000, 1, f"nested more than {MAX_DEPTH} deep"),
    "deep keys": ("? " * 100_000, 1, f"nested more than {MAX_DEPTH} deep"),
    "deep behind aliases": ("- &a " + "[" * 20 + "]" * 20 + "\n- " + "[" * 20 + "*a" + "]" * 20, 2, "nested more than"),
    "deep behind merges": ("- &a0 {x: 1}\n" + "".join(f"- &a{n} {{<<: *a{n - 1}}}\n" for n in range(1, 99)), 32, "nested more"),
    # scalars
    "a whole number of 5,000 digits": ("x: 1\na: " + "9" * 5000, 2, "a: is too long for !!int; put text in quotes: '999"),
    "a whole number of 60,000 places to the base 60": ("a: 1" + ":1" * 60_000, 1, "a: is too long for !!int"),
    "a whole number of 90 digits": ("a: " + "9" * 90, 1, "a: is too large; whole numbers have at most 64 bits: '999"),
    "no whole number": ("a: !!int abc", 1, "a: is not a valid !!int: 'abc'"),
    "no whole number at all": ("a: !!int ''", 1, "a: is not a valid !!int: ''"),
    "no number": ("a: [1, !!float x]", 1, "a.1: is not a valid !!float: 'x'"),
    "no truth": ("a: !!bool maybe", 1, "a: is not a valid !!bool: 'maybe'"),
    "no number as a key": ("x: 1\n!!int y: 1", 2, "y: is not a valid !!int: 'y'"),
    # tags
    "a Python object": ("a: !!python/object/apply:os.system [ls]", 1, "a: this tag does not fit, or is not allowed here"),
    "a tag of a program": ("x: 1\na: !function utils.f", 2, "or is not allowed here; remove it: !function"),
    "bytes": ("a: !!binary aGk=", 1, "a: this tag does not fit, or is not allowed here; remove it: !!binary"),
    "a set": ("!!set {a, b}", 1, "this tag does not fit"),
    "an ordered mapping": ("a: !!omap [x: 1]", 1, "a: this tag does not fit"),
    "a list as text": ("a: !!str [x]", 1, "a: this tag does not fit"),
    "a list as a mapping": ("a: !!map [x]", 1, "a: this tag does not fit"),
    # no YAML
    "an open list": ("a: 1\nb: [x,\n\n", 3, "not valid YAML: "),
    "a tab": ("a: b\n\tc: d", 2, "not valid YAML: "),
    "two documents": ("a: 1\n---\nb: 2", 2, "not valid YAML: "),
    "an unknown alias": ("a: 1\nb: *c", 2, "not valid YAML: found undefined alias"),
    "a merge of a list": ("<<: [x]", 1, "not valid YAML: expected a mapping for merging"),
    "another version": ("%YAML 3.0\n--- a", 1, "not valid YAML: "),
    # bytes
    "UTF-16": ("a: 1".encode("utf-16"), 1, "cannot be read: byte 0xff is not UTF-8; save it as UTF-8"),
    "Latin-1": (b"a: 1\nb: caf\xe9", 2, "cannot be read: byte 0xe9 is not UTF-8"),
    "NUL": ("a: é\nb: \0", 2, "has the control character U+0000; remove it"),
    "an escape sequence": ("a: \x1b[31m", 1, "has the control character U+001B; remove it"),
    "a surrogate": (b"a: \xed\xa0\x80", 1, "cannot be read: byte 0xed is not UTF-8"),
    "too large": ("#" * (MAX_BYTES + 1), None, "has more than 4,000,000 bytes; move data into files of their own"),
}  # fmt: skip


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_a_moment_with_its_line(name: str) -> None:
    text, line, said = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(YamlTextError) as caught:
        parse_yaml(text if isinstance(text, bytes) else text.encode())
    assert time.process_time() - began < 20  # the slow loader reads 100,000 items in 5 s; a bomb would take hours
    assert caught.value.line == line
    assert said in str(caught.value) and len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", None),
        ("# nothing\n", None),
        ("\ufeffa: 1\r\nb: x\r\n", {"a": 1, "b": "x"}),
        (  # text: nothing here is a date
            "day: 2024-05-01\nno-day: 2024-13-45\nat: 2024-05-01 10:00:00",
            {"day": "2024-05-01", "no-day": "2024-13-45", "at": "2024-05-01 10:00:00"},
        ),
        ("equals: =\nmerge: <<", {"equals": "=", "merge": "<<"}),
        ("base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}", {"base": {"a": 1, "b": 2}, "mine": {"a": 1, "b": 3}}),
        ("- &a [x]\n- [*a, *a]", [["x"], [["x"], ["x"]]]),
        ("- {a: 1}\n- {a: 2}", [{"a": 1}, {"a": 2}]),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, yaml.safe_load("[" * MAX_DEPTH + "]" * MAX_DEPTH)),
        ("a: 9223372036854775807", {"a": 2**63 - 1}),
        ("a: !!str 1\nb: !!float 1\nc: ! x", {"a": "1", "b": 1.0, "c": "x"}),
        ("a: .inf", {"a": float("inf")}),  # what is finite is the schema's to say
    ],
)
def test_what_is_in_order_is_read(text: str, content: Any) -> None:
    assert parse_yaml(text.encode()).content == content


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.yaml")), ids=lambda path: path.name)
def test_shipped_files_are_read_as_pyyaml_reads_them(path: Path) -> None:
    assert read_mapping(path).content == yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(YamlTextError, match=r"none\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(YamlTextError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("- x", "list"), ("x", "str")])
def test_another_thing_than_a_mapping_is_named(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(YamlTextError, match=rf"a\.yaml:1: must be keys and values \(found {found}\)"):
        read_mapping(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text",
    ["s3cret: 1\ns3cret: 2", "s3cret: !!int s3cret", "!s3cret x", "*s3cret", "? [s3cret]\n: 1", "%s3cret", "s3cret: {s3cret"],
)
@pytest.mark.usefixtures("loader")
def test_the_reason_alone_says_nothing_of_a_file_of_secrets(text: str) -> None:
    with pytest.raises(YamlTextError) as caught:
        parse_yaml(text.encode())
    assert "s3cret" not in caught.value.reason


def test_control_characters_of_a_key_never_reach_a_terminal() -> None:
    with pytest.raises(YamlTextError) as caught:
        parse_yaml(rb'"a\e[31m\nb": {c: 1, c: 2}')
    assert str(caught.value) == r"YAML:1: a\x1b[31m\nb.c: this key is in line 1, too; remove one of them"


def test_hidden_files_are_no_yaml_files_and_other_endings_only_where_they_are_asked_for(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", "._a.yaml", ".hidden.yaml", "c.yml", "d.YAML", "e.json"):
        (tmp_path / name).touch()
    assert [path.name for path in yaml_files(tmp_path)] == ["a.yaml", "b.yaml", "d.YAML"]
    assert [path.name for path in yaml_files(tmp_path, (".yaml", ".yml"))] == ["a.yaml", "b.yaml", "c.yml", "d.YAML"]
    assert yaml_files(tmp_path / "none") == []


# ------------------------------------------------------------------------------------------------------------ any text

PIECES = st.sampled_from(
    ["a", "b", "1", "2024-13-45", ".inf", "0x", "1:1", "~", "yes", "é", "\x1b", "\ud7ff", "'", '"', "[", "]", "{", "}", ",",
     ": ", "- ", "? ", "&a ", "*a", "<<", "=", "!", "!!int ", "!!float ", "!!bool ", "!!null ", "!!set ", "!!timestamp ",
     "!x ", "|", ">", "#", "%", "---", "...", "\n", "\n  ", "\n    ", " ", "\t"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(PIECES, max_size=40).map("".join).map(str.encode) | st.binary(max_size=60))
def test_any_text_is_read_or_refused_with_a_line_that_it_has(data: bytes) -> None:
    try:
        parse_yaml(data)
    except YamlTextError as error:
        assert error.line is None or 1 <= error.line <= max(1, len(data.decode("utf-8", "replace").splitlines()))


@given(VALUES)
def test_whatever_is_written_is_read_again(content: Any) -> None:
    written = yaml.safe_dump(content, allow_unicode=False)
    try:
        found = parse_yaml(written.encode()).content
    except YamlTextError as error:
        assert "escape code" in error.detail  # libyaml reads no surrogates, which PyYAML writes as two
    else:
        assert found == content
