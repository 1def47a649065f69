"""``factory new NAME``: a domain YAML that builds as it is, to be filled with the domain's own prompts."""

from __future__ import annotations

from pathlib import Path

from factory.errors import SpecError
from factory.registry.registry import check_name

MAX_NAME = 30  # a source is named after it, and spec.Name allows 40

# Train and test share no template and no value, so both lists need some length: at least ten of each is a good start.
DOMAIN = """\
# The domain "{topic}": which prompts it has, and how the teacher answers them.
# It builds as it is; the better the prompts, the better the student: replace what is marked.
name: "{name}"
description: Questions about {topic}.      # replace: one line on what belongs here, and what does not
notice: ""                     # what a card and an answer must say, e.g. "This is no professional advice."
personal_data: drop            # examples with e-mail addresses, telephone or card numbers; or refuse, or allow
private: false                 # true keeps this text out of the shared base, the vocabulary and the router

# Shown to the teacher alone; the student learns to answer as if it had read this.
teacher_context:
  system: You answer questions about {topic} in two or three short plain sentences, without lists.

sources:
  # Every template is filled with every value of its slots. Replace both with what people really ask about {topic}:
  # 20 templates and 40 values or more are worth the time. Every value must fit every template.
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
      aspect:                  # replace
        - basic terms
        - safety
        - planning ahead
        - common tools
        - keeping costs low
        - choosing a good teacher
        - rules and standards
        - working in a team
        - checking the quality
        - finding information
        - saving time
        - dealing with problems
        - measuring progress
        - keeping records
  # More kinds of source (README): file, documents, hub, teacher_prompts. For example:
  # - {{id: {name}-file, kind: file, license: CC-BY-4.0, path: ../my.jsonl, prompt: question, completion: answer}}

# What a student is asked before its verdict; paths are relative to this folder, evals/ has examples of each.
# bias_pairs: [evals/{name}.bias_pairs.yaml]   # sentences that differ in one group word: does bias pass over?
# tasks: [evals/{name}.task.yaml]             # of lm-evaluation-harness
# golden_set: evals/{name}.golden_set.jsonl   # questions, and what an answer must and must not contain
# gates: {{kl: {{at_most: 0.8}}}}                 # what must be reached before it may be promoted
"""


def new_domain(name: str, folder: Path) -> Path:
    """``new_domain("veterinary", Path("domains"))`` writes ``domains/veterinary.yaml``.

    Raises: RegistryError for a name that is no plain folder name; SpecError where the file exists or the name is long.
    """
    check_name(name, "domain name")
    if len(name) > MAX_NAME:
        raise SpecError(f"the domain name {name!r} has {len(name)} letters, at most {MAX_NAME} are allowed")
    path = folder / f"{name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(DOMAIN.format(name=name, topic=name.replace("-", " ")))
    except FileExistsError:
        raise SpecError(f"{path} exists and is not overwritten; choose another name, or edit it") from None
    return path
