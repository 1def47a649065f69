"""``factory data --pool``: the router sorts a heap of texts into domains, and leaves out what belongs to none.

sort_pool(context, models, Path("heap.jsonl"), Path("sorted"))["domains"][0]["texts"]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.cache import atomic_folder, storage_errors
from factory.config.sources import SOURCE_KINDS
from factory.data.dataset import drop_duplicates
from factory.data.history import NOTHING
from factory.data.language import NOT_STATED, Known, UnknownCount, count_unknown
from factory.data.router import DomainRouter
from factory.data.sources import Example
from factory.data.survey import rows_and_documents
from factory.errors import DataError
from factory.models.chat import messages
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import load_domain_examples, load_router

UNSTATED = "unstated"  # licence of texts that nobody has made a source of yet


@dataclass(frozen=True)
class SortedText:
    """A text with the domain that it is most like, and how sure the router is of that."""

    example: Example
    domain: str
    score: float


@dataclass(frozen=True)
class SortedHeap:
    """``domains["legal"]``: the surest first; ``none``: what nobody is to learn, the nearest to a domain first."""

    domains: Mapping[str, Sequence[SortedText]]
    none: Sequence[SortedText]
    duplicates: int
    threshold: float
    languages: UnknownCount

    def summary(self) -> dict[str, Any]:
        """``heap.summary()``: counts and a few texts of each, as plain lists and dicts."""
        parts = [*self.domains.items(), (None, self.none)]
        return {
            "texts": sum(len(found) for _, found in parts),
            "duplicates": self.duplicates,
            "threshold": self.threshold,
            "other_languages": self.languages.json(),
            "domains": [
                {"domain": name, "texts": len(found), "samples": [_sample(one) for one in _spread(found)]}
                for name, found in parts
            ],
        }


def sort_pool(context: BuildContext, models: FamilyModels, path: Path, out: Path | None = None) -> dict[str, Any]:
    """``sort_pool(context, models, Path("heap.jsonl"), Path("sorted"))``: counts and samples; writes a file for each domain.

    Raises: DataError for a heap that is missing or unreadable, or where ``out`` exists; StorageError where the disk refuses.
    """
    if out is not None and out.exists():
        raise DataError(f"{out} exists: name a folder that does not")
    heap = sort_heap(read_heap(context, models, path), load_router(context, models), context.family.languages)
    if out is not None:
        write_heap(heap, out)
    return heap.summary()


def read_heap(context: BuildContext, models: FamilyModels, path: Path) -> list[Example]:
    """``read_heap(context, models, Path("heap.jsonl"))``: files of any kind that a source may have, of a folder or a pattern.

    Of a chat only its last turn is kept, which has all of it. Raises: DataError for a path that is missing or cannot be read.
    """
    files, documents = rows_and_documents(path)
    paths = [("file", one) for one in files] + [("documents", one) for one in documents]
    sources = [
        SOURCE_KINDS[kind].model_validate(
            {"id": f"heap-{number}", "kind": kind, "license": UNSTATED, "path": str(one.resolve())}
        )
        for number, (kind, one) in enumerate(paths, start=1)
    ]
    found = load_domain_examples(context, models, sources, context.say)
    return [*{example.conversation: example for example in found if example.text}.values()]


def sort_heap(heap: Sequence[Example], router: DomainRouter, known: Known = NOT_STATED) -> SortedHeap:
    """``sort_heap(read_heap(...), load_router(context, models)).domains["legal"]``: every text once.

    Of texts in languages that are not among those ``known`` it is said how many there are.
    """
    dropped = Counter[str]()
    texts = drop_duplicates(heap, dropped)
    domains: dict[str, list[SortedText]] = {name: [] for name in router.domains}
    none: list[SortedText] = []
    for example, route in zip(texts, router.route([one.text for one in texts]), strict=True):
        nearest = max(route.scores, key=route.scores.__getitem__)
        found = none if route.domain is None else domains[route.domain]
        found.append(SortedText(example, nearest, route.score))
    for part in (*domains.values(), none):
        part.sort(key=lambda one: -one.score)
    languages = count_unknown([one.text for one in texts], known)
    return SortedHeap(domains, none, dropped.total(), router.threshold, languages)


def write_heap(heap: SortedHeap, folder: Path) -> None:
    """``write_heap(heap, Path("sorted"))``: ``<domain>.jsonl`` for each, which a ``file`` source reads, and ``none.jsonl``.

    Raises: StorageError where the disk refuses.
    """
    with storage_errors(f"cannot write {folder}"), atomic_folder(folder) as new:
        for name, texts in {**heap.domains, "none": heap.none}.items():
            rows = [json.dumps(_row(one), ensure_ascii=False) + "\n" for one in texts]
            (new / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


def _row(one: SortedText) -> dict[str, Any]:
    """As it came, in the form of its kind, with the router's score."""
    example, scored = one.example, {"domain": one.domain, "score": round(one.score, 3)}
    if not example.prompt:
        return {"text": example.completion} | scored
    answer = example.completion
    if example.history != NOTHING:
        said = [{"role": "assistant", "content": answer}] if answer else []
        return {"messages": [*messages(example.prompt, example.history), *said]} | scored
    return {"prompt": example.prompt} | ({"completion": answer} if answer else {}) | scored


def _spread(found: Sequence[SortedText]) -> list[SortedText]:
    """The surest, the middle one and the least sure."""
    return [found[place] for place in sorted({0, len(found) // 2, len(found) - 1}) if found]


def _sample(one: SortedText) -> dict[str, Any]:
    return {"text": one.example.text, "nearest": one.domain, "score": one.score}
