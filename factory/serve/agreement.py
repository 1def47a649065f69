"""Where a student and its teacher agree on an answer, token by token: what the web page colours.

    agreements = Agreements(registry, specs, pick_device("auto"))
    await agreements.compare("healthcare-small", "What are early signs of asthma?", answer)

Both models read the question and the answer once, in the student's vocabulary; the teacher reads its domain's context first,
as it did when the student learned from it. Requests are worked on one after the other, in a thread of their own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from anyio import CapacityLimiter, to_thread
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from factory.config.schema import Specs, TeacherContext
from factory.errors import ServeError
from factory.inference import domain_of, load_family_teacher, load_version, matching_family
from factory.models.base import trim_teacher
from factory.models.chat import completion_ids, prompt_ids, stop_tokens
from factory.models.device import mixed_precision
from factory.models.forward import hidden_states, logits, make_batch
from factory.models.generation import generate_ids
from factory.models.teacher import Teacher
from factory.models.tokenize import token_text, token_texts
from factory.registry.manifest import StudentManifest
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.limits import APIError

TOP = 5
MAX_PAIRS = 2  # students in memory, each with its base and its teacher
MAX_WAITING = 8  # requests
Author = Literal["student", "teacher"]
TokenProbs = tuple[tuple[str, float], ...]  # the most likely tokens and their probabilities, falling


@dataclass(frozen=True)
class ScoredToken:
    """One token of an answer, and what both models expected in its place."""

    text: str
    agrees: bool  # it is the top-1 token of the model that did not write the answer
    student: TokenProbs
    teacher: TokenProbs


@dataclass(frozen=True)
class Agreement:
    """An answer, token by token, as student and teacher see it."""

    reference: str  # of the student
    teacher: str
    by: Author
    tokens: tuple[ScoredToken, ...]


@dataclass(frozen=True)
class Pair:
    """A student and its teacher in memory, both in the student's vocabulary."""

    reference: str
    student: Any
    teacher: Teacher
    teacher_reference: str
    context: TeacherContext
    max_new_tokens: int

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.teacher.tokenizer


def load_pair(version: Version, registry: Registry, specs: Specs, device: torch.device) -> Pair:
    """``load_pair(registry.resolve("healthcare-small"), registry, specs, device)``: a student's models.

    Raises:
        ServeError: for a base.
        TrainingError: if the family or the domain names another teacher than the student's.
    """
    manifest = version.manifest
    if not isinstance(manifest, StudentManifest):
        raise ServeError(f"{version.reference} is a base; only a student can be compared with its teacher")
    family = matching_family(version, specs)
    loaded = load_version(version, registry, device)
    return Pair(
        version.reference,
        loaded.model,
        trim_teacher(load_family_teacher(family, specs, device, domain_of(version, specs)), loaded.base.shape.tokens),
        manifest.teacher.reference,
        TeacherContext.kept(manifest.teacher_context),
        manifest.max_completion_tokens,
    )


class Agreements:
    """``await Agreements(registry, specs, device).compare("healthcare-small", question)``: keeps the last pairs in memory."""

    def __init__(
        self,
        registry: Registry,
        specs: Specs,
        device: torch.device,
        load: Callable[[Version, Registry, Specs, torch.device], Pair] = load_pair,
    ) -> None:
        self.registry, self.specs, self.device, self.load = registry, specs, device, load
        self._limiter = CapacityLimiter(1)
        self._pairs: OrderedDict[str, Pair] = OrderedDict()  # by the manifest's checksum, least recently used first

    async def compare(self, model: str, prompt: str, text: str | None = None, by: Author = "student") -> Agreement:
        """``await agreements.compare("healthcare-small", prompt, answer)``; without an answer ``by`` writes one, greedily.

        Raises:
            RegistryError: for an unknown student.
            ServeError: for a base, an empty question, or a text that is too long for the models.
            APIError: 429 if too many requests wait already.
            TrainingError: if the family file names another teacher than the student's.
        """
        if self._limiter.statistics().tasks_waiting >= MAX_WAITING:
            message = f"{MAX_WAITING} comparisons are waiting; try again in a few seconds"
            raise APIError(429, message, code="queue_full", headers={"Retry-After": "5"})
        return await to_thread.run_sync(self._compare, model, prompt, text, by, limiter=self._limiter)

    def _compare(self, model: str, prompt: str, text: str | None, by: Author) -> Agreement:
        version = self.registry.resolve(model)
        if not prompt.strip():
            raise ServeError("the question is empty; write one")
        return compare(self._pair(version), prompt, text, by)

    def _pair(self, version: Version) -> Pair:
        key = version.manifest.manifest_sha256
        if key not in self._pairs:
            while len(self._pairs) >= MAX_PAIRS:
                self._pairs.popitem(last=False)[1].teacher.release()
            self._pairs[key] = self.load(version, self.registry, self.specs, self.device)
        self._pairs.move_to_end(key)
        return self._pairs[key]


@torch.inference_mode()
def compare(pair: Pair, prompt: str, text: str | None = None, by: Author = "student") -> Agreement:
    """``compare(pair, "What is gout?", "Gout is ...").tokens``: without a text, ``by`` writes it.

    Raises: ServeError if question and answer together are longer than the models' context.
    """
    prompts = {
        "student": prompt_ids(pair.tokenizer, prompt),
        "teacher": prompt_ids(pair.tokenizer, prompt, pair.context),
    }
    models = {"student": pair.student, "teacher": pair.teacher.model}
    limit = pair.teacher.config.get_text_config().max_position_embeddings
    _check_length(len(prompts["teacher"]), limit)
    if text is None:
        answer = generate_ids(models[by], pair.tokenizer, [prompts[by]], max_new_tokens=pair.max_new_tokens)[0]
        answer = [token for token in answer if token not in stop_tokens(pair.tokenizer)]
    else:
        answer = completion_ids(pair.tokenizer, text, ends=False)
    _check_length(len(prompts["teacher"]) + len(answer), limit)
    if not answer:
        return Agreement(pair.reference, pair.teacher_reference, by, ())
    top = {who: _top(model, prompts[who], answer, len(pair.tokenizer)) for who, model in models.items()}
    other_ids, _ = top["teacher" if by == "student" else "student"]
    agrees = [likely[0] == token for likely, token in zip(other_ids, answer, strict=True)]
    probs = {who: [_token_probs(pair.tokenizer, *row) for row in zip(*rows, strict=True)] for who, rows in top.items()}
    tokens = map(ScoredToken, token_texts(pair.tokenizer, answer), agrees, probs["student"], probs["teacher"])
    return Agreement(pair.reference, pair.teacher_reference, by, tuple(tokens))


def _check_length(tokens: int, limit: int) -> None:
    if tokens > limit:
        raise ServeError(
            f"question, answer and the teacher's context have {tokens} tokens; the limit is {limit}: shorten the text"
        )


def _top(model: Any, prompt: Sequence[int], answer: Sequence[int], size: int) -> tuple[list[list[int]], list[list[float]]]:
    """(T, TOP) ids and probabilities of the most likely tokens at each token of the answer, without rows that pad the head."""
    batch = make_batch([prompt], [answer]).to(next(model.parameters()).device)
    with mixed_precision(batch.input_ids.device):  # as in the evaluation
        values: Tensor = logits(model, hidden_states(model, batch).final[batch.predicts])  # (T, V)
    top = values[:, :size].float().softmax(dim=-1).topk(TOP, dim=-1)
    return top.indices.tolist(), top.values.tolist()


def _token_probs(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], probabilities: Sequence[float]) -> TokenProbs:
    return tuple((token_text(tokenizer, token), round(p, 4)) for token, p in zip(ids, probabilities, strict=True))
