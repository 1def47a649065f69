"""Students beside their teacher: a model agrees with itself, and sums equal those of a plain loop, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from support import tiny
from torch import nn

from factory.config.schema import DistillConfig
from factory.distill.soft_targets import score
from factory.evaluation.fidelity import (
    Fidelity,
    HeldOut,
    base_only,
    fixed_model,
    measure,
    measure_fidelity,
    per_example,
    teacher_model,
    with_adapter,
)
from factory.evaluation.stats import BootstrapConfig, summarize
from factory.models.base import attach_adapter, count_parameters, load_external_base, trim_teacher
from factory.models.chat import NO_CONTEXT, NO_CONTEXTS
from factory.models.device import mixed_precision
from factory.models.forward import hidden_states, make_batch
from factory.models.references import ResolvedModel
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample, tokenize_examples
from factory.models.vocabulary import kept_tokens

ROWS = tiny.sequences(20)  # more than a batch, of mixed lengths
WITHOUT_CONTEXT = tiny.sequences(20, NO_CONTEXT)
LORA = DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8)


def bfloat16(model: Any) -> Any:
    """As ``Teacher.load`` gives it: weights in bfloat16, rotary frequencies in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def student(*names: str) -> PeftModel:
    """A peft model whose adapters are not zero."""
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
    sums = measure(teacher, {"itself": fixed_model(teacher.model)}, rows)["itself"]
    np.testing.assert_array_equal(sums.kl, 0)
    np.testing.assert_array_equal(sums.agree, sums.tokens)
    np.testing.assert_allclose(sums.top5, sums.tokens)
    np.testing.assert_array_equal(sums.nll, sums.teacher_nll)
    np.testing.assert_array_equal(sums.correct, sums.teacher_correct)


def test_teacher_and_base_may_pad_their_embeddings_to_different_rows(tmp_path: Path) -> None:
    """Qwen2.5's sizes have 151,936 or 152,064 rows over the same tokens."""
    files = tiny.saved(tmp_path / "teacher", tiny.padded(tiny.llama(), 384))
    teacher = Teacher.load(ResolvedModel(files, "path:teacher", "ab", "MIT", "ab"), tiny.CPU)
    base = load_external_base(tiny.saved(tmp_path / "base", tiny.padded(tiny.llama(seed=5), 400)), teacher)
    found = measure(teacher, {"base": fixed_model(base.model)}, WITHOUT_CONTEXT)["base"]
    plain = measure(tiny.teacher(bfloat16(tiny.llama())), {"base": fixed_model(tiny.llama(seed=5))}, WITHOUT_CONTEXT)["base"]
    np.testing.assert_allclose(found.kl, plain.kl, rtol=1e-2)
    assert teacher.parameters == count_parameters(tiny.llama()) == count_parameters(teacher.model)
    stored = score(teacher, [one.prompt for one in ROWS], [one.completion for one in ROWS], 36, 1.0)
    assert int(stored.ids.max()) < len(teacher.tokenizer)


def test_a_shared_prefix_changes_only_the_rounding() -> None:
    teacher = Teacher.of(bfloat16(tiny.llama()), tiny.tokenizer(), "tiny")
    sums = measure(teacher, {"itself": fixed_model(teacher.model)}, WITHOUT_CONTEXT)["itself"]
    assert sums.kl.sum() / sums.tokens.sum() < 1e-4
    assert sums.agree.sum() / sums.tokens.sum() > 0.95  # of 240 tokens, some are ties of a random model


def test_a_context_that_only_the_teacher_sees_makes_a_difference() -> None:
    teacher = tiny.teacher()
    assert measure(teacher, {"itself": fixed_model(teacher.model)}, ROWS)["itself"].kl.min() > 0.01


@torch.inference_mode()
def naive(teacher: Any, model: Any, one: TokenizedExample) -> dict[str, float]:
    """One example, whole models, one position after the other."""
    found = dict.fromkeys(("tokens", "kl", "agree", "top5", "correct", "teacher_correct", "nll", "teacher_nll"), 0.0)
    reference = teacher(input_ids=torch.tensor([[*one.teacher_prompt, *one.completion]])).logits[0]
    with mixed_precision(tiny.CPU):
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


def test_sums_equal_a_plain_loop_in_the_order_of_the_examples() -> None:
    teacher, model = tiny.teacher(), tiny.llama(seed=3)
    counted: list[int] = []
    sums = measure(teacher, {"other": fixed_model(model)}, ROWS, counted.append)["other"]
    assert counted == [16, 4]
    expected = [naive(teacher.model, model, one) for one in ROWS]
    np.testing.assert_array_equal(sums.tokens, [one["tokens"] for one in expected])
    for name in ("kl", "nll", "teacher_nll"):
        np.testing.assert_allclose(getattr(sums, name), [one[name] for one in expected], rtol=0.02, err_msg=name)
    np.testing.assert_array_equal(sums.teacher_correct, [one["teacher_correct"] for one in expected])
    for name in ("agree", "top5", "correct"):  # bfloat16 lets a near tie fall either way
        difference = np.abs(getattr(sums, name) - [one[name] for one in expected])
        assert difference.sum() <= 0.01 * sums.tokens.sum() and difference.max() <= 1, name


def test_examples_of_two_contexts_are_measured_as_each_alone_in_their_order() -> None:
    teacher, models = tiny.teacher(), {"other": fixed_model(tiny.llama(seed=3))}
    mixed = [(ROWS if i % 2 else WITHOUT_CONTEXT)[i] for i in range(20)]
    together = measure(teacher, models, mixed)["other"]
    for i, one in enumerate(mixed):
        alone = measure(teacher, models, [one])["other"]
        assert together.tokens[i] == alone.tokens[0]
        np.testing.assert_allclose(together.teacher_nll[i], alone.teacher_nll[0], rtol=1e-3)
        np.testing.assert_allclose(together.kl[i], alone.kl[0], rtol=0.02)


def test_embeddings_are_the_mean_final_states_of_prompt_and_completion() -> None:
    model = tiny.llama(seed=3)
    sums = measure(tiny.teacher(), {"other": fixed_model(model)}, ROWS)["other"]
    with torch.inference_mode(), mixed_precision(tiny.CPU):
        for one, embedding in zip(ROWS, sums.embeddings, strict=True):
            ids = torch.tensor([[*one.prompt, *one.completion]])
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            np.testing.assert_allclose(embedding, states[0].float().mean(0).numpy(), atol=0.03)


def test_the_teacher_runs_once_for_any_number_of_candidates() -> None:
    teacher = tiny.teacher()
    passes: list[int] = []
    hook = teacher.model.base_model.register_forward_hook(lambda module, args, output: passes.append(1))
    models = {str(seed): fixed_model(tiny.llama(seed=seed)) for seed in (1, 2, 3)}
    sums = measure(teacher, models, WITHOUT_CONTEXT[:4])
    hook.remove()
    assert set(sums) == {"1", "2", "3"} and len(passes) == 2  # a shared prefix, and the rest
    np.testing.assert_array_equal(sums["1"].teacher_nll, sums["3"].teacher_nll)


def test_base_only_measures_the_base_and_leaves_the_adapter_active() -> None:
    model, base = student("sft"), tiny.base().model
    candidates = {"default": with_adapter(model, "default"), "sft": with_adapter(model, "sft"), "off": base_only(model)}
    sums = measure(tiny.teacher(), candidates | {"base": fixed_model(base)}, ROWS[:6])
    np.testing.assert_array_equal(sums["off"].kl, sums["base"].kl)
    np.testing.assert_array_equal(sums["off"].embeddings, sums["base"].embeddings)
    kinds = [sums[name].kl for name in ("default", "sft", "off")]
    assert all(not np.allclose(a, b) for a, b in zip(kinds, [*kinds[1:], kinds[0]], strict=True))
    assert model.active_adapter == "default"
    again = measure(tiny.teacher(), {"default": candidates["default"]}, ROWS[:6])["default"]
    np.testing.assert_array_equal(again.kl, sums["default"].kl)


def test_the_default_adapter_is_active_again_after_an_error() -> None:
    model = student("sft")
    with pytest.raises(KeyError), with_adapter(model, "sft")():
        raise KeyError
    assert model.active_adapter == "default"


# ------------------------------------------------------------------------------------------------------------- report


def report(model: PeftModel, seed: int = 0, others: Sequence[TokenizedExample] = ()) -> Fidelity:
    embeddings = np.random.default_rng(0).normal(size=(6, 5))
    held_out = HeldOut(
        domain=ROWS[:6],
        clusters=["a", "b", "c", "d", "e", "e"],
        embeddings=embeddings,
        general=WITHOUT_CONTEXT[6:10],
        general_clusters=["a", "b", "c", "d"],
        others=others,
        other_clusters=[f"other {i}" for i in range(len(others))],
    )
    return measure_fidelity(model, tiny.teacher(), held_out, BootstrapConfig(100, seed))


def test_fidelity_covers_student_base_and_sft() -> None:
    model = student("sft")
    found = report(model)
    tokens = sum(len(one.completion) for one in ROWS[:6])
    metrics = found.metrics
    assert set(metrics) == {
        "kl", "top1_agreement", "top5_overlap", "student_perplexity", "teacher_perplexity", "accuracy_retained",
        "relation_alignment", "base_kl", "base_top1_agreement", "base_relation_alignment", "general_kl",
        "general_top1_agreement", "base_general_kl", "base_general_top1_agreement", "general_retained", "kl_below_sft",
        "entropy_gap", "outside_kl_change", "outside_accuracy_change", "sure_agreement", "base_sure_agreement",
        "kl_whole_teacher", "kl_below_base",
    }  # fmt: skip
    assert metrics["kl"].n == metrics["kl_below_sft"].n == tokens and metrics["relation_alignment"].n == 6
    assert metrics["general_kl"].n == sum(len(one.completion) for one in WITHOUT_CONTEXT[6:10])
    assert metrics["sure_agreement"].n >= 0
    assert set(found.baselines) == {"base", "sft"}
    assert metrics["kl"].clusters == 5 and metrics["general_kl"].clusters == 4  # two examples share a cluster
    assert metrics["kl_below_base"].value == pytest.approx(metrics["base_kl"].value - metrics["kl"].value)
    assert metrics["base_kl"] == found.baselines["base"]["kl"]
    assert metrics["kl_below_sft"].value == pytest.approx(found.baselines["sft"]["kl"].value - metrics["kl"].value)
    again = report(model)
    assert str(again.metrics) == str(metrics)  # as text: NaN is not equal to itself
    assert found.metrics["kl"].low != report(model, seed=1).metrics["kl"].low


def test_first_and_later_turns_of_chats_are_told_apart() -> None:
    model = student()
    held_out = HeldOut(ROWS[:4], ["a", "a", "b", "c"], np.ones((4, 2)), [], [], later_turn=[False, True, False, True])
    metrics = measure_fidelity(model, tiny.teacher(), held_out, BootstrapConfig(100)).metrics
    first, later, both = (metrics[name] for name in ("kl_first_turns", "kl_later_turns", "kl"))
    assert first.n == sum(len(ROWS[i].completion) for i in (0, 2)) and later.clusters == 2
    assert first.value * first.n + later.value * later.n == pytest.approx(both.value * both.n)


def test_what_trimming_costs_is_minus_the_log_of_the_mass_that_is_kept() -> None:
    whole = tiny.teacher()
    kept = kept_tokens(whole.tokenizer, tiny.sentences(20), 340)
    trimmed = trim_teacher(whole, kept)
    rows = [{"prompt": text, "completion": text} for text in tiny.sentences(3)]
    examples = tokenize_examples(rows, trimmed.tokenizer, NO_CONTEXTS)
    sums = measure(trimmed, {"same": teacher_model(trimmed)}, examples, whole=whole)["same"]
    batch = make_batch([one.prompt for one in examples], [one.completion for one in examples])
    with torch.no_grad():
        states = hidden_states(trimmed.model, batch).final[batch.predicts].float()
    weights = whole.model.get_output_embeddings().weight.detach().float()
    everything = (states @ weights.T).softmax(dim=-1)
    expected = -everything[:, torch.tensor(kept)].sum(dim=-1).log().sum()
    assert sums.trimmed.sum() == pytest.approx(float(expected), rel=1e-4) and expected > 0
    assert summarize(sums, None, BootstrapConfig(100))["kl_whole_teacher"].value > 0


def test_without_an_sft_adapter_there_is_no_difference_to_it() -> None:
    found = report(student())
    assert "kl_below_sft" not in found.metrics and set(found.baselines) == {"base"}


def test_what_changed_outside_the_domain_is_over_general_text_and_the_other_domains() -> None:
    model = student()
    found = report(model, others=WITHOUT_CONTEXT[10:12]).metrics
    both = {"default": with_adapter(model, "default"), "base": base_only(model)}
    sums = measure(tiny.teacher(), both, WITHOUT_CONTEXT[6:12])
    tokens = sums["base"].tokens.sum()
    assert found["outside_kl_change"].value == pytest.approx((sums["default"].kl - sums["base"].kl).sum() / tokens, abs=1e-5)
    change = (sums["default"].correct - sums["base"].correct).sum() / tokens
    assert found["outside_accuracy_change"].value == pytest.approx(change)
    assert found["outside_kl_change"].n == tokens


def test_reports_on_the_same_examples_have_the_same_key_and_sums_that_give_the_metrics() -> None:
    found, again = report(student()), report(student("sft"))
    assert found.per_example.key == again.per_example.key
    assert sum(found.per_example.kl) / sum(found.per_example.tokens) == pytest.approx(found.metrics["kl"].value, abs=1e-4)
    sums = measure(tiny.teacher(), {"model": fixed_model(tiny.llama())}, ROWS[:2])["model"]
    assert per_example(sums, ROWS[:2], ["a", "b"]).key != found.per_example.key
