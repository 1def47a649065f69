"""API keys: what each of them allows, how long, what is kept of it, and what a file of keys must look like."""

from __future__ import annotations

import json
import pickle
import string
from datetime import UTC, date, datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import ServeError
from factory.serve.auth import SETTINGS, Caller, KeyFile, Keys, new_key
from factory.serve.limits import APIError

TODAY = date(2027, 1, 30)
HASH = f"sha256:{sha256(b'k1').hexdigest()}"


def keys(tmp_path: Path, content: str) -> Keys:
    path = tmp_path / "keys.yaml"
    path.write_text(content, encoding="utf-8")
    return Keys.load(path)


def caller(tmp_path: Path, content: str, header: str = "Bearer k1", today: date = TODAY) -> Caller:
    return keys(tmp_path, content).caller(header, today)


# --------------------------------------------------------------------------------------------------------------- models


def test_a_key_allows_only_its_students(tmp_path: Path) -> None:
    found = caller(tmp_path, "k1: [healthcare-small]\nk2: '*'\n")
    assert found.may("healthcare-small")
    assert not found.may("legal-small")
    assert not found.may("teacher")


def test_a_star_allows_every_model_and_json_is_accepted(tmp_path: Path) -> None:
    assert caller(tmp_path, '{"k1": "*"}', "bearer k1").may("teacher")


def test_a_model_that_the_key_does_not_allow_is_403_under_any_alias() -> None:
    caller = Caller(frozenset({"healthcare-small"}))
    caller.require("healthcare-small@champion")
    with pytest.raises(APIError, match="does not allow legal-small") as error:
        caller.require("legal-small@3")
    assert (error.value.status, error.value.code, error.value.param) == (403, "model_not_allowed", "model")


def test_without_a_file_of_keys_everyone_may_use_everything() -> None:
    assert Keys.load(None).caller(None, TODAY).may("teacher")


# ----------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic k1", "Bearer k", "Bearer k11", "Bearer é", f"Bearer {HASH}"]
)
@pytest.mark.parametrize("name", ["k1", HASH])
def test_any_other_header_is_401(tmp_path: Path, name: str, header: str | None) -> None:
    with pytest.raises(APIError) as error:
        keys(tmp_path, f"{name}: [a]").caller(header, TODAY)
    assert error.value.status == 401
    assert "k1" not in str(error.value)


@pytest.mark.parametrize("key", ["ключ", "clé-à", "schlüssel"])  # the UTF-8 of "à" ends in a byte that is a space in Latin-1
@pytest.mark.parametrize("hashed", [False, True])
def test_a_key_that_is_not_ascii_is_compared_byte_by_byte(tmp_path: Path, key: str, hashed: bool) -> None:
    header = f"Bearer {key} ".encode().decode("latin-1")  # what a server makes of the bytes that a client sends
    content = f"{f'sha256:{sha256(key.encode()).hexdigest()}' if hashed else key}: [a]"
    assert caller(tmp_path, content, header).may("a")
    with pytest.raises(APIError):
        caller(tmp_path, content, header.replace("Bearer ", "Bearer x"))


@pytest.mark.parametrize("name", [HASH, HASH.replace("sha256:", "@").upper().replace("@", "sha256:")])
def test_the_hash_of_a_key_stands_for_it(tmp_path: Path, name: str) -> None:
    assert caller(tmp_path, f"{name}: [a]") == caller(tmp_path, "k1: [a]")


def test_of_a_key_nothing_but_its_hash_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("long-random-string: [a]\n")
    file = KeyFile(path)
    assert b"long-random-string" not in pickle.dumps(file._keys)
    assert sha256(b"long-random-string").hexdigest().encode() in pickle.dumps(file._keys)


def test_a_new_key_is_long_random_and_stands_in_the_file_as_its_hash(tmp_path: Path) -> None:
    made = [new_key() for _ in range(20)]
    assert len({key for key, _ in made}) == 20
    for key, entry in made:
        assert len(key) >= 43 and key not in entry  # 32 bytes in base64
        assert caller(tmp_path, f"{entry}: [a]", f"Bearer {key}").may("a")


# --------------------------------------------------------------------------------------------------------------- expiry


@pytest.mark.parametrize(("today", "works"), [(date(2027, 1, 30), True), (date(2027, 1, 31), False), (date(2028, 1, 1), False)])
def test_a_key_works_until_the_day_on_which_it_expires(tmp_path: Path, today: date, works: bool) -> None:
    content = "k1: {models: [a], expires: 2027-01-31}\nk2: '*'"
    if works:
        assert caller(tmp_path, content, today=today).may("a")
        return
    with pytest.raises(APIError, match=r"this API key expired on 2027-01-31 \(00:00 UTC\)") as error:
        caller(tmp_path, content, today=today)
    assert (error.value.status, error.value.code) == (401, "expired_api_key")
    with pytest.raises(APIError) as stranger:
        caller(tmp_path, content, "Bearer k3", today)
    assert "expired" not in str(stranger.value)


def test_expiry_is_looked_at_with_each_request_and_in_utc(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("k1: {models: [a], expires: 2027-01-31}\n")
    times = iter(
        [
            datetime(2027, 1, 30, 23, 59, tzinfo=UTC),
            datetime(2027, 1, 31, 1, 0, tzinfo=timezone(timedelta(hours=2))),  # 23:00 the day before
            datetime(2027, 1, 30, 20, 0, tzinfo=timezone(timedelta(hours=-5))),  # 01:00 of the day
        ]
    )
    file = KeyFile(path, lambda: next(times))
    assert file.caller("Bearer k1").may("a")
    assert file.caller("Bearer k1").may("a")
    with pytest.raises(APIError, match="expired"):
        file.caller("Bearer k1")


# ------------------------------------------------------------------------------------------------------------- the file


def test_an_entry_says_models_expiry_and_rates(tmp_path: Path) -> None:
    rates = "  requests_per_minute: 60\n  tokens_per_minute: 9\n  tokens_per_day: 7\n"
    content = f"k1:\n  models: [a, b]\n  expires: 2027-01-31\n{rates}"
    digest = sha256(b"k1").hexdigest()
    assert caller(tmp_path, content) == Caller(frozenset({"a", "b"}), digest, date(2027, 1, 31), 60, 9, 7)
    entry = {"models": "*", "expires": "2027-01-31", "tokens_per_day": 5}
    assert caller(tmp_path, json.dumps({HASH: entry})).tokens_per_day == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected keys"),
        ("[a]", "expected keys"),
        ("secret: {a: b}", "keys.yaml:1: unknown setting; a key has models, expires, requests_per_minute"),
        ("a: [b]\nsecret:\n  secret2: [b]", "keys.yaml:3: unknown setting"),
        ("secret: {models: [b], 5: 6}", "keys.yaml:1: unknown setting"),
        ("secret: [1]", "keys.yaml:1: expected models"),
        ("secret:", "keys.yaml:1: expected models"),
        ("secret: 5", "keys.yaml:1: expected models"),
        ("secret: ['']", "keys.yaml:1: expected models"),
        ("secret: {}", "keys.yaml:1: expected models"),
        ("secret: [secret@3]", "keys.yaml:1: models are named without a version"),
        ("secret:\n  models: [a]\n  expires: 2027-02-30", "keys.yaml:3: expires must be a day, as in 2027-01-31"),
        ("secret:\n  models: [a]\n  expires: 20270130", "keys.yaml:3: expires must be a day"),
        ("secret: {models: [a], expires: '2027-W05-1'}", "keys.yaml:1: expires must be a day"),
        ("secret: {models: [a], expires: 2027-01-30T00:00:00}", "keys.yaml:1: expires must be a day"),
        ("secret: {models: [a], expires: never}", "keys.yaml:1: expires must be a day"),
        ("secret:\n  models: [a]\n\n  requests_per_minute: 0", "keys.yaml:4: requests_per_minute must be a whole number"),
        ("secret: {models: [a], tokens_per_minute: 1.5}", "keys.yaml:1: tokens_per_minute must be a whole number"),
        ("secret: {models: [a], tokens_per_day: true}", "keys.yaml:1: tokens_per_day must be a whole number"),
        ("secret: {models: [a], tokens_per_day: '9'}", "keys.yaml:1: tokens_per_day must be a whole number"),
        ("secret: {models: [a], tokens_per_day: 9000000000000000}", "keys.yaml:1: tokens_per_day must be a whole number"),
        ("sha256:secret: [a]", "keys.yaml:1: expected 64 hexadecimal digits after sha256:"),
        (f"'sha256:{'a' * 63}\u0660': [a]", "keys.yaml:1: expected 64 hexadecimal digits"),
        ("'': [a]", "keys.yaml:1: a key must be printable"),
        ("' secret': [a]", "keys.yaml:1: a key must be printable, and without spaces around it"),
        ('"secret\\n": [a]', "keys.yaml:1: a key must be printable"),
        ("5: [a]", "keys.yaml:1: a key must be text; put it in quotes"),
        (f"{HASH}: [a]\n\nk1: [a]", "keys.yaml:3: this key is in line 1, too, itself or as its hash; remove one"),
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
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


LETTERS = st.text("QZX", min_size=6, max_size=9)  # of no message
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | LETTERS | st.just("*") | st.text(string.printable, max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS | st.sampled_from(SETTINGS), inner, max_size=3),
    max_leaves=6,
)


@given(content=st.dictionaries(LETTERS, VALUES, min_size=1, max_size=3))
def test_whatever_a_file_says_is_read_or_refused_without_quoting_it(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        assert len(Keys.load(path).callers) == len(content)
    except ServeError as error:
        assert "any.yaml:1: " in str(error)
        assert not set("QZX") & set(str(error).removeprefix(f"--api-keys {path}"))


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


def test_a_key_is_the_same_caller_wherever_it_stands_in_the_file(tmp_path: Path) -> None:
    """What it has used is counted by key: a line above it must not give it another's."""
    path = tmp_path / "keys.yaml"
    path.write_text("k1: [a]\n")
    file = KeyFile(path)
    before = file.caller("Bearer k1")
    path.write_text(f"newer: [b]\n{HASH}: [a]\n")
    assert file.caller("Bearer k1") == before


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
