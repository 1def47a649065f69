"""Formats of a model's weights in GGUF files. No pydantic here, since the command line names them before it loads anything."""

from __future__ import annotations

from typing import Literal, get_args

Grid = Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]  # of every matrix of a layer; embedding and head have q8_0
Quantization = Literal["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q4"]  # q4 mixes three (docs/export.md)
GRIDS: tuple[Grid, ...] = get_args(Grid)
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
DEFAULT: Quantization = "q8_0"  # of what is exported and served, unless a base was rounded to a grid of its own
