"""How near an exported student is to the registered one: the same texts, every token's distribution beside each other.

    found = compare(reference_log_probs, exported_log_probs)
    found.kl    # KL(registered ‖ exported), nats per token

The registered student is its base's and adapter's weights in float32 arithmetic: what it is, without one machine's rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from factory.errors import ExportError
from factory.models.chat import completion_ids, prompt_ids
from factory.models.forward import hidden_states, logits, make_batch, mean_pool
from factory.models.generation import sample
from factory.registry.versions import Version, entries

if TYPE_CHECKING:  # llama.cpp is an extra
    from factory.models.llama_server import LlamaServer

LogProbs = NDArray[np.float32]  # (T, V) of one text
Embeddings = NDArray[np.float32]  # (N, H), a row a text
MAX_TOKENS = 2048  # of a prompt and its answer
SPEED_TOKENS = 32

# General texts, written for this: of no domain, with names, figures, signs and another language.
TEXTS = (
    (
        "Why does bread rise?",
        "Yeast eats the sugar in the dough and gives off a gas. The gas is caught in small bubbles, and the dough grows. In "
        "the oven the bubbles grow once more, and then the crust sets and holds them.",
    ),
    (
        "How do I change a bicycle tube?",
        "Take the wheel out and let the rest of the air go. Lift one side of the tyre over the rim with two levers and pull "
        "the tube out. Put the new one in with a little air in it, press the tyre back by hand, and pump it to 4.5 bar.",
    ),
    (
        "Write a function that adds the squares of a list.",
        "def add_squares(numbers):\n    total = 0\n    for number in numbers:\n        total += number ** 2\n    return total\n"
        "\nadd_squares([1, 2, 3]) gives 14.",
    ),
    (
        "Wie spät ist es in Tokio, wenn es in Zürich 9:30 Uhr ist?",
        "In Tokio ist es dann 17:30 Uhr, im Sommer 16:30 Uhr. (東京 is 8 hours ahead of Zürich, 7 in summer; a call at €0.09 "
        "a minute for 20 minutes is €1.80.)",
    ),
)
# Longer than a sliding window, so that a layer which sees too much or too little of it shows.
LONG = (
    "Here are notes of a walk. "
    + " ".join(
        f"On day {day} we left the hut at {5 + day % 4} in the morning, climbed {120 * day} metres to a pass with a view of "
        f"{'a lake and two villages' if day % 2 else 'a glacier and the far peaks'}, ate bread and cheese by a stream, and "
        f"came down {'through a wood of larches' if day % 3 else 'along a ridge of loose stones'} before the rain."
        for day in range(1, 13)
    )
    + " Which of the days was the hardest, and why?",
    "The last one: on day 12 they climbed 1440 metres, more than on any other, and came down along a ridge of loose stones.",
)


@dataclass(frozen=True)
class Passage:
    """A question and its answer, as text and as ids."""

    question: str
    answer: str
    prompt: list[int]
    completion: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.completion]


@dataclass(frozen=True)
class Comparison:
    """Figures over all tokens of all answers; of embeddings only the last."""

    texts: int
    tokens: int
    kl: float | None = None  # KL(registered ‖ exported), nats per token
    log_prob_difference: float | None = None  # the largest of any token of the vocabulary at any position
    top1_agreement: float | None = None  # share of positions with the same likeliest token
    cosine_distance: float | None = None  # the largest of any text's embeddings


def passages(version: Version, tokenizer: PreTrainedTokenizerBase, longest: int = MAX_TOKENS) -> list[Passage]:
    """``passages(version, tokenizer)``: its held-out samples, the teacher's answers and its own, and texts of ours.

    longest: tokens that the model can read; what has more is left out.
    Raises: ExportError where nothing is left.
    """
    samples = entries(version.raw, "evaluation", "samples")
    asked = [(str(one.get("prompt")), str(one.get(who))) for one in samples for who in ("teacher", "student") if one.get(who)]
    found = [
        Passage(question, answer, prompt_ids(tokenizer, question), completion_ids(tokenizer, answer))
        for question, answer in (*asked, *TEXTS, LONG)
    ]
    fitting = [passage for passage in found if len(passage.ids) <= min(longest, MAX_TOKENS)]
    if not fitting:
        raise ExportError(f"{version.reference} reads at most {longest} tokens, too few to prove an export of it on any text")
    return fitting


@torch.inference_mode()
def model_log_probs(model: Any, texts: Sequence[Passage]) -> list[LogProbs]:
    """``model_log_probs(model, passages)``: (T, V) a text, T its answer's tokens."""
    device, found = next(model.parameters()).device, []
    for text in texts:
        batch = make_batch([text.prompt], [text.completion]).to(device)
        states = hidden_states(model, batch).final[batch.predicts]
        found.append(logits(model, states).float().log_softmax(dim=-1).cpu().numpy())
    return found


def server_log_probs(server: LlamaServer, texts: Sequence[Passage], adapter: int | None = None) -> list[LogProbs]:
    """``server_log_probs(server, passages)``: the same of llama.cpp, as its server answers."""
    starts = [len(text.prompt) - 1 for text in texts]
    return server.log_probs([text.ids[:-1] for text in texts], adapter, starts)


def compare(registered: Iterable[LogProbs], exported: Iterable[LogProbs]) -> Comparison:
    """``compare(model_log_probs(a, texts), model_log_probs(b, texts)).kl``

    Of log-probabilities, so logits that differ by a constant do not differ.
    Raises: ExportError where the two have another number of tokens.
    """
    sums, largest, texts, tokens = np.zeros(2), 0.0, 0, 0
    for ours, theirs in zip(registered, exported, strict=True):
        if ours.shape != theirs.shape:
            raise ExportError(f"the export gives figures of shape {theirs.shape} where the student gives {ours.shape}")
        p, q = _summing_to_one(ours), _summing_to_one(theirs)
        divergence = (np.exp(p) * (p - q)).sum(axis=-1)  # (T,)
        sums += divergence.sum(), (ours.argmax(axis=-1) == theirs.argmax(axis=-1)).sum()
        largest = max(largest, float(np.abs(p - q).max()))
        texts, tokens = texts + 1, tokens + len(ours)
    return Comparison(texts, tokens, float(sums[0] / tokens), largest, float(sums[1] / tokens))


def _summing_to_one(log_probs: LogProbs) -> NDArray[np.float64]:
    """llama.cpp's are of float32 probabilities, whose sum is off by more than two near models differ."""
    exact = log_probs.astype(np.float64)
    whole: NDArray[np.float64] = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    return whole


@torch.inference_mode()
def embeddings(model: Any, texts: Sequence[Passage]) -> Embeddings:
    """``embeddings(model, passages)``: final states over prompt and answer, pooled as the relation term pools them."""
    device = next(model.parameters()).device
    batches = [make_batch([text.prompt], [text.completion]).to(device) for text in texts]
    found: Embeddings = torch.cat([mean_pool(hidden_states(model, batch).final, batch.real) for batch in batches]).cpu().numpy()
    return found


def compare_embeddings(texts: Sequence[Passage], registered: Embeddings, exported: Embeddings) -> Comparison:
    """``compare_embeddings(texts, a, b).cosine_distance``: the largest row's; 0 where all point the same way."""
    ours, theirs = registered.astype(np.float64), exported.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    distances = 1 - (ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)
    return Comparison(len(texts), sum(len(text.ids) for text in texts), cosine_distance=max(0.0, float(distances.max())))


def tokens_per_second(write: Callable[[], int]) -> float:
    """``tokens_per_second(lambda: 32)``: of what ``write`` says it wrote; a median of three calls, after one that warms up."""
    write()
    speeds = []
    for _ in range(3):
        begun = time.perf_counter()
        speeds.append(write() / (time.perf_counter() - begun))
    return float(np.median(speeds))


def writing(model: Any, prompt: Sequence[int]) -> Callable[[], int]:
    """``tokens_per_second(writing(model, ids))``: one stream of ``SPEED_TOKENS`` tokens, its prompt's pass included."""
    return lambda: sum(map(len, sample(model, [prompt], max_new_tokens=SPEED_TOKENS, stop=())))


def server_writing(server: LlamaServer, prompt: Sequence[int], adapter: int | None = None) -> Callable[[], int]:
    """``tokens_per_second(server_writing(server, ids))``: the same of llama.cpp."""
    import httpx

    from factory.models.llama_server import lora_choice

    body = {"prompt": list(prompt), "n_predict": SPEED_TOKENS, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
    body["lora"] = lora_choice(len(server.adapters), adapter)

    def write() -> int:
        answer = httpx.post(f"{server.url}/completion", headers=server.headers, json=body, timeout=600).raise_for_status()
        return int(answer.json()["tokens_predicted"])

    return write
