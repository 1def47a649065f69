"""What the page shows of the registry: every student with its versions and metrics, and one version's card as safe HTML.

    catalogue(registry)["students"][0]["versions"][0]["metrics"]["kl"]   # {"value", "low", "high", "n", "label", "unit"}
    card(registry, "healthcare-small@2")["html"]

Everything comes from manifests. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from factory.errors import RegistryError
from factory.evaluation.metrics import metric_named
from factory.registry.manifest import MetricValue, StudentManifest
from factory.registry.registry import Registry
from factory.registry.versions import Summary, Version
from factory.reports.view import metric_json

SHOWN = ("kl", "golden_set_passed", "golden_set_passed_teacher", "top1_agreement")
MAX_QUESTIONS = 2  # per student: held-out prompts that the page offers as first questions
README = "README.md"


def catalogue(registry: Registry, may: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """``catalogue(registry, caller.may)`` → {"students": [{"name", "domain", "current", "questions", "versions"}], "problems"}.

    Versions are sorted newest first. "current" is the version that the bare name resolves to, or None if every version
    failed. An invalid version is one line of "problems".
    """
    names: dict[str, list[Summary]] = {}
    for summary in registry.versions("student"):
        if may(summary.name):
            names.setdefault(summary.name, []).append(summary)
    students = []
    problems = [f"{name}@{n}: {reason}" for (_, name, n), reason in registry.invalid("student").items() if may(name)]
    for name, summaries in names.items():
        versions = []
        for summary in reversed(summaries):
            try:
                versions.append((registry.resolve(summary.reference), summary.aliases))
            except RegistryError as error:  # changed meanwhile
                problems.append(str(error))
        if versions:
            students.append(_student(registry, name, versions))
    return {"students": students, "problems": problems}


def _student(registry: Registry, name: str, versions: list[tuple[Version, tuple[str, ...]]]) -> dict[str, Any]:
    try:
        current: Version | None = registry.resolve(name)
    except RegistryError:  # every version failed its gates
        current = None
    manifest = _manifest(current or versions[0][0])
    return {
        "name": name,
        "domain": manifest.domain,
        "description": manifest.description,
        "current": current and current.reference,
        "questions": [sample.prompt for sample in manifest.evaluation.samples[:MAX_QUESTIONS]],
        "versions": [facts(version, aliases) for version, aliases in versions],
    }


def facts(version: Version, aliases: Iterable[str]) -> dict[str, Any]:
    """``facts(version, ["champion"])``: one student version as JSON, with those of SHOWN that were measured.

    Raises: RegistryError for a base.
    """
    manifest = _manifest(version)
    size, measured = manifest.evaluation.sizes.student, manifest.evaluation.metrics
    return {
        "reference": version.reference,
        "aliases": sorted(aliases),
        "verdict": manifest.verdict.status,
        "reasons": manifest.verdict.reasons,
        "profile": manifest.profile,
        "base": manifest.base,
        "teacher": manifest.teacher.reference,
        "created": manifest.created,
        "notice": manifest.notice,
        "parameters": size.parameters,
        "teacher_parameters": manifest.teacher.parameters,
        "bytes": size.bytes,
        "adapter_bytes": size.adapter_bytes,
        "metrics": {key: _metric(key, measured[key]) for key in SHOWN if key in measured and isfinite(measured[key].value)},
    }


def _manifest(version: Version) -> StudentManifest:
    if version.manifest.kind != "student":
        raise RegistryError(f"{version.reference} is a {version.kind}; the page shows only students")
    return version.manifest


def _metric(key: str, value: MetricValue) -> dict[str, Any]:
    metric = metric_named(key)
    return {**(metric_json(value) or {}), "label": metric.label, "unit": metric.unit}


# ---------------------------------------------------------------------------------------------------------------- card


def card(registry: Registry, reference: str) -> dict[str, Any]:
    """``card(registry, "healthcare-small")["html"]``: a version's facts, and its card as HTML with every tag escaped.

    Raises: RegistryError for an unknown version, a base, or a version without a card.
    """
    version = registry.resolve(reference)
    aliases = [alias for alias, number in registry.aliases(version.name).items() if number == version.number]
    found = facts(version, aliases)
    return found | {"html": card_html(version.read(README).decode(errors="replace"))}


def card_html(text: str) -> str:
    """``card_html("# healthcare-small\\n<b>")`` → Markdown as HTML, without front matter and title; HTML in it is escaped.

    Images become links, links that could run code stay text, and headings move one level down to fit the page.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = markdown.parse(_without_front_matter(text))
    if tokens and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        tokens = tokens[3:]  # the title, which the page already shows
    for token in tokens:
        _adapt(token)
    return str(markdown.renderer.render(tokens, markdown.options, {}))


def _adapt(token: Token) -> None:
    token.attrs.pop("style", None)  # a column's alignment: the content security policy forbids inline styles
    if token.type in ("heading_open", "heading_close"):
        token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
    for child in token.children or ():
        if child.type == "link_open":
            child.attrs |= {"rel": "noopener noreferrer", "target": "_blank"}


def _without_front_matter(text: str) -> str:
    opening, marker, rest = text.partition("\n---\n")
    return rest if marker and opening.startswith("---\n") else text
