"""The text of a domain and of a family file that describe data and a teacher that were looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from factory.config.schema import DocumentSource, FileSource, TeacherSpec

NOT_STATED = "not stated"  # a licence that nobody gave; cards show it

HEAD = """\
# The domain "{topic}", found in {data}. Every key: docs/domains.md
# It builds as it is. What only you can know is marked: replace it.
name: "{name}"
description: {description}   # replace: one line that says what belongs here
notice: ""                     # shown with every card and answer, e.g. "This is not professional advice."
personal_data: drop            # examples with e-mail addresses, phone or card numbers: drop, refuse or allow
private: false                 # true keeps these texts out of the shared base, the vocabulary and the router

# Only the teacher is shown this; the student learns to answer as if it had read it. For example:
# teacher_context:
#   system: You answer questions about {topic} in two or three short plain sentences, without lists.
"""
OWN_ANSWERS = """
# Your answers are learnt by cross-entropy beside the teacher's distributions on them; at 0 the teacher alone is imitated.
distill: {ground_truth: 1}
"""
EVALUATION = """
# How students are evaluated. Paths start at this folder; docs/evaluation.md shows how to write each of them.
# golden_set: evals/{name}.golden_set.jsonl    # questions, and what an answer must and must not contain
# refusals: evals/{name}.refusals.jsonl        # prompts to decline or to refer, and harmless look-alikes
# gates: {{kl: {{at_most: 0.8}}}}                  # bounds that a student must meet to be promoted
"""


@dataclass(frozen=True)
class FoundTeacher:
    """What a family file says of a teacher, and the sizes that it can have."""

    spec: TeacherSpec
    layers: int
    vocabulary: int


@dataclass(frozen=True)
class FoundLimits:
    """Settings of `data` that fit the data, each with what it was found from."""

    settings: Mapping[str, int]
    why: str


def domain_text(
    name: str, data: str, sources: Sequence[FileSource | DocumentSource], said: Mapping[str, Sequence[str]], *, answers: bool
) -> str:
    """``domain_text("tickets", "tickets.xlsx", [source], {"tickets": ["3,000 of 3,000 rows ..."]}, answers=True)``

    ``said`` is, by the id of a source, how it was read; ``answers`` says whether there are prompts with answers.
    """
    topic = name.replace("-", " ")
    text = HEAD.format(name=name, topic=topic, data=data, description=quoted(f"Texts of {data}"))
    text += "\nsources:\n" + "".join(_source_text(source, said[source.id]) for source in sources)
    return text + (OWN_ANSWERS if answers else "") + EVALUATION.format(name=name)


def _source_text(source: FileSource | DocumentSource, said: Sequence[str]) -> str:
    comments = "".join(f"  # {line}\n" for line in said)
    stated = "" if source.license != NOT_STATED else "        # replace: the licence of these texts, which cards list"
    lines = [f"- id: {source.id}", f"  kind: {source.kind}", f"  license: {quoted(source.license)}{stated}"]
    lines += [f"  path: {quoted(source.path)}"]
    named = {key: getattr(source, key, None) for key in ("prompt", "completion")}
    lines += [f"  {key}: {quoted(column)}" for key, column in named.items() if column is not None]
    return comments + "".join(f"  {line}\n" for line in lines)


def family_text(shipped: str, name: str, teacher: FoundTeacher | None, limits: FoundLimits, max_bytes: str | None) -> str:
    """``family_text(path.read_text(), "tickets", None, limits, "60MB")``: a shipped family's text with what was found.

    A ``teacher`` replaces the shipped one, and its sizes; ``max_bytes`` is the only size where it is given.
    """
    data = yaml.safe_load(shipped).get("data", {}) | dict(limits.settings)
    blocks = {
        "name": f"# The family of {name}: its teacher and the sizes of its students. Every key: docs/domains.md\n"
        f"name: {quoted(name)}\n",
        "description": f"description: {quoted(f'Students of {name}')}\n",
        "data": f"# {limits.why}\ndata: {flow(data)}\n",
    }
    if teacher is not None:
        blocks |= {"teacher": _teacher_text(teacher.spec)}
    if max_bytes is not None:
        blocks |= {"default_size": "", "path": "", "sizes": _size_of_bytes(max_bytes)}
    elif teacher is not None:
        blocks |= {"default_size": "", "path": "", "sizes": _sizes_of(teacher)}
    return replace_keys(shipped, blocks)


def _teacher_text(spec: TeacherSpec) -> str:
    stated = "" if spec.license != NOT_STATED else "          # replace: the licence of its weights, which cards list"
    lines = [f"  model: {quoted(spec.model)}", f"  license: {quoted(spec.license)}{stated}"]
    if spec.sha256 is not None:
        lines.insert(1, f"  sha256: {spec.sha256}   # as it was fetched today")
    return "\n".join(["teacher:", *lines, ""])


def _size_of_bytes(max_bytes: str) -> str:
    return (
        "# A student is called <domain>-<size>. The base is what is nearest to the teacher in a GGUF file of that size.\n"
        f"default_size: fitted\nsizes:\n  fitted: {{max_bytes: {max_bytes}}}\n"
    )


def _sizes_of(teacher: FoundTeacher) -> str:
    fewer = max(1, round(teacher.layers * 2 / 3))
    return (
        "# A student is called <domain>-<size>. The tokens kept are those that people's texts need. `medium` keeps all\n"
        "# layers: it need not be healed, and most of the teacher stays. `small` is cut and healed.\n"
        "default_size: medium\nsizes:\n"
        f"  medium: {{vocabulary: {teacher.vocabulary}}}\n"
        f"  small: {{layers: {fewer}, vocabulary: {teacher.vocabulary}}}\n"
    )


def replace_keys(text: str, blocks: Mapping[str, str]) -> str:
    """``replace_keys(text, {"data": "data: {max_examples: 20}\\n"})``: keys of the first level, each with the comment above it.

    A key that is not there is added at the end; "" removes one.
    """
    for key, block in blocks.items():
        found = re.search(rf"^(?:#.*\n)*{key}:.*\n(?:[ \t]+.*\n)*", text, re.MULTILINE)
        begin, end = found.span() if found else (len(text), len(text))
        text = text[:begin] + block + text[end:]
    return re.sub(r"\n{3,}", "\n\n", text)


def quoted(text: str) -> str:
    """``quoted("Frage: 1") == '"Frage: 1"'``: a string of YAML; a plain word stays plain."""
    plain = re.fullmatch(r"[A-Za-z][\w./+-]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def flow(values: Mapping[str, Any]) -> str:
    """``flow({"max_examples": 20}) == "{max_examples: 20}"``"""
    return str(yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, width=10_000)).strip()
