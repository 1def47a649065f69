"""Data sets: split, cleaning and limits of prompts, and what is written to disk."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.config import SHIPPED
from factory.config.load import load_specs
from factory.config.schema import DataConfig, TeacherContext, TemplateSource, Turn
from factory.data import dataset
from factory.data.cleaning import clean_completion
from factory.data.dataset import (
    Completion,
    DatasetManifest,
    PromptSet,
    drop_duplicates,
    drop_lengths,
    find_disagreements,
    fingerprint,
    finish_dataset,
    load_dataset_folder,
    make_prompts,
    make_rows,
    route_pool,
    small_dataset_warning,
)
from factory.data.history import NOTHING, history_of
from factory.data.sources import Example, load_examples
from factory.data.splitting import cluster_of, normalised, template_key
from factory.errors import DataError, StorageError
from factory.models.references import is_cached, load_encoder

CONDITIONS = (
    *("asthma", "diabetes", "migraine", "anaemia", "eczema", "gout"),
    *("flu", "measles", "arthritis", "hay fever", "angina", "mumps"),
)
QUESTIONS = (
    "What is {x}?",
    "How is {x} treated?",
    "What are early signs of {x}?",
    "Who is most at risk of {x}?",
    "Can {x} be prevented?",
    "How do doctors test for {x}?",
    "What should I eat when I have {x}?",
    "Is {x} contagious?",
    "Explain {x} to a child.",
    "When does {x} need urgent care?",
)


class WordEncoder:
    """Bags of words: texts of the same words have cosine 1."""

    def __init__(self) -> None:
        self.seen = 0

    def encode(self, texts: Sequence[str], **kwargs: Any) -> np.ndarray:
        self.seen += len(texts)
        rows = np.zeros((len(texts), 512), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[int(hashlib.md5(word.encode()).hexdigest(), 16) % 512] += 1
        return rows


@dataclass(frozen=True)
class FakeRoute:
    domain: str | None
    score: float
    threshold: float = 0.5


class KeywordRouter:
    """Sends a text with "law" to legal, one with "sing" to nowhere, the rest to health."""

    def route(self, texts: Sequence[str]) -> list[FakeRoute]:
        elsewhere = {"law": FakeRoute("legal", 0.9), "sing": FakeRoute(None, 0.4)}
        found = [[route for word, route in elsewhere.items() if word in text.lower()] for text in texts]
        return [(*routes, FakeRoute("health", 1.0))[0] for routes in found]


def count_words(text: str) -> int:
    return len(text.split())


def templated(templates: Sequence[str], slots: dict[str, tuple[str, ...]], id: str = "made") -> list[Example]:
    source = TemplateSource(id=id, license="CC0-1.0", kind="templates", templates=tuple(templates), slots=slots)
    return load_examples([source], root=Path("."), seed=0, count_tokens=count_words)


def from_file(*prompts: str, source: str = "rows", completion: str = "") -> list[Example]:
    return [Example(f"{source}/{i}", p, completion, source, "MIT", "", ()) for i, p in enumerate(prompts)]


def prompts_of(examples: Sequence[Example], seed: int = 0, encoder: Any = None, **config: Any) -> PromptSet:
    counts: Any = {"count_prompt": lambda example: count_words(example.prompt), "count_answer": count_words}
    return make_prompts(examples, encoder=encoder, config=DataConfig(**config), seed=seed, **counts)


def ten_templates() -> list[Example]:
    return templated(QUESTIONS, {"x": CONDITIONS})


def answers(prompts: PromptSet) -> dict[str, Completion]:
    every = (*prompts.train, *prompts.validation, *prompts.test)
    return {e.id: Completion(f"Answer to {e.prompt}", True) for e in every}


def finish(prompts: PromptSet, folder: Path, completions: dict[str, Completion] | None = None) -> DatasetManifest:
    completions = answers(prompts) if completions is None else completions
    return finish_dataset(prompts, completions, folder, domain="health", seed=0, provenance={"teacher": "tiny@1"})


# splitting


VALUES = st.lists(st.text("abAB ", min_size=1, max_size=3).filter(str.strip), min_size=1, max_size=9)


@settings(max_examples=60)
@given(
    texts=st.lists(st.sampled_from(["A {x}?", "a  {y}?", "B {y}?", "C {x} {y}?", "D {y} {x}?", "E?"]), min_size=1),
    x=VALUES,
    y=VALUES,
    seed=st.integers(0, 5),
)
def test_no_template_or_value_is_in_two_splits(texts: list[str], x: list[str], y: list[str], seed: int) -> None:
    slots = {slot: tuple(values) for slot, values in (("x", x), ("y", y)) if any(f"{{{slot}}}" in text for text in texts)}
    examples = templated(texts, slots) + templated(texts[::-1], slots, id="other")
    prompts = prompts_of(examples, seed=seed)
    splits = (prompts.train, prompts.validation, prompts.test)
    values = [{normalised(value) for e in part for value in e.topic} for part in splits]
    assert sum(map(len, values)) == len(set.union(*values))
    templates = [{template_key(e.template) for e in part} for part in splits]
    assert sum(map(len, templates)) == len(set.union(*templates))
    kept = len(prompts.train) + len(prompts.validation) + len(prompts.test)
    assert kept + sum(prompts.dropped.values()) == len(examples)


@pytest.mark.parametrize("seed", range(5))
def test_ten_templates_and_one_list_of_slot_values_are_enough(seed: int, tmp_path: Path) -> None:
    prompts = prompts_of(ten_templates(), seed=seed, encoder=WordEncoder())
    assert len(prompts.train) >= 20
    assert len(prompts.test) >= 2
    assert prompts.validation
    assert finish(prompts, tmp_path / "d").counts["train"] == len(prompts.train)


def test_the_same_seed_gives_the_same_prompts() -> None:
    examples = ten_templates() + from_file(*(f"Question {i}?" for i in range(40)))
    first, again, other = prompts_of(examples), prompts_of(examples), prompts_of(examples, seed=1)
    assert first == again
    assert first.train != other.train


def test_each_source_has_templates_in_test() -> None:
    examples = ten_templates() + templated(("Why {x}?", "Whence {x}?"), {"x": tuple("abcdefgh")}, id="second")
    assert {e.source for e in prompts_of(examples).test} == {"made", "second"}


@pytest.mark.parametrize(
    ("templates", "train", "validation", "test"), [(1, 1, 0, 0), (2, 1, 0, 1), (3, 2, 0, 1), (4, 2, 1, 1), (10, 7, 1, 2)]
)
def test_even_few_templates_are_held_out(templates: int, train: int, validation: int, test: int) -> None:
    prompts = prompts_of(templated(QUESTIONS[:templates], {"x": CONDITIONS}))
    found = [len({e.template for e in part}) for part in (prompts.train, prompts.validation, prompts.test)]
    assert found == [train, validation, test]


def test_a_document_is_in_one_split_only() -> None:
    examples = [
        Example(f"d/{doc}#{i}", "", f"Chunk {i} of {doc}.", "d", "MIT", "", (f"{doc}.md",))
        for doc in range(10)
        for i in range(5)
    ]
    prompts = prompts_of(examples)
    parts = [{e.topic for e in part} for part in (prompts.train, prompts.validation, prompts.test)]
    assert all(parts)
    assert sum(map(len, parts)) == 10 == len(set.union(*parts))


def chats(count: int, turns: int) -> list[Example]:
    """Chats of so many turns, with words of their own but for the first question."""
    found = []
    for number in range(count):
        said = [
            Turn(prompt=f"hello {number}" if turn == 0 else f"so {number} {turn}", completion="yes") for turn in range(turns)
        ]
        found += [
            Example(
                f"c/{number}#{turn}",
                one.prompt,
                "yes",
                "c",
                "MIT",
                "",
                (f"c/{number}",),
                TeacherContext(examples=tuple(said[:turn])),
            )
            for turn, one in enumerate(said)
        ]
    return found


def test_a_chat_is_in_one_split_only() -> None:
    prompts = prompts_of(chats(10, 5))
    parts = [{e.conversation for e in part} for part in (prompts.train, prompts.validation, prompts.test)]
    assert all(parts) and sum(map(len, parts)) == 10 == len(set.union(*parts))
    assert sum(map(len, (prompts.train, prompts.validation, prompts.test))) == 50
    clusters = {cluster_of(row) for row in make_rows(prompts.test, {}, Counter())}
    assert clusters == {f"c/{number}" for number in (one.conversation[2:] for one in prompts.test)}


def test_of_chats_that_are_near_duplicates_one_is_kept_with_all_its_turns() -> None:
    class Encoder:
        """Of the first question alone: chats 0 and 1 begin alike, and so does every later turn of a chat."""

        def encode(self, texts: Sequence[str], **_: Any) -> np.ndarray:
            numbers = [max(1, int(text.split()[1])) for text in texts]
            return np.eye(16)[numbers]

    split = prompts_of(chats(10, 3), encoder=Encoder())
    kept = [one for part in (split.train, split.validation, split.test) for one in part]
    assert split.dropped == {"near_duplicate": 3}
    assert sorted(Counter(one.conversation for one in kept).values()) == [3] * 9


def test_a_question_counts_with_what_was_said_before_it(tmp_path: Path) -> None:
    rows = [replace(row, prompt="and then?") for row in chats(4, 2) if row.history.examples]
    dropped = Counter[str]()
    assert drop_duplicates(rows, dropped) == rows and not dropped
    long = make_prompts(
        rows,
        encoder=None,
        count_prompt=lambda one: count_words(one.text),
        count_answer=count_words,
        config=DataConfig(max_prompt_tokens=8),
        seed=0,
    )
    assert not long.dropped
    longer = [replace(row, history=TeacherContext(examples=(Turn(prompt="a " * 9, completion="b"),))) for row in rows]
    assert drop_lengths(longer, lambda one: count_words(one.text), count_words, DataConfig(max_prompt_tokens=8), dropped) == []
    assert dropped == {"long_prompt": 4}


def test_what_was_said_before_comes_back_from_disk_and_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    with_history = prompts_of([*chats(30, 2), *from_file(*(f"Row {i}?" for i in range(20)), completion="yes")])
    finish(with_history, tmp_path / "chats", {})
    train = load_dataset_folder(tmp_path / "chats")[0]["train"]
    said = {row["id"]: history_of(row) for row in train}
    assert said == {one.id: one.history for one in with_history.train}
    alone = [replace(one, history=NOTHING) for one in with_history.train]
    rows, bare = (make_rows(part, {}, Counter()) for part in (with_history.train, alone))
    old = [{name: value for name, value in row.items() if name != "history"} for row in bare]
    assert fingerprint({"train": bare, "validation": [], "test": []}) == fingerprint(
        {"train": old, "validation": [], "test": []}
    )
    assert fingerprint({"train": rows, "validation": [], "test": []}) != fingerprint(
        {"train": bare, "validation": [], "test": []}
    )


def test_rows_of_a_file_are_split_by_the_configured_shares() -> None:
    prompts = prompts_of(from_file(*(f"Question {i}?" for i in range(200))), validation=0.1, test=0.2)
    assert [len(prompts.train), len(prompts.validation), len(prompts.test)] == [140, 20, 40]


def test_rows_with_the_same_answer_are_in_one_split() -> None:
    """MedQuAD answers many questions with one text; a label is an answer of many questions too, and tells nothing."""
    shared = [
        " ".join(f"{word}{i}" for word in ["each", "parent", "carries", "one", "copy", "of", "the", "gene"]) for i in range(20)
    ]
    rows = [replace(row, completion=shared[i % 20]) for i, row in enumerate(from_file(*(f"Question {i}?" for i in range(200))))]
    prompts = prompts_of(rows)
    answers = [{e.completion for e in part} for part in (prompts.train, prompts.validation, prompts.test)]
    assert all(answers)
    assert sum(map(len, answers)) == 20
    assert not prompts.dropped
    assert not prompts_of([replace(row, completion=f"Type {row.completion[-1]}") for row in rows]).dropped


def test_a_cluster_is_the_template_the_document_the_shared_answer_or_the_row() -> None:
    def cluster(id: str = "a", *, template: str = "", topic: Sequence[str] = (), answer: str = "", own: bool = True) -> str:
        row = {"id": id, "template": template, "topic": topic, "completion": answer, "own_completion": own}
        return cluster_of(row)

    assert cluster(template="Why {x}?", topic=["gout"]) == cluster("b", template="why  {y}?", topic=["flu"])
    assert cluster(topic=["a.md"]) == cluster("b", topic=["A.md"]) != cluster(topic=["b.md"])
    long = "It is passed on in an autosomal recessive pattern."
    assert cluster(answer=long) == cluster("b", answer=long.upper())
    assert cluster(answer=long, own=False) != cluster("b", answer=long, own=False)
    assert cluster(answer="Yes.") != cluster("b", answer="Yes.")


# cleaning prompts


def test_empty_long_and_repeated_prompts_are_dropped_and_counted() -> None:
    examples = from_file("Why?", "why? ", " ", "word " * 50, *(f"Question {i}?" for i in range(30)))
    prompts = prompts_of(examples, max_prompt_tokens=49)
    assert prompts.dropped == {"duplicate": 1, "empty_prompt": 1, "long_prompt": 1}
    kept = {e.prompt for e in (*prompts.train, *prompts.validation, *prompts.test)}
    assert kept <= {e.prompt for e in examples}  # whole prompts only


def test_answers_of_a_source_that_are_too_long_are_dropped_and_counted() -> None:
    rows = [replace(row, completion=f"{'word ' * (8 + i % 2)}") for i, row in enumerate(from_file(*map(str, range(40))))]
    chunk = Example("d/a#0", "", "word " * 90, "d", "MIT", "", ("a.md",))  # its source says how long it is
    prompts = prompts_of([*rows, chunk], max_completion_tokens=8)
    every = (*prompts.train, *prompts.validation, *prompts.test)
    assert prompts.dropped == {"long_answer": 20}
    assert {count_words(e.completion) for e in every} == {8, 90}


def test_two_answers_to_one_prompt_are_counted_apart_from_repetitions() -> None:
    rows = from_file(*(f"Question {i}?" for i in range(30)), completion="Yes.")
    again = [replace(row, id=f"{row.id}-again", source="more") for row in rows[:6]]
    answers = ["yes. ", "", "No.", "No.", "Perhaps.", "Yes."]
    prompts = prompts_of([*rows, *(replace(row, completion=one) for row, one in zip(again, answers, strict=True))])
    assert prompts.dropped == {"duplicate": 3, "conflicting_answer": 3}


def test_caps_are_met_evenly_over_templates() -> None:
    values = tuple(f"value{i}" for i in range(200))
    prompts = prompts_of(templated([f"Template {t} of {{x}}?" for t in "abcdefgh"], {"x": values}), max_examples=60)
    assert (len(prompts.train), len(prompts.test), len(prompts.validation)) == (60, 20, 20)
    counts = [sum(e.template == template for e in prompts.train) for template in {e.template for e in prompts.train}]
    assert counts == [12] * 5
    assert prompts.dropped["over_limit"] > 0


def test_a_file_is_not_crowded_out_by_combinations() -> None:
    many = templated(QUESTIONS, {"x": tuple(f"v{i}" for i in range(200))})
    prompts = prompts_of(many + from_file(*(f"Row {i}?" for i in range(40))), max_examples=100)
    assert sum(e.source == "rows" for e in prompts.train) >= 30


def test_near_duplicates_are_dropped_and_only_the_sample_is_embedded() -> None:
    encoder = WordEncoder()
    same = [(f"Question {i} of many?", f"Of many, question {i}!") for i in range(500)]
    prompts = prompts_of(from_file(*(p for pair in same for p in pair)), encoder=encoder, max_examples=100, near_duplicate=0.99)
    assert len(prompts.test) == len(prompts.validation) == 20  # train gives way
    assert prompts.dropped["near_duplicate"] > 0
    assert encoder.seen <= 130 + 26 + 26
    assert closest(prompts, WordEncoder()) < 0.99


def closest(prompts: PromptSet, encoder: Any) -> float:
    """The highest cosine between two prompts of different splits."""
    parts = [encoder.encode([e.text for e in part]) for part in (prompts.train, prompts.validation, prompts.test)]
    train, validation, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in parts)
    return max(float((a @ b.T).max()) for a, b in ((train, validation), (train, test), (validation, test)))


def test_no_two_splits_of_a_small_domain_share_near_duplicates() -> None:
    backwards = [" ".join(reversed(question.split())) for question in QUESTIONS]
    values = [value for i in range(12) for value in (f"left{i} right{i}", f"right{i} left{i}")]
    examples = templated([*QUESTIONS, *backwards], {"x": tuple(values)})
    assert closest(prompts_of(examples), WordEncoder()) == pytest.approx(1)
    prompts = prompts_of(examples, encoder=WordEncoder())
    assert closest(prompts, WordEncoder()) < 0.95
    assert prompts.dropped["near_duplicate"] > 0


@pytest.mark.slow
def test_no_two_splits_of_shipped_healthcare_share_near_duplicates() -> None:
    specs = load_specs(SHIPPED)
    family, domain = specs.family("default"), specs.domain("healthcare")
    if not is_cached(family.encoder, specs.root):
        pytest.skip("the default family's encoder is not on this machine; factory build healthcare fetches it")
    encoder = load_encoder(family.encoder, "cpu", root=specs.root, quiet=True)
    config = family.settings("demo", domain).data
    examples = load_examples(domain.sources, root=specs.root, seed=0, count_tokens=count_words)
    counts: Any = {"count_prompt": lambda example: count_words(example.prompt), "count_answer": count_words}
    prompts = make_prompts(examples, encoder=encoder, config=config, seed=0, **counts)
    assert (len(prompts.train), len(prompts.validation), len(prompts.test)) == (400, 20, 40)
    assert closest(prompts, encoder) < config.near_duplicate
    assert len({e.template for e in prompts.test}) >= 25


def overlapping_rows(text: str, leaked: str, *, answers: bool = False) -> PromptSet:
    """Of a hundred rows that share nothing but ``leaked`` in every twelfth, in their prompts or in their answers."""
    own = [" ".join(f"{word}{i}" for word in text.split()) for i in range(100)]
    texts = [f"{one} {leaked}" if i % 12 == 0 else one for i, one in enumerate(own)]
    rows = from_file(*(f"Question {i}?" for i in range(100))) if answers else from_file(*texts)
    return prompts_of([replace(row, completion=one) for row, one in zip(rows, texts, strict=True)] if answers else rows)


@pytest.mark.parametrize(("answers", "reason"), [(False, "contaminated"), (True, "shared_answer")])
def test_of_texts_that_are_half_the_same_one_split_keeps_them(answers: bool, reason: str) -> None:
    leaked = "the quick brown fox jumps over the lazy dog and then it sleeps"  # 13 words, 6 sequences of 8
    prompts = overlapping_rows("a b c d", leaked, answers=answers)  # 10 sequences of 8, six of them shared
    texts = [
        [e.completion if answers else e.prompt for e in part] for part in (prompts.train, prompts.validation, prompts.test)
    ]
    assert [any(leaked in text for text in part) for part in texts] == [False, False, True]
    assert set(prompts.dropped) == {reason}
    far = overlapping_rows("a b c d e f g h", leaked, answers=answers)  # 14 sequences of 8, still six shared
    assert not far.dropped


def test_words_of_a_template_and_of_common_forms_are_not_contamination() -> None:
    long = [f"Please tell me in one short and simple sentence {{x}} {end}" for end in ("why", "how", "when")]
    assert "contaminated" not in prompts_of(templated(long, {"x": CONDITIONS})).dropped
    form = [f"Does the following clause of this contract restrict assignment? Clause {i}." for i in range(100)]
    assert "contaminated" not in prompts_of(from_file(*form)).dropped


# router


def test_disagreements_are_the_prompts_routed_elsewhere_the_surest_first() -> None:
    texts = ["Shall we sing?", *(f"Question {i}?" for i in range(30)), "Is it the law?"]
    found = find_disagreements(texts, "health", KeywordRouter())  # type: ignore[arg-type]
    assert [(d.prompt, d.routed_to) for d in found] == [("Is it the law?", "legal"), ("Shall we sing?", None)]


def test_pool_examples_go_to_their_domain_or_are_left_out() -> None:
    routed = route_pool(from_file("A law?", "Sing, or sing?", "Fever?"), KeywordRouter())  # type: ignore[arg-type]
    assert {domain: [e.prompt for e in found] for domain, found in routed.items()} == {
        "legal": ["A law?"],
        "health": ["Fever?"],
    }
    assert route_pool([], KeywordRouter()) == {}  # type: ignore[arg-type]


# cleaning completions


@pytest.mark.parametrize(
    "text",
    [
        "They use the glucose to make starch. They use the glucose to make starch. They use",
        "The answer is the answer is the answer is the answer is the",
        "Asthma is a disease of the lungs.\n\nAsthma is a disease of the lungs!",
        "1. Eat more fruit and vegetables\n2. Sleep well\n3. Eat more fruit and vegetables\n",
        "It is very very very very very very very very bad",
    ],
)
def test_loops_are_found(text: str) -> None:
    assert clean_completion(text, finished=True) == "looping"
    assert clean_completion(text, finished=False) == "looping"


@pytest.mark.parametrize(
    "text",
    [
        "Yes.",
        "Early signs of asthma are a cough at night, wheezing and a tight chest. See a doctor if it gets worse.",
        "1. Wash your hands.\n2. Rest.\n3. Drink water.\n4. Rest.",
        "You may ask your landlord for a list of the costs. You may also ask your landlord for the receipts.",
        "He walks 2*3 = 6 hours a week. He runs 6*2 = 12 hours a week. He swims 1*2 = 2 hours a week.",
        "12 + 7 = 19, so she has 19 apples. 19 - 4 = 15, so 15 apples are left.",
    ],
)
def test_good_completions_are_kept_if_finished(text: str) -> None:
    assert clean_completion(text, finished=True) is None
    assert clean_completion(text, finished=False) == "cut_off"


@pytest.mark.parametrize("text", ["", " \n", "...", "* - *"])
def test_completions_without_words_are_empty(text: str) -> None:
    assert clean_completion(text, finished=True) == "empty"


# on disk


def test_a_data_set_comes_back_from_disk_as_written(tmp_path: Path) -> None:
    rows = from_file(*(f"Row {i}?" for i in range(50)), completion="Own words stay. Own words stay.")
    prompts = prompts_of(ten_templates() + rows)
    completions = answers(prompts)
    declined, looped, cut, absent = (e.id for e in [e for e in prompts.train if e.template][:4])
    completions[declined] = Completion("I can't advise on that; please ask a pharmacist.", True)
    completions[looped] = Completion("so it goes on and on " * 4, True)
    completions[cut] = Completion("It is a", False)
    del completions[absent]
    manifest = finish(prompts, tmp_path / "deep" / "health", completions)

    data, read = load_dataset_folder(tmp_path / "deep" / "health")
    assert read == manifest == DatasetManifest.from_json(manifest.to_json())
    assert isinstance(data, DatasetDict)
    assert set(data) == {"train", "validation", "test"}
    assert manifest.counts == {split: data[split].num_rows for split in data}
    assert manifest.refusals == 1
    assert manifest.provenance == {"teacher": "tiny@1"}
    assert {reason: manifest.dropped[reason] for reason in ("looping", "cut_off", "no_completion")} == {
        "looping": 1,
        "cut_off": 1,
        "no_completion": 1,
    }
    assert manifest.dropped["held_out_combination"] == prompts.dropped["held_out_combination"]
    assert manifest.templates == 10
    assert [(s["id"], s["license"]) for s in manifest.sources] == [("made", "CC0-1.0"), ("rows", "MIT")]
    assert sum(s["n"] for s in manifest.sources) == sum(manifest.counts.values())
    train = {row["id"]: row for row in data["train"]}
    assert train[declined]["refusal"]
    assert not train[declined]["own_completion"]
    assert len(train[declined]["topic"]) == 1
    own = [row for row in train.values() if row["source"] == "rows"]
    assert own
    assert all(row["own_completion"] and row["completion"].startswith("Own") for row in own)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["health"]


def test_a_data_set_without_validation_can_be_written(tmp_path: Path) -> None:
    prompts = replace(prompts_of(ten_templates()), validation=())
    finish(prompts, tmp_path / "health")
    assert load_dataset_folder(tmp_path / "health")[0]["validation"].num_rows == 0


def test_a_second_build_replaces_the_first(tmp_path: Path) -> None:
    first = finish(prompts_of(ten_templates()), tmp_path / "health")
    second = finish(prompts_of(ten_templates(), seed=3), tmp_path / "health")
    assert first.fingerprint != second.fingerprint
    assert load_dataset_folder(tmp_path / "health")[1] == second
    assert finish(prompts_of(ten_templates()), tmp_path / "other").fingerprint == first.fingerprint


def test_too_few_examples_say_why_and_what_helps(tmp_path: Path) -> None:
    prompts = prompts_of(templated(("What is {x}?",), {"x": CONDITIONS}))
    message = r"'health' has 8 train and 0 test .* 4 combinations of held-out templates or values; add templates"
    with pytest.raises(DataError, match=message) as caught:
        finish(prompts, tmp_path / "health")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = finish(prompts_of(ten_templates()), tmp_path / "health")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset.DatasetDict, "save_to_disk", full)
    with pytest.raises(StorageError, match=r"cannot write data set 'health' .* no space left on the disk"):
        finish(prompts_of(ten_templates(), seed=1), tmp_path / "health")
    assert load_dataset_folder(tmp_path / "health")[1] == before
    assert [path.name for path in tmp_path.iterdir()] == ["health"]


def test_absent_changed_and_damaged_data_sets_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "health"
    with pytest.raises(DataError, match="no data set in"):
        load_dataset_folder(folder)
    finish(prompts_of(ten_templates()), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 64}))
    with pytest.raises(DataError, match="has changed"):
        load_dataset_folder(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        load_dataset_folder(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match="is damaged"):
        load_dataset_folder(folder)


def test_a_data_set_that_is_too_small_is_warned_about(tmp_path: Path) -> None:
    manifest = replace(finish(prompts_of(ten_templates()), tmp_path / "health"), counts={"train": 800})
    assert small_dataset_warning(0.50, 0.60, manifest) is None
    assert small_dataset_warning(0.03, 0.06, manifest) is None  # twice as large, but both are as good as nothing
    assert "held-out loss 0.594 is 1.52 times the training loss 0.39;" in str(small_dataset_warning(0.39, 0.594, manifest))
    small = replace(manifest, counts={"train": 64})
    assert "64 train examples" in str(small_dataset_warning(0.5, 0.5, small))
    assert small_dataset_warning(0.0, 0.1, manifest) is not None
