"""API keys and the models that each of them allows.

keys = KeyFile(Path("keys.yaml"))          # {key: [healthcare-small, teacher], other-key: "*"}
keys.caller("Bearer key").may("healthcare-small")
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from factory.config.yaml_text import YamlTextError, read_yaml
from factory.errors import ServeError
from factory.serve.limits import APIError

LOG = logging.getLogger("factory.serve")
EVERY_MODEL = "*"


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the models that its key allows, and the key's place in the file; without keys ""."""

    models: frozenset[str] = frozenset({EVERY_MODEL})
    key: str = ""

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

    callers: Mapping[str, Caller]

    @classmethod
    def load(cls, path: Path | None) -> Keys:
        """``Keys.load(Path("keys.yaml"))``: a YAML or JSON mapping of each key to a list of models, or ``"*"`` for all.

        Raises: ServeError if the file cannot be read, is not such a mapping or has a key twice. No message quotes a key.
        """
        if path is None:
            return cls({})
        try:
            content = read_yaml(path).content
        except YamlTextError as error:
            raise ServeError(f"--api-keys {path}{f':{error.line}' if error.line else ''}: {error.reason}") from None
        if not isinstance(content, dict) or not content:
            raise ServeError(f"--api-keys {path}: expected keys, as in `a-long-random-key: [healthcare-small]`, or '*' for all")
        entries = enumerate(content.items(), start=1)
        return cls({key: _caller(key, models, f"--api-keys {path}", f"entry {number}") for number, (key, models) in entries})

    def caller(self, authorization: str | None) -> Caller:
        """``keys.caller(request.headers.get("authorization"))``. Raises: APIError 401 for a missing or unknown key."""
        if not self.callers:
            return Caller()
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip(" \t")
        if scheme.lower() != "bearer" or not given:
            raise APIError(401, "no API key: send the header `Authorization: Bearer KEY`", code="missing_api_key")
        found = None
        for key, caller in self.callers.items():  # compare with every key, so that the time taken reveals nothing
            if hmac.compare_digest(key.encode(), given.encode("latin-1")):  # as the headers were decoded: the bytes that came
                found = caller
        if found is None:
            raise APIError(401, "unknown API key", code="invalid_api_key")
        return found


class KeyFile:
    """``KeyFile(path).caller("Bearer key")``: the file's keys as they are now. Raises: what ``Keys.load`` does, at first."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._stamp, self._keys = self._now(), Keys.load(path)

    def caller(self, authorization: str | None) -> Caller:
        """As ``Keys.caller``, after reading a file that has changed; one that cannot be read leaves the keys as they were."""
        stamp = self._now()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = Keys.load(self.path)
            except ServeError as error:
                LOG.error("%s; the keys read before stay valid", error)
        return self._keys.caller(authorization)

    def _now(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat() if self.path else None
        except OSError:
            status = None
        return status and (status.st_mtime_ns, status.st_size, status.st_ino)


def student_name(model: str) -> str:
    """``student_name("healthcare-small@3")`` → "healthcare-small": what API keys allow."""
    return model.partition("@")[0]


def _caller(key: object, models: object, where: str, entry: str) -> Caller:
    names = [models] if isinstance(models, str) else models
    if not isinstance(key, str) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ServeError(f"{where}: {entry}: expected a key and a list of models, or '*' for all")
    return Caller(frozenset(names), entry)
