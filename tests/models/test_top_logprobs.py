"""Likeliest tokens as an API says them, as targets of a student: the right tokens, at the right places, and the rest."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

from factory.distill.soft_targets import score
from factory.export.gguf import write_base_gguf
from factory.models.chat import completion_ids, messages, prompt_ids
from factory.models.llama_server import LlamaServer
from factory.models.top_logprobs import MIN_LOG_PROB, Named, TokenBytes, TopLogprobs, named_targets, read_top_logprobs

SENTENCEPIECE = {
    "never": tiny.sentencepiece(tiny.TURNS),
    "each": tiny.space_before("each", template=tiny.TURNS),
    "first": tiny.space_before("first", template=tiny.TURNS),
}
TOKENIZERS = {"byte-level": tiny.tokenizer(), **SENTENCEPIECE}
TEXTS = st.text(st.sampled_from("what is the asthma cough 12 \n.,éß漢😀"), max_size=24).map(str.strip)


def said(token: str | bytes, *named: tuple[str, float], **more: Any) -> dict[str, Any]:
    """One token as an API says it, and the likeliest, each with its probability."""
    own: dict[str, Any] = {"token": token}
    if isinstance(token, bytes):
        own = {"token": token.decode(errors="replace"), "bytes": list(token)}
    top = [{"token": name, "logprob": math.log(share)} for name, share in named]
    return {**own, "logprob": -0.1, "top_logprobs": top or [{**own, "logprob": math.log(0.5)}], **more}


def targets(text: str, content: list[dict[str, Any]], top_k: int = 3, *, ends: bool = True) -> tuple[np.ndarray, np.ndarray]:
    tokenizer = tiny.tokenizer()
    completion = completion_ids(tokenizer, text, ends=ends)
    return named_targets(TokenBytes.of(tokenizer), completion, read_top_logprobs(content, text).pack(), top_k)


def shares(row: int, found: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Tokens of some weight at a place, and "rest"."""
    ids, log_probs = found
    texts = [tiny.tokenizer().decode([token]) for token in ids[row]]
    values = np.exp(log_probs[row].astype(float))
    return {name: round(float(value), 4) for name, value in zip([*texts, "rest"], values, strict=True) if value > 5e-5}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=TEXTS)
def test_tokens_are_spelt_as_they_are_written(kind: str, text: str) -> None:
    if kind == "each":  # it writes a space after its token for an empty line, which the text does not have
        text = re.sub("\n+", "\n", text)
    tokenizer = TOKENIZERS[kind]
    spelt = TokenBytes.of(tokenizer).bytes_of
    whole = b"".join(spelt[token] for token in completion_ids(tokenizer, text, ends=False))
    assert whole in (text.encode(), b" " + text.encode())


def test_what_is_named_has_its_mass_and_all_else_is_one_bucket() -> None:
    content = [
        said("question", ("question", 0.5), ("may", 0.2)),
        said(" cough", (" cough", 0.25), (" light", 0.25)),
    ]
    found = targets("question cough", content)
    assert found[0].shape == (3, 3) and found[1].shape == (3, 4)
    assert shares(0, found) == {"question": 0.5, "may": 0.2, "rest": 0.3}
    assert shares(1, found) == {" cough": 0.25, " light": 0.25, "rest": 0.5}  # never made one
    assert shares(2, found) == {"<|im_end|>": 1.0}  # this API says nothing of the end
    assert all(len(set(row)) == len(row) for row in found[0].tolist())


def test_more_than_k_are_cut_to_the_likeliest_and_the_same_text_twice_is_one_token() -> None:
    content = [said("question", ("may", 0.1), ("question", 0.3), ("co", 0.05), ("question", 0.2))]
    assert shares(0, targets("question", content, top_k=2)) == {"question": 0.5, "may": 0.1, "rest": 0.4}


@pytest.mark.parametrize("end", ["<|im_end|>", "", "\n"])
def test_the_end_is_learnt_where_an_api_shows_it(end: str) -> None:
    named = [("<|im_end|>" if end == "\n" else end, 0.6), (" cough", 0.3)]
    found = targets("question", [said("question"), said(end, *named)])
    assert shares(1, found) == {"<|im_end|>": 0.6, " cough": 0.3, "rest": 0.1}


def test_space_around_an_answer_is_no_part_of_it() -> None:
    content = [
        said("\n", ("\n", 0.7), ("question", 0.2)),
        said(" "),
        said("question"),
        said(" cough\n", (" cough\n", 0.9), (" cough", 0.1)),
    ]
    found = targets("question cough", content)
    assert shares(0, found) == {"\n": 0.7, "question": 0.2, "rest": 0.1}  # what came first
    assert shares(1, found) == {" cough": 1.0}


def test_a_token_that_is_several_of_the_teachers_is_as_likely_as_all_of_these() -> None:
    """The student's tokens are "question" and " cough"."""
    content = [said("q", ("q", 0.4), ("question", 0.4)), said("uestion", ("uestion", 0.9)), said(" cough", (" cough", 0.8))]
    found = targets("question cough", content)
    assert shares(0, found) == {"question": 0.76, "rest": 0.24}  # 0.4 + 0.4 * 0.9
    assert shares(1, found) == {" cough": 0.8, "rest": 0.2}
    unnamed = [said("q", ("q", 0.4), (" cough", 0.2)), said("uestion", ("u", 0.9)), said(" cough")]
    assert shares(0, targets("question cough", unnamed)) == {" cough": 0.2, "rest": 0.8}  # how likely it was is not known


def test_a_teachers_token_that_the_student_does_not_have_is_the_first_one_of_its_text() -> None:
    whole = [said("question cough", ("question cough", 0.5), ("question light", 0.1), ("question", 0.1), (" lightness", 0.2))]
    found = targets("question cough", whole)
    assert shares(0, found) == {"question": 0.7, " light": 0.2, "rest": 0.1}
    # Within it, what began otherwise is out: 0.5 of 0.6 went on with " cough". The end after "question" is another place's.
    assert shares(1, found) == {" cough": 0.8333, " light": 0.1667}


def test_where_the_teacher_named_nothing_that_fits_all_mass_is_on_the_texts_own_token() -> None:
    whole = [said("question cough", ("question", 0.3))]
    assert shares(1, targets("question cough", whole)) == {" cough": 1.0}


@pytest.mark.parametrize(("teacher", "student"), list(itertools.permutations(TOKENIZERS, 2)))
@given(text=TEXTS, seed=st.integers(0, 100))
def test_a_text_is_as_likely_in_the_students_tokens_as_in_the_teachers(
    teacher: str, student: str, text: str, seed: int
) -> None:
    """However both cut it: what one place gains is not counted at another."""
    text = re.sub("\n+", "\n", text)  # as above
    theirs, ours = TOKENIZERS[teacher], TOKENIZERS[student]
    all_bytes = TokenBytes.of(theirs).bytes_of
    spelt = [all_bytes[one] for one in completion_ids(theirs, text, ends=False)]
    spelt = [one for one in [*(first.lstrip() for first in spelt[:1]), *spelt[1:]] if one]  # servers show it so
    values = np.random.default_rng(seed).uniform(0.2, 0.9, len(spelt))
    content = [said(token, **named_bytes(token, value)) for token, value in zip(spelt, values, strict=True)]
    completion = completion_ids(ours, text, ends=False)
    packed = read_top_logprobs(content, text).pack()
    found, log_probs = named_targets(TokenBytes.of(ours, theirs), completion, packed, 2)
    said_of = log_probs[:, 0] < 0  # not of a space that the student's tokenizer writes before the text
    assert found[said_of, 0].tolist() == [token for token, own in zip(completion, said_of, strict=True) if own]
    assert log_probs[:, 0].sum() == pytest.approx(np.log(values).sum() if text else 0.0, abs=1e-3)


def named_bytes(token: bytes, value: float) -> dict[str, Any]:
    return {"top_logprobs": [{"token": "", "bytes": list(token), "logprob": math.log(value)}]}


def test_a_teachers_control_tokens_end_the_students_turn_or_mean_nothing() -> None:
    theirs, ours = SENTENCEPIECE["never"], tiny.tokenizer()
    content = [said("question"), said("<end_of_turn>", ("<end_of_turn>", 0.6), ("<start_of_turn>", 0.1), (" cough", 0.2))]
    completion = completion_ids(ours, "question")
    packed = read_top_logprobs(content, "question").pack()
    assert shares(1, named_targets(TokenBytes.of(ours, theirs), completion, packed, 3)) == {
        "<|im_end|>": 0.6,
        " cough": 0.2,
        "rest": 0.2,
    }


def test_parts_of_a_character_are_found_by_their_bytes_and_may_be_left_out() -> None:
    text, parts = "漢 asthma", [bytes([byte]) for byte in "漢".encode()]
    content = [*(said(part) for part in parts), said(" asthma", (" asthma", 0.5))]
    tokens = completion_ids(tiny.tokenizer(), text, ends=False)
    assert len(tokens) > 3
    assert shares(len(tokens) - 1, targets(text, content)) == {" asthma": 0.5, "rest": 0.5}
    assert shares(len(tokens) - 1, targets(text, content[2:])) == {" asthma": 0.5, "rest": 0.5}  # as llama.cpp says it


def test_of_a_text_that_the_api_did_not_write_all_mass_is_on_its_own_tokens() -> None:
    tokenizer = tiny.tokenizer()
    completion = completion_ids(tokenizer, "a doctor may")
    for packed in ("", read_top_logprobs([said("question")], "question").pack()):
        ids, log_probs = named_targets(TokenBytes.of(tokenizer), completion, packed, 4)
        assert ids[:, 0].tolist() == completion and (log_probs[:, 0] == 0).all() and (log_probs[:, 1:] == MIN_LOG_PROB).all()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "gave no top_logprobs"),
        ([], "gave no top_logprobs"),
        ({}, "gave no top_logprobs"),
        ([7], "in another format"),
        ([{"token": "question"}], "in another format"),
        ([said("question", bytes=[1000])], "in another format"),
        ([said(7)], "in another format"),  # type: ignore[arg-type]
        ([said("question") | {"top_logprobs": [{"token": "question", "logprob": float("nan")}]}], "in another format"),
        ([said("question") | {"top_logprobs": [{"token": "question", "logprob": "-1"}]}], "in another format"),
        ([said("question", ("question", 0.7), ("may", 0.6))], "sum to more than one"),
        ([said("a doctor")], "of another text"),
        ([said("question"), said(" light")], "of another text"),
    ],
)
def test_what_cannot_be_is_refused(content: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_top_logprobs(content, "question cough for students")


named = st.lists(st.tuples(st.binary(max_size=6), st.floats(MIN_LOG_PROB, 0)), max_size=4).map(tuple)


@given(st.integers(0, 500), st.dictionaries(st.integers(0, 500), named, max_size=5))
def test_it_is_read_as_it_was_packed(size: int, places: dict[int, Named]) -> None:
    found = TopLogprobs.unpack(TopLogprobs(size, places).pack())
    assert found.size == size and found.places.keys() == places.keys()
    for at, expected in places.items():
        assert [token for token, _ in found.places[at]] == [token for token, _ in expected]
        assert [value for _, value in found.places[at]] == pytest.approx([value for _, value in expected], abs=1e-4)


def test_llama_cpp_says_what_the_model_itself_gives(tmp_path: Path) -> None:
    teacher, tokenizer = tiny.teacher(), tiny.tokenizer()
    write_base_gguf(teacher.model, tokenizer, tmp_path / "teacher.gguf", "f16", name="tiny", license="apache-2.0")
    prompt = "what is light"
    body = {"messages": messages(prompt), "max_tokens": 24, "temperature": 0, "logprobs": True, "top_logprobs": 20}
    body["grammar"] = "root ::= [a-z ]+"  # so that it writes no broken characters; what it says is from before that
    with LlamaServer(tmp_path / "teacher.gguf", threads=1) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", headers=server.headers, json=body, timeout=60).json()
    choice = answer["choices"][0]
    text = choice["message"]["content"].strip()
    completion = completion_ids(tokenizer, text, ends=choice["finish_reason"] == "stop")
    packed = read_top_logprobs(choice["logprobs"]["content"], text).pack()
    ids, log_probs = named_targets(TokenBytes.of(tokenizer), completion, packed, 20)
    expected = score(teacher, [prompt_ids(tokenizer, prompt)], [completion], 20, 1.0)
    said_of = [row for row in range(len(completion)) if log_probs[row, 0] < 0]
    assert len(said_of) > 8
    for row in said_of:
        theirs = dict(zip(expected.ids[row].tolist(), expected.log_probs[row, :-1].tolist(), strict=True))
        ours = dict(zip(ids[row].tolist(), log_probs[row, :-1].tolist(), strict=True))
        shared = theirs.keys() & ours.keys()
        assert len(shared) >= 18  # of the least likely ones rounding decides
        torch.testing.assert_close([ours[one] for one in shared], [theirs[one] for one in shared], atol=0.1, rtol=0)
        assert math.exp(log_probs[row, -1]) == pytest.approx(math.exp(expected.log_probs[row, -1]), abs=0.02)
