"""Immutable versions on disk, movable aliases, and an index that is only a cache. No torch here.

    registry = Registry("registry")
    with registry.stage("healthcare-small") as folder:  # write the adapter into `folder`
        version = registry.publish("student", "healthcare-small", folder, manifest)
    registry.promote(version.reference, "champion")
    registry.resolve("healthcare-small").folder  # its champion, else its newest sound version

    <root>/students/<name>/<number>/manifest.json   and the adapter's own files
    <root>/bases/<name>/<number>/manifest.json      and the base's own files
    <root>/aliases.json                             {name: {alias: number}}
    <root>/index.sqlite                             may be deleted at any time
    <root>/.staging/                                what is being written; nothing here is ever listed

The manifests are the truth. A version appears by one rename, so it is whole or it is not there.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from factory.errors import RegistryError

Kind = Literal["student", "base"]
Key = tuple[str, str, int]  # kind, name, number
Stamp = tuple[int, int]  # mtime in ns and bytes of a manifest.json: when it differs, the index reads the manifest again

FOLDERS: dict[str, str] = {"student": "students", "base": "bases"}
MANIFEST = "manifest.json"
CHAMPION = "champion"
INDEX_LAYOUT = 1  # raise it when Summary changes: older indexes are then rebuilt
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# The index cannot be written right now, but is not damaged: busy, locked, read-only, I/O error, disk full, cannot open.
UNUSABLE = (5, 6, 8, 10, 13, 14)


@dataclass(frozen=True)
class Version:
    """One published folder and its manifest."""

    kind: str
    name: str
    number: int
    folder: Path
    manifest: dict[str, Any]

    @property
    def reference(self) -> str:
        """``healthcare-small@3``."""
        return f"{self.name}@{self.number}"

    @property
    def base(self) -> str | None:
        """The reference of the base that a student's adapter belongs on."""
        base = self.manifest.get("base")
        return base if isinstance(base, str) else None

    @property
    def verdict(self) -> str:
        """``passed``, ``failed`` or ``unchecked``."""
        return _verdict(self.manifest)


@dataclass(frozen=True)
class Summary:
    """One line of ``factory list``: what the index keeps of a manifest. What a manifest does not say is None."""

    kind: str
    name: str
    number: int
    created: str
    domain: str | None
    family: str | None
    size: str | None
    profile: str | None
    base: str | None
    verdict: str
    kl: float | None  # nats per token, KL(teacher || student)
    top1_agreement: float | None
    relation_alignment: float | None
    parameters: int | None
    teacher_parameters: int | None
    bytes: int  # of the folder's files, manifest.json not counted
    sources: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """``healthcare-small@3``."""
        return f"{self.name}@{self.number}"


COLUMNS = tuple(field.name for field in fields(Summary) if field.name != "aliases")


class Registry:
    """A folder of versions. Reading never creates anything but the index, and works on a read-only folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # ------------------------------------------------------------------------------------------------------ writing

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """``with registry.stage(name) as folder:`` an empty folder to write into, gone afterwards unless published.

        Raises:
            RegistryError: for an unsafe name, or when the disk is full.
        """
        check_name(name)
        with _one_line(f"cannot make a folder for {name} in {self.root}"):
            staging = self.root / ".staging"
            staging.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=staging))
        try:
            yield folder
        except OSError as error:
            if error.errno in FULL_DISK:
                raise _full(f"cannot write {name}", folder) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, kind: Kind, name: str, staged: Path, manifest: Mapping[str, Any]) -> Version:
        """``registry.publish("student", name, folder, manifest)`` moves the staged folder to the next free number.

        Adds kind, name, version, created, files ({path: {sha256, bytes}}), the base's checksum and the manifest's own
        to the manifest. Numbers that are not finite become null, since JSON has none. Files become read-only.

        Raises:
            RegistryError: for an unsafe or taken name, an empty folder, a link in it, an unknown base, a value that
                JSON cannot hold, a full disk. Nothing is left behind.
        """
        check_name(name)
        staged = Path(staged)
        content = self._checked_content(kind, name, manifest)
        try:
            with _one_line(f"cannot publish {name}"):
                content["files"] = _seal(staged)
                number = self._rename_to_next_number(kind, name, staged, content)
        except BaseException:
            if staged.parent.resolve() == (self.root / ".staging").resolve():
                shutil.rmtree(staged, ignore_errors=True)
            else:  # the caller's own folder stays, without our manifest
                (staged / MANIFEST).unlink(missing_ok=True)
            raise
        with contextlib.suppress(sqlite3.Error):  # so that the next list is quick; it would catch up by itself
            self._index()
        return self._load(kind, name, number)

    def promote(self, ref: str, alias: str = CHAMPION, *, force: bool = False) -> Version:
        """``registry.promote("healthcare-small@3", "champion")`` points the alias at that version.

        Raises:
            RegistryError: for an unknown version, an unsafe alias, a damaged version, or one whose verdict is
                "failed" (unless ``force``).
        """
        check_name(alias, "alias")
        version = self.resolve(ref)
        problems = self.verify(version)
        if problems:
            raise RegistryError(f"{version.reference} is damaged, so {alias} stays where it is: {problems[0]}")
        if version.verdict == "failed" and not force:
            verdict = version.manifest["verdict"]
            given = verdict.get("reasons") if isinstance(verdict, dict) else None
            reasons = "; ".join(map(str, given or ["no reason given"]))
            raise RegistryError(f"{version.reference} failed its gates, so {alias} stays where it is: {reasons}")
        with _one_line(f"cannot write {self.root / 'aliases.json'}"), (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # read, change and replace as one step
            every = self._aliases()
            every.setdefault(version.name, {})[alias] = version.number
            _replace(self.root / "aliases.json", _to_json(every))
        return version

    # ------------------------------------------------------------------------------------------------------ reading

    def resolve(self, ref: str) -> Version:
        """``registry.resolve("healthcare-small" | "healthcare-small@3" | "healthcare-small@champion")``.

        A bare name means its champion if there is one, else its newest version that is whole and has not failed.

        Raises:
            RegistryError: when there is no such version or it is not whole; names what exists and what comes close.
        """
        name, at, selector = ref.partition("@")
        kind = self._kind_of(name)
        if kind is None:
            raise self._unknown_name(name)
        if not at:
            champion = self.aliases(name).get(CHAMPION)
            if champion is None:
                return self._newest_sound(kind, name)
            return self._at(kind, name, champion, f"{name}@{CHAMPION}")
        if _is_number(selector):
            return self._at(kind, name, int(selector), ref)
        aliases = self.aliases(name)
        if selector not in aliases:
            exist = ", ".join(sorted(aliases)) or "none"
            raise RegistryError(
                f"{name} has no alias {selector!r}{_close(selector, aliases)}; "
                f"aliases: {exist}; versions: {_some(self._numbers(kind, name))}"
            )
        return self._at(kind, name, aliases[selector], ref)

    def versions(self, kind: Kind | None = None, name: str | None = None) -> list[Summary]:
        """``registry.versions("student")`` from the index, by kind, name and number; only readable versions."""
        aliases = self._aliases() if self.root.is_dir() else {}
        found = []
        for row in self._index():
            if (kind and row[0] != kind) or (name and row[1] != name):
                continue
            here = aliases.get(row[1])
            labels = tuple(sorted(a for a, number in here.items() if number == row[2])) if here else ()
            sources = tuple(row[-1].split("\n")) if row[-1] else ()
            found.append(Summary(*(*row[:-1], sources, labels)))
        return found

    def trained_on(self, source_id: str) -> list[Summary]:
        """``registry.trained_on("medquad")``: every version that saw this source, itself or through its base."""
        every = self.versions()
        direct = {summary.reference for summary in every if source_id in summary.sources}
        return [summary for summary in every if summary.reference in direct or summary.base in direct]

    def aliases(self, name: str) -> dict[str, int]:
        """``registry.aliases("healthcare-small")["champion"]`` is a version's number."""
        return dict(self._aliases().get(name, {}))

    def verify(self, version: Version) -> list[str]:
        """``registry.verify(version)`` reads every byte again: what is missing, changed or added, one line each."""
        problems = []
        if version.manifest.get("manifest_sha256") != _checksum(version.manifest):
            problems.append(f"{MANIFEST} was changed after publishing")
        recorded: dict[str, Any] = version.manifest.get("files") or {}
        for path, facts in recorded.items():
            file = version.folder / path
            if not file.is_file():
                problems.append(f"{path} is missing")
            elif file.stat().st_size != facts.get("bytes") or _sha256(file) != facts.get("sha256"):
                problems.append(f"{path} was changed: its sha256 is not the manifest's")
        there = {path.relative_to(version.folder).as_posix() for path in version.folder.rglob("*") if path.is_file()}
        problems += [f"{path} is not in the manifest" for path in sorted(there - set(recorded) - {MANIFEST})]
        return problems + self._base_problems(version)

    def problems(self) -> list[str]:
        """``registry.problems()`` for ``factory doctor``: what is never listed or resolved, and why. Hashes nothing."""
        found = []
        for kind in FOLDERS:
            for name in self._names(kind):
                for number in self._numbers(kind, name):
                    where = f"{FOLDERS[kind]}/{name}/{number}"
                    try:
                        version = self._load(kind, name, number)
                        found += [f"{where}: {p}" for p in [*_missing(version), *self._base_problems(version)]]
                    except RegistryError as error:
                        found.append(f"{where}: {error}")
        for name, aliases in self._aliases().items():
            kind_of = self._kind_of(name)
            there = self._numbers(kind_of, name) if kind_of else []
            found += [f"{name}@{a} points at {n}, which is gone" for a, n in aliases.items() if n not in there]
        staging = self.root / ".staging"
        left = sorted(staging.iterdir()) if staging.is_dir() else []
        return found + [f".staging/{path.name}: of a build that runs, or was killed: then delete it" for path in left]

    # -------------------------------------------------------------------------------------------------- one version

    def _folder(self, kind: str, name: str) -> Path:
        return self.root / FOLDERS[kind] / name

    def _names(self, kind: str) -> list[str]:
        return sorted(_listdir(self.root / FOLDERS[kind]))

    def _numbers(self, kind: str, name: str) -> list[int]:
        """Every numbered folder, whole or not, ascending."""
        return sorted(int(number) for number in _listdir(self._folder(kind, name)) if _is_number(number))

    def _kind_of(self, name: str) -> str | None:
        """None also for whatever is more than one plain folder name: ``../`` is never joined to a path."""
        if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
            return None
        return next((kind for kind in FOLDERS if self._numbers(kind, name)), None)

    def _load(self, kind: str, name: str, number: int) -> Version:
        folder = self._folder(kind, name) / str(number)
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise RegistryError(f"half made: it has no {MANIFEST}") from None
        except (OSError, ValueError) as error:
            raise RegistryError(f"its {MANIFEST} cannot be read ({error})") from None
        files = manifest.get("files") or {} if isinstance(manifest, dict) else None
        if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
            raise RegistryError(f"its {MANIFEST} is no mapping with a mapping of files")
        says = (manifest.get("kind"), manifest.get("name"), manifest.get("version"))
        if says != (kind, name, number):
            raise RegistryError(f"its {MANIFEST} is of {says[0]} {says[1]}@{says[2]}: it was moved here by hand")
        return Version(kind, name, number, folder, manifest)

    def _at(self, kind: str, name: str, number: int, ref: str) -> Version:
        numbers = self._numbers(kind, name)
        if number not in numbers:
            aliases = ", ".join(f"{a} → {n}" for a, n in sorted(self.aliases(name).items())) or "none"
            raise RegistryError(f"{ref}: {name} has no version {number}; versions: {_some(numbers)}; aliases: {aliases}")
        try:
            version = self._load(kind, name, number)
        except RegistryError as error:
            raise RegistryError(f"{ref} cannot be used: {error}; versions: {_some(numbers)}") from None
        problems = _missing(version)
        if problems:
            raise RegistryError(f"{ref} cannot be used: {problems[0]}; versions: {_some(numbers)}")
        return version

    def _newest_sound(self, kind: str, name: str) -> Version:
        why = []
        for number in reversed(self._numbers(kind, name)):
            try:
                version = self._at(kind, name, number, f"{name}@{number}")
            except RegistryError:
                why.append(f"{number} is not whole")
                continue
            if version.verdict != "failed":
                return version
            why.append(f"{number} failed its gates")
        raise RegistryError(f"{name} has no sound version: {_some(why)}; build it again, or name one, as in {name}@{number}")

    def _unknown_name(self, name: str) -> RegistryError:
        check_name(name)
        known = [n for kind in FOLDERS for n in self._names(kind) if self._numbers(kind, n)]
        if not known:
            return RegistryError(f"no student or base named {name!r}: {self.root} is empty; `factory build` fills it")
        return RegistryError(f"no student or base named {name!r}{_close(name, known)}; there are: {_some(known)}")

    def _base_problems(self, version: Version) -> list[str]:
        """The base is gone, or another one stands in its place."""
        recorded = version.manifest.get("base_sha256")
        if version.base is None or recorded is None:
            return []
        try:
            base = self.resolve(version.base)
        except RegistryError as error:
            return [f"its base is gone: {error}"]
        if base.manifest.get("manifest_sha256") != recorded:
            return [f"its base {version.base} is not the one it was trained on"]
        return []

    def _aliases(self) -> dict[str, dict[str, int]]:
        path = self.root / "aliases.json"
        try:
            every = json.loads(path.read_bytes())
            return {name: {alias: int(number) for alias, number in of.items()} for name, of in every.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RegistryError(f"{path} cannot be read ({error}); repair or delete it, then promote again") from None

    # -------------------------------------------------------------------------------------------------- publishing

    def _checked_content(self, kind: str, name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        if kind not in FOLDERS:
            raise RegistryError(f"cannot publish {name}: kind {kind!r} is not one of {', '.join(FOLDERS)}")
        taken = self._kind_of(name)
        if taken not in (None, kind):
            raise RegistryError(f"cannot publish {kind} {name}: a {taken} has that name; choose another")
        content: dict[str, Any] = _plain(manifest, "manifest")
        if kind == "student" and isinstance(content.get("base"), str):
            try:
                base = self.resolve(content["base"])
            except RegistryError as error:
                raise RegistryError(f"cannot publish {name}: its base is not in {self.root} ({error})") from None
            content |= {"base": base.reference, "base_sha256": base.manifest.get("manifest_sha256")}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        own = {"kind": kind, "name": name, "version": 0, "created": now}
        return own | content | own  # these first, and always ours

    def _rename_to_next_number(self, kind: str, name: str, staged: Path, content: dict[str, Any]) -> int:
        """The rename fails on a number that another publisher took meanwhile: then the next one."""
        folder = self._folder(kind, name)
        last = folder / ".last"  # a number is not given twice, even after its folder was deleted
        while True:
            used = int(last.read_text()) if last.is_file() else 0
            content["version"] = max([used, *self._numbers(kind, name)]) + 1
            content["manifest_sha256"] = _checksum(content)
            _write(staged / MANIFEST, _to_json(content))
            _sync(staged)
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / str(content["version"])
            try:
                os.rename(staged, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            _sync(folder)
            with contextlib.suppress(OSError):  # the version is published; losing this note is no failure
                _replace(last, f"{content['version']}\n".encode())
            return int(content["version"])

    # ------------------------------------------------------------------------------------------------------- index

    def _scan(self) -> dict[Key, Stamp]:
        """One stat for each version: new, changed, removed and half-made folders all show. Plain calls, for speed."""
        found: dict[Key, Stamp] = {}
        for kind, folder in FOLDERS.items():
            for name in _listdir(self.root / folder):
                here = f"{self.root}/{folder}/{name}"
                for number in _listdir(here):
                    if _is_number(number):
                        try:
                            status = os.stat(f"{here}/{number}/{MANIFEST}")
                        except OSError:
                            continue
                        found[kind, name, int(number)] = (status.st_mtime_ns, status.st_size)
        return found

    def _index(self) -> list[tuple[Any, ...]]:
        """Rows of COLUMNS, in step with the folders. A damaged index is rebuilt; without a writable one, in memory."""
        on_disk = self._scan()
        if not on_disk:
            return []
        path = self.root / "index.sqlite"
        for where in (str(path), str(path), ":memory:"):
            try:
                with contextlib.closing(sqlite3.connect(where, timeout=1.0)) as connection:
                    return self._in_step(connection, on_disk)
            except sqlite3.Error as error:
                if where == ":memory:":
                    raise
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in UNUSABLE:
                    continue
                for suffix in ("", "-journal"):  # damaged
                    with contextlib.suppress(OSError):
                        os.unlink(f"{path}{suffix}")
        raise AssertionError("the index in memory returns or raises")

    def _in_step(self, connection: sqlite3.Connection, on_disk: Mapping[Key, Stamp]) -> list[tuple[Any, ...]]:
        everything = f"SELECT mtime_ns, manifest_bytes, {', '.join(COLUMNS)} FROM versions ORDER BY kind DESC, name, number"
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        if layout != INDEX_LAYOUT:
            with connection:
                connection.execute("DROP TABLE IF EXISTS versions")
                connection.execute(
                    f"CREATE TABLE versions (mtime_ns, manifest_bytes, {', '.join(COLUMNS)}, PRIMARY KEY (kind, name, number))"
                )
                connection.execute(f"PRAGMA user_version = {INDEX_LAYOUT}")
        rows = connection.execute(everything).fetchall()
        known: dict[Key, Stamp] = {row[2:5]: row[:2] for row in rows}
        if known != on_disk:
            fresh = []
            for key in [key for key, stamp in on_disk.items() if known.get(key) != stamp]:
                with contextlib.suppress(RegistryError):  # unreadable: problems() names it
                    fresh.append((*on_disk[key], *_row(self._load(*key))))
            stale = [key for key, stamp in known.items() if on_disk.get(key) != stamp]
            if fresh or stale:
                with connection:
                    connection.executemany("DELETE FROM versions WHERE kind = ? AND name = ? AND number = ?", stale)
                    marks = ", ".join("?" * (2 + len(COLUMNS)))
                    connection.executemany(f"INSERT OR REPLACE INTO versions VALUES ({marks})", fresh)
                rows = connection.execute(everything).fetchall()
        return [row[2:] for row in rows]


# --------------------------------------------------------------------------------------------------------- manifests


def check_name(name: str, what: str = "name") -> str:
    """``check_name("healthcare-small")`` returns it; anything that is not a plain folder name raises RegistryError."""
    from factory.spec import NAME  # here, because pydantic would cost `factory list` a quarter of its half second

    if not isinstance(name, str) or len(name) > 100 or not re.fullmatch(NAME, name):
        raise RegistryError(f"bad {what} {name!r}: lower-case letters and digits, joined by single hyphens")
    return name


def read_metric(manifest: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """``read_metric(manifest, "kl")`` → {"value", "low", "high", "n"}, the last three None if unknown; or None."""
    metrics = (manifest.get("evaluation") or {}).get("metrics") or {}
    return as_metric(metrics.get(name))


def as_metric(raw: Any) -> dict[str, Any] | None:
    """``as_metric(0.4)`` or ``as_metric({"value": 0.4, "n": 7})`` → all of value, low, high, n; None if no number."""
    facts = raw if isinstance(raw, Mapping) else {"value": raw}
    value = facts.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return {"value": value, "low": facts.get("low"), "high": facts.get("high"), "n": facts.get("n")}


def read_parameters(manifest: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """``student, teacher = read_parameters(manifest)``: parameter counts, None where the manifest has none."""
    sizes = (manifest.get("evaluation") or {}).get("sizes") or {}
    student = (sizes.get("student") or {}).get("parameters", manifest.get("parameters"))
    teacher = (sizes.get("teacher") or {}).get("parameters", (manifest.get("teacher") or {}).get("parameters"))
    return (student if isinstance(student, int) else None, teacher if isinstance(teacher, int) else None)


def _verdict(manifest: Mapping[str, Any]) -> str:
    verdict = manifest.get("verdict")
    return str((verdict.get("status") if isinstance(verdict, Mapping) else verdict) or "unchecked")


def _row(version: Version) -> tuple[Any, ...]:
    """The values of COLUMNS; a manifest of an odd shape makes the version unreadable, not the whole list."""
    manifest = version.manifest
    try:
        fidelity = ("kl", "top1_agreement", "relation_alignment")
        metrics = [(read_metric(manifest, name) or {}).get("value") for name in fidelity]
        sources = [str(source["id"]) for source in (manifest.get("dataset") or {}).get("sources") or ()]
        size = sum(facts["bytes"] for facts in (manifest.get("files") or {}).values())
        own = [manifest.get(key) for key in ("domain", "family", "size", "profile", "base")]
        row = (version.kind, version.name, version.number, str(manifest.get("created") or ""), *own, _verdict(manifest))
        row = (*row, *metrics, *read_parameters(manifest), size, "\n".join(sources))
    except (KeyError, TypeError, AttributeError) as error:
        raise RegistryError(f"its {MANIFEST} has an odd shape ({error!r})") from None
    if not all(isinstance(value, str | int | float | None) for value in row):
        raise RegistryError(f"its {MANIFEST} has a list or mapping where a word belongs")
    return row


def _plain(value: Any, where: str) -> Any:
    """What JSON can hold: Path to text, tuple to list, a NumPy or torch scalar to a number, not finite to None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{position}]") for position, item in enumerate(value)]
    if isinstance(value, str | Path):
        return str(value).encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _plain(value.item(), where)
    raise RegistryError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Of all keys but itself, in a fixed order."""
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------------- files


def _seal(staged: Path) -> dict[str, dict[str, Any]]:
    """Make every file read-only and durable; {path: {"sha256", "bytes"}} of each, manifest.json left out."""
    sealed = {}
    if not staged.is_dir():
        raise RegistryError(f"cannot publish {staged}: no such folder")
    for path in sorted(staged.rglob("*")):
        inside = path.relative_to(staged).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RegistryError(f"cannot publish {inside}: no links in a version, copy the file instead")
        if path.is_dir():
            path.chmod(0o755)
            _sync(path)
        elif inside != MANIFEST:
            path.chmod(0o444)
            _sync(path)
            sealed[inside] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    if not sealed:
        raise RegistryError(f"cannot publish {staged.name}: the folder is empty")
    staged.chmod(0o755)  # mkdtemp's is 0o700
    return sealed


def _missing(version: Version) -> list[str]:
    """Files that are gone or have another length: what can be seen without reading them."""
    problems = []
    for path, facts in (version.manifest.get("files") or {}).items():
        try:
            if os.stat(version.folder / path).st_size != facts.get("bytes"):
                problems.append(f"{path} was changed: it has another length")
        except OSError:
            problems.append(f"{path} is missing")
    return problems


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and text[0] != "0" and len(text) < 10


def _listdir(folder: Path | str) -> list[str]:
    """Names in it that are not hidden; none where there is no such folder."""
    try:
        return [name for name in os.listdir(folder) if name[0] != "."]
    except OSError:
        return []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # a read-only one of an earlier try
    path.write_bytes(content)
    path.chmod(0o444)
    _sync(path)


def _replace(path: Path, content: bytes) -> None:
    """Readers see the old content or the new, never half of it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's is 0o600
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------------------- errors


def _full(doing: str, where: Path | str) -> RegistryError:
    return RegistryError(f"{doing}: no space left on the disk that holds {where}; free some, then run it again")


@contextlib.contextmanager
def _one_line(doing: str) -> Iterator[None]:
    """Turn what the disk refuses into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise _full(doing, error.filename or "the registry") from error
        raise RegistryError(f"{doing}: {error.strerror or error} ({error.filename or 'registry'})") from error


def _close(word: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _some(items: Iterable[object], most: int = 12) -> str:
    words = [str(item) for item in items]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
