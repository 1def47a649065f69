"""Bits per byte: log2 V a token of a model that knows nothing, the same in any batch, no end of turn; questions from a file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from support import tiny
from torch import nn
from torch.nn.functional import log_softmax

from factory.config.schema import DistillConfig
from factory.errors import DataError
from factory.evaluation.benchmark import (
    Question,
    benchmark_metrics,
    bits_per_byte,
    load_questions,
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
    metric = benchmark_metrics({"student": bits}, bytes_, BootstrapConfig(100))["student"]
    assert math.isnan(metric.value) and metric.n == 0


# ------------------------------------------------------------------------------------------------------------ metrics


def test_metrics_are_bits_over_bytes_and_paired_differences() -> None:
    bytes_ = np.array([10.0, 30.0, 60.0])
    bits = {"student": np.array([10.0, 30.0, 60.0]), "base": np.array([20.0, 60.0, 120.0]), "teacher": bytes_ / 2}
    metrics = benchmark_metrics(bits, bytes_, BootstrapConfig(200))
    assert {name: (one.value, one.low, one.high, one.n) for name, one in metrics.items()} == {
        "student": (1.0, 1.0, 1.0, 100),
        "base": (2.0, 2.0, 2.0, 100),
        "teacher": (0.5, 0.5, 0.5, 100),
        "student_below_base": (1.0, 1.0, 1.0, 100),
        "student_below_teacher": (-0.5, -0.5, -0.5, 100),
    }


def test_intervals_are_over_questions() -> None:
    rng = np.random.default_rng(0)
    bytes_ = rng.integers(5, 50, 60).astype(float)
    student = rng.uniform(0.5, 2, 60) * bytes_
    metrics = benchmark_metrics({"student": student, "base": student + 0.1 * bytes_}, bytes_, BootstrapConfig(300))
    assert 0.5 < metrics["student"].low < metrics["student"].value < metrics["student"].high < 2
    paired = metrics["student_below_base"]  # the same on every question, though the two intervals overlap
    assert (paired.value, paired.low, paired.high) == pytest.approx((0.1, 0.1, 0.1))
    one = benchmark_metrics({"base": student[:1]}, bytes_[:1], BootstrapConfig(100))
    assert set(one) == {"base"} and one["base"].low == one["base"].value == one["base"].high


def test_nan_bits_give_nan() -> None:
    metric = benchmark_metrics({"a": np.array([1.0, math.nan])}, np.array([1.0, 1.0]), BootstrapConfig(100))["a"]
    assert math.isnan(metric.value)


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
        {"prompt": "c?", "question": "other?", "reference": "C", "more": 1},
        {"prompt": "d?"},
        {"prompt": "e?", "response": "  ", "completion": None},
        {"prompt": "f?", "response": "", "reference": "F"},
        {"prompt": "g" * 801, "response": "G"},
        {"prompt": "h?", "response": "h" * 801},
        {"prompt": "i" * 800, "response": "ä" * 800},
    )
    found = load_questions(path, None, seed=0)
    expected = [("a?", "A"), ("b?", "B"), ("c?", "C"), ("f?", "F"), ("i" * 800, "ä" * 800)]
    assert [(row.prompt, row.reference) for row in found.rows] == expected
    assert (found.without_reference, found.too_long) == (2, 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_a_limit_keeps_a_seeded_sample_in_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, limit: int, seed: int
) -> None:
    path = file_of(tmp_path_factory.mktemp("q"), *({"prompt": f"{i:02}?", "response": "yes"} for i in range(count)))
    prompts = [row.prompt for row in load_questions(path, limit, seed).rows]
    assert len(prompts) == min(limit, count) and prompts == sorted(set(prompts))
    assert prompts == [row.prompt for row in load_questions(path, limit, seed).rows]


def test_another_seed_keeps_another_sample(tmp_path: Path) -> None:
    path = file_of(tmp_path, *({"prompt": f"{i}?", "response": "yes"} for i in range(50)))
    assert load_questions(path, 10, seed=0).rows != load_questions(path, 10, seed=1).rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a?", "response": "A"}, "{no"], "line 2 is not valid JSON"),
        (["[1]"], "line 1 is a list, expected an object"),
        ([{"instruction": "a?", "response": "A"}], "row 1 has no prompt or question; its fields: instruction, response"),
        ([{}], "row 1 has no prompt or question; its fields: none"),
        ([{"prompt": "a?", "response": ["A"]}], "row 1: response is a list, not a text"),
        ([{"prompt": 3, "response": "A"}], "row 1: prompt is a int, not a text"),
        (['{"prompt": "a?", "response": "\\ud800"}'], "surrogates not allowed"),
        ([], "has no usable question: 0 have no response or completion or reference, 0 are longer than 800"),
        (
            [{"prompt": "a?"}, {"prompt": "b?", "response": "b" * 801}],
            "1 have no .*, 1 are longer than 800 characters; give it",
        ),
    ],
)
def test_a_malformed_file_gives_one_line(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as raised:
        load_questions(file_of(tmp_path, *rows), None, seed=0)
    assert "questions.jsonl" in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_or_binary_file_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"no file of questions .*questions.jsonl; in .*: other.jsonl"):
        load_questions(tmp_path / "questions.jsonl", None, seed=0)
    with pytest.raises(DataError, match=r"cannot read questions from .*other.jsonl: 'utf-8' codec"):
        load_questions(tmp_path / "other.jsonl", None, seed=0)
