"""How long a build will take, from the arithmetic that it needs and how fast this machine multiplies matrices.

    rate = matrix_rate(context.device)                       # FLOP/s
    seconds = training_seconds(rate, parameters, tokens)

An estimate within a factor of two: tokens are guessed from the settings, and efficiencies were measured on two CPU cores
(docs/log.md, "the default profile to its end").
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

EXAMPLE_TOKENS = 150  # prompt and completion of an average example
COMPLETION_TOKENS = 80  # that a teacher writes for an average prompt
SENTENCE_TOKENS = 25  # of a sentence of a bias pair, or a choice of a task with its question
# Share of the matrix rate that each kind of work reaches.
GENERATION_EFFICIENCY = 0.19
SCORING_EFFICIENCY = 0.6
TRAINING_EFFICIENCY = 0.5


def matrix_rate(device: torch.device, seconds: float = 0.2) -> float:
    """``matrix_rate(torch.device("cpu"))``: FLOP/s of bfloat16 products of 1,024² matrices, measured for ``seconds``."""
    one = torch.ones(1024, 1024, dtype=torch.bfloat16, device=device)
    one @ one  # the first call loads kernels
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        (one @ one)[0, 0].item()  # waits for the device
        done += 1
    return done * 2 * 1024**3 / (time.perf_counter() - begun)


def generation_seconds(rate: float, parameters: int, completions: int) -> float:
    """``generation_seconds(rate, 134_000_000, 1_000)``: of so many sampled completions."""
    return 2 * parameters * completions * COMPLETION_TOKENS / (rate * GENERATION_EFFICIENCY)


def scoring_seconds(rate: float, parameters: int, examples: int) -> float:
    """``scoring_seconds(rate, 134_000_000, 1_000)``: of one forward pass over so many examples."""
    return 2 * parameters * examples * EXAMPLE_TOKENS / (rate * SCORING_EFFICIENCY)


def training_seconds(rate: float, parameters: int, examples: int) -> float:
    """``training_seconds(rate, 80_000_000, 320 * 8)``: of forward and backward passes over so many examples."""
    return 6 * parameters * examples * EXAMPLE_TOKENS / (rate * TRAINING_EFFICIENCY)


def adapter_seconds(rate: float, parameters: int, examples: int) -> float:
    """``adapter_seconds(rate, 129_000_000, 30 * 32)``: as ``training_seconds`` of a base whose weights need no gradients."""
    return training_seconds(rate, parameters, examples) * 4 / 6


def evaluation_seconds(rate: float, models: Sequence[int], *, examples: int, sentences: int, answers: int) -> float:
    """``evaluation_seconds(rate, [teacher, student], examples=100, sentences=1_200, answers=200)``: of both.

    ``models`` are their parameters; each scores the examples and the sentences, and writes the answers.
    """
    per_model = examples + sentences * SENTENCE_TOKENS / EXAMPLE_TOKENS
    return sum(scoring_seconds(rate, one, round(per_model)) + generation_seconds(rate, one, answers) for one in models)
