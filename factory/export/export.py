"""A version in a format that applications load, and a report of how near it is to what is registered.

    report = export_version(version, registry, "gguf", Path("out"), quantization="q8_0")
    report.kl, report.bound    # nats per token

What is not within its format's bound is not written: a folder appears whole and proven, by one rename.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from factory.cache import folder_bytes, storage_errors
from factory.errors import ExportError
from factory.export.formats import (
    Registered,
    conversation,
    load_registered,
    merge_adapter,
    write_merged,
    write_peft,
    write_sentence_transformer,
)
from factory.export.metadata import ParityReport, distance, notice, what, write_metadata
from factory.export.ollama import modelfile
from factory.export.parity import (
    SPEED_TOKENS,
    Comparison,
    Passage,
    compare,
    compare_embeddings,
    embeddings,
    model_log_probs,
    passages,
    server_log_probs,
    server_writing,
    tokens_per_second,
    writing,
)
from factory.models.device import pick_device
from factory.registry.provenance import library_versions
from factory.registry.registry import Registry
from factory.registry.versions import Version, section

Format = Literal["peft", "merged", "gguf", "ollama", "sentence-transformers"]
Quantization = Literal["f16", "q8_0", "q4"]
Part = Literal["merged", "base", "adapter"]

FORMATS: tuple[Format, ...] = get_args(Format)
LLAMA_CPP = ("gguf", "ollama")

# What an export may be away from the registered student: nats per token, of sentence-transformers a cosine distance. Behind
# each what a healthcare student of 14,000 tokens measured (657 answer tokens), of which another one may have several times.
BOUNDS = {
    "peft": 1e-5,  # 6e-12: the same weights; another attention adds up in another order
    "merged": 1e-3,  # 1e-4: base and adapter rounded together, to the 8 binary digits of bfloat16
    "f16": 1e-4,  # 4e-6: 11 digits, and llama.cpp's own arithmetic
    "q8_0": 1e-2,  # 3e-3: 8 bits a weight and a scale for 32 of them
    "q4": 0.15,  # 0.08: 4 and 5 bits a weight, which a small model feels
    "sentence-transformers": 3e-4,  # 3e-5: bfloat16 in weights and arithmetic, as it is loaded by default
}


def export_version(
    version: Version,
    registry: Registry,
    format: Format,
    target: Path,
    *,
    quantization: Quantization = "q8_0",
    part: Part = "merged",
    device: str = "auto",
) -> ParityReport:
    """``export_version(version, registry, "merged", Path("out"))``: writes the folder, proves it, and says how near it is.

    quantization: of gguf and ollama. part: of gguf; "base" or "adapter" alone.

    Raises: ExportError for a format that does not fit the version, a folder that is not empty, a damaged version, and an
        export whose parity is outside its bound; ServeError where llama.cpp is missing. Nothing is left behind.
    """
    _check(version, registry, format, part)
    if part == "base" and version.base:
        version = registry.resolve(version.base)
    with storage_errors(f"cannot write {target}"), _staged(target) as folder:
        chosen = pick_device(device)
        student = load_registered(version, registry, chosen, torch.float32)
        texts = passages(version, student.tokenizer, student.model.config.get_text_config().max_position_embeddings)
        if format == "sentence-transformers":
            found, speed = _embedding(student, folder, texts)
        elif format in LLAMA_CPP:
            found, speed = _quantized(student, folder, texts, quantization, part)
        else:
            found, speed = _folder(student, folder, texts, format)
        own = _own_speed(load_registered(version, registry, chosen, torch.bfloat16), texts, format)
        report = _report(version, format, part, quantization, found, folder_bytes(folder), (speed, own))
        if not report.within:
            raise ExportError(f"not kept, because it is not what is registered: {what(report)}: {distance(report)}")
        if format == "ollama":
            _write_modelfile(student, folder)
        write_metadata(version, report, folder)
    return report


# ------------------------------------------------------------------------------------------------------------- before


def _check(version: Version, registry: Registry, format: str, part: str) -> None:
    """What is known to fail is said before anything is loaded."""
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}; there are: {', '.join(FORMATS)}")
    if part != "merged" and format != "gguf":
        raise ExportError(f"--part {part} is of gguf alone, not of {format}; peft writes base and adapter beside each other")
    if version.kind == "base" and (format == "peft" or part == "adapter"):
        raise ExportError(f"{version.reference} is a base and has no adapter: export it as merged, gguf, ollama or embeddings")
    problems = registry.verify(version)
    if not problems and version.base:
        problems = registry.verify(registry.resolve(version.base))
    if problems:
        raise ExportError(f"{version.reference} is damaged and is not exported: {problems[0]}")


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, which becomes the target unless something fails."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ExportError(f"{target} exists and is not an empty folder: name another one with --to, or empty it")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's is 0o700
        os.rename(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------ made and proven


def _folder(student: Registered, folder: Path, texts: list[Passage], format: str) -> tuple[Comparison, float]:
    """peft's or transformers' own folder: proven in float32, where only weights count; as fast as it is loaded by itself."""
    registered = model_log_probs(student.model, texts)
    (write_peft if format == "peft" else write_merged)(student, folder)
    exported = model_log_probs(_loaded(folder, format, torch.float32), texts)
    return compare(registered, exported), tokens_per_second(writing(_loaded(folder, format, "auto"), texts[0].prompt))


def _loaded(folder: Path, format: str, dtype: Any) -> Any:
    """As an application does it, without anything of this package."""
    if format == "merged":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype), folder).eval()


def _quantized(
    student: Registered, folder: Path, texts: list[Passage], quantization: Quantization, part: str
) -> tuple[Comparison, float]:
    """A GGUF file, loaded by llama.cpp; an adapter alone is loaded on its base, which is not kept."""
    from factory.export.gguf import write_adapter_gguf, write_base_gguf
    from factory.models.llama_server import LlamaServer

    registered = model_log_probs(student.model, texts)
    name, license = student.version.name, str(section(student.version.raw, "teacher").get("license"))
    path, adapters = folder / f"{name}-{quantization}.gguf", []
    if part == "adapter":
        adapters = [folder / f"{name}-adapter.gguf"]
        write_adapter_gguf(student.version.folder, student.model.config, adapters[0])
    model = student.model.unload() if adapters else merge_adapter(student)
    write_base_gguf(model, student.tokenizer, path, quantization, name=name, license=license)
    chosen = 0 if adapters else None
    room, threads = max(len(text.ids) for text in texts) + SPEED_TOKENS, torch.get_num_threads()  # as many as the other has
    with LlamaServer(path, adapters=adapters, context=room, threads=threads) as server:
        exported = server_log_probs(server, texts, chosen)
        speed = tokens_per_second(server_writing(server, texts[0].prompt, chosen))
    if adapters:
        path.unlink()
    return compare(registered, exported), speed


def _write_modelfile(student: Registered, folder: Path) -> None:
    [gguf] = folder.glob("*.gguf")
    manifest = student.version.raw
    text = modelfile(gguf.name, student.tokenizer, notice=str(manifest.get("notice") or ""), license=notice(manifest))
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def _embedding(student: Registered, folder: Path, texts: list[Passage]) -> tuple[Comparison, float]:
    """A sentence-transformers folder, asked for the same conversations' embeddings."""
    from sentence_transformers import SentenceTransformer

    registered = embeddings(student.model, texts)
    write_sentence_transformer(student, folder)
    encoder = SentenceTransformer(str(folder), device="cpu")
    conversations = [conversation(student.tokenizer, text.ids) for text in texts]
    exported = encoder.encode(conversations, batch_size=1, show_progress_bar=False)
    found = compare_embeddings(texts, registered, np.asarray(exported, dtype=np.float32))

    def encode() -> int:
        encoder.encode(conversations[:1], show_progress_bar=False)
        return len(texts[0].ids)

    return found, tokens_per_second(encode)


def _own_speed(student: Registered, texts: list[Passage], format: str) -> float:
    """Of the registered version as the factory itself asks it."""
    if format != "sentence-transformers":
        return tokens_per_second(writing(student.model, texts[0].prompt))

    def embed() -> int:
        embeddings(student.model, texts[:1])
        return len(texts[0].ids)

    return tokens_per_second(embed)


def _report(
    version: Version,
    format: Format,
    part: Part,
    quantization: Quantization,
    found: Comparison,
    size: int,
    speeds: tuple[float, float],
) -> ParityReport:
    figure = found.kl if found.cosine_distance is None else found.cosine_distance
    bound = BOUNDS[quantization if format in LLAMA_CPP else format]
    engine = ("gguf", "xllamacpp") if format in LLAMA_CPP else ()
    return ParityReport(
        reference=version.reference,
        manifest_sha256=str(version.raw["manifest_sha256"]),
        format=format,
        part=part,
        quantization=quantization if format in LLAMA_CPP else None,
        **asdict(found),
        bound=bound,
        within=figure is not None and figure <= bound,  # and not where it is no number
        bytes=size,
        tokens_per_second={"exported": speeds[0], "registered": speeds[1]},
        tokens_per_second_of="embedding one conversation" if found.kl is None else "writing in one stream, prompt included",
        libraries=library_versions() | {name: importlib.metadata.version(name) for name in engine},
    )
