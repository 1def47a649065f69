"""Sampling: what transformers' generate writes, for prompts of any length, with a prefix computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support import tiny
from transformers import PreTrainedModel

from factory.models.attention import GROUPED
from factory.models.generation import CACHE_BYTES, next_tokens, padded_left, rows_at_once, sample
from factory.models.kv_cache import expand_cache, prefix_cache

PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63], [1, 70], [1, 80, 81]]
PREFIX = [1, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 100, 101]  # longer than the tiny Gemma's window of 8
MODELS = pytest.mark.parametrize("make", [tiny.llama, tiny.gemma])
Make = Callable[[], PreTrainedModel]


def generated(model: Any, prompt: Sequence[int], limit: int, stop: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(prompt)])
    whole = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=list(stop),
        pad_token_id=0,
    )
    return [int(token) for token in whole[0, len(prompt) :]]


def common_tokens(model: PreTrainedModel) -> list[int]:
    """Two tokens that some of the greedy answers have in the middle, so that rows end at different times."""
    answers = sample(model, PROMPTS, max_new_tokens=12, stop=())
    return sorted({answers[0][3], answers[2][7]})


@MODELS
@pytest.mark.parametrize("prefix", [[], PREFIX], ids=["alone", "after a prefix"])
@pytest.mark.parametrize("batch", [1, 64])
def test_greedy_is_what_generate_writes(make: Make, prefix: list[int], batch: int) -> None:
    model = make()
    stop = common_tokens(model)
    ours = sample(model, PROMPTS, prefix=prefix, max_new_tokens=12, stop=stop, batch=batch)
    assert ours == [generated(model, [*prefix, *prompt], 12, stop) for prompt in PROMPTS]


def test_a_stop_token_is_the_last_id_and_without_one_a_sequence_is_cut_off() -> None:
    model = tiny.llama()
    stop = common_tokens(model)
    answers = sample(model, PROMPTS, max_new_tokens=12, stop=stop)
    for answer in answers:
        assert not set(answer[:-1]) & set(stop)
        assert answer[-1] in stop or len(answer) == 12
    assert len({len(answer) for answer in answers}) > 1


def test_finished_rows_leave_the_batch_and_change_no_other_row() -> None:
    model = tiny.llama()
    together = [[1, 40 + i] for i in range(6)]
    free = sample(model, together, max_new_tokens=10, stop=())
    stop = [free[0][1], free[3][4]]
    rows: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    stopped = sample(model, together, max_new_tokens=10, stop=stop)
    hook.remove()
    for whole, short in zip(free, stopped, strict=True):
        assert whole[: len(short)] == short
    assert rows[0] == 6
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 6


def test_without_stop_tokens_every_sequence_has_the_full_length() -> None:
    assert [len(ids) for ids in sample(tiny.llama(), PROMPTS, max_new_tokens=5, stop=())] == [5] * 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_seed_gives_the_same_samples(temperature: float) -> None:
    model = tiny.llama()

    def drawn(seed: int) -> list[list[int]]:
        torch.rand(3)  # the global generator has no say
        return sample(model, PROMPTS, max_new_tokens=8, stop=[2], temperature=temperature, seed=seed)

    assert drawn(3) == drawn(3)
    assert (drawn(3) == drawn(4)) == (temperature == 0)


def test_samples_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0]]).expand(20_000, 3)
    for temperature in (0.5, 2.0):
        drawn = next_tokens(logits, temperature, torch.Generator().manual_seed(0))
        share = drawn[:, 0].bincount(minlength=3) / len(drawn)
        torch.testing.assert_close(share, (logits[0] / temperature).softmax(-1), atol=0.015, rtol=0)


def test_prompts_end_at_the_right_and_every_row_has_padding() -> None:
    ids, mask = padded_left([[5, 7], [9]], tiny.CPU)
    assert ids.tolist() == [[0, 5, 7], [0, 0, 9]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("attention", ["sdpa", GROUPED])
def test_a_shared_prefix_is_computed_once_and_stays_as_it_is(attention: str) -> None:
    model: Any = tiny.llama()
    model.set_attn_implementation(attention)
    lengths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    written = sample(model, PROMPTS, prefix=PREFIX, max_new_tokens=2, stop=())
    assert lengths.count(len(PREFIX)) == 1
    assert max(lengths) == len(PREFIX)
    cache = prefix_cache(model, PREFIX)
    lengths.clear()
    assert sample(model, PROMPTS, prefix=PREFIX, prefilled=cache, max_new_tokens=2, stop=()) == written
    assert len(PREFIX) not in lengths
    hook.remove()
    assert cache is not None
    before = cache.layers[0].keys.clone()
    expanded = expand_cache(model, cache, 3)
    expanded.update(torch.zeros(3, 2, 1, 8), torch.zeros(3, 2, 1, 8), 0)
    torch.testing.assert_close(cache.layers[0].keys, before)
    assert expanded.get_seq_length() == len(PREFIX) + 1
    assert expanded.layers[0].keys.shape == (3, 2, 1 if attention == GROUPED else len(PREFIX) + 1, 8)


@pytest.mark.parametrize(("room", "finished"), [(1, 0.0), (1, 1.0), (64, 0.0), (64, 1.0)])
def test_neither_room_nor_when_rows_leave_changes_what_is_written(
    room: int, finished: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.llama()
    alone = [sample(model, [prompt], prefix=PREFIX, max_new_tokens=9, stop=())[0] for prompt in PROMPTS]
    stop = alone[0][4]  # ends at least the first within the others' time
    expected = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in alone]
    assert len({len(ids) for ids in expected}) > 1
    monkeypatch.setattr("factory.models.kv_cache.ROOM", room)
    monkeypatch.setattr("factory.models.generation.FINISHED", finished)
    assert sample(model, PROMPTS, prefix=PREFIX, max_new_tokens=9, stop=[stop]) == expected


@pytest.mark.parametrize("attention", ["sdpa", GROUPED])
@pytest.mark.parametrize("prefix", [(), PREFIX])
@pytest.mark.parametrize(("read", "parts"), [((1, 1), 1), ((2, 2), 2), ((8, 1), 4)])
def test_in_how_many_parts_prompts_are_read_changes_nothing(
    attention: str, prefix: Sequence[int], read: tuple[int, int], parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny.llama()
    model.set_attn_implementation(attention)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16, 17], [18, 19]]
    alone = [sample(model, [prompt], prefix=prefix, max_new_tokens=6, stop=())[0] for prompt in prompts]
    monkeypatch.setattr("factory.models.generation.READ", read)
    reads: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: reads.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert sample(model, prompts, prefix=prefix, max_new_tokens=6, stop=()) == alone
    hook.remove()
    widths = [width for _, width in reads[bool(prefix) :]]
    assert sum(width > 1 for width in widths) == parts  # each row has a column of padding
    assert len(widths) == parts + 5  # the last token is not read


def test_a_batch_has_as_many_rows_as_the_cache_has_room_for() -> None:
    model = tiny.llama()
    config: Any = model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    assert rows_at_once(model, 10) == 128
    assert rows_at_once(model, CACHE_BYTES // (100 * token)) == 100
    assert rows_at_once(model, CACHE_BYTES // token) == 64  # no fewer: what runs that long needs the memory


def test_progress_counts_every_prompt_once() -> None:
    counted: list[int] = []
    sample(tiny.llama(), PROMPTS, max_new_tokens=2, stop=(), batch=1, progress=counted.append)
    assert counted == [1] * 5


def test_no_prompts_give_no_samples() -> None:
    assert sample(tiny.llama(), [], max_new_tokens=2, stop=[2]) == []


def test_a_repetition_penalty_lowers_what_was_written_and_not_the_prompt() -> None:
    model = tiny.llama()
    prompt = PROMPTS[0]
    expected: list[int] = []
    for _ in range(10):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *expected]])).logits[0, -1]
        for token in set(expected):
            logits[token] = logits[token] / 1.5 if logits[token] > 0 else logits[token] * 1.5
        expected.append(int(logits.argmax()))
    assert sample(model, [prompt], max_new_tokens=10, stop=(), repetition_penalty=1.5) == [expected]
    assert len(set(expected)) > len(set(sample(model, [prompt], max_new_tokens=10, stop=())[0]))
