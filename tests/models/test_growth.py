"""A base that grows: new tokens come after the old ones, and nothing that was there before changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import tiny
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from factory.config.schema import DistillConfig
from factory.models.base import Base, Shape, attach_adapter, load_base, load_student, save_base, trim_teacher
from factory.models.growth import grow_base
from factory.models.quantization import round_weights
from factory.models.teacher import Teacher
from factory.models.vocabulary import count_tokens, kept_tokens, missing_tokens, trim_tokenizer

OLD = ["what are the early signs", "the landlord may be brief", "is it to be the answer"]
NEW = ["asthma asthma asthma wheeze wheeze students", "photosynthesis turns light into sugar", "1 + 2 = 3 die Größe"]
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": tiny.tokenizer,
    "split digits": tiny.digits_apart,
    "sentencepiece": lambda: tiny.sentencepiece(tiny.CHATML),
}
kinds = pytest.mark.parametrize("kind", list(TOKENIZERS))


def tokens_of(tokenizer: PreTrainedTokenizerFast, room: int = 1000) -> tuple[list[int], tuple[int, ...]]:
    """What a base was trimmed to by old texts, and what new ones add."""
    kept = kept_tokens(tokenizer, OLD, 320)  # at least 262 and 298 are kept of the two kinds
    return kept, missing_tokens(tokenizer, kept, count_tokens(tokenizer, NEW), room)


# ------------------------------------------------------------------------------------------------------------- tokenizer

CASES = {kind: (make(), *tokens_of(make())) for kind, make in TOKENIZERS.items()}


def assert_grown(kind: str, text: str) -> tuple[bool, bool]:
    """Whether the text lacks nothing in the old vocabulary, and whether new tokens made it shorter."""
    original, kept, missing = CASES[kind]
    order = [*kept, *missing]
    union, sorted_ids = UNIONS[kind]
    before, after = OLDS[kind](text)["input_ids"], GROWN[kind](text)["input_ids"]
    assert [order[i] for i in after] == [sorted_ids[i] for i in union(text)["input_ids"]]
    assert GROWN[kind].decode(after) == original.decode(original(text)["input_ids"])
    complete = set(original(text)["input_ids"]) <= set(kept)
    if complete:
        assert after == before
    return complete, len(after) < len(before)


OLDS = {kind: trim_tokenizer(original, kept) for kind, (original, kept, _) in CASES.items()}
GROWN = {kind: trim_tokenizer(original, [*kept, *missing]) for kind, (original, kept, missing) in CASES.items()}
UNIONS = {
    kind: (trim_tokenizer(original, sorted([*kept, *missing])), sorted([*kept, *missing]))
    for kind, (original, kept, missing) in CASES.items()
}


@kinds
def test_a_grown_tokenizer_cuts_as_one_trimmed_to_both_and_old_text_keeps_its_ids(kind: str) -> None:
    found = [assert_grown(kind, text) for text in [*OLD, *NEW, *tiny.sentences(60), "<|im_end|>\n\n<eos>x"]]
    assert any(complete for complete, _ in found) and any(shorter for _, shorter in found)
    original, *_ = CASES[kind]
    assert count_tokens(GROWN[kind], NEW).total() == count_tokens(original, NEW).total() < count_tokens(OLDS[kind], NEW).total()


@kinds
@settings(max_examples=100)
@given(text=st.text(max_size=30) | st.lists(st.sampled_from(" ".join([*OLD, *NEW]).split()), max_size=8).map(" ".join))
@example(text="asthmasthma Größe\n\n")
def test_any_text_comes_back_from_a_grown_tokenizer(kind: str, text: str) -> None:
    assert_grown(kind, text)


@kinds
def test_special_tokens_and_the_chat_template_keep_their_ids_on_disk_too(kind: str, tmp_path: Path) -> None:
    old, grown = OLDS[kind], GROWN[kind]
    grown.save_pretrained(tmp_path)
    tiny.llama(layers=1, vocabulary=len(grown)).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for one in (grown, loaded):
        vocabulary = one.get_vocab()
        assert all(vocabulary[token] == i for token, i in old.get_vocab().items()) and len(vocabulary) == len(grown)
        assert one.added_tokens_decoder == old.added_tokens_decoder
        assert (one.bos_token_id, one.eos_token_id, one.pad_token_id) == (old.bos_token_id, old.eos_token_id, old.pad_token_id)
        turns = [{"role": "user", "content": "the signs"}]
        assert one.apply_chat_template(turns, return_dict=False) == old.apply_chat_template(turns, return_dict=False)
        assert one(NEW)["input_ids"] == grown(NEW)["input_ids"]


@kinds
def test_the_most_frequent_tokens_are_added_first_and_no_more_than_there_is_room_for(kind: str) -> None:
    original, kept, missing = CASES[kind]
    assert not set(missing) & set(kept) and len(set(missing)) == len(missing)
    counts = count_tokens(original, NEW)
    most = max((token for token in counts if token not in kept), key=lambda token: (counts[token], -token))
    for room in range(len(missing) + 1):
        some = tokens_of(original, room)[1]
        assert len(some) <= room
        assert trim_tokenizer(original, [*kept, *some])(NEW[0])  # closed: it is a tokenizer
    few = tokens_of(original, len(missing) // 2)[1]
    assert most in few
    assert missing_tokens(original, kept, dict.fromkeys(kept, 1), 5) == ()  # nothing is missing
    assert missing_tokens(original, kept, counts, 0) == missing_tokens(original, kept, counts, -3) == ()


# ------------------------------------------------------------------------------------------------------------------ model


def untied() -> PreTrainedModel:
    model: Any = tiny.llama()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


MODELS = {"llama": tiny.llama, "untied llama": untied, "gemma": tiny.gemma}


def trimmed_base(teacher: Teacher, tokens: list[int]) -> Base:
    return Base(
        copy.deepcopy(trim_teacher(teacher, tokens).model), trim_teacher(teacher, tokens).tokenizer, Shape((0,), tuple(tokens))
    )


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> Tensor:
    values: Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return values


def healed(base: Base) -> Base:
    """As healing leaves it: every weight has moved."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in base.model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return base


@pytest.mark.parametrize("grid", [None, "q4_0"])
@pytest.mark.parametrize("name", list(MODELS))
def test_a_grown_trimmed_base_is_the_teacher_trimmed_to_all_of_these_tokens(name: str, grid: Any) -> None:
    teacher = Teacher.of(MODELS[name](), tiny.tokenizer(), "tiny")
    kept, missing = tokens_of(tiny.tokenizer())
    base, whole = trimmed_base(teacher, kept), trimmed_base(teacher, [*kept, *missing])
    if grid:
        round_weights(base.model, grid)
        round_weights(whole.model, grid)
    grown = grow_base(base, teacher, missing, grid)
    assert grown.shape == Shape((0,), (*kept, *missing)) and grown.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    expected = whole.model.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in grown.model.state_dict().items())
    head, embedding = grown.model.get_output_embeddings(), grown.model.get_input_embeddings()
    assert (head.weight is embedding.weight) is (name != "untied llama")
    assert grown.model.config.vocab_size == len(kept) + len(missing) and base.model.config.vocab_size == len(kept)
    assert grown.model.config.eos_token_id == base.model.config.eos_token_id


@pytest.mark.parametrize("name", list(MODELS))
def test_a_grown_healed_base_says_of_old_text_what_it_said(name: str) -> None:
    teacher = Teacher.of(MODELS[name](), tiny.tokenizer(), "tiny")
    kept, missing = tokens_of(tiny.tokenizer())
    base = healed(trimmed_base(teacher, kept))
    grown = grow_base(base, teacher, missing, None)
    ids = base.tokenizer(OLD[0])["input_ids"]
    before, after = logits(base.model, ids), logits(grown.model, ids)
    torch.testing.assert_close(after[:, : len(kept)], before)  # so KL over the old tokens is what it was
    for part in ("get_input_embeddings", "get_output_embeddings"):
        rows = getattr(teacher.model, part)().weight[list(missing)]
        assert torch.equal(getattr(grown.model, part)().weight[len(kept) :], rows)


def test_an_adapter_of_the_old_base_is_valid_on_the_grown_one_as_published(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    kept, missing = tokens_of(tiny.tokenizer())
    save_base(healed(trimmed_base(teacher, kept)), tmp_path / "1")
    model = attach_adapter(load_base(tmp_path / "1", tiny.CPU), DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    save_base(grow_base(load_base(tmp_path / "1", tiny.CPU), teacher, missing, "q8_0"), tmp_path / "2")

    ids = load_base(tmp_path / "1", tiny.CPU).tokenizer(OLD[1])["input_ids"]
    plain, old, grown = (load_base(tmp_path / number, tiny.CPU) for number in ("1", "1", "2"))
    assert grown.shape.tokens == (*kept, *missing) and grown.tokenizer(OLD[1])["input_ids"] == ids
    on_old = logits(load_student(old, tmp_path / "adapter"), ids)
    on_grown = logits(load_student(grown, tmp_path / "adapter"), ids)
    assert torch.equal(on_grown[:, : len(kept)], on_old)
    assert not torch.equal(on_old, logits(plain.model, ids))
