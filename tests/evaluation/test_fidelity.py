"""Measuring students beside their teacher: a model agrees with itself, sums are those of a plain loop, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from support import tiny
from torch import nn

import factory.evaluation.fidelity as module
from factory.config.schema import DistillConfig, EvaluateConfig
from factory.distill.soft_targets import TokenizedExample
from factory.evaluation.fidelity import (
    Candidate,
    HeldOut,
    agreement,
    base_only,
    evaluate,
    fixed_model,
    folder_bytes,
    generate_ids,
    generate_text,
    measure,
    measure_speed,
    per_example,
    with_adapter,
)
from factory.models.base import attach_adapter
from factory.models.chat import NO_CONTEXT, stop_tokens
from factory.models.generation import sample
from factory.models.teacher import Teacher

ROWS = tiny.sequences(20)  # more than a batch, of mixed lengths
WITHOUT_CONTEXT = tiny.sequences(20, NO_CONTEXT)
LORA = DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8)


def candidate(model: Any) -> Candidate:
    @contextmanager
    def on() -> Iterator[Any]:
        yield model

    return on


def bfloat16(model: Any) -> Any:
    """As ``Teacher.load`` gives it: weights in bfloat16, rotary frequencies in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def student(*names: str) -> PeftModel:
    """A peft model with adapters that say something."""
    base = tiny.base()
    model = attach_adapter(base, LORA)
    for name in names:
        model.add_adapter(name, model.peft_config["default"])
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_a_model_agrees_with_itself() -> None:
    teacher = Teacher.of(bfloat16(tiny.llama()), tiny.tokenizer(), "tiny")
    rows = [TokenizedExample([20 + i, *s.prompt], [20 + i, *s.prompt], s.completion) for i, s in enumerate(WITHOUT_CONTEXT)]
    sums = measure(teacher, {"itself": candidate(teacher.model)}, rows)["itself"]
    np.testing.assert_array_equal(sums.kl, 0)
    np.testing.assert_array_equal(sums.agree, sums.tokens)
    np.testing.assert_allclose(sums.top5, sums.tokens)
    np.testing.assert_array_equal(sums.nll, sums.teacher_nll)
    np.testing.assert_array_equal(sums.correct, sums.teacher_correct)


def test_a_shared_prefix_makes_no_difference_but_rounding() -> None:
    teacher = Teacher.of(bfloat16(tiny.llama()), tiny.tokenizer(), "tiny")
    sums = measure(teacher, {"itself": candidate(teacher.model)}, WITHOUT_CONTEXT)["itself"]
    assert sums.kl.sum() / sums.tokens.sum() < 1e-4
    assert sums.agree.sum() / sums.tokens.sum() > 0.95  # of 240 tokens, some are ties of a random model


def test_a_context_that_only_the_teacher_sees_makes_a_difference() -> None:
    teacher = tiny.teacher()
    assert measure(teacher, {"itself": candidate(teacher.model)}, ROWS)["itself"].kl.min() > 0.01


@torch.inference_mode()
def naive(teacher: Any, model: Any, one: TokenizedExample) -> dict[str, float]:
    """One example, whole models, one position after the other."""
    found = dict.fromkeys(("tokens", "kl", "agree", "top5", "correct", "teacher_correct", "nll", "teacher_nll"), 0.0)
    reference = teacher(input_ids=torch.tensor([[*one.teacher_prompt, *one.completion]])).logits[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = model(input_ids=torch.tensor([[*one.prompt, *one.completion]])).logits[0]
    for offset, token in enumerate(one.completion):
        p = reference[len(one.teacher_prompt) - 1 + offset].double().softmax(-1)
        q = own[len(one.prompt) - 1 + offset].double().softmax(-1)
        found["tokens"] += 1
        found["kl"] += float((p * (p / q).log()).sum())
        found["agree"] += float(p.argmax() == q.argmax())
        found["top5"] += len(set(p.topk(5).indices.tolist()) & set(q.topk(5).indices.tolist())) / 5
        found["correct"] += float(q.argmax() == token)
        found["teacher_correct"] += float(p.argmax() == token)
        found["nll"] -= float(q[token].log())
        found["teacher_nll"] -= float(p[token].log())
    return found


def test_sums_are_those_of_a_plain_loop_in_the_order_of_the_examples() -> None:
    teacher, model = tiny.teacher(), tiny.llama(seed=3)
    counted: list[int] = []
    sums = measure(teacher, {"other": candidate(model)}, ROWS, counted.append)["other"]
    assert counted == [16, 4]
    expected = [naive(teacher.model, model, one) for one in ROWS]
    np.testing.assert_array_equal(sums.tokens, [one["tokens"] for one in expected])
    for name in ("kl", "nll", "teacher_nll"):
        np.testing.assert_allclose(getattr(sums, name), [one[name] for one in expected], rtol=0.02, err_msg=name)
    np.testing.assert_array_equal(sums.teacher_correct, [one["teacher_correct"] for one in expected])
    for name in ("agree", "top5", "correct"):  # bfloat16 lets a near tie fall either way
        difference = np.abs(getattr(sums, name) - [one[name] for one in expected])
        assert difference.sum() <= 0.01 * sums.tokens.sum() and difference.max() <= 1, name


def test_embeddings_are_the_mean_final_states_of_prompt_and_completion() -> None:
    model = tiny.llama(seed=3)
    sums = measure(tiny.teacher(), {"other": candidate(model)}, ROWS)["other"]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        for one, embedding in zip(ROWS, sums.embeddings, strict=True):
            ids = torch.tensor([[*one.prompt, *one.completion]])
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            np.testing.assert_allclose(embedding, states[0].float().mean(0).numpy(), atol=0.03)


def test_the_teacher_passes_once_for_any_number_of_candidates() -> None:
    teacher = tiny.teacher()
    passes: list[int] = []
    hook = teacher.model.base_model.register_forward_hook(lambda module, args, output: passes.append(1))
    models = {str(seed): candidate(tiny.llama(seed=seed)) for seed in (1, 2, 3)}
    sums = measure(teacher, models, WITHOUT_CONTEXT[:4])
    hook.remove()
    assert set(sums) == {"1", "2", "3"} and len(passes) == 2  # a shared prefix, and the rest
    np.testing.assert_array_equal(sums["1"].teacher_nll, sums["3"].teacher_nll)


def test_an_adapter_switched_off_is_the_base_and_switched_on_again_the_student() -> None:
    model, base = student("sft"), tiny.base().model
    candidates = {"default": with_adapter(model, "default"), "sft": with_adapter(model, "sft"), "off": base_only(model)}
    sums = measure(tiny.teacher(), candidates | {"base": candidate(base)}, ROWS[:6])
    np.testing.assert_array_equal(sums["off"].kl, sums["base"].kl)
    np.testing.assert_array_equal(sums["off"].embeddings, sums["base"].embeddings)
    kinds = [sums[name].kl for name in ("default", "sft", "off")]
    assert all(not np.allclose(a, b) for a, b in zip(kinds, [*kinds[1:], kinds[0]], strict=True))
    assert model.active_adapter == "default"
    again = measure(tiny.teacher(), {"default": candidates["default"]}, ROWS[:6])["default"]
    np.testing.assert_array_equal(again.kl, sums["default"].kl)


def test_an_adapter_is_switched_back_after_an_error() -> None:
    model = student("sft")
    with pytest.raises(KeyError), with_adapter(model, "sft")():
        raise KeyError
    assert model.active_adapter == "default"


# ------------------------------------------------------------------------------------------------------------- report


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured elsewhere."""
    monkeypatch.setattr(module, "measure_speed", lambda *args, **kwargs: {"tokens_per_second": 1.0})


def report(model: PeftModel, seed: int = 0) -> Any:
    embeddings = np.random.default_rng(0).normal(size=(6, 5))
    held_out = HeldOut([f"prompt {i}" for i in range(6)], ROWS[:6], embeddings, WITHOUT_CONTEXT[6:10])
    return evaluate(model, tiny.teacher(), held_out, EvaluateConfig(bootstrap=100), seed=seed)


@pytest.mark.usefixtures("quick")
def test_a_report_holds_student_base_and_sft_with_n_and_interval() -> None:
    model = student("sft")
    found = report(model)
    tokens = sum(len(one.completion) for one in ROWS[:6])
    metrics = found.metrics
    assert set(metrics) == {
        "kl", "top1_agreement", "top5_overlap", "student_perplexity", "teacher_perplexity", "accuracy_retained",
        "relation_alignment", "base_kl", "base_top1_agreement", "base_relation_alignment", "general_kl",
        "general_top1_agreement", "base_general_kl", "base_general_top1_agreement", "general_retained", "kl_below_sft",
        "entropy_gap", "outside_kl_change", "outside_accuracy_change",
    }  # fmt: skip
    assert metrics["kl"].n == metrics["kl_below_sft"].n == tokens and metrics["relation_alignment"].n == 6
    assert metrics["general_kl"].n == sum(len(one.completion) for one in WITHOUT_CONTEXT[6:10])
    assert set(found.baselines) == {"base", "sft"}
    assert metrics["base_kl"] == found.baselines["base"]["kl"]
    assert metrics["kl_below_sft"].value == pytest.approx(found.baselines["sft"]["kl"].value - metrics["kl"].value)
    assert set(found.speed) == {"teacher", "student"}
    assert str(found) == str(report(model))  # NaN is not equal to itself
    assert found.metrics["kl"].low != report(model, seed=1).metrics["kl"].low


@pytest.mark.usefixtures("quick")
def test_a_report_without_sft_has_no_difference_to_it() -> None:
    found = report(student())
    assert "kl_below_sft" not in found.metrics and set(found.baselines) == {"base"}


@pytest.mark.usefixtures("quick")
def test_samples_are_the_prompt_and_both_answers_the_teacher_s_with_its_context() -> None:
    model, teacher = student(), tiny.teacher()
    samples = report(model).samples
    assert [set(one) for one in samples] == [{"prompt", "teacher", "student", "teacher_tokens", "student_tokens"}] * 3
    for one, row in zip(samples, ROWS, strict=False):
        assert one["student"] == generate_text(model, teacher.tokenizer, [row.prompt])[0]
        assert one["teacher"] == generate_text(teacher.model, teacher.tokenizer, [row.teacher_prompt])[0]
        for who in ("teacher", "student"):
            ids = (
                generate_ids(model, teacher.tokenizer, [row.prompt])
                if who == "student"
                else generate_ids(teacher.model, teacher.tokenizer, [row.teacher_prompt])
            )[0]
            kept = [token for token in ids if token not in stop_tokens(teacher.tokenizer)]
            assert [text for text, _ in one[f"{who}_tokens"]] == [teacher.tokenizer.decode([token]) for token in kept]
            assert all(isinstance(same, bool) for _, same in one[f"{who}_tokens"])


def test_agreement_is_whether_each_token_is_the_other_model_s_most_likely_one() -> None:
    model = tiny.llama()
    prompts = [one.prompt for one in ROWS[:2]]
    own = sample(model, prompts, stop=[2], max_new_tokens=5)
    found = [same for row in agreement(model, prompts, own) for same in row]
    assert len(found) == sum(map(len, own)) and sum(found) >= len(found) - 1  # greedy, against itself, but for rounding
    other = [[(token + 1) % 300 for token in ids] for ids in own]
    assert not any(found[0] for found in agreement(model, prompts, other))
    assert agreement(model, prompts[:1], [[]]) == [[]]


@pytest.mark.usefixtures("quick")
def test_what_changed_outside_the_domain_is_over_general_text_and_the_other_domains() -> None:
    model, embeddings = student(), np.random.default_rng(0).normal(size=(6, 5))
    held_out = HeldOut(["a prompt"] * 6, ROWS[:6], embeddings, WITHOUT_CONTEXT[6:8], WITHOUT_CONTEXT[8:10])
    found = evaluate(model, tiny.teacher(), held_out, EvaluateConfig(bootstrap=100), seed=0).metrics
    both = {"default": with_adapter(model, "default"), "base": base_only(model)}
    sums = measure(tiny.teacher(), both, WITHOUT_CONTEXT[6:10])
    tokens = sums["base"].tokens.sum()
    assert found["outside_kl_change"].value == pytest.approx((sums["default"].kl - sums["base"].kl).sum() / tokens, abs=1e-5)
    change = (sums["default"].correct - sums["base"].correct).sum() / tokens
    assert found["outside_accuracy_change"].value == pytest.approx(change)
    assert found["outside_kl_change"].n == tokens


@pytest.mark.usefixtures("quick")
def test_two_reports_on_the_same_examples_have_the_same_key_and_their_sums_give_the_figures() -> None:
    found, again = report(student()), report(student("sft"))
    assert found.per_example["key"] == again.per_example["key"]
    kl, tokens = (np.array(found.per_example[name]) for name in ("kl", "tokens"))
    assert kl.sum() / tokens.sum() == pytest.approx(found.metrics["kl"].value, abs=1e-4)
    assert (
        per_example(measure(tiny.teacher(), {"x": fixed_model(tiny.llama())}, ROWS[:2])["x"], ROWS[:2])["key"]
        != again.per_example["key"]
    )


def test_answers_are_greedy_texts_without_special_tokens() -> None:
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    [text] = generate_text(model, tokenizer, [ROWS[0].prompt], max_new_tokens=6)
    [ids] = sample(model, [ROWS[0].prompt], stop=[2], max_new_tokens=6)
    assert text == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_speed_is_positive_and_of_one_stream_and_a_batch() -> None:
    speed = measure_speed(tiny.llama(layers=1), [one.prompt for one in ROWS[:2]], [2])
    assert set(speed) == {"latency_ms", "tokens_per_second", "batch_tokens_per_second"}
    assert all(value > 0 for value in speed.values())


def test_a_folder_s_bytes_are_those_of_all_files_below_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(b"67")
    assert folder_bytes(tmp_path) == 7
