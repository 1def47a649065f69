"""What llama.cpp cannot do, done with transformers: log-probabilities of a prompt, and a student's embeddings.

    scorer = Scorer(registry, load_models, device, memory=4_000_000_000)
    scored = await scorer.score(target, [5, 17, 9], max_tokens=1, top=1)
    scored.token_logprobs                        # (None, -2.1, -0.3, -1.7)
    await scorer.embed(target, [[5, 17], [9]])   # (2, D), unit vectors

Each base is in memory once, with the adapters of its students, and those used least recently make room for others. A model
has one active adapter at a time, so requests are worked on one after the other, in a thread of their own.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from factory.models.adapter import load_adapter
from factory.models.base import load_base
from factory.models.chat import stop_tokens
from factory.models.device import compute_dtype
from factory.models.embedding_head import embed_texts, load_embedding_head
from factory.models.forward import hidden_states, make_batch, output_head
from factory.models.generation import sample
from factory.models.tokenize import token_text, token_texts
from factory.pipeline.context import FamilyModels
from factory.registry.registry import Registry
from factory.serve.resolver import TEACHER, Target

T = TypeVar("T")


@dataclass(frozen=True)
class Scored:
    """A prompt and its continuation with log-probabilities, in the form of OpenAI's completions."""

    tokens: tuple[str, ...]  # joined they are the text; a character made of several tokens belongs to the last one
    token_logprobs: tuple[float | None, ...]  # nats; None for the first token
    top_logprobs: tuple[dict[str, float] | None, ...]
    prompt_tokens: int
    ended: bool  # the continuation ends with a stop token

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def offsets(self) -> list[int]:
        """Where each token begins in the text, in characters."""
        ends = np.cumsum([0, *map(len, self.tokens)])
        return [int(end) for end in ends[:-1]]


class AbandonedError(Exception):
    """Ends work in the thread whose request was cancelled or timed out; nobody sees it."""


@dataclass
class Loaded:
    """A base in memory, with adapters by reference, the last used one at the end."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    adapters: dict[str, None] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())


class Scorer:
    """``Scorer(registry, load_models, device, memory)``: loads each model at its first request, keeps ``memory`` bytes of them.

    One model may be larger than that; then it is the only one.
    """

    def __init__(self, registry: Registry, load_models: Callable[[], FamilyModels], device: torch.device, memory: int) -> None:
        self.registry, self.load_models, self.device, self.memory = registry, load_models, device, memory
        self._worker = ThreadPoolExecutor(1, "scorer")
        self._loaded: dict[str, Loaded] = {}  # by base, the last used one at the end

    async def score(
        self,
        target: Target,
        ids: Sequence[int],
        *,
        max_tokens: int = 0,
        temperature: float = 0.0,
        seed: int | None = None,
        top: int = 0,
    ) -> Scored:
        """``await scorer.score(target, ids)``: the prompt, then at most ``max_tokens`` more; temperature 0 is greedy."""
        seed = random.getrandbits(32) if seed is None else seed
        return await self._run(
            target, lambda model, tokenizer: _score(model, tokenizer, ids, max_tokens, temperature, seed, top)
        )

    async def embed(self, target: Target, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """``await scorer.embed(target, ids)``: (N, D) float32 unit vectors, by the student's embedding head.

        Without one they are the mean final hidden states, which the relation loss aligns in training.
        """

        def work(model: Any, _: PreTrainedTokenizerBase) -> np.ndarray:
            return embed_texts(model, texts, load_embedding_head(target.version.folder) if target.version else None)

        return await self._run(target, work)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _run(self, target: Target, work: Callable[[Any, PreTrainedTokenizerBase], T]) -> T:
        """Work on the target's model. Where nobody waits for it any more, it ends at its next forward pass."""
        abandoned = threading.Event()

        def check(*_: object) -> None:
            if abandoned.is_set():
                raise AbandonedError

        @torch.inference_mode()
        def run() -> T:
            model, tokenizer = self._model(target)
            with model.get_input_embeddings().register_forward_pre_hook(check):  # every batch and every new token pass it
                return work(model, tokenizer)

        try:
            context = copy_context()  # its log lines carry the request's id
            return await asyncio.get_running_loop().run_in_executor(self._worker, context.run, run)
        finally:
            abandoned.set()

    def _model(self, target: Target) -> tuple[Any, PreTrainedTokenizerBase]:
        """The target's model with its adapter active.

        Not ``factory.inference.load_version``: that loads a base for every student, and here students share one.
        """
        loaded = self._loaded.pop(target.base, None)
        if loaded is None:
            self._make_room(self._size(target))
            loaded = self._load(target)
        self._loaded[target.base] = loaded
        if target.version is not None:
            adapter, new = target.reference, target.reference not in loaded.adapters
            if new:
                loaded.model = load_adapter(loaded.model, self.registry.require_intact(target.version).folder, adapter)
            loaded.adapters.pop(adapter, None)
            loaded.adapters[adapter] = None
            loaded.model.set_adapter(adapter)
            if new:
                self._make_room(0)
        return loaded.model.eval(), loaded.tokenizer

    def _load(self, target: Target) -> Loaded:
        if target.version is None:
            teacher = self.load_models().teacher
            return Loaded(teacher.model, teacher.tokenizer)
        base = load_base(self.registry.require_intact(self.registry.resolve(target.base)).folder, self.device)
        return Loaded(base.model, base.tokenizer)

    def _size(self, target: Target) -> int:
        """Of the base that is to be loaded."""
        found = self.load_models().teacher if target.version is None else self.registry.resolve(target.base).manifest
        return int(found.parameters) * compute_dtype(self.device).itemsize

    def _make_room(self, needed: int) -> None:
        """Gives up bases, then adapters of the last base, from the least recently used one on."""
        while self._loaded and sum(one.bytes for one in self._loaded.values()) + needed > self.memory:
            first = next(iter(self._loaded))
            if len(self._loaded) > 1 or needed:
                del self._loaded[first]
                if first == TEACHER:
                    self.load_models().teacher.release()
            elif len(self._loaded[first].adapters) > 1:
                adapter = next(iter(self._loaded[first].adapters))
                del self._loaded[first].adapters[adapter]
                self._loaded[first].model.delete_adapter(adapter)
            else:
                return


def _score(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    max_tokens: int,
    temperature: float,
    seed: int,
    top: int,
) -> Scored:
    stops = stop_tokens(tokenizer)
    generated: list[int] = []
    if max_tokens > 1 or (max_tokens and temperature):
        generated = sample(model, [list(ids)], max_new_tokens=max_tokens, stop=stops, temperature=temperature, seed=seed)[0]
    log_probs = _log_probs(model, [*ids, *generated], len(tokenizer))  # (T, V); row t predicts token t + 1
    if max_tokens and not generated:  # a single greedy token: the last row already has it
        generated = [int(log_probs[-1].argmax())]
    tokens = [*ids, *generated]
    before = log_probs[: len(tokens) - 1]  # (T - 1, V)
    own = before.gather(1, torch.tensor(tokens[1:], device=before.device).unsqueeze(1))[:, 0].tolist()
    top_logprobs = [None, *_top_logprobs(tokenizer, before, tokens[1:], top)] if top else [None] * len(tokens)
    return Scored(
        token_texts(tokenizer, tokens),
        (None, *own),
        tuple(top_logprobs),
        len(ids),
        bool(generated) and generated[-1] in stops,
    )


def _log_probs(model: Any, ids: Sequence[int], vocabulary: int) -> Tensor:
    """(T, V) float32, without the rows that pad the head, which runs in float32 as in the evaluation."""
    batch = make_batch([ids], [[]]).to(next(model.parameters()).device)
    states = hidden_states(model, batch).final[batch.real]  # (T, H)
    head, _ = output_head(model, torch.float32)
    return head(states)[:, :vocabulary].log_softmax(dim=-1)


def _top_logprobs(
    tokenizer: PreTrainedTokenizerBase, log_probs: Tensor, tokens: Sequence[int], top: int
) -> list[dict[str, float] | None]:
    """The ``top`` most likely tokens of each row and the token that follows it; of equal texts the likelier one counts."""
    values, indices = log_probs.topk(min(top, log_probs.shape[-1]), dim=-1)  # (T, top) each
    found: list[dict[str, float] | None] = []
    for row, likely, ids, token in zip(log_probs, values.tolist(), indices.tolist(), tokens, strict=True):
        by_text: dict[str, float] = {}
        for candidate, log_prob in [*zip(ids, likely, strict=True), (token, float(row[token]))]:
            by_text.setdefault(token_text(tokenizer, candidate), log_prob)
        found.append(by_text)
    return found
