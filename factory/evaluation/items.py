"""Items of evaluation files: read from JSON lines, sampled over topics, and counted.

prompts = load_items("evals/legal.refusals.jsonl", specs.root, RefusalPrompt)  # imports no torch: files are checked at once
asked = sample_items(prompts, limit=120)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from pydantic import ValidationError, field_validator

from factory.config.schema import Strict
from factory.data.sampling import turns
from factory.errors import DataError
from factory.evaluation.stats import BootstrapConfig, FloatArray, by_cluster, share, share_difference
from factory.registry.manifest import MetricValue

ItemT = TypeVar("ItemT", bound="Item")


class Item(Strict):
    """A line of an evaluation file: what a model is asked."""

    EXAMPLE: ClassVar[str] = '{"prompt": "..."}'

    prompt: str
    topic: str = ""  # items of one topic are not independent

    @field_validator("prompt")
    @classmethod
    def prompt_is_not_empty(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("there is nothing to ask")
        return prompt

    @property
    def cluster(self) -> str:
        """Its topic; an item without one stands alone."""
        return self.topic or self.prompt


def load_items(path: str, root: Path, kind: type[ItemT]) -> list[ItemT]:
    """``load_items("evals/injections.jsonl", specs.root, Injection)``: the items of a JSON-lines file, in order.

    A relative path starts at ``root``, the folder of the YAML files. Blank lines are skipped.

    Raises:
        DataError: for a file that is missing, unreadable or empty, and for a malformed or repeated item, with its line.
    """
    file = root / path
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        alike = root.rglob("*" + "".join(file.suffixes))
        there = ", ".join(sorted(str(one.relative_to(root)) for one in alike)) or "none"
        raise DataError(f"{file} cannot be read ({type(error).__name__}); {root} has: {there}") from None
    items: dict[str, ItemT] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item = _parse(line, kind, f"{file}:{number}")
        key = normalize(item.prompt)
        if key in items:
            raise DataError(f"{file}:{number}: {item.prompt!r} appears twice; ask it once")
        items[key] = item
    if not items:
        raise DataError(f"{file} is empty; write one item per line: {kind.EXAMPLE}")
    return list(items.values())


def _parse(line: str, kind: type[ItemT], where: str) -> ItemT:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{where}: {field + ': ' if field else ''}{message}") from None


def normalize(text: str) -> str:
    """``normalize("Don’t\\n STOP") == "don't stop"``"""  # noqa: RUF002
    return " ".join(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").casefold().split())


def sample_items(items: Sequence[ItemT], limit: int | None) -> list[ItemT]:
    """``sample_items(items, limit=120)``: one of each topic, then a second of each, and so on; None takes all.

    Many topics say more than many items of one: they are what intervals resample. The order is by digests: the same for every
    build, so that two versions answer the same questions, and a smaller sample is part of a larger one.
    """
    ordered = sorted(items, key=lambda item: _digest(item.prompt))
    place = turns(item.cluster for item in ordered)
    rows = sorted(range(len(ordered)), key=lambda row: (place[row], _digest(ordered[row].cluster)))
    return [ordered[row] for row in rows[:limit]]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def share_metrics(
    scores: Mapping[str, Sequence[float] | FloatArray],
    share_name: str,
    change_name: str,
    bootstrap: BootstrapConfig,
    clusters: Sequence[str] | None = None,
) -> dict[str, MetricValue]:
    """``share_metrics({"student": s, "teacher": t}, "passed", "change", bootstrap, topics)``: mean scores of the same E items.

    ``share_name`` is the student's mean of (E,) scores, each 0 or 1, ``<share_name>_<model>`` another model's, and
    ``change_name`` the student's minus the teacher's, paired. ``clusters`` are the items' (E,), which are resampled; by
    default each item is its own. n counts items. No items, no metrics.
    """
    count = len(next(iter(scores.values()), ()))
    if count == 0:
        return {}
    labels = [str(number) for number in range(count)] if clusters is None else clusters
    sums = {name: by_cluster(np.asarray(one, dtype=float), labels) for name, one in scores.items()}
    items = by_cluster(np.ones(count), labels)
    metrics = {
        share_name if name == "student" else f"{share_name}_{name}": share(one, items, bootstrap) for name, one in sums.items()
    }
    if {"student", "teacher"} <= sums.keys():
        metrics[change_name] = share_difference(sums["student"], sums["teacher"], items)
    return metrics
