"""Immutable versions on disk, movable aliases, and an index that is only a cache. No torch here.

    registry = Registry("registry")
    with registry.stage("healthcare-small") as folder:  # write the adapter into `folder`
        version = registry.publish(manifest, folder)
    registry.promote(version.reference, "champion")
    registry.resolve("healthcare-small").folder  # its champion if that has not failed, else its newest sound version
    registry.record(version, "review", {"wins": 7})  # what is said of it later: version.records

    <root>/students/<name>/<number>/manifest.json   and the adapter's own files
    <root>/bases/<name>/<number>/manifest.json      and the base's own files
    <root>/.../<number>/records.jsonl               what was said of a version later, a line each, only ever appended
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
import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factory.errors import GateError, RegistryError
from factory.cache import FULL_DISK, full_disk, storage_errors, replace_file, sha256, sync
from factory.registry.files import is_number, seal, visible_names, write_read_only
from factory.registry.index import index_rows
from factory.registry.versions import (
    FOLDERS,
    MANIFEST,
    RECORDS,
    Summary,
    Version,
    append_record,
    failed_gates,
    load_version,
    missing_files,
    read_records,
)

if TYPE_CHECKING:
    from factory.registry.manifest import BaseManifest, StudentManifest

Kind = Literal["student", "base"]
CHAMPION = "champion"


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
        with storage_errors(f"cannot make a folder for {name} in {self.root}"):
            staging = self.root / ".staging"
            staging.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=staging))
        try:
            yield folder
        except OSError as error:
            if error.errno in FULL_DISK:
                raise full_disk(f"cannot write {name}", folder) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, manifest: BaseManifest | StudentManifest, staged: Path) -> Version:
        """``registry.publish(manifest, folder)`` moves the staged folder to the next free number of ``manifest.name``.

        Fills in the registry's own fields: version, created, files, the base's checksum and the manifest's own. Files
        become read-only.

        Raises:
            RegistryError: for an unsafe or taken name, an empty folder, a link in it, an unknown base, a value that
                JSON cannot hold, a full disk. Nothing is left behind.
        """
        name, staged = check_name(manifest.name), Path(staged)
        content = self._checked_content(manifest)
        try:
            if (staged / RECORDS).exists():
                raise RegistryError(f"cannot publish {name}: {RECORDS} is the registry's own, leave it out of the folder")
            with storage_errors(f"cannot publish {name}"):
                content["files"] = seal(staged, but=MANIFEST)
                number = self._rename_to_next_number(manifest.kind, name, staged, content)
        except BaseException:
            if staged.parent.resolve() == (self.root / ".staging").resolve():
                shutil.rmtree(staged, ignore_errors=True)
            else:  # the caller's own folder stays, without our manifest
                (staged / MANIFEST).unlink(missing_ok=True)
            raise
        with contextlib.suppress(sqlite3.Error):  # so that the next list is quick; it would catch up by itself
            index_rows(self.root)
        return load_version(self.root, manifest.kind, name, number)

    def promote(self, ref: str, alias: str = CHAMPION, *, override: str | None = None) -> Version:
        """``registry.promote("healthcare-small@3", "champion")`` points the alias at that version.

        ``override`` is the reason why a version whose verdict is "failed" gets it all the same. It is recorded with
        the time, the alias and the failed gates; a bare name still never means that version.

        Raises:
            GateError: for a version whose verdict is "failed", without ``override``.
            RegistryError: for an unknown version, an unsafe alias, a damaged version, an empty reason, or an override
                of what has not failed.
        """
        check_name(alias, "alias")
        version = self.resolve(ref)
        problems = self.verify(version)
        if problems:
            raise RegistryError(f"{version.reference} is damaged, so {alias} stays where it is: {problems[0]}")
        failed = _gates_overridden(version, alias, override)
        reason = None if override is None else {"alias": alias, "reason": override.strip(), "gates": failed}
        with storage_errors(f"cannot write {self.root / 'aliases.json'}"), self._locked():  # read, change, replace as one step
            every = self._aliases()
            if reason is not None:  # first, so that no alias is without its reason
                append_record(version.folder, _record("override", reason))
            every.setdefault(version.name, {})[alias] = version.number
            replace_file(self.root / "aliases.json", (json.dumps(every, indent=1) + "\n").encode())
        return load_version(self.root, version.kind, version.name, version.number)

    def record(self, version: Version, kind: str, content: Mapping[str, Any]) -> Version:
        """``registry.record(version, "review", {"wins": 7}).records[-1]``: said of it for ever, with the time.

        Raises:
            RegistryError: for a version that is gone, a value that JSON cannot hold, a full disk.
        """
        record = _record(kind, content)
        with storage_errors(f"cannot record a {kind} of {version.reference}"), self._locked():
            append_record(version.folder, record)
        return load_version(self.root, version.kind, version.name, version.number)

    # ------------------------------------------------------------------------------------------------------ reading

    def resolve(self, ref: str) -> Version:
        """``registry.resolve("healthcare-small" | "healthcare-small@3" | "healthcare-small@champion")``.

        A bare name means its champion if that has not failed, else its newest version that is whole and has not failed.
        Only ``@champion`` means a champion that failed and was promoted by an override.

        Raises:
            RegistryError: when there is no such version or it is not whole; names what exists and what comes close.
        """
        name, at, selector = ref.partition("@")
        kind = self._kind_of(name)
        if kind is None:
            raise self._unknown_name(name)
        if not at:
            champion = self.aliases(name).get(CHAMPION)
            version = None if champion is None else self._at(kind, name, champion, f"{name}@{CHAMPION}")
            return self._newest_valid(kind, name) if version is None or version.verdict == "failed" else version
        if is_number(selector):
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
        for row in index_rows(self.root):
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

    def lineage(self, versions: Iterable[Version]) -> dict[str, Version]:
        """``registry.lineage([student])``: the bases that versions stand on, and those these learnt from, by reference."""
        found: dict[str, Version] = {}
        wanted = [reference for version in versions for reference in (version.base, *version.manifest.path)]
        for reference in wanted:
            if reference and reference not in found:
                with contextlib.suppress(RegistryError):  # the word "teacher", or a base that is gone
                    found[reference] = self.resolve(reference)
        return found

    def aliases(self, name: str) -> dict[str, int]:
        """``registry.aliases("healthcare-small")["champion"]`` is a version's number."""
        return dict(self._aliases().get(name, {}))

    def verify(self, version: Version) -> list[str]:
        """``registry.verify(version)`` reads every byte again: what is missing, changed or added, one line each."""
        problems = []
        from factory.registry.manifest import checksum

        if version.manifest.manifest_sha256 != checksum(json.loads((version.folder / MANIFEST).read_bytes())):
            problems.append(f"{MANIFEST} was changed after publishing")
        recorded = version.manifest.files
        for path, info in recorded.items():
            file = version.folder / path
            if not file.is_file():
                problems.append(f"{path} is missing")
            elif file.stat().st_size != info.bytes or sha256(file) != info.sha256:
                problems.append(f"{path} was changed: its sha256 is not the manifest's")
        there = {path.relative_to(version.folder).as_posix() for path in version.folder.rglob("*") if path.is_file()}
        problems += [f"{path} is not in the manifest" for path in sorted(there - set(recorded) - {MANIFEST, RECORDS})]
        return problems + read_records(version.folder)[1] + self._base_problems(version)

    def problems(self) -> list[str]:
        """``registry.problems()`` for ``factory doctor``: what is never listed or resolved, and why. Hashes nothing."""
        found = []
        for kind in FOLDERS:
            for name in self._names(kind):
                for number in self._numbers(kind, name):
                    where = f"{FOLDERS[kind]}/{name}/{number}"
                    try:
                        version = load_version(self.root, kind, name, number)
                        wrong = missing_files(version) + read_records(version.folder)[1] + self._base_problems(version)
                        found += [f"{where}: {problem}" for problem in wrong]
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
        return sorted(visible_names(self.root / FOLDERS[kind]))

    def _numbers(self, kind: str, name: str) -> list[int]:
        """Every numbered folder, whole or not, ascending."""
        return sorted(int(number) for number in visible_names(self._folder(kind, name)) if is_number(number))

    def _kind_of(self, name: str) -> str | None:
        """None also for whatever is more than one plain folder name: ``../`` is never joined to a path."""
        if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
            return None
        return next((kind for kind in FOLDERS if self._numbers(kind, name)), None)

    def _at(self, kind: str, name: str, number: int, ref: str) -> Version:
        numbers = self._numbers(kind, name)
        if number not in numbers:
            aliases = ", ".join(f"{a} → {n}" for a, n in sorted(self.aliases(name).items())) or "none"
            raise RegistryError(f"{ref}: {name} has no version {number}; versions: {_some(numbers)}; aliases: {aliases}")
        try:
            version = load_version(self.root, kind, name, number)
        except RegistryError as error:
            raise RegistryError(f"{ref} cannot be used: {error}; versions: {_some(numbers)}") from None
        problems = missing_files(version)
        if problems:
            raise RegistryError(f"{ref} cannot be used: {problems[0]}; versions: {_some(numbers)}")
        return version

    def _newest_valid(self, kind: str, name: str) -> Version:
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
        if version.manifest.kind == "base":
            return []
        try:
            base = self.resolve(version.manifest.base)
        except RegistryError as error:
            return [f"its base is gone: {error}"]
        if base.manifest.manifest_sha256 != version.manifest.base_sha256:
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

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process and thread at a time changes aliases and records."""
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # -------------------------------------------------------------------------------------------------- publishing

    def _checked_content(self, manifest: BaseManifest | StudentManifest) -> dict[str, Any]:
        """The manifest as JSON holds it, its base by its whole reference and checksum."""
        from factory.registry.manifest import to_dict

        name, taken = manifest.name, self._kind_of(manifest.name)
        if taken not in (None, manifest.kind):
            raise RegistryError(f"cannot publish {manifest.kind} {name}: a {taken} has that name; choose another")
        own: dict[str, Any] = {"created": _now()}
        if manifest.kind == "student":
            try:
                base = self.resolve(manifest.base)
            except RegistryError as error:
                raise RegistryError(f"cannot publish {name}: its base is not in {self.root} ({error})") from None
            own |= {"base": base.reference, "base_sha256": base.manifest.manifest_sha256}
        return to_dict(manifest) | own

    def _rename_to_next_number(self, kind: str, name: str, staged: Path, content: dict[str, Any]) -> int:
        """The rename fails on a number that another publisher took meanwhile: then the next one."""
        from factory.registry.manifest import checksum, to_json

        folder = self._folder(kind, name)
        last = folder / ".last"  # a number is not given twice, even after its folder was deleted
        while True:
            used = int(last.read_text()) if last.is_file() else 0
            content["version"] = max([used, *self._numbers(kind, name)]) + 1
            content["manifest_sha256"] = checksum(content)
            write_read_only(staged / MANIFEST, to_json(content))
            sync(staged)
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / str(content["version"])
            try:
                os.rename(staged, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            sync(folder)
            with contextlib.suppress(OSError):  # the version is published; losing this note is no failure
                replace_file(last, f"{content['version']}\n".encode())
            return int(content["version"])


def check_name(name: str, what: str = "name") -> str:
    """``check_name("healthcare-small")`` returns it; anything that is not a plain folder name raises RegistryError."""
    from factory.config.schema import NAME  # here, because pydantic would cost `factory list` a quarter of its half second

    if not isinstance(name, str) or len(name) > 100 or not re.fullmatch(NAME, name):
        raise RegistryError(f"bad {what} {name!r}: lower-case letters and digits, joined by single hyphens")
    return name


def _gates_overridden(version: Version, alias: str, override: str | None) -> list[str]:
    """The failed gates that the reason overrides; none where nothing failed and no reason is given."""
    failed = failed_gates(version.raw)
    if version.verdict != "failed":
        if override is None:
            return []
        raise RegistryError(f"nothing to override: {version.reference} is {version.verdict}; promote it without --override")
    if override is None:
        raise GateError(
            f"{version.reference} failed its gates, so {alias} stays where it is: {'; '.join(failed) or 'no reason given'}; "
            "--override REASON promotes it all the same and keeps the reason"
        )
    if not override.strip():
        raise RegistryError(f"the reason to override the gates of {version.reference} is empty: say why it shall be {alias}")
    return failed


def _record(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    from factory.registry.manifest import plain_json

    own = {"kind": kind, "at": _now()}
    return {**own, **plain_json(content, kind), **own}  # these first, and always ours


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _close(word: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _some(items: Iterable[object], most: int = 12) -> str:
    words = [str(item) for item in items]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
