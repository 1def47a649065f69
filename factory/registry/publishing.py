"""How a version appears: written into a hidden folder, sealed, and renamed to the next free number.

    with staging_folder(root, "healthcare-small") as folder:
        ...  # write the adapter
        number = publish(root, manifest, folder)

One rename makes a version visible, so it is complete or it is not there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.cache import FULL_DISK, full_disk, replace_file, sha256, storage_errors, sync
from factory.config.names import check_name
from factory.errors import FactoryError, RegistryError
from factory.leftovers import clear, temporary_folder
from factory.registry.records import RECORDS, utc_now
from factory.registry.references import is_number, kind_of, numbers, resolve
from factory.registry.versions import FOLDERS, MANIFEST

if TYPE_CHECKING:
    from factory.registry.manifest import BaseManifest, StudentManifest

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
            clear(_left_behind(root))
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


def _left_behind(root: Path) -> Iterator[Path]:
    """Staged folders and temporary files: of this registry, and of none but it."""
    yield from (path for path in (root / STAGING).iterdir() if not path.name.endswith(FAILED))
    for pattern in (".*-????????", *(f"{kind}/*/.*-????????" for kind in FOLDERS.values())):
        yield from root.glob(pattern)


def publish(root: Path, manifest: BaseManifest | StudentManifest, staged: Path) -> int:
    """``publish(root, manifest, folder)`` → the number that the version got; see ``Registry.publish``."""
    name = check_name(manifest.name)
    content = _complete(root, manifest)
    try:
        if (staged / RECORDS).exists():
            raise RegistryError(f"cannot publish {name}: {RECORDS} belongs to the registry; remove it from the folder")
        with storage_errors(f"cannot publish {name}"):
            content["files"] = seal(staged)
            return _rename_to_next_number(root, manifest.kind, name, staged, content)
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
        try:
            base = resolve(root, manifest.base)
        except RegistryError as error:
            raise RegistryError(f"cannot publish {name}: its base is not in {root} ({error})") from None
        own |= {"base": base.reference, "base_sha256": base.manifest.manifest_sha256}
    return to_dict(manifest) | own


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


def _rename_to_next_number(root: Path, kind: str, name: str, staged: Path, content: dict[str, Any]) -> int:
    """The rename fails where another publisher took the number meanwhile; then the next one is tried."""
    from factory.registry.plain_json import checksum, to_json

    folder = root / FOLDERS[kind] / name
    last = folder / ".last"  # a number is not reused, even after its folder was deleted
    while True:
        content["version"] = max([_last_number(last), *numbers(root, kind, name)]) + 1
        content["manifest_sha256"] = checksum(content)
        _write_read_only(staged / MANIFEST, to_json(content))
        sync(staged)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(staged, folder / str(content["version"]))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue
        sync(folder)
        with contextlib.suppress(OSError):  # the version is published; losing this note is harmless
            replace_file(last, f"{content['version']}\n".encode())
        return int(content["version"])


def _last_number(path: Path) -> int:
    """0 where there is no such note, or no number in it: then the folders alone say which numbers are taken."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return 0
    return int(text) if is_number(text) else 0


def _write_read_only(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # a read-only one of an earlier attempt
    path.write_bytes(content)
    path.chmod(0o444)
    sync(path)
