"""``factory data NAME``: what a data set holds, what was dropped and why, a few rows, whether it is too small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from factory.data.dataset import describe_dropped, find_disagreements, small_dataset_warning
from factory.distill.target_store import describe_store
from factory.registry.manifest import PersonalDataInfo
from factory.reports.format import format_number
from factory.reports.view import describe_personal_data

if TYPE_CHECKING:
    from factory.data.router import DomainRouter
    from factory.pipeline.context import DomainData

SAMPLES = 5


def preview(data: DomainData, router: DomainRouter | None) -> dict[str, Any]:
    """``preview(factory.data("legal"), factory.router)``: plain lists and dicts; a private domain has no router."""
    manifest = data.manifest
    texts = [row["prompt"] or row["completion"] for part in data.rows.values() for row in part]
    disagreements = find_disagreements(texts, manifest.domain, router) if router is not None else []
    rows = data.rows["train"].select(range(min(SAMPLES, len(data.rows["train"]))))
    return {
        "domain": manifest.domain,
        "folder": str(data.folder),
        "fingerprint": manifest.fingerprint,
        "counts": manifest.counts,
        "dropped": manifest.dropped,
        "refusals": manifest.refusals,
        "sources": manifest.sources,
        "templates": manifest.templates,
        "disagreements": len(disagreements),
        "personal_data": manifest.provenance.get("personal_data"),
        "disagreement_examples": [[one.prompt, one.routed_to] for one in disagreements[:SAMPLES]],
        "too_small": small_dataset_warning(1.0, 1.0, manifest),
        "soft_targets": [describe_store(folder) for folder in data.targets_folders()],
        "samples": [{name: row[name] for name in ("prompt", "completion", "source", "refusal")} for row in rows],
    }


def preview_table(content: dict[str, Any]) -> Any:
    """``print_table(preview_table(preview(data)))``"""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _lines(content):
        table.add_row(Text(label), Text(value))
    return table


def _lines(content: dict[str, Any]) -> list[tuple[str, str]]:
    found = content["personal_data"]
    lines = [
        ("data set", content["domain"]),
        ("folder", content["folder"]),
        ("kept", ", ".join(f"{split} {count}" for split, count in content["counts"].items())),
        ("dropped", describe_dropped(content["dropped"])),
        ("personal identifiers", describe_personal_data(found and PersonalDataInfo.model_validate(found))),
        ("refusals kept", str(content["refusals"])),
        *(("source", f"{one['id']}: {one['n']} examples, {one['license']}") for one in content["sources"]),
        ("templates", str(content["templates"])),
        ("the router disagrees", f"on {content['disagreements']} prompts"),
        *(("", f"{prompt} → {domain or 'none'}") for prompt, domain in content["disagreement_examples"]),
        *(
            ("soft targets", f"{format_number(one['bytes'], 'bytes')}; saves {one['teacher_seconds']:.0f} s of the teacher")
            for one in content["soft_targets"]
        ),
        ("too small", content["too_small"] or "no"),
    ]
    for row in content["samples"]:
        answer = " ".join(row["completion"].split())
        lines += [("", ""), (row["source"], row["prompt"]), ("refusal" if row["refusal"] else "answer", answer)]
    return lines
