"""Taking in a version that was published in another registry: copied, checked, and only then published here.

import_version(Path("from-the-big-machine/healthcare-medium/3"), registry).reference   # healthcare-medium@1
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from factory.errors import ModelResolutionError, RegistryError
from factory.evaluation.confidence import FILE as CONFIDENCE
from factory.evaluation.confidence import Confidence
from factory.models.adapter import SETTINGS, WEIGHTS, check_adapter
from factory.models.base import SHAPE, load_shape
from factory.models.embedding_head import EMBEDDING_HEAD
from factory.models.folders import load_config, load_tokenizer
from factory.models.shapes import check_base, stored_shapes
from factory.registry.layout import MANIFEST, shown
from factory.registry.manifest import BaseManifest, FileInfo, ImportInfo, StudentManifest, parse_manifest
from factory.registry.plain_json import checksum
from factory.registry.records import RECORDS
from factory.registry.registry import Kind, Registry
from factory.registry.versions import Version, read_folder
from factory.reports.card import model_card

CARD = "README.md"  # written anew: it is drawn from the manifest
KNOWN = {
    "student": {SETTINGS, WEIGHTS, EMBEDDING_HEAD, CONFIDENCE, CARD},
    "base": {
        SHAPE,
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        CARD,
    },
}
MAX_MANIFEST = 64 << 20  # bytes
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
CHUNK = 1 << 20  # bytes


def import_version(folder: Path, registry: Registry) -> Version:
    """``import_version(Path("healthcare-medium/3"), registry).reference``: the same version, under the next number of its name.

    Only files that its manifest lists are copied, and of these only safetensors and the JSON that is known. Records stay
    behind, and the card is written anew. A bare name means an imported version only once it is promoted.
    Raises: RegistryError for a folder that is no version, was changed or is here already, holds anything else, or stands on a
        base that is not here; ModelResolutionError for weights that do not fit. Nothing is left behind.
    """
    try:
        manifest = _read_manifest(folder)
        _check_new(manifest, registry)
        with registry.stage(manifest.name) as staged:
            for path, file in manifest.files.items():
                _copy(folder / path, staged / path, file)
            imported = _checked(manifest, staged, registry)
            (staged / CARD).write_text(model_card(imported), encoding="utf-8")
            return registry.publish(imported, staged)
    except (RegistryError, ModelResolutionError) as error:
        raise type(error)(f"{folder} cannot be imported: {error}") from None


def _read_manifest(folder: Path) -> BaseManifest | StudentManifest:
    with suppress(OSError):  # then what follows says why
        if folder.is_dir() and MANIFEST not in os.listdir(folder):
            raise RegistryError(f"it has no {MANIFEST}: give the folder of one version, as in students/healthcare-medium/3")
        if (size := (folder / MANIFEST).lstat().st_size) > MAX_MANIFEST:
            raise RegistryError(f"its {MANIFEST} has {size:,} bytes, more than any version's")
    found, content = read_folder(folder)
    manifest = parse_manifest(content)
    if manifest.manifest_sha256 != checksum(content):
        raise RegistryError(f"its {MANIFEST} was changed after publishing")
    files = {path for path, state in found.items() if S_ISREG(state.st_mode)} - {MANIFEST, RECORDS}
    unknown = sorted(path for path in files | set(manifest.files) if not _is_known(manifest.kind, path))
    if unknown:
        raise RegistryError(f"{shown(unknown[0])} is no file that a {manifest.kind} has")
    if different := sorted(files ^ set(manifest.files)):
        raise RegistryError(f"{different[0]} is {'missing' if different[0] not in files else f'not in its {MANIFEST}'}")
    return manifest


def _is_known(kind: str, path: str) -> bool:
    return path in KNOWN[kind] or (kind == "base" and SHARD.fullmatch(path) is not None)


def _check_new(manifest: BaseManifest | StudentManifest, registry: Registry) -> None:
    if there := _find(registry, manifest.kind, _checksums(manifest)):
        raise RegistryError(f"it is here already, as {there.reference}")


def _find(registry: Registry, kind: Kind, checksums: set[str]) -> Version | None:
    """The version whose manifest has one of these checksums, here or where it was imported from."""
    versions = (registry.resolve(summary.reference) for summary in registry.versions(kind))
    return next((version for version in versions if _checksums(version.manifest) & checksums), None)


def _checksums(manifest: BaseManifest | StudentManifest) -> set[str]:
    return {manifest.manifest_sha256} | ({manifest.imported.manifest_sha256} if manifest.imported else set())


def _copy(source: Path, target: Path, file: FileInfo) -> None:
    """As the manifest says, or not at all: it was looked at before, and may have been replaced since."""
    digest, left = hashlib.sha256(), file.bytes
    try:
        with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as read, target.open("xb") as written:
            while left > 0 and (chunk := read.read(min(CHUNK, left))):
                written.write(chunk)
                digest.update(chunk)
                left -= len(chunk)
            whole = left == 0 and not read.read(1)
    except OSError as error:
        if error.filename == str(target):
            raise
        raise RegistryError(f"{source.name} cannot be read ({error.strerror})") from None
    if not whole or digest.hexdigest() != file.sha256:
        raise RegistryError(f"{source.name} was changed: it differs from the manifest")


def _checked(manifest: BaseManifest | StudentManifest, staged: Path, registry: Registry) -> BaseManifest | StudentManifest:
    """Its weights fit; the manifest says where it comes from, and a student's names its base as it is called here."""
    own = ImportInfo(
        reference=f"{manifest.name}@{manifest.version}", created=manifest.created, manifest_sha256=manifest.manifest_sha256
    )
    if manifest.kind == "base":
        check_base(staged)
        load_tokenizer(staged)
        load_shape(staged)
        return manifest.model_copy(update={"imported": own})
    base = _find(registry, "base", {manifest.base_sha256})
    if base is None:
        raise RegistryError(f"its base {manifest.base} is not in {registry.root}: import that first")
    config = load_config(base.folder)
    check_adapter(staged, config)
    Confidence.load(staged)
    if (head := staged / EMBEDDING_HEAD).exists():
        _check_head(head, int(config.get_text_config().hidden_size))
    return manifest.model_copy(update={"imported": own, "base": base.reference})


def _check_head(path: Path, width: int) -> None:
    shapes = dict(stored_shapes(path))
    rows = (shapes.get("bias") or (0,))[0]
    if shapes != {"weight": (rows, width), "bias": (rows,)}:
        raise ModelResolutionError(
            f"{path.name} does not fit: {shapes}, and a weight with {width} columns and a bias are needed"
        )
