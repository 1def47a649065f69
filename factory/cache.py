"""``FACTORY_HOME``: keys of what decides a result, files and folders that appear whole or not at all, and their checksums.

folder = home() / "data" / f"legal-{cache_key(spec, settings, seed)}"
if not is_kept(folder, context.say):  # a damaged one is dropped
    with kept_folder(folder) as new:
        (new / "rows.json").write_text(...)
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from factory.errors import FactoryError, StorageError
from factory.leftovers import clear, temporary_file, temporary_folder

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
REFUSALS = (*FULL_DISK, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)  # of a disk; no mistake of ours
SEAL = "checksums.json"  # in a kept folder: the sha256 of each file that was in it when it appeared

TORCH_WORDS = ("inline_container.cc", "PytorchStreamWriter failed", "iostream error")  # torch does not say why


def home() -> Path:
    """``home() / "models"``: the cache folder. The only place that reads ``FACTORY_HOME``."""
    return Path(os.environ.get("FACTORY_HOME") or "~/.cache/student-factory").expanduser().resolve()


def cache_key(*parts: Any) -> str:
    """``cache_key(spec.model_dump(), seed)``: 16 hex digits that change with any part.

    Give it everything and exclude what does not decide the result: a forgotten field then repeats work, and never answers
    with a stale result.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def sha256(path: Path) -> str:
    """``sha256(path)``: of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """``sync(path)``: a file's bytes, or a folder's names, are on the disk when it returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, content: bytes) -> None:
    """``replace_file(path, b"...")``: readers see the old content or the new, never half of it."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """``with atomic_file(path) as new:`` write to ``new``; it becomes ``path`` unless something is raised.

    Here and in ``atomic_folder``, what processes that were killed meanwhile have left beside it is removed first.
    """
    clear(_temporaries(target))
    with temporary_file(target.parent, f".{target.name}-") as temporary:
        try:
            yield temporary
            sync(temporary)
            temporary.chmod(0o644)  # mkstemp's is 0o600
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """``with atomic_folder(folder) as new:`` write into ``new``; it becomes ``folder`` unless something is raised.

    A folder that is there already is replaced, and put back where the rename fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear(_temporaries(target))
    with temporary_folder(target.parent, f".{target.name}-") as temporary:
        try:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()  # 0o755, where the temporary folder itself is 0o700
            yield new
            if target.exists():
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
        finally:
            remove_folder(temporary)


def _temporaries(target: Path) -> Iterator[Path]:
    return target.parent.glob(f".{glob.escape(target.name)}-????????")


# --------------------------------------------------------------------------------------------------------------- checksums


@contextlib.contextmanager
def kept_folder(target: Path) -> Iterator[Path]:
    """``with kept_folder(folder) as new:`` as ``atomic_folder``, and sealed for ``is_kept``."""
    with atomic_folder(target) as new:
        yield new
        seal(new)


def seal(folder: Path) -> None:
    """``seal(checkpoint)``: notes the checksum of every file in it. What is added to the folder later is not covered."""
    files = {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    replace_file(folder / SEAL, json.dumps(files, indent=1).encode())


def is_intact(folder: Path) -> bool:
    """``is_intact(folder)``: every file is as it was when the folder was sealed. Reads every byte; False without a seal."""
    try:
        files = json.loads((folder / SEAL).read_bytes())
        return all(sha256(folder / name) == checksum for name, checksum in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def is_kept(folder: Path, say: Callable[[str], object]) -> bool:
    """``is_kept(folder, context.say)``: it is there as it was made. A damaged one is removed, and ``say`` hears of it."""
    if not folder.exists() or is_intact(folder):
        mark_used(folder)
        return folder.exists()
    say(f"{folder} was damaged: it is dropped and made again")
    remove_folder(folder)
    return False


def keep(path: Path, content: bytes) -> None:
    """``keep(path, b"...")``: as ``replace_file``, with a checksum in its first line, for ``kept``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, f"{hashlib.sha256(content).hexdigest()}\n".encode() + content)


def kept(path: Path, say: Callable[[str], object]) -> bytes | None:
    """``kept(path, context.say)``: what ``keep`` wrote; None where there is no such file, or it was damaged, which is said."""
    try:
        checksum, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if checksum == hashlib.sha256(content).hexdigest().encode():
        mark_used(path)
        return content
    say(f"{path} was damaged: it is dropped and made again")
    return None


def mark_used(path: Path) -> None:
    """``mark_used(folder)``: now, for ``factory gc``, which removes what was not used for weeks."""
    with contextlib.suppress(OSError):  # not there, or read-only
        os.utime(path)


# ----------------------------------------------------------------------------------------------------------------- folders


def folder_bytes(folder: Path) -> int:
    """``folder_bytes(version.folder)``: what its files take; a file with two names (hard links) counts twice."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove_folder(folder: Path) -> None:
    """``remove_folder(checkpoints)``: gone, also where it never was."""
    shutil.rmtree(folder, ignore_errors=True)


def full_disk(doing: str, where: Path | str, kind: type[FactoryError] = StorageError) -> FactoryError:
    """``raise full_disk("cannot write healthcare-small", folder)``."""
    return kind(f"{doing}: no space left on the disk that holds {where}; free some, then run the command again")


def disk_error(error: BaseException) -> OSError | None:
    """``disk_error(error)``: what the disk refused, also where safetensors, tokenizers or torch word it; else None."""
    if isinstance(error, OSError):
        return error if error.errno in REFUSALS else None
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # as Rust words it
        code = int(found[1])
        return OSError(code, os.strerror(code)) if code in REFUSALS else None
    if any(words in text for words in TORCH_WORDS):
        return OSError(errno.EIO, "a checkpoint could not be written; the disk may be full")
    return None


@contextlib.contextmanager
def storage_errors(doing: str, kind: type[FactoryError] = StorageError) -> Iterator[None]:
    """``with storage_errors(f"cannot write {path}"):`` what the disk refuses becomes one line.

    Raises: StorageError, or ``kind``, in place of an OSError and of what ``disk_error`` recognises.
    """
    try:
        yield
    except Exception as error:
        refused = error if isinstance(error, OSError) else disk_error(error)
        if refused is None:
            raise
        if refused.errno in FULL_DISK:
            raise full_disk(doing, refused.filename or "it", kind) from error
        where = f" ({refused.filename})" if refused.filename else ""
        raise kind(
            f"{doing}: {refused.strerror or refused}{where}; check that disk and its permissions, then run the command again"
        ) from error
