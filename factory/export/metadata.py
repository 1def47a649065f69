"""What travels with every export: a report of how near it is, the model card, and whose work it is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from factory.registry.versions import Version, entries, section, to_json

PARITY = "parity.json"
NOTICE = "NOTICE"
CARD = "README.md"
LIBRARY = {"peft": "peft", "merged": "transformers", "sentence-transformers": "sentence-transformers"}  # others: gguf
LOADING = {  # in this folder; `folder` is its path
    "peft": 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(f"{folder}/base"), folder)  # tokenizer: base/',
    "merged": "AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)",
    "gguf": "llama-server -m *.gguf  # an adapter alone: -m base.gguf --lora *.gguf",
    "ollama": "ollama create NAME -f Modelfile",
    "sentence-transformers": "SentenceTransformer(folder).encode(texts)  # mean of the final states over a text's tokens",
}


@dataclass(frozen=True)
class ParityReport:
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


def write_metadata(version: Version, report: ParityReport, folder: Path) -> None:
    """``write_metadata(version, report, folder)``: parity.json, NOTICE, and the version's card with a chapter more."""
    (folder / PARITY).write_bytes(to_json(asdict(report)))
    (folder / NOTICE).write_text(notice(version.raw), encoding="utf-8")
    card = (version.folder / CARD).read_text(encoding="utf-8") if (version.folder / CARD).is_file() else ""
    library = LIBRARY.get(report.format, "gguf")
    (folder / CARD).write_text(card_with(card, library, chapter(report)), encoding="utf-8")


def described(report: ParityReport) -> str:
    """``described(report)``: what it is, how near, how large and how fast, in one line."""
    speeds = report.tokens_per_second
    return (
        f"{what(report)}: {distance(report)}; {report.bytes / 1e6:.1f} MB; {speeds['exported']:.0f} tokens/s "
        f"here, the registered one {speeds['registered']:.0f} ({report.tokens_per_second_of})"
    )


def what(report: ParityReport) -> str:
    """``what(report)``: ``healthcare-small@3 as gguf, q8_0``."""
    part = "" if report.part == "merged" else f", {report.part} alone"
    return f"{report.reference} as {report.format}{part}" + (f", {report.quantization}" if report.quantization else "")


def distance(report: ParityReport) -> str:
    """``distance(report)``: its figures beside their bound, with their n."""
    if report.cosine_distance is not None:
        figure = f"largest cosine distance {report.cosine_distance:.3g}"
    else:
        figure = f"KL {report.kl:.3g} nats a token, same likeliest token {report.top1_agreement:.1%}"
    return f"{figure}, bound {report.bound:g}, n {report.tokens} tokens of {report.texts} texts"


def chapter(report: ParityReport) -> str:
    """``chapter(report)``: the card's chapter on this export: how it is loaded, and how near it is."""
    rows = {
        "texts, answer tokens": f"{report.texts}, {report.tokens}",
        "KL(registered ‖ exported), nats a token": report.kl,
        "largest difference of a log-probability": report.log_prob_difference,
        "same likeliest token": report.top1_agreement,
        "largest cosine distance of embeddings": report.cosine_distance,
        "bound": report.bound,
        "bytes": report.bytes,
        f"tokens a second, {report.tokens_per_second_of}": report.tokens_per_second["exported"],
        "the same of the registered one, same machine": report.tokens_per_second["registered"],
    }
    shown = [
        (label, f"{value:.3g}" if isinstance(value, float) else value) for label, value in rows.items() if value is not None
    ]
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {label} | {value} |" for label, value in shown)])
    return (
        f"## This export\n\n{what(report)}:\n\n"
        f"```\n{LOADING[report.format]}\n```\n\n"
        f"Beside the registered version (everything is in `{PARITY}`):\n\n{table}"
    )


def notice(manifest: Mapping[str, Any]) -> str:
    """``notice(version.raw)``: the text of NOTICE: whose work it is made from, and under which licences."""
    teacher, name = section(manifest, "teacher"), manifest.get("name")
    lines = [
        f"{name}, version {manifest.get('version')}: a model made with student-factory from another one, and changed: "
        "layers and tokens were removed, and what is left was trained on the other one's answers.",
        f"Made from: {teacher.get('reference')}, licence: {teacher.get('license')}.",
    ]
    if str(teacher.get("license")).lower() == "gemma":  # section 3.1 of the terms asks for this sentence
        lines.append("Gemma is provided under and target to the Gemma Terms of Use found at ai.google.dev/gemma/terms")
    sources = entries(manifest, "dataset", "sources")
    lines += [f"Prompts: {one.get('id')}, licence: {one.get('license') or 'unknown'}." for one in sources]
    if manifest.get("notice"):
        lines.append(f"Notice: {manifest['notice']}")
    return "\n".join(lines) + "\n"


def card_with(card: str, library: str, chapter: str) -> str:
    """``card_with(readme, "transformers", "## This export\\n...")``: the version's card, that chapter first."""
    card = re.sub(r"^library_name: .*$", f"library_name: {library}", card, count=1, flags=re.MULTILINE)
    opening, first, rest = card.partition("\n## ")
    return f"{opening}\n{chapter}\n{first}{rest}" if first else f"{card}\n{chapter}\n"
