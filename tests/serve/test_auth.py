"""API keys: what each of them allows, and what a file of keys must look like."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.errors import ServeError
from factory.serve.auth import Caller, KeyFile, Keys
from factory.serve.limits import APIError


def keys(tmp_path: Path, content: str) -> Keys:
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    return Keys.load(path)


def test_a_key_allows_only_its_students(tmp_path: Path) -> None:
    caller = keys(tmp_path, "k1: [healthcare-small]\nk2: '*'\n").caller("Bearer k1")
    assert caller.may("healthcare-small")
    assert not caller.may("legal-small")
    assert not caller.may("teacher")


def test_a_star_allows_every_model_and_json_is_accepted(tmp_path: Path) -> None:
    assert keys(tmp_path, '{"k2": "*"}').caller("bearer k2").may("teacher")


def test_a_model_that_the_key_does_not_allow_is_403_under_any_alias() -> None:
    caller = Caller(frozenset({"healthcare-small"}))
    caller.require("healthcare-small@champion")
    with pytest.raises(APIError, match="does not allow legal-small") as error:
        caller.require("legal-small@3")
    assert (error.value.status, error.value.code, error.value.param) == (403, "model_not_allowed", "model")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic k1", "Bearer k", "Bearer k11", "Bearer é"])
def test_any_other_header_is_401(tmp_path: Path, header: str | None) -> None:
    with pytest.raises(APIError) as error:
        keys(tmp_path, "k1: [a]").caller(header)
    assert error.value.status == 401
    assert "k1" not in str(error.value)


@pytest.mark.parametrize("key", ["ключ", "clé-à", "schlüssel"])  # the UTF-8 of "à" ends in a byte that is a space in Latin-1
def test_a_key_that_is_not_ascii_is_compared_byte_by_byte(tmp_path: Path, key: str) -> None:
    header = f"Bearer {key} ".encode().decode("latin-1")  # what a server makes of the bytes that a client sends
    assert keys(tmp_path, f"{key}: [a]").caller(header).may("a")
    with pytest.raises(APIError):
        keys(tmp_path, f"{key}: [a]").caller(header.replace("Bearer ", "Bearer x"))


def test_without_a_file_of_keys_everyone_may_use_everything() -> None:
    assert Keys.load(None).caller(None).may("teacher")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected keys"),
        ("[a]", "expected keys"),
        ("secret: {a: b}", "entry 1"),
        ("secret: [1]", "entry 1"),
        ("a: [", "keys.yaml:1: not valid YAML"),
        ("secret: [one]\nother: '*'\nsecret: '*'\n", r"keys.yaml:3: this key is in line 1, too; remove one of them"),
        ("? [secret]\n: '*'\n", "keys.yaml:1: a key must be text"),
        ("k: !!python/name:secret x\n", "keys.yaml:1: this tag does not fit"),
        ("k: *secret\n", "keys.yaml:1: not valid YAML$"),
    ],
)
def test_a_malformed_file_of_keys_is_one_line_without_any_key(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ServeError, match=message) as error:
        keys(tmp_path, content)
    assert "secret" not in str(error.value)


def test_a_missing_file_of_keys_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"none\.yaml: cannot be read: No such file"):
        Keys.load(tmp_path / "none.yaml")


def test_a_changed_file_counts_from_the_next_request_on(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("old: [a]\n")
    file = KeyFile(path)
    assert file.caller("Bearer old").may("a")
    path.write_text("newer: [b]\nother: [b]\n")
    assert file.caller("Bearer newer").may("b")
    assert file.caller("Bearer newer") != file.caller("Bearer other")
    with pytest.raises(APIError):
        file.caller("Bearer old")


@pytest.mark.parametrize("content", ["a: [", "", None])
def test_a_file_that_became_unreadable_changes_nothing_and_is_said_once(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("secret: [a]\n")
    file = KeyFile(path)
    path.unlink()
    if content is not None:
        path.write_text(content)
    for _ in range(2):
        assert file.caller("Bearer secret").may("a")
    assert [record.message.endswith("the keys read before stay valid") for record in caplog.records] == [True]
    assert "secret" not in caplog.text
