"""Train, validation and test splits: by template and by topic, so that no template or topic is in both train and test."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from factory.config.schema import DataConfig
from factory.data.sources import SLOT, Example, seeded_order, slot_names

Split = Literal["train", "validation", "test"]

TEMPLATES_IN_TEST = 0.25
VALUES_IN_TEST, VALUES_IN_VALIDATION = 0.25, 0.10


@dataclass(frozen=True)
class SplitPrompts:
    """``held_out`` counts prompts that combine templates or values of different splits, and so belong to none."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    held_out: int


def split_examples(examples: Sequence[Example], config: DataConfig, seed: int) -> SplitPrompts:
    """``split_examples(examples, config, seed).train``: each template, slot value, document and plain example gets one split.

    A prompt goes to the split that its template and values agree on.
    """
    templates = assign_templates(examples, seed)
    topics = assign_topics(examples, config, seed)
    by_split: dict[Split | None, list[Example]] = {"train": [], "validation": [], "test": [], None: []}
    for example in examples:
        by_split[split_of(example, templates, topics)].append(example)
    return SplitPrompts(by_split["train"], by_split["validation"], by_split["test"], len(by_split[None]))


def split_of(example: Example, templates: Mapping[str, Split], topics: Mapping[str, Split]) -> Split | None:
    """None if they disagree. Train and validation share templates but no values; test shares neither."""
    splits = {topics[key] for key in topic_keys(example)}
    if not example.template:
        return next(iter(splits)) if len(splits) == 1 else None
    template = templates[template_key(example.template)]
    if not splits:  # a template without slots
        return template
    if len(splits) > 1 or ("test" in splits) != (template == "test"):
        return None
    return next(iter(splits))


def assign_templates(examples: Iterable[Example], seed: int) -> dict[str, Split]:
    """About a quarter of each source's templates go to test: at least one, never all; a single template goes to train."""
    by_source: dict[str, dict[str, None]] = {}
    for example in examples:
        if example.template:
            by_source.setdefault(example.source, {})[template_key(example.template)] = None
    assigned: dict[str, Split] = {}
    for keys in by_source.values():
        assign(list(keys), {"test": quota(len(keys), TEMPLATES_IN_TEST, least_of=2)}, assigned, seed)
    return assigned


def assign_topics(examples: Iterable[Example], config: DataConfig, seed: int) -> dict[str, Split]:
    """The split of each slot value, document and plain example.

    A value that two slots or sources share keeps its first split, and counts for both.
    """
    slots: dict[tuple[str, str], dict[str, None]] = {}
    for example in examples:
        names = slot_names(example.template) if example.template else []
        for place, key in enumerate(topic_keys(example)):
            name = names[place] if place < len(names) else ""
            slots.setdefault((example.source, name), {})[key] = None
    assigned: dict[str, Split] = {}
    for (_, name), keys in slots.items():
        in_test, in_validation = (VALUES_IN_TEST, VALUES_IN_VALIDATION) if name else (config.test, config.validation)
        quotas: dict[Split, int] = {
            "test": quota(len(keys), in_test, least_of=2),
            "validation": quota(len(keys), in_validation, least_of=4),
        }
        assign(list(keys), quotas, assigned, seed)
    return assigned


def quota(size: int, share: float, least_of: int) -> int:
    """About ``share`` of ``size``: at least one, but none if ``size`` is below ``least_of``."""
    return max(1, round(size * share)) if size >= least_of else 0


def assign(keys: Sequence[str], quotas: Mapping[Split, int], assigned: dict[str, Split], seed: int) -> None:
    """Fills the quotas in seeded order and sends the rest to train, in place; keys assigned before stay and count."""
    taken = Counter(assigned[key] for key in keys if key in assigned)
    places = [split for split, wanted in quotas.items() for _ in range(wanted - taken[split])]
    for key in sorted((key for key in keys if key not in assigned), key=lambda key: seeded_order(seed, key)):
        assigned[key] = places.pop(0) if places else "train"


def template_key(template: str) -> str:
    """Equal for templates that differ only in case, spaces or slot names."""
    return normalised(SLOT.sub("{}", template))


def topic_keys(example: Example) -> list[str]:
    """Slot values, the document, or the example itself; empty for a template without slots."""
    if example.topic:
        return [normalised(value) for value in example.topic]
    return [] if example.template else [f"id\n{example.id}"]


def cluster_of(row: Mapping[str, Any]) -> str:
    """``cluster_of(data.rows["test"][0])``: what the row shares with rows that are not independent of it.

    Its template, else its document, else the row itself.
    """
    if row["template"]:
        return template_key(row["template"])
    return normalised(row["topic"][0]) if row["topic"] else f"id\n{row['id']}"


def normalised(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()
