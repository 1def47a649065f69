"""Few documents are split by blocks of consecutive passages, many as wholes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from factory.config.schema import DataConfig
from factory.data.sources import Example
from factory.data.splitting import BLOCKS, SplitPrompts, in_blocks, split_examples


def passages(document: str, count: int, source: str = "books") -> list[Example]:
    texts = [f"Passage {number} of {document}." for number in range(count)]
    return [
        Example(f"{source}/{document}#{number}", "", text, source, "MIT", "", (document,)) for number, text in enumerate(texts)
    ]


def splits_of(split: SplitPrompts, document: str) -> dict[int, str]:
    """The split of each passage, by its number."""
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    every = {one.id: name for name, part in parts.items() for one in part}
    return {int(id.rpartition("#")[2]): name for id, name in every.items() if id.startswith(f"books/{document}#")}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [30, 60, 300, 1001])
def test_a_single_document_gives_every_split_text_and_no_neighbours_across_splits(count: int, seed: int) -> None:
    split = split_examples(in_blocks(passages("a.txt", count)), DataConfig(), seed)
    found = splits_of(split, "a.txt")
    assert set(found.values()) == {"train", "validation", "test"}
    assert len(split.train) >= count // 2 and len(split.test) >= count // 20
    assert len(found) == count - split.neighbours and 0 < split.neighbours <= 16
    for (here, first), (there, second) in pairwise(sorted(found.items())):
        assert first == second or there - here > 1


def test_held_out_passages_of_a_single_document_are_whole_blocks() -> None:
    examples = in_blocks(passages("a.txt", 300))
    assert {len([one for one in examples if one.topic == topic]) for topic in {one.topic for one in examples}} == {15}
    test = split_examples(examples, DataConfig(), 0).test
    assert len(test) == 30 and len({one.topic for one in test}) == 2  # each a cluster of its own


@pytest.mark.parametrize("documents", [2, 3])
def test_of_two_or_three_documents_validation_has_text_too(documents: int) -> None:
    examples = [one for number in range(documents) for one in passages(f"{number}.txt", 40)]
    split = split_examples(in_blocks(examples), DataConfig(), 0)
    assert split.train and split.validation and split.test
    assert len({one.topic for one in in_blocks(examples)}) <= BLOCKS + documents


def test_four_documents_are_held_out_as_wholes() -> None:
    examples = [one for number in range(4) for one in passages(f"{number}.txt", 40)]
    said: list[str] = []
    assert in_blocks(examples, said.append) == examples and not said
    split = split_examples(examples, DataConfig(), 0)
    assert {len(set(splits_of(split, f"{number}.txt").values())) for number in range(4)} == {1}
    assert split.neighbours == 0


def test_it_is_said_of_each_source_that_is_split_by_blocks() -> None:
    many = [one for number in range(9) for one in passages(f"{number}.txt", 9, "many")]
    prompts = [Example(f"rows/{number}", f"Why {number}?", "", "rows", "MIT", "", ()) for number in range(3)]
    said: list[str] = []
    found = in_blocks([*passages("a.txt", 300), *many, *prompts, *passages("b.txt", 2, "short")], said.append)
    assert said == [
        "books: 1 document, fewer than 4, so no whole one is held out: validation and test are some of 20 blocks of up to 15 "
        "consecutive passages"
    ]
    assert [one for one in found if one.source != "books"] == [*many, *prompts, *passages("b.txt", 2, "short")]
