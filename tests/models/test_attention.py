"""Grouped attention beside transformers' own: values, gradients, padding, windows, caches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from factory.errors import ModelResolutionError, TrainingError
from factory.models.attention import GROUPED, WithPrefix, grouped_attention, load_causal_model
from factory.models.folders import load_tokenizer
from factory.models.forward import hidden_states, make_batch
from factory.models.generation import sample

CPU = torch.device("cpu")
BATCH = make_batch([[5, 6, 7], [8]], [[9, 10, 11, 12, 13, 14, 15, 16], [17, 18]])
models = pytest.mark.parametrize("make", [tiny.llama, tiny.gemma], ids=["llama", "gemma"])
Make = Callable[[], Any]


def states_and_gradient(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    states = hidden_states(model, BATCH).final[BATCH.real]
    states.square().sum().backward()
    return states.detach(), model.get_input_embeddings().weight.grad.clone()


@models
def test_values_and_gradients_are_those_of_torch_s_own_attention(make: Make) -> None:
    model = make().double()
    model.set_attn_implementation("sdpa")
    expected = states_and_gradient(model)
    model.set_attn_implementation(GROUPED)
    for ours, theirs in zip(states_and_gradient(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@models
def test_it_samples_what_transformers_samples(make: Make) -> None:
    model, written = make(), {}
    for name in ("eager", GROUPED):
        model.set_attn_implementation(name)
        written[name] = sample(model, [[5, 6], [7, 8, 9, 10]], prefix=[11, 12, 13], max_new_tokens=12, stop=[])
    assert written[GROUPED] == written["eager"]


def test_a_soft_cap_is_applied_before_the_mask() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    mask = torch.full((3, 3), float("-inf")).triu(1)[None, None]
    ours, _ = grouped_attention(torch.nn.Module(), query, key, value, mask, 0.5, softcap=2.0)
    scores = torch.einsum("bhtd,bhsd->bhts", query, key.repeat_interleave(2, 1)) * 0.5
    weights = (2.0 * torch.tanh(scores / 2.0) + mask).softmax(-1)
    torch.testing.assert_close(ours, torch.einsum("bhts,bhsd->bthd", weights, value.repeat_interleave(2, 1)))


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_prefix_that_rows_share_is_as_good_as_a_copy_in_each(length: int, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, own, prefix, mask = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 4, length, 8), (2, 3, 2, 6, 8), (2, 1, 2, 5, 8), (3, 1, length, 11))
    )
    copied = (torch.cat([prefix[part].expand(3, -1, -1, -1), own[part]], dim=2) for part in (0, 1))
    shared = (WithPrefix(prefix[part], own[part]) for part in (0, 1))
    expected, found = (
        grouped_attention(torch.nn.Module(), query, *both, mask, 0.5, softcap=softcap)[0] for both in (copied, shared)
    )
    torch.testing.assert_close(found, expected)


def test_attention_sinks_are_refused() -> None:
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(TrainingError, match="Module has attention sinks"):
        grouped_attention(torch.nn.Module(), one, one, one, None, 1.0, s_aux=torch.zeros(1))


def load(folder: Path) -> Any:
    return load_causal_model(folder, load_tokenizer(folder), CPU, torch.float32)


def test_a_loaded_model_uses_it_on_a_cpu_and_does_not_save_it(tmp_path: Path) -> None:
    model: Any = load(tiny.saved(tmp_path / "model", tiny.llama()))
    assert model.config._attn_implementation == GROUPED and not model.training
    model.save_pretrained(tmp_path / "again")
    assert GROUPED not in (tmp_path / "again" / "config.json").read_text()


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma])
def test_a_model_is_loaded_without_the_rows_beyond_its_tokens(make: Any, tmp_path: Path) -> None:
    whole, loaded = make(), load(tiny.saved(tmp_path, tiny.padded(make(), 384)))
    assert loaded.config.vocab_size == 360 == loaded.get_input_embeddings().num_embeddings
    ids = torch.tensor([[1, 40, 41, 42, 2]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, whole(input_ids=ids).logits)


def test_rows_of_token_ids_that_are_left_out_stay(tmp_path: Path) -> None:
    """Phi-3 names 32,011 tokens with ids up to 32,010 and more; what counts is the last id."""
    tokenizer = tiny.tokenizer()
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    last = max(vocabulary["model"]["vocab"], key=vocabulary["model"]["vocab"].get)
    vocabulary["model"]["vocab"][last] = 379
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(vocabulary)))
    loaded = load(tiny.saved(tmp_path, tiny.llama(vocabulary=384), tokenizer))
    assert loaded.config.vocab_size == 380 and len(tokenizer) == 360


def test_a_token_without_a_row_is_refused_in_one_line(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["photosynthesis"])
    with pytest.raises(ModelResolutionError, match=r"has 360 embedding rows for 361 tokens; resize its embeddings, or"):
        load(tiny.saved(tmp_path, tiny.llama(), tokenizer))
