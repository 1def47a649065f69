"""Domains of real questions with people's answers, ready to build and to benchmark:

python scripts/bench/references.py DATA my
factory build medquad --profile demo --domains my
factory benchmark medquad-medium my/medquad.test.jsonl --domains my --quantizations none --save medquad.json

DATA holds ``healthcare/medquad.jsonl`` and the other files in ``FILES``, one JSON object with ``prompt`` and ``response`` per
line; without them the script says so and ends. It writes the folder ``my``: the shipped family and its evaluation files, and
of each domain its YAML, its questions, ``<domain>.test.jsonl`` with questions of other diseases, chapters or contracts, and
``evals/<domain>.task.jsonl``, where the same held-out questions have four answers to choose from.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from factory.data.cleaning import words

DOMAINS = Path(__file__).parents[2] / "domains"
TESTED = 200  # questions of a domain
LABEL = 8  # an answer of fewer words ("New York") may be in training and in test
OPTION = re.compile(r"^[A-E]\. .+$", re.MULTILINE)
Row = Mapping[str, str]


@dataclass(frozen=True)
class Source:
    description: str
    file: str
    topic: str  # the field whose values are in training or in test, never in both
    kind: str  # wrong answers are right ones to questions of the same kind


FILES = {
    "medquad": Source(
        "Consumer-health questions, with the answers that the National Institutes of Health give",
        "healthcare/medquad.jsonl",
        topic="focus",
        kind="qtype",
    ),
    "psychology": Source(
        "Terms and review questions of an introduction to psychology, with the textbook's answers",
        "education/openstax_psychology.jsonl",
        topic="module",
        kind="kind",
    ),
    "government": Source(
        "Terms and review questions of an introduction to American government, with the textbook's answers",
        "legal/openstax_american_government.jsonl",
        topic="module",
        kind="kind",
    ),
    "contracts": Source(
        "Questions on excerpts from contracts, with what lawyers labelled",
        "legal/cuad_clauses.jsonl",
        topic="contract",
        kind="category",
    ),
}
# Cross-entropy on the answers teaches what the teacher does not know; its own distributions on them keep what it does.
SETTINGS = {
    "data": {"max_examples": 1000, "max_completion_tokens": 256},
    "distill": {"batch": 8, "learning_rate": 1.0e-3, "response": 0.25, "ground_truth": 1.0, "relation": 0.0},
}
FIELDS = {"completion": "response", "id_field": "id", "license": "cc-by-4.0"}
# The harness asks as the family's chat template does: what is measured was trained in it.
TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "<|im_start|>user\n{{question}}<|im_end|>\n<|im_start|>assistant\n",
    "target_delimiter": "",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": one, "aggregation": "mean", "higher_is_better": True} for one in ("acc", "acc_norm")],
}


def split(rows: Sequence[Row], topic: str, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """``train, test = split(rows, "module", rng)``: no topic, question or answer of more than a label is in both."""
    topics = sorted({row[topic] for row in rows})
    rng.shuffle(topics)
    held_out: set[str] = set()
    for one in topics:
        if sum(row[topic] in held_out for row in rows) >= TESTED:
            break
        held_out.add(one)
    test = [row for row in rows if row[topic] in held_out]
    prompts, answers = (
        {row["prompt"] for row in test},
        {row["response"] for row in test if len(words(row["response"])) >= LABEL},
    )
    train = [
        row for row in rows if row[topic] not in held_out and row["prompt"] not in prompts and row["response"] not in answers
    ]
    return train, rng.sample(test, min(TESTED, len(test)))


def choices(row: Row, others: Sequence[Row], rng: random.Random) -> dict[str, Any] | None:
    """A question with its answer among four: its own options, or answers to other questions of its kind; None without."""
    options = OPTION.findall(row["prompt"])
    if options:
        return {"question": row["prompt"], "choices": options, "answer": options.index(row["response"])}
    wrong = sorted({other["response"] for other in others} - {row["response"]})
    if len(wrong) < 3:
        return None
    four = [row["response"], *rng.sample(wrong, 3)]
    rng.shuffle(four)
    return {"question": row["prompt"], "choices": four, "answer": four.index(row["response"])}


def write_domain(name: str, source: Source, rows: Sequence[Row], folder: Path) -> str:
    """Its files, and a line that says how many questions they hold."""
    rng = random.Random(f"references/{name}")
    train, test = split([row for row in rows if len(row["prompt"] + row["response"]) <= 1200], source.topic, rng)
    asked = [choices(row, [one for one in test if one[source.kind] == row[source.kind]], rng) for row in test]
    items = [item for item in asked if item is not None]
    for file, lines in ((f"{name}.jsonl", train), (f"{name}.test.jsonl", test), (f"evals/{name}.task.jsonl", items)):
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    task = {"task": f"factory_{name}", "dataset_kwargs": {"data_files": {"test": f"{name}.task.jsonl"}}, **TASK}
    domain = {
        "name": name,
        "description": source.description,
        "sources": [{"id": name, "kind": "file", "path": f"{name}.jsonl", **FIELDS}],
        "tasks": [f"evals/{name}.task.yaml"],
        **SETTINGS,
    }
    for file, content in ((f"{name}.yaml", domain), (f"evals/{name}.task.yaml", task)):
        (folder / file).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return f"{name}: {len(train):,} questions to learn from, {len(test)} to measure on, {len(items)} with choices"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path, help="must not exist yet")
    given = parser.parse_args()
    missing = [one.file for one in FILES.values() if not (given.data / one.file).is_file()]
    if missing:
        print(f"no domains of real questions were written: {given.data} lacks {', '.join(missing)}")
        sys.exit()
    given.folder.mkdir(parents=True)
    for name in ("default.family.yaml", "general.pool.yaml"):
        shutil.copy(DOMAINS / name, given.folder)
    shutil.copytree(DOMAINS / "evals", given.folder / "evals")
    for name, source in FILES.items():
        rows = [json.loads(line) for line in (given.data / source.file).read_text(encoding="utf-8").splitlines()]
        print(write_domain(name, source, rows, given.folder))


if __name__ == "__main__":
    main()
