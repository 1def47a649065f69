"""What a training goes on from: checkpoints that are whole, and an order of examples that does not depend on when it began.

    for path in checkpoints(folder): ...   # oldest first

transformers writes a checkpoint's files one after the other, ``trainer_state.json`` last, so a checkpoint of a process that was
killed lacks that file or has half of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils.data import Sampler
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from factory.cache import remove_folder


def checkpoints(folder: Path) -> list[Path]:
    """``checkpoints(folder)[-1]``: the whole ones, oldest first."""
    return sorted((path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_whole(path)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """``step_of(Path("checkpoint-50"))`` → 50."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(folder: Path) -> Path | None:
    """``last_checkpoint(folder)``: to go on from. Half-written ones are removed, so only who holds the folder's lock asks."""
    whole = checkpoints(folder)
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path not in whole:
            remove_folder(path)
    return whole[-1] if whole else None


def last_step(folder: Path) -> int:
    """``last_step(folder)`` → 50: of the last whole checkpoint, 0 where there is none."""
    return max(map(step_of, checkpoints(folder)), default=0)


def remove_checkpoints(folder: Path) -> None:
    """``remove_checkpoints(folder)``: the folder and all in it. Who is killed meanwhile leaves none that looks whole."""
    for state in folder.rglob(TRAINER_STATE_NAME):
        state.unlink(missing_ok=True)
    remove_folder(folder)


def _is_whole(checkpoint: Path) -> bool:
    with suppress(OSError, ValueError):
        json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
        return True
    return False


class SeededOrder(Sampler[int]):
    """``SeededOrder(8, lengths, seed=0)``: indices, similar lengths beside each other, in an order that seed and epoch decide.

    transformers draws an epoch's order from the state that torch's generator has when the epoch begins. A process that goes on
    in the middle of an epoch no longer has that state, and would see some examples twice and others not at all.
    """

    def __init__(self, batch: int, lengths: Sequence[int], *, seed: int) -> None:
        self.batch, self.lengths, self.seed, self.epoch = batch, list(lengths), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """``order.set_epoch(2)``: called by accelerate before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))
