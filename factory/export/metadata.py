"""Files that accompany every export: ``parity.json``, the model card, and a NOTICE with sources and licences."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import ModelCard

from factory.registry.manifest import BaseManifest, StudentManifest
from factory.registry.plain_json import to_json
from factory.registry.versions import Version

PARITY = "parity.json"
NOTICE = "NOTICE"
CARD = "README.md"
LIBRARIES = {  # the card's library_name, by format
    "peft": "peft",
    "merged": "transformers",
    "gguf": "gguf",
    "ollama": "gguf",
    "sentence-transformers": "sentence-transformers",
}
USAGE = {  # `folder` is the path of the export
    "peft": 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(f"{folder}/base"), folder)  # tokenizer: base/',
    "merged": "AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)",
    "gguf": "llama-server -m *.gguf  # an adapter alone: -m base.gguf --lora *.gguf",
    "ollama": "ollama create NAME -f Modelfile",
    "sentence-transformers": "SentenceTransformer(folder).encode(texts)  # mean of the final hidden states over the tokens",
}


@dataclass(frozen=True)
class ParityReport:
    """``parity.json``: an export measured against the published version, on ``tokens`` answer tokens of ``texts`` texts."""

    reference: str
    manifest_sha256: str
    format: str
    part: str
    quantization: str | None  # of gguf and ollama
    texts: int
    tokens: int
    kl: float | None  # KL(published ‖ exported), nats/token
    log_prob_difference: float | None  # the largest, over the vocabulary and all positions
    top1_agreement: float | None
    cosine_distance: float | None  # sentence-transformers only: the largest of any text's embeddings
    bound: float  # on kl, or on cosine_distance
    within: bool
    bytes: int  # of the model's files
    tokens_per_second: dict[str, float]  # "exported" and "registered", measured in one run on one machine
    tokens_per_second_of: str
    libraries: dict[str, str]


def write_metadata(version: Version, report: ParityReport, folder: Path) -> None:
    """``write_metadata(version, report, folder)``: parity.json, NOTICE, and the version's card with a section on the export."""
    (folder / PARITY).write_bytes(to_json(asdict(report)))
    (folder / NOTICE).write_text(notice_text(version.manifest), encoding="utf-8")
    card = (version.folder / CARD).read_text(encoding="utf-8")
    (folder / CARD).write_text(export_card(card, report), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- in one line


def format_report(report: ParityReport) -> str:
    """``format_report(report)``: what was exported, its parity, size and speed, in one line."""
    speeds = report.tokens_per_second
    return (
        f"{export_name(report)}: {format_parity(report)}; {report.bytes / 1e6:.1f} MB; {speeds['exported']:.0f} tokens/s, "
        f"published version {speeds['registered']:.0f} tokens/s ({report.tokens_per_second_of})"
    )


def parity_failure(report: ParityReport) -> str:
    """``parity_failure(report)``: "parity check failed: KL 0.301 > 0.15 nats/token (healthcare-small@3 as gguf, q4; ...)"."""
    if report.cosine_distance is None:
        failed = f"KL {report.kl:.3g} > {report.bound:g} nats/token"
    else:
        failed = f"cosine distance {report.cosine_distance:.3g} > {report.bound:g}"
    return f"parity check failed: {failed} ({export_name(report)}; {report.tokens} tokens of {report.texts} texts)"


def format_parity(report: ParityReport) -> str:
    """``format_parity(report)``: its metrics, bound and n."""
    if report.cosine_distance is None:
        metrics = f"KL {report.kl:.3g} nats/token (bound {report.bound:g}), top-1 agreement {report.top1_agreement:.1%}"
    else:
        metrics = f"largest cosine distance {report.cosine_distance:.3g} (bound {report.bound:g})"
    return f"{metrics}, {report.tokens} tokens of {report.texts} texts"


def export_name(report: ParityReport) -> str:
    """``export_name(report)``: "healthcare-small@3 as gguf, q8_0"."""
    part = "" if report.part == "merged" else f", {report.part} only"
    return f"{report.reference} as {report.format}{part}" + (f", {report.quantization}" if report.quantization else "")


# -------------------------------------------------------------------------------------------------------- card, notice


def export_card(card: str, report: ParityReport) -> str:
    """``export_card(readme, report)``: the version's card with the export's section before all others."""
    parsed = ModelCard(card, ignore_metadata_errors=True)
    parsed.data["library_name"] = LIBRARIES[report.format]
    opening, heading, rest = str(parsed).partition("\n## ")
    return f"{opening}\n{card_section(report)}\n{heading}{rest}"


def card_section(report: ParityReport) -> str:
    """``card_section(report)``: how to load the export, and a table of its parity."""
    rows = {
        "texts, answer tokens": f"{report.texts}, {report.tokens}",
        "KL(published ‖ exported), nats/token": report.kl,
        "largest difference of a log-probability, nats": report.log_prob_difference,
        "top-1 agreement": report.top1_agreement,
        "largest cosine distance of embeddings": report.cosine_distance,
        "bound": report.bound,
        "bytes": report.bytes,
        f"tokens/s, {report.tokens_per_second_of}": report.tokens_per_second["exported"],
        "tokens/s, published version on the same machine": report.tokens_per_second["registered"],
    }
    measured = [
        (label, f"{value:.3g}" if isinstance(value, float) else value) for label, value in rows.items() if value is not None
    ]
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {label} | {value} |" for label, value in measured)])
    return (
        f"## This export\n\n{export_name(report)}:\n\n```\n{USAGE[report.format]}\n```\n\n"
        f"Compared with the published version (full report in `{PARITY}`):\n\n{table}"
    )


def _made(manifest: BaseManifest | StudentManifest) -> str:
    if manifest.teacher.api is not None:
        return "The original model was trained on the answers of another."
    if manifest.base_model is not None:
        return "The original model, or a part of it, was trained on the outputs of another."
    return "Layers and tokens of the original model were removed, and the rest was trained on its outputs."


def model_licenses(manifest: BaseManifest | StudentManifest) -> str:
    """``model_licenses(version.manifest)`` → "apache-2.0", or "apache-2.0 and gemma" where two models came together."""
    models = [manifest.teacher.license, *([manifest.base_model.license] if manifest.base_model else [])]
    return " and ".join(dict.fromkeys(models))


def notice_text(manifest: BaseManifest | StudentManifest) -> str:
    """``notice_text(version.manifest)``: the NOTICE file: the models and data it is derived from, and their licences."""
    teacher = manifest.teacher
    lines = [
        f"{manifest.name}, version {manifest.version}: a derived model, made with student-factory. {_made(manifest)}",
        f"{'Trained on the answers of' if teacher.api else 'Derived from'}: {teacher.reference}, licence: {teacher.license}.",
    ]
    if manifest.base_model is not None:
        lines.append(f"Derived from: {manifest.base_model.reference}, licence: {manifest.base_model.license}.")
    if "gemma" in model_licenses(manifest).lower().split(" and "):  # the sentence that section 3.1 of the terms requires
        lines.append("Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms")
    lines += [f"Data: {source.id}, licence: {source.license or 'unknown'}." for source in manifest.dataset.sources]
    if manifest.kind == "student" and manifest.notice:
        lines.append(f"Notice: {manifest.notice}")
    return "\n".join(lines) + "\n"
