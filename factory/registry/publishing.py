"""How a version appears: written into a hidden folder, sealed, and renamed to the next free number.

    with staging_folder(root, "healthcare-small") as folder:
        ...  # write the adapter
        number = publish(root, manifest, folder)

One rename makes a version visible, so it is complete or it is not there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.cache import FULL_DISK, full_disk, sha256, storage_errors, sync
from factory.config.names import check_name
from factory.errors import FactoryError, RegistryError
from factory.registry.layout import FOLDERS, MANIFEST, kind_of, numbers
from factory.registry.ledger import adopt, locked, with_version, write_ledger
from factory.leftovers import clear, is_held, temporary_folder
from factory.registry.records import RECORDS, utc_now
from factory.registry.references import resolve

if TYPE_CHECKING:
    from factory.registry.manifest import BaseManifest, StudentManifest
    from factory.registry.versions import Version

STAGING = ".staging"
FAILED = ".failed"
FORESEEN = (FactoryError, OSError, KeyboardInterrupt, SystemExit)  # after anything else a staged folder stays: doctor names it


@contextlib.contextmanager
def staging_folder(root: Path, name: str) -> Iterator[Path]:
    """``with staging_folder(root, "healthcare-small") as folder:`` an empty folder, removed afterwards unless published.

    What builds that were killed have left is removed first. After an error that nobody foresaw the folder is kept, under a name
    that ends with ``.failed``, for it may hold the work of hours.
    Raises: RegistryError for an unsafe name, StorageError where the disk refuses.
    """
    check_name(name)
    staging = root / STAGING
    with contextlib.ExitStack() as stack:
        with storage_errors(f"cannot create a folder for {name} in {root}"):
            staging.mkdir(parents=True, exist_ok=True)
            clear(_temporaries(root))
            folder = stack.enter_context(temporary_folder(staging, f"{name}-"))
        try:
            yield folder
        except FORESEEN as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                raise full_disk(f"cannot write {name}", folder) from error
            raise
        except BaseException:
            with contextlib.suppress(OSError):  # it is published already
                folder.rename(folder.with_name(folder.name + FAILED))
            raise
        shutil.rmtree(folder, ignore_errors=True)  # one that was not published


def left_behind(root: Path) -> Iterator[Path]:
    """``left_behind(root)``: staged folders and temporary files of processes that were killed, of this registry alone.

    Not those of processes that live, nor what was kept after an error that nobody foresaw.
    """
    yield from (path for path in _temporaries(root) if not is_held(path))


def _temporaries(root: Path) -> Iterator[Path]:
    staging = root / STAGING
    yield from (path for path in sorted(staging.glob("*")) if path.suffix != FAILED)
    for pattern in (".*-????????", *(f"{kind}/*/.*-????????" for kind in FOLDERS.values())):
        yield from sorted(root.glob(pattern))


def publish(root: Path, manifest: BaseManifest | StudentManifest, staged: Path) -> int:
    """``publish(root, manifest, folder)`` → the number that the version got; see ``Registry.publish``."""
    name = check_name(manifest.name)
    content = _complete(root, manifest)
    try:
        if (staged / RECORDS).exists():
            raise RegistryError(f"cannot publish {name}: {RECORDS} belongs to the registry; remove it from the folder")
        with storage_errors(f"cannot publish {name}"):
            content["files"] = seal(staged)
            with locked(root):
                return _rename_to_next_number(root, manifest.kind, staged, content)
    except FORESEEN:
        if staged.parent.resolve() == (root / STAGING).resolve():
            shutil.rmtree(staged, ignore_errors=True)
        else:  # the caller's own folder stays, without the registry's manifest
            (staged / MANIFEST).unlink(missing_ok=True)
        raise


def _complete(root: Path, manifest: BaseManifest | StudentManifest) -> dict[str, Any]:
    """The manifest as JSON, with the time, and its base by full reference and checksum."""
    from factory.registry.manifest import to_dict

    name, taken = manifest.name, kind_of(root, manifest.name)
    if taken not in (None, manifest.kind):
        raise RegistryError(f"cannot publish {manifest.kind} {name}: a {taken} already has that name; choose another")
    own: dict[str, Any] = {"created": utc_now()}
    if manifest.kind == "student":
        base = _base_of(root, name, manifest.base)
        own |= {"base": base.reference, "base_sha256": base.manifest.manifest_sha256}
    return to_dict(manifest) | own


def _base_of(root: Path, name: str, reference: str) -> Version:
    try:
        return resolve(root, reference)
    except RegistryError as error:
        raise RegistryError(f"cannot publish {name}: its base is not in {root} ({error})") from None


def seal(staged: Path) -> dict[str, dict[str, Any]]:
    """``seal(folder)`` makes every file read-only and durable: {path: {"sha256", "bytes"}}, without ``manifest.json``.

    Raises: RegistryError for a folder that is missing or empty, or contains links.
    """
    if not staged.is_dir():
        raise RegistryError(f"cannot publish {staged}: no such folder")
    sealed = {}
    for path in sorted(staged.rglob("*")):
        inside = path.relative_to(staged).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RegistryError(f"cannot publish {inside}: a version cannot contain links; copy the file instead")
        if path.is_dir():
            path.chmod(0o755)
            sync(path)
        elif inside != MANIFEST:
            path.chmod(0o444)
            sync(path)
            sealed[inside] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    if not sealed:
        raise RegistryError(f"cannot publish {staged.name}: the folder is empty")
    staged.chmod(0o755)  # mkdtemp's is 0o700
    return sealed


def _rename_to_next_number(root: Path, kind: str, staged: Path, content: dict[str, Any]) -> int:
    """Callers hold the lock. The ledger comes first: a folder without an entry is none of ours."""
    from factory.registry.plain_json import checksum, to_json

    name, ledger = content["name"], adopt(root)
    if kind == "student":
        _base_of(root, name, content["base"])  # deleted meanwhile?
    folder, taken = root / FOLDERS[kind] / name, (ledger.published or {}).get(name, {})
    number = max([0, *taken, *numbers(root, kind, name)]) + 1  # no number is used again, even after its folder was deleted
    content |= {"version": number}
    content["manifest_sha256"] = checksum(content)
    _write_read_only(staged / MANIFEST, to_json(content))
    sync(staged)
    folder.mkdir(parents=True, exist_ok=True)
    entered = with_version(ledger, name, number, content["manifest_sha256"])
    write_ledger(root, replace(entered, publishing=(name, number)))
    os.rename(staged, folder / str(number))
    sync(folder)
    write_ledger(root, entered)
    return number


def _write_read_only(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # a read-only one of an earlier attempt
    path.write_bytes(content)
    path.chmod(0o444)
    sync(path)
