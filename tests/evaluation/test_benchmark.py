"""Bits per byte: log2 V a token of a model that knows nothing, the same in any batch, no end of turn; questions from a file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from support import tiny
from torch import nn
from torch.nn.functional import log_softmax

from factory.config.schema import DistillConfig
from factory.errors import DataError
from factory.evaluation.benchmark import (
    Measurement,
    Question,
    Questions,
    benchmark_rows,
    bits_per_byte,
    load_questions,
    question_clusters,
    seen_in,
)
from factory.evaluation.stats import BootstrapConfig
from factory.models.base import attach_adapter
from factory.models.chat import completion_ids, end_of_turn, prompt_ids
from factory.models.vocabulary import kept_tokens, trim_embeddings, trim_tokenizer

ROWS = [Question(f"what is {p}", c) for p, c in zip(tiny.sentences(20), tiny.sentences(20, 1), strict=True)]
TRICKY = Question("what is Größe", "naïve 東京 🙂\n\n1. light\tand sugar")


def measured(model: Any, rows: list[Question], **further: Any) -> tuple[np.ndarray, np.ndarray]:
    return bits_per_byte(model, further.pop("tokenizer", tiny.tokenizer()), rows, device=tiny.CPU, **further)


def uniform(vocabulary: int = 360) -> Any:
    """Every token is as likely as any other: no logit differs from 0."""
    model = tiny.llama(layers=1, vocabulary=vocabulary)
    nn.init.zeros_(model.get_output_embeddings().weight)
    return model


# ------------------------------------------------------------------------------------------------------ bits and bytes


def test_a_uniform_model_needs_log2_of_its_vocabulary_per_token() -> None:
    bits, bytes_ = measured(uniform(), [*ROWS, TRICKY])
    tokens = [len(tiny.tokenizer()(row.reference)["input_ids"]) for row in [*ROWS, TRICKY]]
    np.testing.assert_allclose(bits, math.log2(360) * np.array(tokens), rtol=1e-6)
    assert bytes_.tolist() == [*(len(row.reference) for row in ROWS), 6 + 1 + 6 + 1 + 4 + 2 + 2 + 1 + 5 + 1 + 3 + 1 + 5]


def test_the_end_of_the_turn_and_the_prompt_are_not_counted() -> None:
    one = Question("what is light", "sugar")
    [token_bits], _ = measured(uniform(), [one])
    tokens = completion_ids(tiny.tokenizer(), "sugar", ends=False)
    assert token_bits == pytest.approx(math.log2(360) * len(tokens))
    assert end_of_turn(tiny.tokenizer()) not in tokens and end_of_turn(tiny.tokenizer()) in completion_ids(
        tiny.tokenizer(), "sugar"
    )
    [longer], _ = measured(uniform(), [Question("what is light " * 9, "sugar")])
    assert longer == pytest.approx(token_bits)


@torch.inference_mode()
def naive(model: Any, row: Question, **context: Any) -> float:
    """One question, the whole model in float32, one position after the other."""
    prompt = prompt_ids(tiny.tokenizer(), row.prompt, **context)
    answer = completion_ids(tiny.tokenizer(), row.reference, ends=False)
    values = log_softmax(model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double(), dim=-1)
    return -sum(float(values[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)) / math.log(2)


@pytest.mark.parametrize("model", [tiny.llama(), tiny.gemma()], ids=["llama", "gemma"])
def test_bits_equal_a_plain_loop(model: Any) -> None:
    np.testing.assert_allclose(measured(model, ROWS)[0], [naive(model, row) for row in ROWS], rtol=0.03)  # bfloat16


def test_a_context_changes_the_bits() -> None:
    model = tiny.llama()
    with_context, _ = measured(model, ROWS, context=tiny.CONTEXT)
    np.testing.assert_allclose(with_context, [naive(model, row, context=tiny.CONTEXT) for row in ROWS], rtol=0.03)
    assert not np.allclose(with_context, measured(model, ROWS)[0], rtol=0.03)


def test_an_adapter_changes_the_bits() -> None:
    student: PeftModel = attach_adapter(tiny.base(), DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8)).eval()
    base, _ = measured(student, ROWS)
    np.testing.assert_allclose(base, measured(tiny.base().model, ROWS)[0], rtol=0.03)  # an adapter begins as nothing
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    assert not np.allclose(measured(student, ROWS)[0], base, rtol=0.03)


def test_a_trimmed_vocabulary_is_measured_on_the_same_bytes() -> None:
    tokenizer, model = tiny.tokenizer(), uniform()
    kept = kept_tokens(tokenizer, ["light"], size=275)
    trimmed = trim_tokenizer(tokenizer, kept)
    trim_embeddings(model, kept)
    rows = [*ROWS, TRICKY]
    bits, bytes_ = measured(model, rows, tokenizer=trimmed)
    pieces = [len(trimmed(row.reference)["input_ids"]) for row in rows]
    np.testing.assert_allclose(bits, math.log2(275) * np.array(pieces), rtol=1e-6)
    np.testing.assert_array_equal(bytes_, measured(uniform(), rows)[1])
    assert sum(pieces) > sum(len(tokenizer(row.reference)["input_ids"]) for row in rows)
    assert all(trimmed.decode(trimmed(row.reference)["input_ids"]) == row.reference for row in rows)


def test_no_questions_have_no_bits() -> None:
    bits, bytes_ = measured(uniform(), [])
    assert bits.shape == bytes_.shape == (0,)


# --------------------------------------------------------------------------------------------------------------- rows


def measurement(name: str, bits: Any, format: str = "bf16") -> Measurement:
    return Measurement(name, format, parameters=100, bytes=200, bits=np.array(bits, dtype=float), tokens_per_second=9.0)


def test_rows_are_bits_over_bytes_and_paired_differences() -> None:
    sizes = np.array([10.0, 30.0, 60.0])
    found = [measurement("student", sizes), measurement("base", 2 * sizes), measurement("teacher", sizes / 2)]
    student, base, teacher = benchmark_rows(found, sizes, BootstrapConfig(200))
    assert [row.bits_per_byte.value for row in (student, base, teacher)] == [1.0, 2.0, 0.5]
    assert student.student_below is None
    assert base.student_below is not None and teacher.student_below is not None
    assert (base.student_below.value, base.student_below.low, base.student_below.n) == (1.0, 1.0, 100)
    assert teacher.student_below.value == -0.5
    assert (base.parameters, base.bytes, base.tokens_per_second, base.bits_per_byte.clusters) == (100, 200, 9.0, 3)


def test_a_quantized_rival_is_compared_with_the_student_in_its_format() -> None:
    sizes = np.array([10.0, 30.0])
    found = [
        measurement("student", sizes),
        measurement("student", 1.5 * sizes, "q4"),
        measurement("teacher", 2 * sizes, "q4"),
        measurement("teacher", 2 * sizes, "q8_0"),  # the student has none
    ]
    below = [row.student_below for row in benchmark_rows(found, sizes, BootstrapConfig(100))]
    assert [one and one.value for one in below] == [None, 0.5, 0.5, 1.0]


def test_intervals_are_over_clusters() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 50, 60).astype(float)
    bits = rng.uniform(0.5, 2, 60) * sizes
    student, base = benchmark_rows(
        [measurement("student", bits), measurement("base", bits + 0.1 * sizes)], sizes, BootstrapConfig(300)
    )
    assert 0.5 < student.bits_per_byte.low < student.bits_per_byte.value < student.bits_per_byte.high < 2
    paired = base.student_below  # the same in every cluster, though the two intervals overlap
    assert paired is not None and (paired.value, paired.low, paired.high) == pytest.approx((0.1, 0.1, 0.1))


# ------------------------------------------------------------------------------------------------- seen, clusters, samples

LONG = "the early signs of asthma are a cough and a wheeze at night and short breath"


@pytest.mark.parametrize(
    ("question", "seen"),
    [
        (Question("What IS light?", "sugar"), True),  # the prompt, in another case
        (Question("what is sugar", f"Doctors say that {LONG}, usually."), True),  # most of a learnt answer
        (Question("what is sugar", "yes"), False),  # a label
        (Question("what is sugar", "the early signs of asthma are many and differ from one child to another"), False),
        (Question("tell me what the early signs of asthma in a small child are today", "x"), True),  # most of a prompt
        (Question("what is gout", "a disease"), False),
    ],
)
def test_what_a_model_was_trained_on_is_seen(question: Question, seen: bool) -> None:
    training = [
        Question("what is light", "yes"),
        Question("name them", LONG),
        Question("Please tell me what the early signs of asthma in a small child are!", "cough"),
        Question("", "a chunk of a document"),
    ]
    assert seen_in([Question("other", "other"), question], training) == ({1} if seen else set())


def test_a_form_that_many_training_prompts_share_is_not_a_leak() -> None:
    form = "answer the question about this plant in one short sentence please and thank you:"
    training = [Question(f"{form} plant {number}", "x") for number in range(20)]
    asked = [Question(f"{form} plant 30", "y"), Question(f"{form} plant 3", "y")]
    assert seen_in(asked, training) == {1}
    assert seen_in(asked, training[:5]) == {0, 1}  # few prompts share it: it may be the question itself


def test_questions_that_were_seen_are_left_out_and_counted() -> None:
    questions = Questions((Question("a?", "A"), Question("b?", "B"), Question("c?", "C")), too_long=4)
    assert questions.without([Question("B?", "")]) == Questions((Question("a?", "A"), Question("c?", "C")), too_long=4, seen=1)
    assert questions.without([]) == questions


def test_shared_answers_and_documents_join_questions_in_clusters() -> None:
    rows = [
        Question("a", "Sugar."),
        Question("b", "sugar"),
        Question("c", "salt", document="kitchen"),
        Question("d", "SUGAR", document="kitchen"),
        Question("e", "pepper", document="garden"),
        Question("f", "..."),
        Question("g", "?!"),
    ]
    labels = question_clusters(rows)
    assert len(set(labels[:4])) == 1
    assert len(set(labels)) == 4  # pepper, and two answers without a word


@given(st.lists(st.tuples(st.sampled_from("ABCDEF"), st.sampled_from(["", "1", "2", "3"])), max_size=12))
def test_two_questions_are_of_one_cluster_exactly_if_a_chain_connects_them(pairs: list[tuple[str, str]]) -> None:
    rows = [Question(str(number), answer, document) for number, (answer, document) in enumerate(pairs)]
    joined = [{number} for number in range(len(rows))]
    for _ in rows:
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                if one.reference == other.reference or (one.document and one.document == other.document):
                    joined[i] |= joined[j]
    labels = question_clusters(rows)
    for i in range(len(rows)):
        assert {j for j in range(len(rows)) if labels[j] == labels[i]} == joined[i]


# ---------------------------------------------------------------------------------------------------------- questions


def file_of(folder: Path, *rows: Any) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_questions_are_read_from_any_of_the_fields(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        {"prompt": "a?", "response": "A"},
        {"question": " b? ", "completion": " B\n"},
        "",
        {"prompt": "c?", "question": "other?", "reference": "C", "more": 1, "document": "page 3"},
        {"prompt": "d?"},
        {"prompt": "e?", "response": "  ", "completion": None},
        {"prompt": "f?", "response": "", "reference": "F"},
        {"prompt": "g" * 801, "response": "G"},
        {"prompt": "h?", "response": "h" * 801},
        {"prompt": "i" * 800, "response": "ä" * 800},
    )
    found = load_questions(path)
    expected = [("a?", "A"), ("b?", "B"), ("c?", "C"), ("f?", "F"), ("i" * 800, "ä" * 800)]
    assert [(row.prompt, row.reference) for row in found.rows] == expected
    assert [row.document for row in found.rows] == ["", "", "page 3", "", ""]
    assert (found.without_reference, found.too_long) == (2, 2)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_a_limit_keeps_a_seeded_sample_in_order(count: int, limit: int, seed: int) -> None:
    questions = Questions(tuple(Question(f"{i:02}?", "yes") for i in range(count)))
    sampled = questions.sample(limit, seed)
    prompts = [row.prompt for row in sampled.rows]
    assert len(prompts) == min(limit, count) and prompts == sorted(set(prompts))
    assert sampled.not_drawn == count - len(prompts)
    assert sampled == questions.sample(limit, seed)


def test_another_seed_keeps_another_sample() -> None:
    questions = Questions(tuple(Question(f"{i}?", "yes") for i in range(50)))
    assert questions.sample(10, seed=0).rows != questions.sample(10, seed=1).rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a?", "response": "A"}, "{no"], "line 2 is not valid JSON"),
        (["[1]"], "line 1 is a list, expected an object"),
        ([{"ask": "a?", "response": "A"}], "line 1 has no question; its columns: ask, response; call it `prompt`"),
        ([{}], "line 1 has no question; its columns: none"),
        ([{"prompt": "a?", "response": ["A"]}], "line 1: column 'response' is a list, not text"),
        ([{"prompt": True, "response": "A"}], "line 1: column 'prompt' is true, not text"),
        ([], "has no usable question: 0 have no answer, 0 are longer than 800"),
        (
            [{"prompt": "a?"}, {"prompt": "b?", "response": "b" * 801}],
            "1 have no .*, 1 are longer than 800 characters; give it",
        ),
    ],
)
def test_a_malformed_file_gives_one_line(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as raised:
        load_questions(file_of(tmp_path, *rows))
    assert "questions.jsonl" in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_or_binary_file_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_bytes(b"\xff\xfe\x00")  # UTF-16, cut off
    with pytest.raises(DataError, match=r"no file of questions .*questions.jsonl; in .*: other.jsonl"):
        load_questions(tmp_path / "questions.jsonl")
    with pytest.raises(DataError, match=r"cannot read .*other.jsonl: it is not utf-16"):
        load_questions(tmp_path / "other.jsonl")
