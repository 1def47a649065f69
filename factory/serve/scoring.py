"""What llama.cpp does not do, with transformers: log-probabilities of a prompt, and a student's embeddings.

    scorer = Scorer(registry, materials)
    scored = await scorer.score(target, [5, 17, 9], max_tokens=1, top=1)
    scored.token_logprobs                        # (None, -2.1, -0.3, -1.7)
    await scorer.embed(target, [[5, 17], [9]])   # (2, H), unit vectors

A base is in memory once, its adapters beside each other. Which of them is active is global to a model, so one request at a
time is worked on, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from factory.models.base import load_base
from factory.models.chat import stop_tokens
from factory.models.forward import hidden_states, logits, make_batch, mean_pool
from factory.models.generation import sample
from factory.models.tokenize import token_text, token_texts
from factory.registry.registry import Registry
from factory.serve.resolver import Target

T = TypeVar("T")
BATCH = 16  # texts embedded together


@dataclass(frozen=True)
class Scored:
    """A prompt and what was written after it, in the shape of OpenAI's completions."""

    tokens: tuple[str, ...]  # together the text; of a character in several tokens, the last one has it
    token_logprobs: tuple[float | None, ...]  # nats; of the first token nothing is known
    top_logprobs: tuple[dict[str, float] | None, ...]
    prompt_tokens: int
    ended: bool  # a stop token was written

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def offsets(self) -> list[int]:
        """Where in the text each token begins."""
        ends = np.cumsum([0, *map(len, self.tokens)])
        return [int(end) for end in ends[:-1]]


class Scorer:
    """``Scorer(registry, materials)``: models are loaded when first asked for, and stay."""

    def __init__(self, registry: Registry, materials: Any) -> None:
        self.registry, self.materials = registry, materials
        self._worker = ThreadPoolExecutor(1, "scorer")
        self._loaded: dict[str, tuple[Any, PreTrainedTokenizerBase]] = {}  # by base: a model with its adapters

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
        """``await scorer.score(target, ids)``: the prompt as it is, then at most ``max_tokens`` more, greedy at 0."""
        seed = random.getrandbits(32) if seed is None else seed
        return await self._run(lambda: self._score(target, ids, max_tokens, temperature, seed, top))

    async def embed(self, target: Target, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """``await scorer.embed(target, ids)``: (N, H) float32 unit vectors, the final states' mean, which training aligns."""
        return await self._run(lambda: self._embed(target, texts))

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    @torch.inference_mode()
    def _score(self, target: Target, ids: Sequence[int], max_tokens: int, temperature: float, seed: int, top: int) -> Scored:
        model, tokenizer = self._model(target)
        stops = stop_tokens(tokenizer)
        written: list[int] = []
        if max_tokens > 1 or (max_tokens and temperature):
            written = sample(model, [list(ids)], max_new_tokens=max_tokens, stop=stops, temperature=temperature, seed=seed)[0]
        log_probs = _log_probs(model, [*ids, *written], len(tokenizer))  # (T, V); row t is about token t + 1
        if max_tokens and not written:
            written = [int(log_probs[-1].argmax())]
        every = [*ids, *written]
        found = log_probs[: len(every) - 1]
        own = found.gather(1, torch.tensor(every[1:], device=found.device).unsqueeze(1))[:, 0].tolist()
        tops = [None, *_tops(tokenizer, found, every[1:], top)] if top else [None] * len(every)
        return Scored(
            token_texts(tokenizer, every), (None, *own), tuple(tops), len(ids), bool(written) and written[-1] in stops
        )

    @torch.inference_mode()
    def _embed(self, target: Target, texts: Sequence[Sequence[int]]) -> np.ndarray:
        model, _ = self._model(target)
        batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        rows = [_states(model, batch) for batch in batches]
        vectors = torch.nn.functional.normalize(torch.cat(rows), dim=1)
        return np.asarray(vectors.cpu().numpy(), dtype=np.float32)

    def _model(self, target: Target) -> tuple[Any, PreTrainedTokenizerBase]:
        if target.version is None:
            teacher = self.materials.teacher
            return teacher.model, teacher.tokenizer
        if target.base not in self._loaded:
            base = load_base(self.registry.resolve(target.base).folder, self.materials.device)
            self._loaded[target.base] = base.model, base.tokenizer
        model, tokenizer = self._loaded[target.base]
        adapter, folder = target.reference, target.version.folder
        if not isinstance(model, PeftModel):
            model = PeftModel.from_pretrained(model, folder, adapter_name=adapter)
            self._loaded[target.base] = model, tokenizer
        elif adapter not in model.peft_config:
            model.load_adapter(folder, adapter_name=adapter)
        model.set_adapter(adapter)
        return model.eval(), tokenizer


def _log_probs(model: Any, ids: Sequence[int], size: int) -> Tensor:
    """(T, V) float32, as fidelity and tasks are measured; a padded head's rows do not count."""
    batch = make_batch([ids], [[]]).to(next(model.parameters()).device)
    states = hidden_states(model, batch).final[batch.real]  # (T, H)
    return logits(model, states)[:, :size].float().log_softmax(dim=-1)


def _states(model: Any, texts: Sequence[Sequence[int]]) -> Tensor:
    batch = make_batch(texts, [[]] * len(texts)).to(next(model.parameters()).device)
    with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16):  # as alignment is measured
        return mean_pool(hidden_states(model, batch).final, batch.real)


def _tops(
    tokenizer: PreTrainedTokenizerBase, log_probs: Tensor, taken: Sequence[int], top: int
) -> list[dict[str, float] | None]:
    """The ``top`` most likely tokens at each position and the one that stands there; of equal names the likelier counts."""
    values, tokens = log_probs.topk(min(top, log_probs.shape[-1]), dim=-1)
    found: list[dict[str, float] | None] = []
    for row, value, token, own in zip(log_probs, values.tolist(), tokens.tolist(), taken, strict=True):
        names: dict[str, float] = {}
        for one, log_prob in [*zip(token, value, strict=True), (own, float(row[own]))]:
            names.setdefault(token_text(tokenizer, one), log_prob)
        found.append(names)
    return found
