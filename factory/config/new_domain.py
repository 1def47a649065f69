"""``factory new NAME``: a domain YAML that builds as it is, to be filled with your own prompts; and what it is told of data."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from factory.config import SHIPPED
from factory.config.names import RESERVED, check_name
from factory.errors import SpecError

MAX_NAME = 30  # source ids are made from it, and a name may have 40 characters

# Train, validation and test share neither templates nor values: 12 of one and 24 of the other leave 112, 6 and 15 prompts.
DOMAIN = """\
# The domain "{topic}": its prompts, and how the teacher answers them. Every key: docs/domains.md
# It builds as it is. Better prompts make a better student: replace what is marked.
name: "{name}"
description: Questions about {topic}.      # replace: one line that says what belongs here
notice: ""                     # shown with every card and answer, e.g. "This is not professional advice."
personal_data: drop            # examples with e-mail addresses, phone or card numbers: drop, refuse or allow
private: false                 # true keeps these texts out of the shared base, the vocabulary and the router

# Only the teacher is shown this; the student learns to answer as if it had read it.
teacher_context:
  system: You answer questions about {topic} in two or three short plain sentences, without lists.
  examples:                    # replace: one or two answers as you want them; a small teacher needs them to be brief
    - prompt: "How much do I have to know about {topic} before I begin?"
      completion: Very little. Learn the most common words, watch somebody with experience, and begin with something small.

sources:
  # Every template is filled with every value of its slots, so every value must fit every template. Replace both with
  # what people really ask about {topic}; 20 templates and 40 values or more are worth the time.
  - id: {name}-questions
    kind: templates
    license: Apache-2.0
    templates:                 # replace
      - "What should a beginner know about {{aspect}} in {topic}?"
      - "How do I get better at {{aspect}} in {topic}?"
      - "Why does {{aspect}} matter so much in {topic}?"
      - "Can you explain {{aspect}} in {topic} to a child of ten?"
      - "Which mistakes do people make with {{aspect}} in {topic}?"
      - "I am new to {topic} and worried about {{aspect}}. Where do I start?"
      - "What has changed about {{aspect}} in {topic} over the years?"
      - "Who can help me with {{aspect}} in {topic}?"
      - "Give me one example of {{aspect}} in {topic}."
      - "How much time does {{aspect}} take in {topic}?"
      - "What would an expert in {topic} say about {{aspect}}?"
      - "My neighbour says that {{aspect}} in {topic} is simple. Is that true?"
    slots:
      aspect: [                # replace
        basic terms, safety, planning ahead, common tools, keeping costs low, choosing a good teacher, rules and standards,
        working in a team, checking the quality, finding information, saving time, dealing with problems, measuring progress,
        keeping records, setting goals, staying motivated, asking for feedback, preparing well, avoiding waste,
        choosing materials, regular practice, learning from mistakes, getting a second opinion, knowing when to stop]
  # Other kinds of source: file, documents, hub, teacher_prompts. For example:
  # - {{id: {name}-file, kind: file, license: CC-BY-4.0, path: ../my.jsonl, prompt: question, completion: answer}}

# How students are evaluated. Paths start at this folder; evals/ has an example of each.
# bias_pairs: [evals/{name}.bias_pairs.yaml]   # sentences that differ in one group: is the student more biased?
# tasks: [evals/{name}.task.yaml]              # tasks of lm-evaluation-harness
# golden_set: evals/{name}.golden_set.jsonl    # questions, and what an answer must and must not contain
# refusals: evals/{name}.refusals.jsonl        # prompts to decline or to refer, and harmless look-alikes
# gates: {{kl: {{at_most: 0.8}}}}                  # bounds that a student must meet to be promoted
"""


@dataclass(frozen=True)
class FolderSpec:
    """What a user says of a folder that is to be written for data (``factory new NAME --from DATA``)."""

    name: str  # of the domain and of the family
    data: Path  # a file, or a folder of files
    folder: Path  # to write to
    teacher: str | None = None  # a reference, or the name of a shipped family; the default family's if left out
    max_bytes: str | None = None  # of the base as a GGUF file
    license: str | None = None  # of the data
    prompt: str | None = None  # columns, where they are not recognised
    answer: str | None = None


def new_domain(name: str, folder: Path) -> Path:
    """``new_domain("veterinary", Path("domains"))`` writes ``domains/veterinary.yaml``.

    A folder that does not exist is first filled with the shipped families and domains.

    Raises: RegistryError for a name that cannot be a folder; SpecError if the file exists, or the name is too long or reserved.
    """
    check_domain_name(name)
    path = folder / f"{name}.yaml"
    if not folder.exists():
        shutil.copytree(SHIPPED, folder)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(DOMAIN.format(name=name, topic=name.replace("-", " ")))
    except FileExistsError:
        raise SpecError(f"{path} exists; edit it, or choose another name") from None
    return path


def check_domain_name(name: str) -> None:
    """``check_domain_name("veterinary")``. Raises: RegistryError or SpecError for a name that a new domain cannot have."""
    check_name(name, "domain name")
    if name in RESERVED:
        raise SpecError(f"the domain name {name!r} is reserved; choose another one (reserved: {', '.join(RESERVED)})")
    if len(name) > MAX_NAME:
        raise SpecError(f"the domain name {name!r} has {len(name)} characters; at most {MAX_NAME} are allowed")
