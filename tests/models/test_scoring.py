"""Log-likelihoods of completions, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import tiny
from transformers import PreTrainedModel

import factory.models.forward
from factory.models.chat import NO_CONTEXT
from factory.models.scoring import completion_log_probs, length_batches, score_completions, student_batches, teacher_batches

EXAMPLES = tiny.sequences(7)
MODELS = pytest.mark.parametrize("make", [tiny.llama, tiny.gemma])


def test_batches_go_from_short_to_long_and_hold_every_index_once() -> None:
    assert length_batches([5, 1, 9, 1], 3) == [[1, 3, 0], [2]]
    assert length_batches([], 3) == []


def test_a_teacher_s_batches_keep_one_context_beside_the_other_and_go_from_short_to_long() -> None:
    bare = tiny.sequences(7, NO_CONTEXT)
    lengths = [len(one.prompt) + len(one.completion) for one in bare]
    assert teacher_batches(EXAMPLES, 3) == teacher_batches(bare, 3) == length_batches(lengths, 3)  # of one context
    mixed = [(EXAMPLES if i % 2 else bare)[i] for i in range(7)]
    order = [i for batch in teacher_batches(mixed, 4) for i in batch]
    assert [i % 2 for i in order] == [0, 0, 0, 0, 1, 1, 1] and order[:4] == sorted((0, 2, 4, 6), key=lengths.__getitem__)


@MODELS
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_log_probs_are_those_of_one_unbatched_pass(make: Callable[[], PreTrainedModel], batch: int) -> None:
    model, examples = make(), tiny.sequences(7, NO_CONTEXT)
    scores = score_completions(model, [e.prompt for e in examples], [e.completion for e in examples], tiny.CPU, batch)
    for example, score in zip(examples, scores, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*example.prompt, *example.completion]])).logits[0]
        expected = logits[len(example.prompt) - 1 : -1].log_softmax(-1)  # (T, V)
        targets = torch.tensor(example.completion)
        np.testing.assert_allclose(score.log_probs, expected.gather(1, targets[:, None])[:, 0], atol=1e-4)
        assert score.top1.tolist() == (expected.argmax(-1) == targets).tolist()


def test_a_shared_prefix_is_computed_once_per_batch() -> None:
    model, lengths = tiny.llama(), []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = completion_log_probs(model, [e.teacher_prompt for e in EXAMPLES], [e.completion for e in EXAMPLES], tiny.CPU)
    hook.remove()
    assert len(lengths) == 1
    alone = [completion_log_probs(model, [e.teacher_prompt], [e.completion], tiny.CPU)[0] for e in EXAMPLES]
    for ours, expected in zip(found, alone, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_the_head_runs_in_float32_within_an_autocast() -> None:
    model = tiny.llama()
    [one, *_] = tiny.sequences(1, NO_CONTEXT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [ours] = completion_log_probs(model, [one.prompt], [one.completion], tiny.CPU)
        hidden = model.base_model(torch.tensor([[*one.prompt, *one.completion]])).last_hidden_state[0].float()
    head = model.get_output_embeddings().weight.float()
    expected = (hidden[len(one.prompt) - 1 : -1] @ head.t()).log_softmax(-1).gather(1, torch.tensor(one.completion)[:, None])
    np.testing.assert_allclose(ours, expected[:, 0].detach(), atol=2e-2)
    assert not np.array_equal(ours, torch.from_numpy(ours).bfloat16().float().numpy())


def test_few_logits_at_once_give_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, completions = [e.prompt for e in EXAMPLES], [e.completion for e in EXAMPLES]
    whole = completion_log_probs(tiny.llama(), prompts, completions, tiny.CPU)
    monkeypatch.setattr(factory.models.forward, "LOGITS", 1)
    parts = completion_log_probs(tiny.llama(), prompts, completions, tiny.CPU)
    for ours, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_batches_are_the_student_s_view_in_order() -> None:
    batches = student_batches(EXAMPLES, 3)
    assert [len(batch.input_ids) for batch in batches] == [3, 3, 1]
    rows = [ids[real].tolist() for batch in batches for ids, real in zip(batch.input_ids, batch.real, strict=True)]
    assert rows == [[*one.prompt, *one.completion] for one in EXAMPLES]
