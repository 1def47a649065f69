"""A base rounded to a grid is what llama.cpp will read, and costs what the grid costs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from support import tiny
from transformers import BertConfig, BertModel

from factory.config.quantization import GRIDS, Grid
from factory.export.gguf import load_gguf_weights, write_base_gguf
from factory.models.base import Base, Shape
from factory.models.forward import make_batch
from factory.models.quantization import round_base, round_weights, rounded_bytes

BATCH = make_batch([[5, 6, 7]], [[9, 10, 11, 12, 13, 14, 15, 16]])
SHAPE = Shape((0, 1), None)


def written_and_read(model: Any, grid: Grid, folder: Path) -> dict[str, torch.Tensor]:
    write_base_gguf(model, tiny.tokenizer(), folder / f"{grid}.gguf", grid, name="tiny@1", license="mit")
    read = copy.deepcopy(model)
    load_gguf_weights(read, folder / f"{grid}.gguf")
    return dict(read.state_dict())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma], ids=["llama", "gemma"])
def test_rounded_weights_are_those_of_the_file(make: Any, grid: Grid, tmp_path: Path) -> None:
    model = make()
    expected = written_and_read(model, grid, tmp_path)
    round_weights(model, grid)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_published_base_is_written_as_it_was_trained_but_for_the_rounding_of_bfloat16(grid: Grid, tmp_path: Path) -> None:
    published: Any = tiny.llama().to(torch.bfloat16)
    round_weights(published, grid)
    served = written_and_read(published.float(), grid, tmp_path)
    for name, weight in published.state_dict().items():
        largest = float(weight.abs().max())
        torch.testing.assert_close(served[name], weight, rtol=0, atol=2**-7 * largest)


@pytest.mark.parametrize("grid", GRIDS)
def test_bytes_are_those_of_the_file_s_tensors(grid: Grid, tmp_path: Path) -> None:
    model, path = tiny.llama(), tmp_path / "file.gguf"
    write_base_gguf(model, tiny.tokenizer(), path, grid, name="tiny@1", license="mit")
    assert rounded_bytes(model, grid) == sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)


def test_an_encoder_without_a_head_is_rounded_too() -> None:
    encoder = BertModel(
        BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    )
    before = encoder.embeddings.word_embeddings.weight.clone()
    round_weights(encoder, "q8_0")
    assert 0 < (encoder.embeddings.word_embeddings.weight - before).abs().max() < 0.01


def test_the_cost_is_the_kl_of_the_rounded_model_and_fewer_bits_cost_more() -> None:
    base = Base(tiny.llama(), tiny.tokenizer(), SHAPE)
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    found = {grid: round_base(base, grid, [BATCH]) for grid in ("q8_0", "q5_0", "q4_0")}
    costs = [rounded.kl for rounded in found.values()]
    assert costs == sorted(costs) and min(costs) > 0
    for name, weight in base.model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
    with torch.no_grad():
        whole, rounded = (
            model(input_ids=BATCH.input_ids).logits[BATCH.predicts].log_softmax(-1)
            for model in (base.model, found["q4_0"].base.model)
        )
    assert found["q4_0"].kl == pytest.approx(float((whole.exp() * (whole - rounded)).sum(-1).mean()), rel=1e-4)


def test_without_a_grid_a_base_stays_as_it_is() -> None:
    base = Base(tiny.llama(), tiny.tokenizer(), SHAPE)
    found = round_base(base, None, [BATCH])
    assert found.base is base and found.grid is None and found.kl is None


def test_matrices_without_whole_blocks_stay_as_they_are() -> None:
    model: Any = tiny.llama(width=40)
    before = model.model.layers[0].mlp.gate_proj.weight.clone()
    round_weights(model, "q4_0")
    torch.testing.assert_close(model.model.layers[0].mlp.gate_proj.weight, before, rtol=0, atol=0)
