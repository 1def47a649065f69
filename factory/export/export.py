"""A version in a format that applications load, and a certificate of how near it is to what is registered.

    certificate = export_version(version, registry, "gguf", Path("out"), quantization="q8_0")
    certificate.kl, certificate.bound    # nats per token

What is not within its format's bound is not written: a folder appears whole and proven, by one rename.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from factory.errors import ExportError
from factory.export.folders import (
    Registered,
    card_with,
    conversation,
    load_registered,
    merged,
    notice,
    write_merged,
    write_peft,
    write_sentence_transformer,
)
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
from factory.files import one_line
from factory.manifests import Version, section, to_json
from factory.models.references import pick_device
from factory.provenance import library_versions
from factory.quality.evaluate import folder_bytes
from factory.registry import Registry

Format = Literal["peft", "merged", "gguf", "ollama", "sentence-transformers"]
Quantization = Literal["f16", "q8_0", "q4"]
Part = Literal["merged", "base", "adapter"]

FORMATS: tuple[Format, ...] = get_args(Format)
LLAMA_CPP = ("gguf", "ollama")
LIBRARY = {"peft": "peft", "merged": "transformers", "sentence-transformers": "sentence-transformers"}  # others: gguf
CERTIFICATE = "parity.json"
LOADING = {  # in this folder; `folder` is its path
    "peft": 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(f"{folder}/base"), folder)  # tokenizer: base/',
    "merged": "AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)",
    "gguf": "llama-server -m *.gguf  # an adapter alone: -m base.gguf --lora *.gguf",
    "ollama": "ollama create NAME -f Modelfile",
    "sentence-transformers": "SentenceTransformer(folder).encode(texts)  # mean of the final states over a text's tokens",
}

# What an export may be away from the registered student: nats per token, of sentence-transformers a cosine distance.
BOUNDS = {
    "peft": 1e-3,  # the same weights; what differs is arithmetic in bfloat16, as transformers loads them
    "merged": 2e-3,  # base and adapter rounded together to bfloat16's 8 digits
    "f16": 1e-3,  # float16 has 3 digits more, and llama.cpp adds up in float32
    "q8_0": 5e-3,  # 8 bits a weight and a scale every 32
    "q4": 0.1,  # 4 bits a weight: a small model feels it
    "sentence-transformers": 1e-3,
}


@dataclass(frozen=True)
class Certificate:
    """``parity.json``: an export beside the registered version, on ``tokens`` answer tokens of ``texts`` texts."""

    reference: str
    manifest_sha256: str
    format: str
    part: str
    quantization: str | None
    texts: int
    tokens: int
    kl: float | None  # KL(registered ‖ exported), nats per token
    log_prob_difference: float | None  # the largest, over every token of the vocabulary at every position
    top1_agreement: float | None
    cosine_distance: float | None  # the largest of all texts' embeddings; of sentence-transformers alone
    bound: float  # of kl, or of cosine_distance
    within: bool
    bytes: int  # of the model's files
    tokens_per_second: dict[str, float]  # exported and registered, one after the other, on the machine that exported
    tokens_per_second_of: str
    libraries: dict[str, str]


def export_version(
    version: Version,
    registry: Registry,
    format: Format,
    target: Path,
    *,
    quantization: Quantization = "q8_0",
    part: Part = "merged",
    device: str = "auto",
) -> Certificate:
    """``export_version(version, registry, "merged", Path("out"))``: writes the folder, proves it, and says how near it is.

    quantization: of gguf and ollama. part: of gguf; "base" or "adapter" alone.

    Raises: ExportError for a format that does not fit the version, a folder that is not empty, a damaged version, and an
        export whose parity is outside its bound; ServeError where llama.cpp is missing. Nothing is left behind.
    """
    _check(version, registry, format, part)
    if part == "base" and version.base:
        version = registry.resolve(version.base)
    with one_line(f"cannot write {target}"), _staged(target) as folder:
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
        certificate = _certificate(version, format, part, quantization, found, folder_bytes(folder), (speed, own))
        if not certificate.within:
            raise ExportError(f"not kept, because it is not what is registered: {_what(certificate)}: {_distance(certificate)}")
        _write_papers(version, certificate, student.tokenizer, folder)
    return certificate


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
    from factory.export.llamacpp import write_adapter_gguf, write_base_gguf
    from factory.models.llama import LlamaServer

    registered = model_log_probs(student.model, texts)
    name, license = student.version.name, str(section(student.version.manifest, "teacher").get("license"))
    path, adapters = folder / f"{name}-{quantization}.gguf", []
    if part == "adapter":
        adapters = [folder / f"{name}-adapter.gguf"]
        write_adapter_gguf(student.version.folder, student.model.config, adapters[0])
    model = student.model.unload() if adapters else merged(student)
    write_base_gguf(model, student.tokenizer, path, quantization, name=name, license=license)
    chosen = 0 if adapters else None
    room, threads = max(len(text.ids) for text in texts) + SPEED_TOKENS, torch.get_num_threads()  # as many as the other has
    with LlamaServer(path, adapters=adapters, context=room, threads=threads) as server:
        exported = server_log_probs(server, texts, chosen)
        speed = tokens_per_second(server_writing(server, texts[0].prompt, chosen))
    if adapters:
        path.unlink()
    return compare(registered, exported), speed


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


# ------------------------------------------------------------------------------------------------------------- papers


def _certificate(
    version: Version,
    format: Format,
    part: Part,
    quantization: Quantization,
    found: Comparison,
    size: int,
    speeds: tuple[float, float],
) -> Certificate:
    figure = found.kl if found.cosine_distance is None else found.cosine_distance
    bound = BOUNDS[quantization if format in LLAMA_CPP else format]
    engine = ("gguf", "xllamacpp") if format in LLAMA_CPP else ()
    return Certificate(
        reference=version.reference,
        manifest_sha256=str(version.manifest["manifest_sha256"]),
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


def described(certificate: Certificate) -> str:
    """``described(certificate)``: what it is, how near, how large and how fast, in one line."""
    speeds = certificate.tokens_per_second
    return (
        f"{_what(certificate)}: {_distance(certificate)}; {certificate.bytes / 1e6:.1f} MB; {speeds['exported']:.0f} tokens/s "
        f"here, the registered one {speeds['registered']:.0f} ({certificate.tokens_per_second_of})"
    )


def _what(certificate: Certificate) -> str:
    part = "" if certificate.part == "merged" else f", {certificate.part} alone"
    return f"{certificate.reference} as {certificate.format}{part}" + (
        f", {certificate.quantization}" if certificate.quantization else ""
    )


def _distance(certificate: Certificate) -> str:
    if certificate.cosine_distance is not None:
        figure = f"largest cosine distance {certificate.cosine_distance:.3g}"
    else:
        figure = f"KL {certificate.kl:.3g} nats a token, same likeliest token {certificate.top1_agreement:.1%}"
    return f"{figure}, bound {certificate.bound:g}, n {certificate.tokens} tokens of {certificate.texts} texts"


def _write_papers(version: Version, certificate: Certificate, tokenizer: Any, folder: Path) -> None:
    """Certificate, card, licences, and of an Ollama export the Modelfile."""
    papers = notice(version.manifest)
    (folder / CERTIFICATE).write_bytes(to_json(asdict(certificate)))
    (folder / "NOTICE").write_text(papers, encoding="utf-8")
    card = (version.folder / "README.md").read_text(encoding="utf-8") if (version.folder / "README.md").is_file() else ""
    library = LIBRARY.get(certificate.format, "gguf")
    (folder / "README.md").write_text(card_with(card, library, chapter(certificate)), encoding="utf-8")
    if certificate.format == "ollama":
        [gguf] = folder.glob("*.gguf")
        told = str(version.manifest.get("notice") or "")
        (folder / "Modelfile").write_text(modelfile(gguf.name, tokenizer, notice=told, license=papers), encoding="utf-8")


def chapter(certificate: Certificate) -> str:
    """``chapter(certificate)``: the card's chapter on this export: how it is loaded, and how near it is."""
    rows = {
        "texts, answer tokens": f"{certificate.texts}, {certificate.tokens}",
        "KL(registered ‖ exported), nats a token": certificate.kl,
        "largest difference of a log-probability": certificate.log_prob_difference,
        "same likeliest token": certificate.top1_agreement,
        "largest cosine distance of embeddings": certificate.cosine_distance,
        "bound": certificate.bound,
        "bytes": certificate.bytes,
        f"tokens a second, {certificate.tokens_per_second_of}": certificate.tokens_per_second["exported"],
        "the same of the registered one, same machine": certificate.tokens_per_second["registered"],
    }
    shown = [
        (label, f"{value:.3g}" if isinstance(value, float) else value) for label, value in rows.items() if value is not None
    ]
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {label} | {value} |" for label, value in shown)])
    return (
        f"## This export\n\n{_what(certificate)}:\n\n"
        f"```\n{LOADING[certificate.format]}\n```\n\n"
        f"Beside the registered version (everything is in `{CERTIFICATE}`):\n\n{table}"
    )
