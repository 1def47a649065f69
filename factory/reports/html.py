"""One HTML file about one version or several side by side: everything that their manifests say, and nothing else.

    write_page([registry.resolve("healthcare-small")], Path("report.html"), lineage={"default-small-base@1": base})

The file needs no other one: style and plots are inside, there is no script. What a manifest lacks has no section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from factory.cache import replace_file, storage_errors
from factory.errors import RegistryError
from factory.evaluation.metrics import format_metric, format_number, metric_named
from factory.registry.versions import Version, entries, read_parameters, section
from factory.reports.compare import BEST, TIED, compare_json, compare_notes
from factory.reports.plots import Plot, bias, curves, energy, fidelity

BOUNDS = {"at_most": "at most", "at_least": "at least"}
ENDS = {"low": ", lower end", "high": ", upper end"}


@dataclass(frozen=True)
class Node:
    """One model of a lineage."""

    role: str  # teacher, assistant, base or student
    name: str
    facts: str = ""


def write_page(versions: Sequence[Version], path: Path, *, lineage: Mapping[str, Version]) -> None:
    """``write_page([student], Path("report.html"), lineage={base.reference: base})`` writes or replaces that one file.

    ``lineage`` has the bases of these students by reference, as far as they are known; what it lacks is left out.

    Raises:
        RegistryError: without a version, or where the file cannot be written. An older file then stays as it was.
    """
    if not path.parent.is_dir():
        raise RegistryError(f"cannot write {path}: there is no folder {path.parent}; make it first, or name another file")
    if path.is_dir():
        raise RegistryError(f"cannot write {path}: it is a folder; name a file in it, as in {path / 'report.html'}")
    content = render(versions, lineage).encode("utf-8", "replace")
    with storage_errors(f"cannot write {path}"):
        replace_file(path, content)


def render(versions: Sequence[Version], lineage: Mapping[str, Version]) -> str:
    """``render(versions, {})``: the page's text; the same manifests give the same text.

    Raises: RegistryError without a version.
    """
    from jinja2 import Environment, StrictUndefined

    if not versions:
        raise RegistryError("a report needs at least one student or base: `factory list` shows what there is")
    versions = list({version.reference: version for version in versions}.values())
    comparison = compare_json(versions, teacher=True)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        (files("factory.reports") / "report.html.j2").read_text(encoding="utf-8")
    )
    names = " and ".join(version.reference for version in versions)
    return template.render(
        title=names if len(versions) < 3 else f"{len(versions)} versions compared",
        created=max(_text(version.raw.get("created")) for version in versions)[:16].replace("T", " ").replace("Z", ""),
        verdicts=[_verdict(version) for version in versions],
        columns=comparison["columns"],
        figures=[_figure_row(row, comparison["columns"]) for row in comparison["rows"]],
        notes=compare_notes(comparison),
        has_best=any(row["best"] for row in comparison["rows"]),
        best=BEST,
        plots=[plot for plot in (fidelity(versions), curves(versions)) if plot is not None],
        bias=[plot for index, version in enumerate(versions) for plot in bias(version, index)],
        energy=[_energy(version, plots) for version in versions if (plots := energy(version))],
        lineages=_lineages(versions, lineage),
        samples=[(version.reference, samples) for version in versions if (samples := _samples(version.raw))],
        warnings=[(version.reference, found) for version in versions if (found := _texts(version.raw.get("warnings")))],
        provenance=[(version.reference, _provenance(version.raw)) for version in versions],
    )


def _verdict(version: Version) -> dict[str, Any]:
    """The card of one version: badge, gates, reasons where there are no gates, notice."""
    manifest = version.raw
    verdict = section(manifest, "verdict")
    gates = [_gate(gate) for gate in entries(manifest, "verdict", "gates")]
    own, teacher = read_parameters(manifest)
    size = f"{format_number(own, 'parameters')} parameters" if own else ""
    size += f", {format_number(own / teacher, '%')} of its teacher's" if own and teacher else ""
    words = [_text(manifest.get(key)) for key in ("domain", "profile")]
    failed = [gate for gate in gates if not gate["passed"]]
    return {
        "reference": version.reference,
        "facts": ", ".join(word for word in (version.kind, words[0], words[1] and f"profile {words[1]}", size) if word),
        "status": version.verdict,
        "failed": failed,
        "passed": [gate for gate in gates if gate["passed"]],
        "reasons": [] if failed else _texts(verdict.get("reasons")),
        "notice": _text(manifest.get("notice")),
    }


def _gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    metric = metric_named(_text(gate.get("metric")))
    found = gate.get("found")
    return {
        "passed": gate.get("passed") is True,
        "label": metric.label + ENDS.get(_text(gate.get("of")), ""),
        "found": "not measured" if found is None else format_number(found, metric.unit),
        "bound": f"{BOUNDS.get(_text(gate.get('bound')), 'bound')} {format_number(gate.get('threshold'), metric.unit)}",
    }


def _figure_row(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """{"label", "cells": [(value, interval, mark)]}."""
    cells = []
    for name in columns:
        value, _, interval = format_metric(row["values"][name], row["unit"]).partition(" [")
        mark = BEST if name in row["best"] else TIED if name in row["tied"] else ""
        cells.append((value, f"[{interval}" if interval else "", mark))
    return {"label": row["label"], "cells": cells}


def _lineages(versions: Sequence[Version], lineage: Mapping[str, Version]) -> list[dict[str, Any]]:
    """One chain for all versions of the same teacher, assistants and base: {"chain": [Node], "ends": [Node], "reason"}."""
    known = dict(lineage) | {version.reference: version for version in versions}
    ends: dict[tuple[Node, ...], list[Node]] = {}
    reasons: dict[tuple[Node, ...], str] = {}
    for version in versions:
        if any(version.reference == other.base for other in versions):
            continue  # it stands before its students
        base = known.get(version.base or "")
        root = version if version.kind == "base" else base
        manifest = root.raw if root is not None else version.raw
        teacher = section(version.raw, "teacher") or section(manifest, "teacher")
        chain = []
        if teacher:
            parameters = read_parameters(version.raw)[1] or read_parameters(manifest)[1]
            name = _text(teacher.get("reference")).rpartition("/")[2] or "teacher"  # all of it is in the provenance
            chain.append(Node("teacher", name, _size(parameters, teacher.get("license"))))
        own = root.reference if root is not None else version.base
        route = _texts(section(manifest, "cascade").get("route"))[1:]
        chain += [_node("assistant", reference, known.get(reference)) for reference in route if reference != own]
        if version.base:
            chain.append(_node("base", version.base, base))
        ends.setdefault(tuple(chain), []).append(_node(version.kind, version.reference, version))
        reasons[tuple(chain)] = _text(section(manifest, "cascade").get("reason"))
    return [{"chain": chain, "ends": last, "reason": reasons[chain]} for chain, last in ends.items()]


def _node(role: str, reference: str, version: Version | None) -> Node:
    if version is None:
        return Node(role, reference)
    return Node(role, reference, _size(read_parameters(version.raw)[0], version.raw.get("domain")))


def _size(parameters: int | None, word: Any) -> str:
    size = f"{format_number(parameters, 'parameters')} parameters" if parameters else ""
    return ", ".join(part for part in (size, _text(word)) if part)


def _samples(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{"prompt", "teacher", "student", "coloured"}; an answer is runs of (text, whether the other agrees, or None)."""
    found = []
    for sample in entries(manifest, "evaluation", "samples"):
        both = {who: _runs(sample.get(f"{who}_tokens")) for who in ("teacher", "student")}
        answers = {who: runs or [(_text(sample.get(who)), None)] for who, runs in both.items()}
        found.append({"prompt": _text(sample.get("prompt")), **answers, "coloured": any(both.values())})
    return found


def _runs(tokens: Any) -> list[tuple[str, bool | None]]:
    """``[["Pain", true], [" is", true]]`` → ``[("Pain is", True)]``: neighbours that agree alike are one run."""
    pairs = [pair for pair in (tokens if isinstance(tokens, list) else ()) if isinstance(pair, list | tuple) and len(pair) == 2]
    runs: list[tuple[str, bool | None]] = []
    for agree, run in groupby(pairs, key=lambda pair: bool(pair[1])):
        text = "".join(_text(text) for text, _ in run)
        word = text.lstrip()
        runs += [(text[: len(text) - len(word)], None), (word, agree)]  # the space before a token is not coloured
    return [(text, agree) for text, agree in runs if text]


def _provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    teacher, data = section(manifest, "teacher"), section(manifest, "dataset")
    pairs = [
        ("teacher", teacher.get("reference")),
        ("teacher's licence", teacher.get("license")),
        ("teacher's sha256", teacher.get("sha256")),
        ("base", manifest.get("base")),
        ("data set", data.get("fingerprint")),
        ("examples", ", ".join(f"{split} {format_number(count)}" for split, count in section(data, "counts").items())),
        ("left out", ", ".join(f"{reason} {format_number(count)}" for reason, count in section(data, "dropped").items())),
        ("sources", ", ".join(f"{one.get('id')} ({one.get('license')})" for one in entries(data, "sources"))),
        ("family", manifest.get("family")),
        ("profile", manifest.get("profile")),
        ("seed", manifest.get("seed")),
        ("spec", manifest.get("spec_hash")),
        ("git commit", manifest.get("git_commit")),
        ("libraries", ", ".join(f"{name} {version}" for name, version in section(manifest, "libraries").items())),
        ("created", manifest.get("created")),
        ("manifest's sha256", manifest.get("manifest_sha256")),
    ]
    return [(label, _text(value)) for label, value in pairs if _text(value)]


def _energy(version: Version, plots: Sequence[Plot]) -> dict[str, Any]:
    method = _text(section(version.raw, "energy").get("method"))
    return {"reference": version.reference, "method": method, "plots": plots}


def _texts(items: Any) -> list[str]:
    return [_text(item) for item in items] if isinstance(items, list | tuple) else []


def _text(value: Any) -> str:
    return "" if value is None else str(value)
