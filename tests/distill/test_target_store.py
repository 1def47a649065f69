"""The store: what is read is what a live pass gives within its stated error, and nothing finished is made twice."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

import factory.distill.target_store as module
from factory.cache import keep, kept
from factory.distill.losses import bucket_log_probs, generalized_jsd_loss
from factory.distill.soft_targets import score
from factory.distill.target_store import SoftTargetStore, dequantize, join_stores, quantize
from factory.models.chat import NO_CONTEXT
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample

SEQUENCES = tiny.sequences(7)


def make(folder: Path, teacher: Teacher, sequences: list[TokenizedExample] = SEQUENCES, **over: Any) -> SoftTargetStore:
    return SoftTargetStore.make(folder, teacher, sequences, **({"top_k": 8, "temperature": 1.5, "batch": 3} | over))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each live pass had."""
    counts: list[int] = []

    def counting(teacher: Teacher, prompts: Any, *rest: Any) -> Any:
        counts.append(len(prompts))
        return score(teacher, prompts, *rest)

    monkeypatch.setattr(module, "score", counting)
    monkeypatch.setattr(module, "SHARD", 3)
    return counts


def live(sequences: list[TokenizedExample] = SEQUENCES) -> Any:
    return score(tiny.teacher(), [s.teacher_prompt for s in sequences], [s.completion for s in sequences], 8, 1.5)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4, 5, 6], [4], [6, 0, 3], [2, 2]])
def test_stored_targets_are_the_live_ones_in_the_order_asked_for(tmp_path: Path, chosen: list[int]) -> None:
    rows, now = make(tmp_path, tiny.teacher()).rows(chosen, tiny.CPU), live([SEQUENCES[i] for i in chosen])
    assert torch.equal(rows.ids, now.ids)
    torch.testing.assert_close(rows.log_probs, now.log_probs, atol=0.03, rtol=0.02)  # a byte each
    assert (rows.ids.dtype, rows.log_probs.dtype) == (torch.int64, torch.float32)


def test_examples_of_one_context_are_scored_together_and_read_in_their_order(tmp_path: Path, scored: list[int]) -> None:
    bare = tiny.sequences(7, NO_CONTEXT)
    mixed = [SEQUENCES[0], bare[1], SEQUENCES[2]]  # one shard
    rows, now = make(tmp_path, tiny.teacher(), mixed, batch=2).rows(range(3), tiny.CPU), live(mixed)
    assert scored == [2, 1] and torch.equal(rows.ids, now.ids)
    torch.testing.assert_close(rows.log_probs, now.log_probs, atol=0.03, rtol=0.02)


def test_the_stored_and_the_live_path_give_the_same_divergence_and_gradient(tmp_path: Path) -> None:
    rows, now = make(tmp_path, tiny.teacher()).rows(range(7), tiny.CPU), live()
    values = torch.randn(len(now.ids), 360, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for beta in (0.0, 0.5, 1.0):
        losses = [generalized_jsd_loss(bucket_log_probs(values, t.ids, 1.5), t.log_probs, beta).mean() for t in (rows, now)]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=0.002)
        ours, theirs = (torch.autograd.grad(loss, values)[0].flatten() for loss in losses)
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.999


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=40))
def test_a_byte_a_log_probability_costs_less_than_a_thousandth_of_a_nat(masses: list[float]) -> None:
    exact = torch.tensor([masses]).double()
    exact = (exact / exact.sum()).log()
    stored = dequantize(quantize(exact.numpy())).double()
    assert stored.logsumexp(-1).item() == pytest.approx(0, abs=1e-6)
    assert -1e-6 < (exact.exp() * (exact - stored)).sum().item() < 1e-3


def test_the_mass_that_is_not_kept_stays_where_it_was() -> None:
    """Renormalising the kept tokens would give them all of it (arXiv 2503.16870)."""
    values = torch.randn(50, 360, generator=torch.Generator().manual_seed(1)) * 2
    exact = bucket_log_probs(values, values.topk(8).indices)
    rest = dequantize(quantize(exact.numpy()))[:, -1].exp()
    torch.testing.assert_close(rest, exact[:, -1].exp(), atol=0.02, rtol=0.05)
    assert rest.mean() > 0.1


def test_ids_of_a_large_vocabulary_are_whole(tmp_path: Path) -> None:
    teacher = tiny.teacher(tiny.llama(layers=1, vocabulary=70_000))
    rows = make(tmp_path, teacher).rows(range(7), tiny.CPU)
    assert rows.ids.max() > 1 << 16
    chosen = [SEQUENCES[i] for i in range(7)]
    now = score(teacher, [s.teacher_prompt for s in chosen], [s.completion for s in chosen], 8, 1.5)
    assert torch.equal(rows.ids, now.ids)


def test_what_a_store_takes_is_what_lies_on_disk(tmp_path: Path) -> None:
    store = make(tmp_path, tiny.teacher())
    assert store.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    assert store.bytes == store.positions * (8 * 2 + 9)
    assert store.positions == sum(len(s.completion) for s in SEQUENCES)


def test_a_finished_store_is_opened_without_the_teacher(tmp_path: Path, scored: list[int]) -> None:
    first = make(tmp_path, tiny.teacher()).describe()
    scored.clear()
    again = make(tmp_path, tiny.teacher()).describe()
    assert scored == [] and first.saved_seconds == 0
    assert again.saved_seconds == again.teacher_seconds == first.teacher_seconds > 0
    assert module.describe_store(tmp_path) == {"bytes": again.bytes, "teacher_seconds": again.teacher_seconds}


@pytest.mark.parametrize("damage", ["a byte", "no notes for it"])
def test_a_damaged_or_unfinished_shard_alone_is_made_again(tmp_path: Path, scored: list[int], damage: str) -> None:
    first = make(tmp_path, tiny.teacher()).rows(range(7), tiny.CPU)
    assert sum(scored) == 7
    scored.clear()
    if damage == "a byte":
        before = sum(len(one.completion) for one in SEQUENCES[:4])
        with (tmp_path / "log_probs.bin").open("r+b") as file:
            file.seek(9 * before)  # in example 4, of the second shard
            file.write(bytes([255 - (tmp_path / "log_probs.bin").read_bytes()[9 * before]]))
    else:
        notes = json.loads(kept(tmp_path / "notes.json", print) or b"")
        del notes["3"]
        keep(tmp_path / "notes.json", json.dumps(notes).encode())
    counted: list[int] = []
    again = make(tmp_path, tiny.teacher(), progress=counted.append).rows(range(7), tiny.CPU)
    assert scored == [3] and counted == [3, 3, 1]
    assert torch.equal(again.ids, first.ids) and torch.equal(again.log_probs, first.log_probs)


def test_after_a_stop_only_what_is_missing_is_scored(
    tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = module.score

    def stopped(*given: Any) -> Any:
        if len(scored) == 1:
            raise KeyboardInterrupt
        return counting(*given)

    monkeypatch.setattr(module, "score", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, tiny.teacher())
    monkeypatch.setattr(module, "score", counting)
    scored.clear()
    rows = make(tmp_path, tiny.teacher()).rows(range(7), tiny.CPU)
    assert sum(scored) == 4
    torch.testing.assert_close(rows.ids, live().ids)


def test_a_file_of_another_length_is_made_anew(tmp_path: Path, scored: list[int]) -> None:
    make(tmp_path, tiny.teacher())
    scored.clear()
    (tmp_path / "ids.bin").write_bytes(b"short")
    assert torch.equal(make(tmp_path, tiny.teacher()).rows(range(7), tiny.CPU).ids, live().ids)
    assert sum(scored) == 7


def test_two_builds_at_once_score_once(tmp_path: Path, scored: list[int]) -> None:
    teacher, stores = tiny.teacher(), []
    threads = [threading.Thread(target=lambda: stores.append(make(tmp_path, teacher))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 2 and sum(scored) == 7


def test_a_full_disk_is_an_error_and_leaves_the_finished_shards(
    tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._write

    def full(*given: Any) -> None:
        if len(scored) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*given)

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OSError, match="No space"):
        make(tmp_path, tiny.teacher())
    monkeypatch.setattr(module, "_write", write)
    scored.clear()
    make(tmp_path, tiny.teacher())
    assert sum(scored) == 4


def test_joined_stores_hold_the_examples_one_after_the_other(tmp_path: Path) -> None:
    teacher, other = tiny.teacher(), tiny.sequences(3, seed=5)
    first, second = make(tmp_path / "a", teacher), make(tmp_path / "b", teacher, other)
    joined = join_stores([first, second])
    for index in range(3):
        ours, theirs = joined.rows([7 + index], tiny.CPU), second.rows([index], tiny.CPU)
        assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.log_probs, theirs.log_probs)
    assert torch.equal(joined.rows([6], tiny.CPU).log_probs, first.rows([6], tiny.CPU).log_probs)
    assert joined.bytes == first.bytes + second.bytes
