"""An adapter is loaded only where it fits its base weight for weight; everything else is one line, before the base changes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support import tiny

from factory.config.schema import DistillConfig
from factory.errors import ModelResolutionError
from factory.models.adapter import MAX_RANK, check_adapter, load_adapter, read_settings
from factory.models.base import attach_adapter

CONFIG = DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8)
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of ``tiny.base()`` that changes what it predicts."""
    model = attach_adapter(tiny.base(), CONFIG)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def edit_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def edit_settings(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([[5, 17, 9]])).logits
    return found


def refused(folder: Path, model: Any = None) -> str:
    """The one line; the model is as it was."""
    model = tiny.base().model if model is None else model
    before, modules = logits(model), [name for name, _ in model.named_modules()]
    with pytest.raises(ModelResolutionError) as caught:
        load_adapter(model, folder, "another")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert torch.equal(logits(model), before) and [name for name, _ in model.named_modules()] == modules
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- loads


def test_it_predicts_what_plain_peft_does(folder: Path) -> None:
    student, plain = load_adapter(tiny.base().model, folder), PeftModel.from_pretrained(tiny.base().model, folder).eval()
    assert torch.equal(logits(student), logits(plain)) and not student.training
    assert not torch.equal(logits(student), logits(tiny.base().model))
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_a_second_adapter_stands_beside_the_first(folder: Path, tmp_path: Path) -> None:
    student = load_adapter(tiny.base().model, folder, "first@1")
    first = logits(student)
    other = tmp_path / "other"
    attach_adapter(tiny.base(), CONFIG).save_pretrained(str(other))
    assert load_adapter(student, other, "second@1") is student
    assert torch.equal(logits(student), first)
    student.set_adapter("second@1")
    assert torch.equal(logits(student), logits(tiny.base().model))  # a new adapter changes nothing


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], ["model.layers.0.mlp.up_proj", "v_proj"]])
def test_what_is_expected_is_what_peft_saves(tmp_path: Path, targets: Any) -> None:
    config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    model: Any = get_peft_model(tiny.gemma(), config)
    model.save_pretrained(str(tmp_path))
    if targets == "all-linear":  # peft writes the names that it found
        edit_settings(tmp_path, target_modules=targets)
    assert check_adapter(tmp_path, model.config).r == 2


# ------------------------------------------------------------------------------------------------------- foreign weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda weights: {f"x.{key}": value for key, value in weights.items()},
            "56 of its weights belong to no module, x.base",
        ),
        (lambda weights: weights | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, "1 of its weights belong"),
        (lambda weights: dict(list(weights.items())[:1]), "it lacks 55 of 56 weights, base_model.model.model.layers.0."),
        (lambda weights: {}, "it lacks 56 of 56 weights"),
        (
            lambda weights: {
                key: value.repeat(2, 1) if "lora_A" in key else value.repeat(1, 2) for key, value in weights.items()
            },
            r"has shape [8, 64], and [4, 64] is needed",
        ),
    ],
    ids=["foreign keys", "one too many", "a single tensor", "none", "another rank"],
)
def test_weights_that_are_not_the_base_s_are_refused(folder: Path, change: Any, words: str) -> None:
    edit_weights(folder, change)
    found = refused(folder)
    assert "does not fit its base" in found and words in found


def test_the_adapter_of_another_base_is_refused(folder: Path) -> None:
    assert "it lacks 14 of 70 weights" in refused(folder, tiny.base(layers=5).model)
    assert "14 of its weights belong to no module" in refused(folder, tiny.base(layers=3).model)
    assert "has shape" in refused(folder, tiny.base(width=64).model)


def test_a_refused_adapter_leaves_those_that_are_loaded_alone(folder: Path, tmp_path: Path) -> None:
    student = load_adapter(tiny.base().model, folder, "first")
    (tmp_path / "bad").mkdir()
    for path in folder.iterdir():
        (tmp_path / "bad" / path.name).write_bytes(path.read_bytes())
    edit_weights(tmp_path / "bad", lambda weights: {})
    refused(tmp_path / "bad", student)
    assert list(student.peft_config) == ["first"]


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_cut_off_weights_are_one_line(folder: Path, kept: int) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "adapter_model.safetensors cannot be read" in refused(folder)


def test_a_pickle_is_not_looked_at(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.safetensors cannot be read" in refused(folder)


# -------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 0},
        {"r": -1},
        {"r": MAX_RANK + 1},
        {"r": 10**30},
        {"r": True},
        {"r": 4.0},
        {"r": None},
        {"lora_alpha": 0},
        {"lora_alpha": 1e999},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 10**400},
        {"lora_alpha": "8"},
        {"target_modules": "(a+)+$"},
        {"target_modules": []},
        {"target_modules": [1]},
        {"target_modules": ["q_proj"] * 5000},
        {"target_modules": None},
        {"peft_type": "LOHA"},
        {"peft_type": None},
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"alpha_pattern": {"q_proj": 99}},
        {"rank_pattern": {"(a+)+$": 2}},
        {"exclude_modules": "(a+)+$"},
        {"layers_pattern": "(a+)+$", "layers_to_transform": [0]},
        {"modules_to_save": ["lm_head"]},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"auto_mapping": {"parent_library": "antigravity", "base_model_class": "x"}},
        {"surprise": 1},
    ],
    ids=lambda fields: " ".join(fields) + " " + str(next(iter(fields.values())))[:12],
)
def test_anything_but_plain_lora_is_refused_at_once(folder: Path, fields: dict[str, Any]) -> None:
    edit_settings(folder, **fields)
    start = time.perf_counter()
    assert "is not of a plain LoRA adapter: rank 1 to 1024 on modules that are listed by name" in refused(folder)
    assert time.perf_counter() - start < 5


def test_a_pattern_that_would_take_for_ever_is_never_matched(folder: Path) -> None:
    edit_settings(folder, target_modules="model(.[a-z0-9_]*)*(.[a-z0-9_]*)*!")
    assert "target_modules 'model(" in refused(folder)


def test_names_that_are_no_linear_layers_are_refused(folder: Path) -> None:
    edit_settings(folder, target_modules=["q_proj", "self_attn"])
    assert "target_modules has model.layers.0.self_attn, which is no linear layer" in refused(folder)
    edit_settings(folder, target_modules=["nothing"])
    assert "no module has one of its target_modules' names" in refused(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"r": NaN'])
def test_settings_that_are_none_are_one_line(folder: Path, content: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    assert "adapter_config.json" in refused(folder)


def test_another_method_of_peft_is_refused(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    model: Any = get_peft_model(tiny.llama(), config)
    model.save_pretrained(str(tmp_path / "ia3"))
    assert "peft_type 'IA3' is not of a plain LoRA adapter" in refused(tmp_path / "ia3")


def test_what_changes_no_answer_may_have_any_value(folder: Path) -> None:
    expected = logits(load_adapter(tiny.base().model, folder))
    edit_settings(folder, base_model_name_or_path="/elsewhere", lora_dropout=0.5, init_lora_weights="pissa", revision="x")
    assert torch.equal(logits(load_adapter(tiny.base().model, folder)), expected)
    assert read_settings(folder).lora_dropout == 0
