"""Exports a published version to a format that other programs load, and checks that it still predicts the same.

    report = export_version(version, registry, "gguf", Path("out"), quantization="q8_0")
    report.kl, report.bound    # nats/token

An export that fails its parity check is not written; the target folder appears complete, by one rename.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from peft import PeftModel

from factory.cache import atomic_folder, folder_bytes, storage_errors
from factory.config.quantization import DEFAULT, Quantization
from factory.errors import ExportError
from factory.export.answering import write_answering
from factory.export.formats import (
    conversation_text,
    merge_adapter,
    write_merged,
    write_peft,
    write_sentence_transformer,
)
from factory.export.metadata import ParityReport, model_licenses, notice_text, parity_failure, write_metadata
from factory.export.ollama import modelfile
from factory.export.parity import (
    SPEED_TOKENS,
    ParityMetrics,
    ParityText,
    compare_embeddings,
    compare_log_probs,
    embed,
    generation,
    model_log_probs,
    parity_texts,
    server_generation,
    server_log_probs,
    tokens_per_second,
)
from factory.inference import LoadedVersion, load_version
from factory.models.device import pick_device
from factory.models.folders import load_weights
from factory.registry.provenance import library_versions
from factory.registry.registry import Registry
from factory.registry.versions import Version

Format = Literal["peft", "merged", "gguf", "ollama", "sentence-transformers"]
Part = Literal["merged", "base", "adapter"]

FORMATS: tuple[Format, ...] = get_args(Format)
LLAMA_CPP = ("gguf", "ollama")

# Upper bounds on KL in nats/token; on the cosine distance for sentence-transformers. Each comment gives the value measured
# for a healthcare student with 14,000 tokens (657 answer tokens); another student may have several times that.
BOUNDS = {
    "peft": 1e-5,  # 6e-12: the same weights; another attention implementation sums in another order
    "merged": 1e-3,  # 1e-4: base and adapter rounded together, to the 8 significant bits of bfloat16
    "f16": 1e-4,  # 4e-6: 11 significant bits, and llama.cpp's arithmetic
    "q8_0": 1e-2,  # 3e-3: 8 bits per weight and a scale per 32 weights
    "q5_1": 0.05,
    "q5_0": 0.05,
    "q4_1": 0.15,
    "q4_0": 0.15,
    "q4": 0.15,  # 0.08: 4 and 5 bits per weight, which a small model notices
    "sentence-transformers": 3e-4,  # 1e-4 with a head: weights rounded to bfloat16
}


def export_version(
    version: Version,
    registry: Registry,
    format: Format,
    target: Path,
    *,
    quantization: Quantization | None = None,
    part: Part = "merged",
    device: str = "auto",
) -> ParityReport:
    """``export_version(version, registry, "merged", Path("out"))``: writes the folder and returns its parity report.

    quantization: gguf and ollama only; by default the grid that a base was rounded to, where it is written or stands below an
        adapter unmerged, else q8_0. part: gguf only; "base" or "adapter" writes that part alone.

    Raises: ExportError if the format does not fit the version, the target is not empty, or the parity check fails;
        RegistryError if the version is damaged; ServeError if llama.cpp is missing. Nothing is left behind.
    """
    _check(version, registry, format, part)
    _check_target(target)
    if part == "base" and version.base:
        version = registry.resolve(version.base)
    kind = quantization or _default_quantization(version, registry, part)
    with storage_errors(f"cannot write {target}"), atomic_folder(target) as folder:
        torch_device = pick_device(device)
        loaded = load_version(version, registry, torch_device, torch.float32)
        texts = parity_texts(version, loaded.base.tokenizer, _context(loaded, format))
        if format == "sentence-transformers":
            metrics, speed = _export_embeddings(loaded, folder, texts)
        elif format in LLAMA_CPP:
            metrics, speed = _export_gguf(loaded, folder, texts, kind, part)
        else:
            metrics, speed = _export_folder(loaded, folder, texts, format)
        published = load_version(version, registry, torch_device)  # a fresh one: merging has changed the other
        speeds = {"exported": speed, "registered": tokens_per_second(_published_run(published, texts, format))}
        report = _report(version, format, part, kind, metrics, folder_bytes(folder), speeds)
        if not report.within:
            raise ExportError(parity_failure(report))
        if format == "ollama":
            _write_modelfile(published, folder)
        write_metadata(version, report, folder)
        write_answering(version, published.base.tokenizer, folder)
        _check_target(target)  # again: files put there meanwhile would be replaced
    return report


def _default_quantization(version: Version, registry: Registry, part: Part) -> Quantization:
    """Merging an adapter takes weights off the grid; rounding them to it again would undo part of what was learnt."""
    from factory.export.gguf import own_quantization

    if version.kind == "base":
        return own_quantization(version)
    return own_quantization(registry.resolve(version.base or "")) if part == "adapter" else DEFAULT


# -------------------------------------------------------------------------------------------------------------- checks


def _check(version: Version, registry: Registry, format: str, part: str) -> None:
    """Everything that can be refused before a model is loaded."""
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}; available: {', '.join(FORMATS)}")
    if part != "merged" and format != "gguf":
        raise ExportError(f"--part {part} needs --format gguf, not {format}; peft writes base and adapter side by side")
    if version.kind == "base" and (format == "peft" or part == "adapter"):
        raise ExportError(
            f"{version.reference} is a base and has no adapter; use merged, gguf, ollama or sentence-transformers"
        )
    registry.require_intact(version)
    if version.base:
        registry.require_intact(registry.resolve(version.base))


def _check_target(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ExportError(f"{target} exists and is not an empty folder; choose another with --to, or empty it")


# ----------------------------------------------------------------------------------------------------- write and compare


def _export_folder(loaded: LoadedVersion, folder: Path, texts: list[ParityText], format: str) -> tuple[ParityMetrics, float]:
    """peft or transformers: compared in float32, where only the weights count; timed in the dtype that it is saved in."""
    published = model_log_probs(loaded.model, texts)
    (write_peft if format == "peft" else write_merged)(loaded, folder)
    exported = model_log_probs(_load_folder(folder, format, torch.float32), texts)
    speed = tokens_per_second(generation(_load_folder(folder, format, "auto"), texts[0].prompt))
    return compare_log_probs(published, exported), speed


def _load_folder(folder: Path, format: str, dtype: Any) -> Any:
    """As an application does, without this package."""
    if format == "merged":
        return load_weights(folder, dtype).eval()
    return PeftModel.from_pretrained(load_weights(folder / "base", dtype), folder).eval()


def _export_gguf(
    loaded: LoadedVersion, folder: Path, texts: list[ParityText], quantization: Quantization, part: str
) -> tuple[ParityMetrics, float]:
    """A GGUF file, compared in llama.cpp. An adapter alone is compared on its base, which is removed afterwards."""
    from factory.export.gguf import write_adapter_gguf, write_base_gguf
    from factory.models.llama_server import LlamaServer

    published = model_log_probs(loaded.model, texts)
    name, adapters = loaded.version.name, []
    path = folder / f"{name}-{quantization}.gguf"
    if part == "adapter":
        adapters = [folder / f"{name}-adapter.gguf"]
        write_adapter_gguf(loaded.version.folder, loaded.model.config, adapters[0])
    model = loaded.model.unload() if adapters else merge_adapter(loaded)
    license = model_licenses(loaded.version.manifest)
    write_base_gguf(model, loaded.base.tokenizer, path, quantization, name=name, license=license)
    adapter = 0 if adapters else None
    context = max(len(text.ids) for text in texts) + SPEED_TOKENS
    threads = torch.get_num_threads()  # as many as the published version is timed with
    with LlamaServer(path, adapters=adapters, context=context, threads=threads) as server:
        exported = server_log_probs(server, texts, adapter)
        speed = tokens_per_second(server_generation(server, texts[0].prompt, adapter))
    if adapters:
        path.unlink()
    return compare_log_probs(published, exported), speed


def _export_embeddings(loaded: LoadedVersion, folder: Path, texts: list[ParityText]) -> tuple[ParityMetrics, float]:
    """A sentence-transformers folder, compared by the embeddings of the same conversations."""
    from sentence_transformers import SentenceTransformer

    published, dtype = embed(loaded.model, texts, loaded.head), loaded.base.model.dtype
    write_sentence_transformer(loaded, folder)  # which rounds it to bfloat16
    # In the arithmetic that the published version was run in: else its rounding would count as the export's.
    encoder = SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"use_safetensors": True, "dtype": dtype}, trust_remote_code=False
    )
    conversations = [conversation_text(loaded.base.tokenizer, text.ids) for text in texts]
    exported = np.asarray(encoder.encode(conversations, batch_size=1, show_progress_bar=False), dtype=np.float32)

    def encode() -> int:
        encoder.encode(conversations[:1], show_progress_bar=False)
        return len(texts[0].ids)

    return compare_embeddings(texts, published, exported), tokens_per_second(encode)


def _write_modelfile(loaded: LoadedVersion, folder: Path) -> None:
    [gguf], manifest = folder.glob("*.gguf"), loaded.version.manifest
    notice = manifest.notice if manifest.kind == "student" else ""
    text = modelfile(gguf.name, loaded.base.tokenizer, notice=notice, license=notice_text(manifest))
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def _context(loaded: LoadedVersion, format: str) -> int:
    """Tokens that the exported model is made for."""
    from factory.export.gguf_architectures import exact_context

    config = loaded.model.config.get_text_config()
    return exact_context(config) if format in LLAMA_CPP else int(config.max_position_embeddings)


# -------------------------------------------------------------------------------------------------------------- report


def _published_run(loaded: LoadedVersion, texts: list[ParityText], format: str) -> Callable[[], int]:
    """What is timed of the published version, as the factory runs it."""
    if format != "sentence-transformers":
        return generation(loaded.model, texts[0].prompt)

    def run() -> int:
        embed(loaded.model, texts[:1], loaded.head)
        return len(texts[0].ids)

    return run


def _report(
    version: Version,
    format: Format,
    part: Part,
    quantization: Quantization,
    metrics: ParityMetrics,
    size: int,
    speeds: dict[str, float],
) -> ParityReport:
    distance = metrics.kl if metrics.cosine_distance is None else metrics.cosine_distance
    bound = BOUNDS[quantization if format in LLAMA_CPP else format]
    engine = ("gguf", "xllamacpp") if format in LLAMA_CPP else ()
    return ParityReport(
        reference=version.reference,
        manifest_sha256=version.manifest.manifest_sha256,
        format=format,
        part=part,
        quantization=quantization if format in LLAMA_CPP else None,
        **asdict(metrics),
        bound=bound,
        within=distance is not None and distance <= bound,  # False for NaN
        bytes=size,
        tokens_per_second=speeds,
        tokens_per_second_of="embedding one conversation" if metrics.kl is None else "one stream, prompt included",
        libraries=library_versions() | {name: importlib.metadata.version(name) for name in engine},
    )
