"""Adds tokens to a base: rows of the teacher's after its own, so that every old token keeps its id and its row.

    missing = missing_tokens(teacher.tokenizer, base.shape.tokens, count_tokens(teacher.tokenizer, texts), room=1_700)
    grown = grow_base(base, teacher, missing, "q4_1")

An adapter is LoRA on linear layers, so one that was trained on the base is as valid on the grown one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from factory.config.quantization import Grid
from factory.models.base import Base, trim_teacher
from factory.models.quantization import EMBEDDING, on_grid
from factory.models.teacher import Teacher


@torch.no_grad()
def grow_base(base: Base, teacher: Teacher, tokens: Sequence[int], grid: Grid | None) -> Base:
    """``grow_base(base, teacher, missing, manifest.quantization)``: a copy with these of the whole teacher's tokens.

    The new rows are the teacher's, rounded as the others where the base is on a grid. Of a trimmed base they are exact. Healing
    moves rows, but the mean of these moves brought new rows no nearer to where healing would have them (docs/log.md, "rows of
    a healed base").
    """
    assert base.shape.tokens is not None, "a base with the whole vocabulary lacks no token"
    kept, old = (*base.shape.tokens, *tokens), len(base.shape.tokens)
    model: Any = copy.deepcopy(base.model)
    whole: Any = teacher.model
    model.resize_token_embeddings(len(kept), mean_resizing=False)
    for ours, theirs in (
        (model.get_input_embeddings(), whole.get_input_embeddings()),
        (model.get_output_embeddings(), whole.get_output_embeddings()),
    ):
        for name, weight in ours.named_parameters(recurse=False):  # a tied head is written twice, with the same rows
            rows = getattr(theirs, name)[list(tokens)]
            weight[old:] = on_grid(rows, EMBEDDING) if grid else rows
    return Base(model, trim_teacher(teacher, kept).tokenizer, replace(base.shape, tokens=kept))
