"""One HTML file about one version, or several side by side.

    write_page([registry.resolve("healthcare-small")], Path("report.html"), lineage={"default-small-base@1": base})

It opens with the verdict, the size-against-fidelity plot and three answers; the rest is folded away. The file is
self-contained: style and plots are inside, there is no script, and everything that a manifest says is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from factory.cache import replace_file, storage_errors
from factory.errors import RegistryError, StorageError
from factory.registry.versions import Version
from factory.reports.compare import BEST, Comparison, compare
from factory.reports.format import format_interval, format_metric, format_number
from factory.reports.plots import bias, energy, fidelity, training
from factory.reports.view import view_of

if TYPE_CHECKING:
    from factory.registry.manifest import Sample

OPEN_SAMPLES = 3  # shown at once; the others are folded away


@dataclass(frozen=True)
class Node:
    """One model of a lineage."""

    role: str  # teacher, teacher assistant, base or student
    name: str
    facts: str = ""


@dataclass(frozen=True)
class Lineage:
    """The models from the teacher to the versions that share all of them but the last."""

    chain: tuple[Node, ...]
    ends: tuple[Node, ...]
    reason: str  # for this path, where a teacher assistant was considered


@dataclass(frozen=True)
class Cell:
    """One value of the table of metrics."""

    value: str
    interval: str
    mark: str


Run = tuple[str, bool | None]  # text, and whether the other model agrees; None where nothing is known


@dataclass(frozen=True)
class Answers:
    """One prompt and both answers, as runs of tokens with which the other model agrees or not."""

    prompt: str
    teacher: tuple[Run, ...]
    student: tuple[Run, ...]
    coloured: bool


def write_page(versions: Sequence[Version], path: Path, *, lineage: Mapping[str, Version]) -> None:
    """``write_page([student], Path("report.html"), lineage={base.reference: base})`` writes or replaces that file.

    ``lineage`` has the bases of these students by reference, as far as they are known.

    Raises:
        RegistryError: without a version.
        StorageError: where the file cannot be written. An older file then stays as it was.
    """
    if not path.parent.is_dir():
        raise StorageError(f"cannot write {path}: there is no folder {path.parent}; create it first, or name another file")
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a folder; name a file in it, as in {path / 'report.html'}")
    content = render(versions, lineage).encode("utf-8", "replace")
    with storage_errors(f"cannot write {path}"):
        replace_file(path, content)


def render(versions: Sequence[Version], lineage: Mapping[str, Version]) -> str:
    """``render(versions, {})``: the page's text; the same manifests give the same text.

    Raises: RegistryError without a version.
    """
    from jinja2 import Environment, StrictUndefined

    if not versions:
        raise RegistryError("a report needs at least one student or base; `factory list` shows them")
    versions = list({version.reference: version for version in versions}.values())
    views = [view_of(version.manifest) for version in versions]
    comparison = compare(versions, teacher=True)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = format_number
    template = environment.from_string((files("factory.reports") / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=" and ".join(view.reference for view in views) if len(views) < 3 else f"{len(views)} versions compared",
        created=max(view.created for view in views)[:16].replace("T", " "),
        views=views,
        headline=[(row.metric.label, cells_of(comparison, row.key)) for row in comparison.headline],
        metrics=[(row.metric.label, cells_of(comparison, row.key)) for row in comparison.rows],
        columns=comparison.columns,
        notes=notes_of(comparison),
        best=BEST,
        picture=fidelity(versions),
        training=training(versions),
        bias=[plot for index, version in enumerate(versions) for plot in bias(version, index)],
        energy=[(view, plots) for view, version in zip(views, versions, strict=True) if (plots := energy(version))],
        answers=[(view.reference, [answers_of(sample) for sample in view.samples]) for view in views if view.samples],
        open_samples=OPEN_SAMPLES,
        lineages=lineages_of(versions, lineage),
    )


# ------------------------------------------------------------------------------------------------------------- metrics


def cells_of(comparison: Comparison, key: str) -> list[Cell]:
    """``cells_of(comparison, "kl")``: one per column."""
    row = next(row for row in comparison.rows if row.key == key)
    cells = []
    for column in comparison.columns:
        metric = row.values[column]
        value = format_metric(metric, row.metric.unit).partition(" [")[0]
        cells.append(Cell(value, format_interval(metric, row.metric.unit), row.mark(column)))
    return cells


def notes_of(comparison: Comparison) -> list[str]:
    """What the brackets and marks of the table mean, as sentences."""
    notes = ["in brackets: 95 % intervals"]
    if any(row.best for row in comparison.rows):
        notes.append(f"{BEST} best of the row")
    return [f"{note[0].upper()}{note[1:]}." for note in [*notes, *comparison.notes]]


# ------------------------------------------------------------------------------------------------------------- lineage


def lineages_of(versions: Sequence[Version], lineage: Mapping[str, Version]) -> list[Lineage]:
    """``lineages_of([student, other], {base.reference: base})``: one for all versions with the same chain before them."""
    known = dict(lineage) | {version.reference: version for version in versions}
    ends: dict[tuple[Node, ...], list[Node]] = {}
    for version in versions:
        if not any(version.reference == other.base for other in versions):  # else it stands before its students
            ends.setdefault(_chain(version, known), []).append(_node(version.kind, version.reference, version))
    return [Lineage(chain, tuple(last), _reason(chain, last, known)) for chain, last in ends.items()]


def _chain(version: Version, known: Mapping[str, Version]) -> tuple[Node, ...]:
    teacher = version.manifest.teacher
    name = teacher.reference.rpartition("/")[2]  # the provenance has all of it
    size = "behind an API" if teacher.parameters is None else f"{format_number(teacher.parameters, 'parameters')} parameters"
    chain = [Node("teacher", name, f"{size}, {teacher.license}")]
    if (origin := version.manifest.base_model) is not None:
        chain.append(Node("model of the base", origin.reference.rpartition("/")[2], origin.license))
    for reference in version.manifest.path[1:]:
        role = "base" if reference == version.base else "teacher assistant"
        chain.append(_node(role, reference, known.get(reference)))
    if version.base and version.base not in version.manifest.path:
        chain.append(_node("base", version.base, known.get(version.base)))
    return tuple(chain)


def _node(role: str, reference: str, version: Version | None) -> Node:
    if version is None:
        return Node(role, reference)
    size = f"{format_number(version.manifest.parameters, 'parameters')} parameters"
    return Node(role, reference, f"{size}, {version.manifest.domain}" if version.manifest.kind == "student" else size)


def _reason(chain: Sequence[Node], ends: Sequence[Node], known: Mapping[str, Version]) -> str:
    """Why the base of this chain was taught by the teacher, or by a teacher assistant."""
    for node in (*ends, *reversed(chain)):
        manifest = known[node.name].manifest if node.name in known else None
        if manifest is not None and manifest.kind == "base" and manifest.path_choice:
            return manifest.path_choice.reason
    return ""


# ------------------------------------------------------------------------------------------------------------- answers


def answers_of(sample: Sample) -> Answers:
    """``answers_of(view.samples[0])``; plain text where the tokens were not kept."""
    coloured = bool(sample.teacher_tokens or sample.student_tokens)
    teacher, student = (_runs(tokens) for tokens in (sample.teacher_tokens, sample.student_tokens))
    return Answers(sample.prompt, teacher or ((sample.teacher, None),), student or ((sample.student, None),), coloured)


def _runs(tokens: Sequence[tuple[str, bool]]) -> tuple[Run, ...]:
    """``[("Pain", True), (" is", True)]`` → ``(("Pain is", True),)``: neighbours that agree alike are one run."""
    runs: list[Run] = []
    for agree, run in groupby(tokens, key=lambda token: token[1]):
        text = "".join(text for text, _ in run)
        word = text.lstrip()
        runs += [(text[: len(text) - len(word)], None), (word, agree)]  # the space before a token is not coloured
    return tuple((text, agree) for text, agree in runs if text)
