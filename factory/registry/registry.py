"""Immutable versions on disk, movable aliases, and an index that is only a cache. No torch.

    registry = Registry("registry")
    with registry.stage("healthcare-small") as folder:  # write the adapter into `folder`
        version = registry.publish(manifest, folder)
    registry.promote(version.reference, "champion")
    registry.resolve("healthcare-small").folder         # its champion unless that failed, else its newest valid version
    registry.record(version, "review", {"wins": 7})     # then in version.records

    <root>/students/<name>/<number>/manifest.json   and the adapter's files
    <root>/bases/<name>/<number>/manifest.json      and the base's files
    <root>/.../<number>/records.jsonl               what was recorded later; only appended
    <root>/registry.json                            what was published here, and every move of an alias
    <root>/index.sqlite                             may be deleted at any time
    <root>/.staging/                                what is being written; never listed

The manifests are the truth. A version appears by one rename, so it is complete or it is not there.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Literal

from factory.cache import sha256, storage_errors
from factory.config.names import check_name, is_name
from factory.errors import GateError, RegistryError, in_one_line
from factory.registry.index import Key, read_index
from factory.registry.layout import FOLDERS, MANIFEST, kind_of, links, numbers, shown, tree, visible_names
from factory.registry.ledger import LEDGER, AliasMove, adopt, locked, read_ledger, rebuild_ledger, with_move, write_ledger
from factory.registry.publishing import publish, staging_folder
from factory.registry.records import RECORDS, append_record, new_record, read_records
from factory.registry.references import CHAMPION, resolve
from factory.registry.removal import delete_version, leftovers
from factory.registry.versions import COLUMNS, Summary, Version, load_version

if TYPE_CHECKING:
    from factory.registry.manifest import BaseManifest, FileInfo, StudentManifest

Kind = Literal["student", "base"]


class Registry:
    """A folder of versions. Reading creates nothing but the index, and works on a read-only folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # ------------------------------------------------------------------------------------------------------ writing

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """``with registry.stage(name) as folder:`` an empty folder to write into, removed afterwards unless published.

        Raises:
            RegistryError: for an unsafe name.
            StorageError: where the disk is full or refuses.
        """
        with staging_folder(self.root, name) as folder:
            yield folder

    def publish(self, manifest: BaseManifest | StudentManifest, staged: Path) -> Version:
        """``registry.publish(manifest, folder)`` moves the staged folder to the next free number of ``manifest.name``.

        Fills in the registry's fields: version, created, files, the base's checksum and the manifest's own. Files become
        read-only.

        Raises:
            RegistryError: for an unsafe or taken name, an empty folder, a link in it, an unknown base, a value that JSON
                cannot hold. Nothing is left behind.
            StorageError: where the disk is full or refuses. Nothing is left behind.
        """
        number = publish(self.root, manifest, Path(staged))
        with contextlib.suppress(sqlite3.Error):  # makes the next list quick; it would catch up by itself
            read_index(self.root)
        return load_version(self.root, manifest.kind, manifest.name, number)

    def promote(self, ref: str, alias: str = CHAMPION, *, override: str | None = None) -> Version:
        """``registry.promote("healthcare-small@3", "champion")`` points the alias at that version.

        A student is promoted if it passed its gates and was compared with the version that it replaces. ``override`` is the
        reason for promoting another. It is recorded with the time, the alias and what it overrides; a bare name still never
        resolves to a version that failed.

        Raises:
            GateError: for a student that failed its gates, whose gates could not be decided or checked, or that was not
                compared with the current champion, without ``override``.
            RegistryError: for an unknown version, an unsafe alias, a damaged version, an empty reason, or an override where
                there is nothing to override.
        """
        check_name(alias, "alias")
        version = self.resolve(ref)
        self.require_intact(version)
        with storage_errors(f"cannot write {self.root / LEDGER}"), locked(self.root):  # read, change, replace as one step
            ledger, version = adopt(self.root), self.resolve(version.reference)  # it may have been deleted meanwhile
            current = ledger.aliases.get(version.name, {}).get(CHAMPION) if alias == CHAMPION else None
            objections = _objections(version, current)
            _check_override(version, alias, objections, override)
            if override is not None:  # first, so that no alias is without its reason
                reason = {"alias": alias, "reason": override.strip(), "gates": objections}
                append_record(version.folder, new_record("override", reason))
            write_ledger(self.root, with_move(ledger, version.name, alias, version.number))
        return load_version(self.root, version.kind, version.name, version.number)

    def demote(self, ref: str) -> AliasMove:
        """``registry.demote("healthcare-small@champion")`` removes the alias; the version stays.

        Raises: RegistryError where there is no such alias.
        """
        name, _, alias = ref.partition("@")
        with storage_errors(f"cannot write {self.root / LEDGER}"), locked(self.root):
            ledger = adopt(self.root)
            if alias not in (known := ledger.aliases.get(name, {})):
                there = ", ".join(f"{name}@{one}" for one in sorted(known)) or "none"
                raise RegistryError(f"{ref} is no alias, so there is nothing to remove; aliases of {name}: {there}")
            ledger = with_move(ledger, name, alias, None)
            write_ledger(self.root, ledger)
        return ledger.moves[-1]

    def delete(self, ref: str) -> None:
        """``registry.delete("healthcare-small@3")``: gone for good; its number is not used again.

        Raises: RegistryError for anything but a version's number, and while an alias points at it or students stand on it.
        """
        delete_version(self.root, ref)

    def reindex(self) -> bool:
        """``registry.reindex()`` reads every manifest anew; whether ``registry.json`` had to be made anew, without its aliases."""
        with storage_errors(f"cannot write {self.root}"), locked(self.root):
            rebuilt = rebuild_ledger(self.root)
        read_index(self.root, rebuild=True)
        return rebuilt

    def record(self, version: Version, kind: str, content: Mapping[str, Any]) -> Version:
        """``registry.record(version, "review", {"wins": 7}).records[-1]``: kept for good, with the time.

        Raises:
            RegistryError: for a value that JSON cannot hold.
            StorageError: for a version that is gone, or where the disk is full or refuses.
        """
        record = new_record(kind, content)
        with storage_errors(f"cannot record a {kind} of {version.reference}"), locked(self.root):
            append_record(version.folder, record)
        return load_version(self.root, version.kind, version.name, version.number)

    # ------------------------------------------------------------------------------------------------------ reading

    def resolve(self, ref: str) -> Version:
        """``registry.resolve("healthcare-small" | "healthcare-small@3" | "healthcare-small@champion")``.

        A bare name is its champion unless that failed its gates, else its newest version that is complete, has not failed and
        was built here. Only ``@champion`` resolves to a champion that failed and was promoted with an override.

        Raises:
            RegistryError: for a version that does not exist or is damaged; names what exists and what is close.
        """
        return resolve(self.root, ref)

    def versions(self, kind: Kind | None = None, name: str | None = None) -> list[Summary]:
        """``registry.versions("student")`` from the index, by kind, name and number; what is in ``invalid`` is not."""
        every = read_ledger(self.root).aliases
        found = []
        for row in read_index(self.root).rows:
            if (kind and row[0] != kind) or (name and row[1] != name):
                continue
            aliases = tuple(sorted(alias for alias, number in every.get(row[1], {}).items() if number == row[2]))
            values = dict(zip(COLUMNS, row, strict=True))
            values["sources"] = tuple(values["sources"].split("\n")) if values["sources"] else ()
            found.append(Summary(**values, aliases=aliases))
        return found

    def invalid(self, kind: Kind | None = None) -> dict[Key, str]:
        """``registry.invalid()["student", "healthcare-small", 3]``: why this folder is not a version: neither listed nor resolved."""
        reasons = {}
        for key in read_index(self.root).invalid:
            if kind in (None, key[0]):
                try:
                    load_version(self.root, *key)
                except RegistryError as error:
                    reasons[key] = str(error)
        return reasons

    def trained_on(self, source_id: str) -> list[Summary]:
        """``registry.trained_on("medquad")``: every version that saw this source, itself or through its base."""
        every = self.versions()
        direct = {summary.reference for summary in every if source_id in summary.sources}
        return [summary for summary in every if summary.reference in direct or summary.base in direct]

    def lineage(self, versions: Iterable[Version]) -> dict[str, Version]:
        """``registry.lineage([student])``: the bases of these versions and those they were taught by, by reference."""
        found: dict[str, Version] = {}
        wanted = [reference for version in versions for reference in (version.base, *version.manifest.path)]
        for reference in wanted:
            if reference and reference not in found:
                with contextlib.suppress(RegistryError):  # the word "teacher", or a base that is gone
                    found[reference] = self.resolve(reference)
        return found

    def aliases(self, name: str) -> dict[str, int]:
        """``registry.aliases("healthcare-small")["champion"]`` → 3."""
        return read_ledger(self.root).aliases.get(name, {})

    def history(self, name: str | None = None) -> list[AliasMove]:
        """``registry.history("healthcare-small")``: every move of its aliases, the oldest first; of all names without one."""
        return [move for move in read_ledger(self.root).moves if name in (None, move.name)]

    # ------------------------------------------------------------------------------------------------------- checking

    def verify(self, version: Version) -> list[str]:
        """``registry.verify(version)`` reads every byte: one line for each file that is missing, changed or added."""
        from factory.registry.plain_json import checksum, parse_json

        try:
            found = tree(version.folder)
            content = parse_json((version.folder / MANIFEST).read_bytes())
        except (OSError, ValueError) as error:
            return [f"{MANIFEST} cannot be read ({in_one_line(error)})"]
        problems, recorded = links(found), version.manifest.files
        if version.manifest.manifest_sha256 != checksum(content):
            problems.append(f"{MANIFEST} was changed after publishing")
        files = {path for path, state in found.items() if S_ISREG(state.st_mode)}
        for path, info in recorded.items():
            if path not in found:
                problems.append(f"{path} is missing")
            elif path in files and (difference := _difference(version.folder / path, info)):
                problems.append(f"{path} {difference}")
        problems += [f"{shown(path)} is not in the manifest" for path in sorted(files - set(recorded) - {MANIFEST, RECORDS})]
        return problems + read_records(version.folder)[1] + self._base_problems(version)

    def verify_lineage(self, ref: str) -> dict[str, list[str]]:
        """``registry.verify_lineage("healthcare-small")["healthcare-small@3"]``: ``verify`` of a version and of its lineage."""
        version = self.resolve(ref)
        return {one.reference: self.verify(one) for one in (version, *self.lineage([version]).values())}

    def verify_all(self) -> dict[str, list[str]]:
        """``registry.verify_all()["healthcare-small@3"]``: ``verify`` of every version; what is none is there with the reason."""
        invalid = {f"{name}@{number}": [reason] for (_, name, number), reason in self.invalid().items()}
        return invalid | {one.reference: self.verify(self.resolve(one.reference)) for one in self.versions()}

    def require_intact(self, version: Version) -> Version:
        """``registry.require_intact(registry.resolve(ref)).folder``: before its files are loaded, every byte is compared.

        Raises: RegistryError for a version that is damaged: its name, the file, and how to mend it.
        """
        if found := self.verify(version):
            raise RegistryError(
                f"{version.reference} is damaged: {found[0]}; restore {version.folder} from a copy, or build it again "
                "(`factory verify` reads every version)"
            )
        return version

    def problems(self) -> list[str]:
        """``registry.problems()`` for ``factory doctor``: what is not listed or cannot be resolved, and why. Hashes nothing."""
        left = {str(one.path.relative_to(self.root)): f"{one.why}; `factory gc` removes it" for one in leftovers(self.root)}
        invalid = {f"{FOLDERS[kind]}/{name}/{number}": reason for (kind, name, number), reason in self.invalid().items()}
        found = [f"{shown(path)}: {reason}" for path, reason in (invalid | left).items()]
        for summary in self.versions():
            version = load_version(self.root, summary.kind, summary.name, summary.number)
            more = read_records(version.folder)[1] + self._base_problems(version)
            found += [f"{FOLDERS[version.kind]}/{version.name}/{version.number}: {problem}" for problem in more]
        found += self._bad_names()
        for name, aliases in read_ledger(self.root).aliases.items():
            kind = kind_of(self.root, name)
            there = numbers(self.root, kind, name) if kind else []
            found += [f"{name}@{a} points at {n}, which is gone" for a, n in aliases.items() if n not in there]
        return found

    def _bad_names(self) -> list[str]:
        """Folders with versions in them whose names are none."""
        bad = [(kind, name) for kind in FOLDERS for name in sorted(visible_names(self.root / FOLDERS[kind])) if not is_name(name)]
        return [
            f"{FOLDERS[kind]}/{shown(name)}: no name of a {kind}: use lower-case letters and digits, joined by single hyphens"
            for kind, name in bad
            if numbers(self.root, kind, name)
        ]

    def _base_problems(self, version: Version) -> list[str]:
        """A student's base is gone, or another one is in its place."""
        if version.manifest.kind == "base":
            return []
        try:
            base = self.resolve(version.manifest.base)
        except RegistryError as error:
            return [f"its base is gone: {error}"]
        if base.manifest.manifest_sha256 != version.manifest.base_sha256:
            return [f"its base {version.base} is not the one it was trained on"]
        return []


def _difference(path: Path, recorded: FileInfo) -> str | None:
    """Between a file and what the manifest says of it."""
    try:
        same = (path.stat().st_size, sha256(path)) == (recorded.bytes, recorded.sha256)
    except FileNotFoundError:  # deleted meanwhile
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if same else "was changed: its sha256 differs from the manifest's"


_FINDINGS = {
    "passed": "passed its gates",
    "failed": "failed its gates",
    "undecidable": "has gates that its evaluation could not decide",
    "unchecked": "has no gates",
}


def _objections(version: Version, champion: int | None) -> list[str]:
    """Why a student should not be promoted over this version, if there is one; none for a base."""
    if version.manifest.kind == "base":
        return []
    verdict = version.manifest.verdict
    found = list(verdict.reasons) if verdict.status != "unchecked" else ["no gate was checked"]
    reference = f"{version.name}@{champion}"
    if champion not in (None, version.number) and verdict.champion != reference:
        compared = f"compared with {verdict.champion}" if verdict.champion else "not compared with a champion"
        found.append(f"it was {compared}, and the champion is {reference}: build it again to compare them")
    return found


def _check_override(version: Version, alias: str, objections: list[str], override: str | None) -> None:
    """Raises GateError for objections without a reason, RegistryError for a reason that is empty or not needed."""
    if override is None:
        if objections:
            raise GateError(
                f"{version.reference} {_FINDINGS[version.verdict]}, {alias} was not moved: {'; '.join(objections)}; "
                "--override REASON promotes it anyway and records the reason"
            )
        return
    if not objections:
        raise RegistryError(
            f"nothing to override: the verdict of {version.reference} is {version.verdict}; promote it without --override"
        )
    if not override.strip():
        raise RegistryError(f"the reason to override the gates of {version.reference} is empty: say why it becomes {alias}")
