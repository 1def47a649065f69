"""How long a build will take, from the arithmetic that it needs and how fast this machine multiplies matrices.

    rate = matrix_rate(context.device)                                             # FLOP/s
    seconds = training_seconds(rate, parameters, 320 * 8 * example_tokens(config))

An estimate within a factor of two: tokens are guessed from the settings, and efficiencies were measured on two CPU cores
(docs/log.md, "what a plan says").
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from factory.config.schema import DataConfig
from factory.models.device import compute_dtype

ANSWER_SHARE = 0.45  # an average answer's share of the longest that is allowed
PROMPT_TOKENS = 25  # of an average prompt
SENTENCE_TOKENS = 25  # of a sentence of a bias pair, or a choice of a task with its question
# Share of the matrix rate that each kind of work reaches.
GENERATION_EFFICIENCY = 0.20
SCORING_EFFICIENCY = 0.50
TRAINING_EFFICIENCY = 0.42


def matrix_rate(device: torch.device, seconds: float = 0.2) -> float:
    """``matrix_rate(torch.device("cpu"))``: FLOP/s of products of 1,024² matrices, measured for ``seconds``."""
    one = torch.ones(1024, 1024, dtype=compute_dtype(device), device=device)
    one @ one  # the first call loads kernels
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        (one @ one)[0, 0].item()  # waits for the device
        done += 1
    return done * 2 * 1024**3 / (time.perf_counter() - begun)


def answer_tokens(config: DataConfig) -> int:
    """``answer_tokens(settings.data)``: of an average answer."""
    return round(ANSWER_SHARE * config.max_completion_tokens)


def example_tokens(config: DataConfig) -> int:
    """``example_tokens(settings.data)``: of an average prompt with its answer."""
    return min(PROMPT_TOKENS, config.max_prompt_tokens) + answer_tokens(config)


def generation_seconds(rate: float, parameters: int, tokens: int) -> float:
    """``generation_seconds(rate, 134_000_000, 50_000)``: of so many sampled tokens, in large batches."""
    return 2 * parameters * tokens / (rate * GENERATION_EFFICIENCY)


def scoring_seconds(rate: float, parameters: int, tokens: int) -> float:
    """``scoring_seconds(rate, 134_000_000, 75_000)``: of one forward pass over so many tokens."""
    return 2 * parameters * tokens / (rate * SCORING_EFFICIENCY)


def training_seconds(rate: float, parameters: int, tokens: int) -> float:
    """``training_seconds(rate, 80_000_000, 200_000)``: of forward and backward passes over so many tokens."""
    return 6 * parameters * tokens / (rate * TRAINING_EFFICIENCY)


def adapter_seconds(rate: float, parameters: int, tokens: int) -> float:
    """``adapter_seconds(rate, 129_000_000, 75_000)``: as ``training_seconds`` of a base whose weights need no gradients."""
    return training_seconds(rate, parameters, tokens) * 4 / 6


def evaluation_seconds(rate: float, models: Sequence[int], *, scored: int, sentences: int, written: int) -> float:
    """``evaluation_seconds(rate, [teacher, student], scored=7_500, sentences=1_200, written=10_000)``: of both.

    ``models`` are their parameters; each scores the tokens and the sentences, and writes so many tokens.
    """
    tokens = scored + sentences * SENTENCE_TOKENS
    return sum(scoring_seconds(rate, one, tokens) + generation_seconds(rate, one, written) for one in models)
