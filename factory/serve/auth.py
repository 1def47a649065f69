"""API keys: the models that each of them allows, how much, and for how long.

keys = KeyFile(Path("keys.yaml"))          # {sha256:9f86d0…: {models: [healthcare-small], expires: 2027-01-31}, other-key: "*"}
keys.caller("Bearer key").may("healthcare-small")
key, entry = new_key()                     # the second stands for the first in the file

Only hashes of keys are kept. Plain SHA-256 is enough for them: nobody can try all values of 32 random bytes, which is what the
slow hashes of passwords protect from, and a slow one here would be work that strangers can ask for.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from factory.config.yaml_text import TEXT, YamlTextError, read_yaml
from factory.errors import ServeError
from factory.serve.limits import APIError

LOG = logging.getLogger("factory.serve")
EVERY_MODEL = "*"
HASHED = "sha256:"
RATES = ("requests_per_minute", "tokens_per_minute", "tokens_per_day")
SETTINGS = ("models", "expires", *RATES)
MAX_RATE = 10**12


@dataclass(frozen=True)
class Caller:
    """Who sent a request: what its API key is and may. Without keys, everyone may use everything."""

    models: frozenset[str] = frozenset({EVERY_MODEL})
    key: str = ""  # the SHA-256 of the key in hex; without keys ""
    expires: date | None = None  # the first day, in UTC, on which it no longer works
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers together
    tokens_per_day: int | None = None

    @property
    def has_token_limits(self) -> bool:
        return bool(self.tokens_per_minute or self.tokens_per_day)

    def may(self, name: str) -> bool:
        """``caller.may("healthcare-small")``: a student's name without version or alias, or ``teacher``."""
        return EVERY_MODEL in self.models or name in self.models

    def require(self, model: str) -> None:
        """``caller.require("healthcare-small@3")``: raises APIError 403 unless the key allows this student or ``teacher``."""
        name = student_name(model)
        if not self.may(name):
            raise APIError(403, f"this API key does not allow {name}", code="model_not_allowed", param="model")

    def may_domain(self, domain: str) -> bool:
        """``caller.may_domain("healthcare")``: whether the key allows one of the domain's students, whatever their size."""
        return EVERY_MODEL in self.models or any(name.rpartition("-")[0] == domain for name in self.models)


@dataclass(frozen=True)
class Keys:
    """Callers by API key. Without any key, everyone who reaches the server may use every model."""

    callers: tuple[Caller, ...] = ()

    @classmethod
    def load(cls, path: Path | None) -> Keys:
        """``Keys.load(Path("keys.yaml"))``: a YAML or JSON mapping of each key, or its hash, to what it may.

        Raises: ServeError if the file cannot be read, is not such a mapping or has a key twice. No message quotes a key.
        """
        if path is None:
            return cls()
        try:
            document = read_yaml(path)
        except YamlTextError as error:
            raise ServeError(f"--api-keys {path}{f':{error.line}' if error.line else ''}: {error.reason}") from None
        if not isinstance(document.node, yaml.MappingNode) or not document.content:
            raise ServeError(f"--api-keys {path}: expected keys, as in `a-long-random-key: [healthcare-small]`, or '*' for all")
        return cls(_callers(document.node, document.content, f"--api-keys {path}"))

    def caller(self, authorization: str | None, today: date) -> Caller:
        """``keys.caller(request.headers.get("authorization"), today)``: ``today`` is the day in UTC.

        Raises: APIError 401 for a missing, unknown or expired key. Only who has an expired key learns that it was one.
        """
        if not self.callers:
            return Caller()
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip(" \t")
        if scheme.lower() != "bearer" or not given:
            raise APIError(401, "no API key: send the header `Authorization: Bearer KEY`", code="missing_api_key")
        digest, found = sha256(given.encode("latin-1")).hexdigest(), None  # headers were decoded so: of the bytes that came
        for caller in self.callers:  # compare with every key, so that the time taken reveals nothing
            if hmac.compare_digest(caller.key, digest):
                found = caller
        if found is None:
            raise APIError(401, "unknown API key", code="invalid_api_key")
        if found.expires is not None and today >= found.expires:
            raise APIError(401, f"this API key expired on {found.expires} (00:00 UTC)", code="expired_api_key")
        return found


class KeyFile:
    """``KeyFile(path).caller("Bearer key")``: the file's keys as they are now. Raises: what ``Keys.load`` does, at first."""

    def __init__(self, path: Path | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path, self.now = path, now
        self._stamp, self._keys = self._status(), Keys.load(path)

    def caller(self, authorization: str | None) -> Caller:
        """As ``Keys.caller``, after reading a file that has changed; one that cannot be read leaves the keys as they were."""
        stamp = self._status()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = Keys.load(self.path)
            except ServeError as error:
                LOG.error("%s; the keys read before stay valid", error)
        return self._keys.caller(authorization, self.now().astimezone(UTC).date())

    def _status(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat() if self.path else None
        except OSError:
            status = None
        return status and (status.st_mtime_ns, status.st_size, status.st_ino)


def student_name(model: str) -> str:
    """``student_name("healthcare-small@3")`` → "healthcare-small": what API keys allow."""
    return model.partition("@")[0]


def new_key() -> tuple[str, str]:
    """``key, entry = new_key()``: a random key, and what stands for it in the file: ``sha256:9f86d0…``."""
    key = secrets.token_urlsafe(32)
    return key, HASHED + _digest(key)


# ------------------------------------------------------------------------------------------------------ reading the file


def _callers(node: yaml.MappingNode, content: dict[str, Any], where: str) -> tuple[Caller, ...]:
    """Raises: ServeError with the line, and without a word of what stands there: that may be a key in the wrong place."""
    callers: dict[str, Caller] = {}
    lines: dict[str, int] = {}
    for name, value in node.value:
        line = name.start_mark.line + 1
        if name.tag != TEXT:
            raise ServeError(f"{where}:{line}: a key must be text; put it in quotes")
        try:
            digest = _digest(name.value)
            settings = _settings(content[name.value])
            caller = _caller(digest, settings)
        except _Mistake as mistake:
            raise ServeError(f"{where}:{_line_of(value, mistake.setting) or line}: {mistake}") from None
        if digest in callers:
            raise ServeError(f"{where}:{line}: this key is in line {lines[digest]}, too, itself or as its hash; remove one")
        callers[digest], lines[digest] = caller, line
    return tuple(callers.values())


class _Mistake(ValueError):
    """``setting``: of which the message says what is wrong, if of one."""

    def __init__(self, message: str, setting: object = None) -> None:
        super().__init__(message)
        self.setting = setting


def _line_of(node: yaml.Node, setting: object) -> int | None:
    names = [name for name, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return next((int(name.start_mark.line) + 1 for name in names if name.value == str(setting)), None)


def _digest(key: str) -> str:
    """In hex, of the key or as its hash says."""
    if key.startswith(HASHED):
        if not re.fullmatch("[0-9a-fA-F]{64}", key.removeprefix(HASHED)):
            raise _Mistake(f"expected 64 hexadecimal digits after {HASHED}")
        return key.removeprefix(HASHED).lower()
    if not key or key != key.strip() or not key.isprintable():
        raise _Mistake("a key must be printable, and without spaces around it")  # no header could hold any other
    return sha256(key.encode()).hexdigest()


def _settings(entry: object) -> dict[str, Any]:
    """An entry with names; its short forms are the models alone."""
    if not isinstance(entry, dict):
        return {"models": entry}
    for setting in entry:
        if setting not in SETTINGS:
            raise _Mistake(f"unknown setting; a key has {', '.join(SETTINGS)}", setting)
    return entry


def _caller(key: str, settings: dict[str, Any]) -> Caller:
    given = settings.get("models")
    models = [given] if isinstance(given, str) else given
    if not isinstance(models, list) or not all(isinstance(name, str) and name for name in models):
        raise _Mistake("expected models: a list of their names, or '*' for all", "models")
    if any("@" in name for name in models):
        raise _Mistake("models are named without a version: a key allows all of them", "models")
    for setting in RATES:
        value = settings.get(setting)
        if value is not None and not (type(value) is int and 1 <= value <= MAX_RATE):
            raise _Mistake(f"{setting} must be a whole number from 1 to {MAX_RATE:,}", setting)
    rates = {setting: settings.get(setting) for setting in RATES}
    return Caller(frozenset(models), key, _expires(settings.get("expires")), **rates)


def _expires(value: object) -> date | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
            return date.fromisoformat(value)
    except ValueError:  # no such day
        pass
    raise _Mistake("expires must be a day, as in 2027-01-31", "expires")
