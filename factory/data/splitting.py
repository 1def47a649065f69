"""Train, validation and test splits: no template, slot value, document or shared answer is in two of them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from factory.config.schema import DataConfig
from factory.config.sources import SLOT
from factory.data.cleaning import SHARED_WORDS, words
from factory.data.records import Say, silent
from factory.data.sources import Example, seeded_order, slot_names

Split = Literal["train", "validation", "test"]

# A prompt counts where its template and its values are of one split, so shares multiply: train gets 0.625 of 0.675, 42 %.
TEMPLATES: dict[Split, float] = {"test": 0.25, "validation": 0.125}
VALUES: dict[Split, float] = {"test": 0.20, "validation": 0.125}
FEWEST: dict[Split, int] = {"test": 2, "validation": 4}  # templates or values that a source needs for one to be held out
FEWEST_DOCUMENTS = FEWEST["validation"]
BLOCKS, MIN_BLOCK = 20, 3  # of fewer documents: about so many blocks, of so many passages at least


@dataclass(frozen=True)
class SplitPrompts:
    """What belongs to none is counted: ``held_out`` prompts, which combine templates or values of different splits, and
    ``neighbours``, passages next to one that is held out.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    held_out: int
    neighbours: int


def in_blocks(examples: Sequence[Example], say: Say = silent) -> list[Example]:
    """``in_blocks(examples, say=print)``: of sources with few documents each block of consecutive passages is one of its own.

    Else test or validation would have no text. Four documents are enough to hold whole ones out, which says more: a model has
    seen nothing of them. ``say`` hears which sources are split so.
    """
    sources: dict[str, dict[tuple[str, ...], list[Example]]] = {}  # passages by document
    for example in examples:
        if example.is_passage:
            sources.setdefault(example.source, {}).setdefault(example.topic, []).append(example)
    parts: dict[str, tuple[str, ...]] = {}
    for source, documents in sources.items():
        size = max(MIN_BLOCK, math.ceil(sum(map(len, documents.values())) / BLOCKS))
        counts = {topic: math.ceil(len(passages) / size) for topic, passages in documents.items()}
        blocks = sum(counts.values())
        if len(documents) >= FEWEST_DOCUMENTS or blocks == len(documents):
            continue
        for (name,), passages in documents.items():
            count = counts[name,]
            parts |= {one.id: (f"{name}, part {1 + place * count // len(passages)}",) for place, one in enumerate(passages)}
        found = f"{len(documents)} document{'s' if len(documents) > 1 else ''}"
        say(
            f"{source}: {found}, fewer than {FEWEST_DOCUMENTS}, so no whole one is held out: validation and test are some of "
            f"{blocks} blocks of up to {size} consecutive passages"
        )
    return [replace(example, topic=parts.get(example.id, example.topic)) for example in examples]


def split_examples(examples: Sequence[Example], config: DataConfig, seed: int) -> SplitPrompts:
    """``split_examples(examples, config, seed).train``: each template, slot value, document and row of a file gets one split.

    A prompt goes to the split that its template and values agree on. What is next to a held-out passage is left out.
    """
    templates = assign_templates(examples, seed)
    topics = assign_topics(examples, config, seed)
    by_split: dict[Split | None, list[Example]] = {"train": [], "validation": [], "test": [], None: []}
    for example in examples:
        by_split[split_of(example, templates, topics)].append(example)
    validation = _without_neighbours(by_split["validation"], by_split["test"])
    train = _without_neighbours(by_split["train"], [*by_split["test"], *by_split["validation"]])
    neighbours = len(by_split["validation"]) + len(by_split["train"]) - len(validation) - len(train)
    return SplitPrompts(train, validation, by_split["test"], len(by_split[None]), neighbours)


def _without_neighbours(examples: Iterable[Example], held_out: Iterable[Example]) -> list[Example]:
    ids = {id for example in held_out for id in example.neighbours}
    return [example for example in examples if example.id not in ids]


def split_of(example: Example, templates: Mapping[str, Split], topics: Mapping[str, Split]) -> Split | None:
    """The split of its template and of all its topics; None if they disagree."""
    splits = {topics[key] for key in topic_keys(example)}
    if example.template:
        splits.add(templates[template_key(example.template)])
    return splits.pop() if len(splits) == 1 else None


def assign_templates(examples: Iterable[Example], seed: int) -> dict[str, Split]:
    """Shares of each source's templates go to test and validation; the only template of a source goes to train."""
    by_source: dict[str, dict[str, None]] = {}
    for example in examples:
        if example.template:
            by_source.setdefault(example.source, {})[template_key(example.template)] = None
    assigned: dict[str, Split] = {}
    for keys in by_source.values():
        assign(list(keys), quotas(len(keys), TEMPLATES), assigned, seed)
    return assigned


def assign_topics(examples: Iterable[Example], config: DataConfig, seed: int) -> dict[str, Split]:
    """The split of each slot value, document and row of a file.

    A value that two slots or sources share keeps its first split, and counts for both.
    """
    slots: dict[tuple[str, str], dict[str, None]] = {}
    for example in examples:
        names = slot_names(example.template) if example.template else []
        for place, key in enumerate(topic_keys(example)):
            name = names[place] if place < len(names) else ""
            slots.setdefault((example.source, name), {})[key] = None
    assigned: dict[str, Split] = {}
    configured: dict[Split, float] = {"test": config.test, "validation": config.validation}
    for (_, name), keys in slots.items():
        assign(list(keys), quotas(len(keys), VALUES if name else configured), assigned, seed)
    return assigned


def quotas(size: int, shares: Mapping[Split, float]) -> dict[Split, int]:
    """``quotas(12, TEMPLATES) == {"test": 3, "validation": 2}``: about its share and at least one, but none of too few."""
    return {split: max(1, round(size * share)) if size >= FEWEST[split] else 0 for split, share in shares.items()}


def assign(keys: Sequence[str], quotas: Mapping[Split, int], assigned: dict[str, Split], seed: int) -> None:
    """Fills the quotas in seeded order and sends the rest to train, in place; keys assigned before stay and count."""
    taken = Counter(assigned[key] for key in keys if key in assigned)
    places = [split for split, wanted in quotas.items() for _ in range(wanted - taken[split])]
    for key in sorted((key for key in keys if key not in assigned), key=lambda key: seeded_order(seed, key)):
        assigned[key] = places.pop(0) if places else "train"


# ----------------------------------------------------------------------------------------------------- what stays together


def cluster_of(row: Mapping[str, Any]) -> str:
    """``cluster_of(data.rows["test"][0])``: rows with the same cluster are not independent; intervals resample clusters.

    It is the row's template, else its document, else its own answer (below), else its id. A cluster is in one split.
    """
    if row["template"]:
        return template_key(row["template"])
    if row["topic"]:
        return normalised(row["topic"][0])
    return row_key(row["completion"] if row["own_completion"] else "", row["id"])


def template_key(template: str) -> str:
    """Equal for templates that differ only in case, spaces or slot names."""
    return normalised(SLOT.sub("{}", template))


def topic_keys(example: Example) -> list[str]:
    """Slot values, the document, or the row of a file itself; empty for a template without slots."""
    if example.topic:
        return [normalised(value) for value in example.topic]
    return [] if example.template else [row_key(example.completion, example.id)]


def row_key(answer: str, id: str) -> str:
    """Equal for rows of files that have the same answer; an answer of fewer than ``SHARED_WORDS`` words is a label ("B")."""
    return f"answer\n{normalised(answer)}" if len(words(answer)) >= SHARED_WORDS else f"id\n{id}"


def normalised(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()
