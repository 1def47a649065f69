"""A student's parts: cut from a teacher or taken from elsewhere, kept on disk, moved, and put together again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support import tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from factory.config.schema import DistillConfig, SizeSpec
from factory.errors import TrainingError
from factory.models.attention import GROUPED
from factory.models.base import (
    Base,
    Shape,
    attach_adapter,
    check_vocabularies,
    choose_tokens,
    load_base,
    load_external_base,
    load_student,
    save_base,
    trim_teacher,
    trimming_cost,
)
from factory.models.chat import NO_CONTEXTS, stop_tokens
from factory.models.cutting import prune_teacher
from factory.models.dimensions import Dimensions
from factory.models.scoring import student_batches
from factory.models.teacher import Teacher

CONFIG = DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8)
IDS = torch.tensor([[1, 40, 41, 42, 43, 2]])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    values: Tensor = model(input_ids=IDS).logits
    return values


def in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """Weights alone: ``model.to`` would round the rotary frequencies too, which transformers keeps in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def trimmed_pair() -> tuple[Teacher, Teacher, tuple[int, ...]]:
    teacher = tiny.teacher()
    tokens = choose_tokens(teacher, tiny.sentences(20), SizeSpec(layers=2, vocabulary=320))
    assert tokens is not None and len(tokens) == 320
    return teacher, trim_teacher(teacher, tokens), tokens


def pruned() -> Base:
    return prune_teacher(tiny.teacher(), None, [Dimensions(2, 64)], tiny.sequences(6)).base


def with_adapter(base: Base) -> PeftModel:
    model = attach_adapter(base, CONFIG)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_an_adapter_s_config_is_the_same_in_every_process() -> None:
    """Sets of names are in another order in each, and a published file has a checksum."""
    config: Any = attach_adapter(tiny.base(), CONFIG).peft_config["default"]
    names = config.to_dict()["target_modules"]
    assert names == sorted(names) and len(names) == 7


# ---------------------------------------------------------------------------------------------------------- trimming


@pytest.mark.parametrize("size", [SizeSpec(layers=2), SizeSpec(layers=2, vocabulary=360), SizeSpec(layers=2, vocabulary=9999)])
def test_a_size_that_holds_every_token_trims_nothing(size: SizeSpec) -> None:
    teacher = tiny.teacher()
    assert choose_tokens(teacher, tiny.sentences(5), size) is None
    assert trim_teacher(teacher, None) is teacher


def test_a_trimmed_teacher_scores_the_kept_tokens_as_before_and_the_given_one_stays_whole() -> None:
    teacher, trimmed, tokens = trimmed_pair()
    new_ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        ours = trimmed.model(input_ids=new_ids).logits
        theirs = teacher.model(input_ids=torch.tensor(tokens)[new_ids]).logits
    torch.testing.assert_close(ours, theirs[..., list(tokens)])
    assert len(teacher.tokenizer) == 360 and teacher.model.config.vocab_size == 360
    assert len(trimmed.tokenizer) == 320 and trimmed.revision == teacher.revision


def test_trimming_cost_is_the_dense_kept_mass_and_divergence() -> None:
    teacher, trimmed, tokens = trimmed_pair()
    rows = [{"prompt": p, "completion": c} for p, c in zip(tiny.sentences(5, 1), tiny.sentences(5, 2), strict=True)]
    sequences = tiny.tokenize_examples(rows, trimmed.tokenizer, NO_CONTEXTS)
    mass, divergence = [], []
    with torch.no_grad():
        for one in sequences:
            ids = torch.tensor([[*one.prompt, *one.completion]])
            where = slice(len(one.prompt) - 1, ids.shape[1] - 1)
            full = teacher.model(input_ids=torch.tensor(tokens)[ids]).logits[0, where].double().softmax(-1)
            kept = trimmed.model(input_ids=ids).logits[0, where].double().softmax(-1)
            mass += full[:, list(tokens)].sum(-1).tolist()
            divergence += (kept * (kept / full[:, list(tokens)]).log()).sum(-1).tolist()
    cost = trimming_cost(teacher, trimmed, tokens, student_batches(sequences, 2))
    assert cost["positions"] == len(mass)
    assert cost["kept_mass"] == pytest.approx(sum(mass) / len(mass), rel=1e-4)
    assert cost["kl_to_full_teacher"] == pytest.approx(sum(divergence) / len(mass), rel=1e-4)
    assert 0 < cost["kept_mass"] < 1


def test_an_untrimmed_teacher_costs_nothing() -> None:
    teacher, batches = tiny.teacher(), student_batches(tiny.sequences(3), 2)
    positions = float(sum(len(one.completion) for one in tiny.sequences(3)))
    cost = trimming_cost(teacher, teacher, None, batches)
    assert cost == {"kept_mass": 1.0, "kl_to_full_teacher": 0.0, "positions": positions}


def test_a_slow_tokenizer_cannot_be_trimmed() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(TrainingError, match="needs a fast tokenizer, not Slow; leave `vocabulary` out"):
        trim_teacher(Teacher.of(tiny.llama(), Slow(), "x"), [1, 2])  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- base


def test_a_base_comes_back_from_disk_with_the_same_bfloat16_logits(tmp_path: Path) -> None:
    base = pruned()
    save_base(base, tmp_path)
    loaded = load_base(tmp_path, tiny.CPU, torch.bfloat16)
    assert base.model.dtype == torch.float32  # healing goes on in float32
    expected: Any = in_bfloat16(base.model)
    expected.set_attn_implementation(GROUPED)
    assert torch.equal(logits(loaded.model), logits(expected))
    assert loaded.shape == base.shape and not loaded.model.training
    assert loaded.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == tiny.CHATML
    assert loaded.model.generation_config.eos_token_id == stop_tokens(base.tokenizer)
    assert not list(tmp_path.glob("*.bin"))


def test_a_base_s_folder_is_a_plain_transformers_folder(tmp_path: Path) -> None:
    base = pruned()
    save_base(base, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(logits(model), logits(in_bfloat16(base.model)))
    assert AutoTokenizer.from_pretrained(tmp_path)("what is")["input_ids"] == base.tokenizer("what is")["input_ids"]


@pytest.mark.parametrize("shape", [Shape(None, None), Shape((0, 2), None), Shape((0, 2), (1, 5, 9)), Shape(None, (1,))])
def test_a_shape_comes_back_as_it_was(tmp_path: Path, shape: Shape) -> None:
    save_base(Base(tiny.llama(), tiny.tokenizer(), shape), tmp_path)
    assert load_base(tmp_path, tiny.CPU).shape == shape


def test_an_external_base_gets_the_teacher_s_chat_template(tmp_path: Path) -> None:
    model = tiny.llama(layers=2, width=16, seed=5)
    base = load_external_base(tiny.saved(tmp_path, model, tiny.tokenizer(None)), tiny.teacher())
    torch.testing.assert_close(logits(base.model), logits(model))
    assert base.shape == Shape(None, None) and base.tokenizer.chat_template == tiny.CHATML
    assert base.model.dtype == torch.float32


def test_an_external_base_of_another_vocabulary_is_refused_in_one_line(tmp_path: Path) -> None:
    other = tiny.tokenizer()
    other.add_tokens(["photosynthesis"])
    tiny.saved(tmp_path, tiny.llama(layers=1, vocabulary=361), other)
    with pytest.raises(TrainingError, match=r"different vocabularies \(361 and 360 tokens, 1 entries differ\)") as raised:
        load_external_base(tmp_path, tiny.teacher())
    assert "\n" not in str(raised.value) and "use a base of the teacher's family" in str(raised.value)


def test_the_same_tokens_with_other_ids_are_another_vocabulary() -> None:
    _, trimmed, _ = trimmed_pair()
    check_vocabularies(tiny.tokenizer(), tiny.tokenizer())
    with pytest.raises(TrainingError, match=r"\(320 and 360 tokens"):
        check_vocabularies(trimmed.tokenizer, tiny.tokenizer())


# ------------------------------------------------------------------------------------------------------------ adapter


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained() -> None:
    base = tiny.base()
    before = logits(base.model)
    model = attach_adapter(base, CONFIG)
    torch.testing.assert_close(logits(model), before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained) and not any("lm_head" in name for name in trained)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_adapter_weights_are_float32_on_a_bfloat16_base() -> None:
    base = tiny.base()
    model = attach_adapter(Base(base.model.to(torch.bfloat16), base.tokenizer, base.shape), CONFIG)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_an_adapter_loads_after_both_folders_were_moved(tmp_path: Path) -> None:
    save_base(pruned(), tmp_path / "a" / "base")
    model = with_adapter(load_base(tmp_path / "a" / "base", tiny.CPU))
    expected = logits(model)
    model.save_pretrained(tmp_path / "a" / "adapter")
    shutil.move(tmp_path / "a", tmp_path / "b")
    base = load_base(tmp_path / "b" / "base", tiny.CPU)
    plain = logits(base.model)
    student = load_student(base, tmp_path / "b" / "adapter")
    assert torch.equal(logits(student), expected) and not student.training
    assert not torch.equal(expected, plain)


def test_plain_peft_loads_the_adapter_too(tmp_path: Path) -> None:
    save_base(pruned(), tmp_path / "base")
    model = with_adapter(load_base(tmp_path / "base", tiny.CPU, torch.bfloat16))
    model.save_pretrained(tmp_path / "adapter")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    plain.set_attn_implementation(GROUPED)
    assert torch.equal(logits(PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()), logits(model))
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} <= {".safetensors", ".json", ".md"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 8, "CAUSAL_LM")
