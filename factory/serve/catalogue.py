"""What the page shows of the registry: every student with its versions and figures, and one version's card as safe HTML.

    catalogue(registry)["students"][0]["versions"][0]["figures"]["kl"]   # {"value", "low", "high", "n", "label", "unit"}
    card(registry, "healthcare-small@2")["html"]

Only what manifests hold. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from factory.errors import RegistryError
from factory.evaluation.metrics import metric_named
from factory.registry.registry import Registry
from factory.registry.versions import Summary, Version, entries, read_metric, read_parameters, section

FIGURES = ("kl", "top1_agreement")
QUESTIONS = 2  # of each version's held-out samples, for a visitor to begin with
README = "README.md"


def catalogue(registry: Registry, may: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """``catalogue(registry, caller.may)`` → {"students": [{"name", "domain", "current", "questions", "versions"}], "problems"}.

    Versions are the newest first; "current" is what the bare name means, None where no version is sound. A version that
    is not whole is a line of "problems" instead.
    """
    names: dict[str, list[Summary]] = {}
    for summary in filter(lambda one: may(one.name), registry.versions("student")):
        names.setdefault(summary.name, []).append(summary)
    students, problems = [], []
    for name, summaries in names.items():
        versions = []
        for summary in reversed(summaries):
            try:
                versions.append((registry.resolve(summary.reference), summary.aliases))
            except RegistryError as error:
                problems.append(str(error))
        if versions:
            students.append(_student(registry, name, versions))
    return {"students": students, "problems": problems}


def _student(registry: Registry, name: str, versions: list[tuple[Version, tuple[str, ...]]]) -> dict[str, Any]:
    try:
        current: Version | None = registry.resolve(name)
    except RegistryError:  # every version failed its gates
        current = None
    shown = current or versions[0][0]
    samples = entries(shown.raw, "evaluation", "samples")
    return {
        "name": name,
        "domain": shown.raw.get("domain"),
        "description": section(shown.raw, "spec").get("description") or "",
        "current": current and current.reference,
        "questions": [str(one["prompt"]) for one in samples if one.get("prompt")][:QUESTIONS],
        "versions": [facts(version, aliases) for version, aliases in versions],
    }


def facts(version: Version, aliases: Iterable[str]) -> dict[str, Any]:
    """``facts(version, ["champion"])``: one version as JSON; a figure that was not measured is not there."""
    manifest = version.raw
    own, teacher = read_parameters(manifest)
    sizes = section(manifest, "evaluation", "sizes", "student")
    figures = {key: metric for key in FIGURES if (metric := read_metric(manifest, key)) is not None}
    return {
        "reference": version.reference,
        "aliases": sorted(aliases),
        "verdict": version.verdict,
        "failed": list(version.manifest.verdict.reasons) if version.manifest.kind == "student" else [],
        "profile": manifest.get("profile"),
        "base": version.base,
        "teacher": section(manifest, "teacher").get("reference"),
        "created": manifest.get("created"),
        "notice": manifest.get("notice") or "",
        "parameters": own,
        "teacher_parameters": teacher,
        "bytes": sizes.get("bytes"),
        "adapter_bytes": sizes.get("adapter_bytes"),
        "figures": {
            key: metric | {"label": metric_named(key).label, "unit": metric_named(key).unit} for key, metric in figures.items()
        },
    }


def card(registry: Registry, reference: str) -> dict[str, Any]:
    """``card(registry, "healthcare-small")``: that version's facts, and its card as HTML in which no HTML of its own is left.

    Raises: RegistryError for an unknown version, a base, or one without a card.
    """
    version = registry.resolve(reference)
    if version.kind != "student":
        raise RegistryError(f"{version.reference} is a {version.kind}; the page shows students")
    try:
        text = (version.folder / README).read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise RegistryError(f"{version.reference} has no card: there is no {README} in its folder") from None
    aliases = [alias for alias, number in registry.aliases(version.name).items() if number == version.number]
    return facts(version, aliases) | {"html": card_html(text)}


def card_html(text: str) -> str:
    """``card_html("# healthcare-small\\n<b>")`` → Markdown as HTML, without front matter and title; its HTML is shown as text.

    Images are not fetched, links of other kinds than http and mailto stay text, headings stand under the page's own.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = markdown.parse(_without_front_matter(text))
    if tokens and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        tokens = tokens[3:]  # the title: the page has it above
    for token in tokens:
        _fit(token)
    return str(markdown.renderer.render(tokens, markdown.options, {}))


def _fit(token: Token) -> None:
    token.attrs.pop("style", None)  # a column's alignment, which the page's security policy would refuse
    if token.type in ("heading_open", "heading_close"):
        token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
    for child in token.children or ():
        if child.type == "link_open":
            child.attrs |= {"rel": "noopener noreferrer", "target": "_blank"}


def _without_front_matter(text: str) -> str:
    opening, marker, rest = text.partition("\n---\n")
    return rest if marker and opening.startswith("---\n") else text
