"""How sure a student is of its own answer. Copied into exports as ``confidence.py``; needs Python alone.

    student = json.load(open("answering.json"))
    tokens = [(log_prob, [log_probs of the most likely tokens]), ...]    # of the answer, natural logarithms
    sure = confidence(student["confidence"], tokens)                     # 0.83: of such answers 83 % are right
    keep = sure >= student["confidence"]["thresholds"]["0.95"]["whole"]  # else ask a larger model

llama.cpp gives them with ``"logprobs": true, "top_logprobs": 5``. While an answer is streamed, ask for ``part="beginning"``
once 8 tokens have come.
"""

import math
from collections.abc import Sequence
from typing import Any

Token = tuple[float, Sequence[float]]


def confidence(fitted: dict[str, Any], tokens: Sequence[Token], part: str = "whole") -> float:
    """``confidence(student["confidence"], tokens)``: the probability that the answer is right."""
    if part == "beginning":
        tokens = tokens[: fitted["first"]]
    nats, margins, entropies = [], [], []
    for log_prob, top in tokens:
        likeliest = sorted((math.exp(one) for one in top), reverse=True)[: fitted["top"]]
        rest = max(0.0, 1.0 - sum(likeliest))
        first, second = [*likeliest, 0.0, 0.0][:2]
        nats.append(-log_prob)
        margins.append(first - second)
        entropies.append(-sum(p * math.log(p) for p in [*likeliest, rest] if p > 0))
    nats.sort()
    place = 0.9 * (len(nats) - 1)
    below = math.floor(place)
    above = min(below + 1, len(nats) - 1)
    signals = [
        sum(nats) / len(nats),
        nats[-1],
        nats[below] + (place - below) * (nats[above] - nats[below]),
        sum(margins) / len(margins),
        min(margins),
        sum(entropies) / len(entropies),
        math.log(len(nats)),
    ]
    model = fitted[part]
    score = model["bias"]
    for signal, mean, scale, weight in zip(signals, model["means"], model["scales"], model["weights"], strict=True):
        score += weight * (signal - mean) / scale
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, score))))
