"""Where a student and its teacher agree on an answer, token by token: what the page colours.

    agreements = Agreements(registry, specs, pick_device("auto"))
    await agreements.of("healthcare-small", "What are early signs of asthma?", answer)

Each model reads the question and the answer once, in the student's vocabulary; the teacher after its domain's context, as
the student learned from it. One request is worked on at a time, in a thread of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from anyio import CapacityLimiter, to_thread
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from factory.config.schema import Specs, TeacherContext
from factory.errors import ServeError
from factory.inference import MAX_NEW_TOKENS, matching_family
from factory.models.base import load_base, load_student, trim_teacher
from factory.models.chat import completion_ids, prompt_ids, stop_tokens
from factory.models.forward import hidden_states, logits, make_batch
from factory.models.generation import generate_ids
from factory.models.references import resolve
from factory.models.teacher import Teacher
from factory.models.tokenize import token_text, token_texts
from factory.registry.registry import Registry
from factory.registry.versions import Version, section
from factory.serve.limits import APIError

TOP = 5
PAIRS = 2  # students in memory, each with its base and its teacher
WAITING = 8  # requests that may wait for their turn
Who = Literal["student", "teacher"]
Guesses = tuple[tuple[str, float], ...]  # the most likely tokens and their probabilities, falling


@dataclass(frozen=True)
class ScoredToken:
    """One token of an answer, and what both models expected in its place."""

    text: str
    agrees: bool  # it is the most likely token of the model that did not write it
    student: Guesses
    teacher: Guesses


@dataclass(frozen=True)
class Agreement:
    """An answer of one of the two, as both see it."""

    reference: str  # the student
    teacher: str
    by: Who  # who wrote the answer
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


class Agreements:
    """``await Agreements(registry, specs, device).of("healthcare-small", question)``: the pairs last asked for stay loaded."""

    def __init__(self, registry: Registry, specs: Specs, device: torch.device) -> None:
        self.registry, self.specs, self.device = registry, specs, device
        self._turn = CapacityLimiter(1)
        self._pairs: OrderedDict[str, Pair] = OrderedDict()  # by the manifest's checksum, the one used last at the end

    async def of(self, model: str, prompt: str, text: str | None = None, by: Who = "student") -> Agreement:
        """``await agreements.of("healthcare-small", prompt, answer)``; without an answer, ``by`` writes one first, greedily.

        Raises:
            RegistryError: for an unknown student.
            ServeError: for a base, an empty question, or one too long for the models.
            APIError: where too many wait already.
            TrainingError: where the family file names another teacher than the student's.
        """
        if self._turn.statistics().tasks_waiting >= WAITING:
            raise APIError(429, f"{WAITING} comparisons wait already", code="queue_full", headers={"Retry-After": "5"})
        return await to_thread.run_sync(self._of, model, prompt, text, by, limiter=self._turn)

    def _of(self, model: str, prompt: str, text: str | None, by: Who) -> Agreement:
        version = self.registry.resolve(model)
        if version.kind != "student":
            raise ServeError(f"{version.reference} is a {version.kind}; only a student is compared with its teacher")
        if not prompt.strip():
            raise ServeError("the question is empty: write one")
        key = str(version.raw["manifest_sha256"])
        if key not in self._pairs:
            while len(self._pairs) >= PAIRS:
                self._pairs.popitem(last=False)[1].teacher.release()
            self._pairs[key] = load_pair(version, self.registry, self.specs, self.device)
        self._pairs.move_to_end(key)
        return compare(self._pairs[key], prompt, text, by)


def load_pair(version: Version, registry: Registry, specs: Specs, device: torch.device) -> Pair:
    """``load_pair(registry.resolve("healthcare-small"), registry, specs, device)``: a student's models, in bfloat16.

    Raises: TrainingError where the family file names another teacher than the student's.
    """
    family = matching_family(version, specs)
    base = load_base(registry.resolve(version.base or "").folder, device)
    files = resolve(family.teacher, root=specs.root, chat_template=family.teacher.chat_template)
    return Pair(
        version.reference,
        load_student(base, version.folder),
        trim_teacher(Teacher.load(files, device), base.shape.tokens),
        family.teacher.model,
        TeacherContext.model_validate(section(version.raw, "spec").get("teacher_context") or {}),
        int(section(version.raw, "settings", "data").get("max_completion_tokens") or MAX_NEW_TOKENS),
    )


@torch.inference_mode()
def compare(pair: Pair, prompt: str, text: str | None = None, by: Who = "student") -> Agreement:
    """``compare(pair, "What is gout?", "Gout is ...").tokens``: without a text, ``by`` writes it.

    Raises: ServeError where question and answer together are longer than the models read.
    """
    prompts = {
        "student": prompt_ids(pair.tokenizer, prompt),
        "teacher": prompt_ids(pair.tokenizer, prompt, pair.context),
    }
    models = {"student": pair.student, "teacher": pair.teacher.model}
    longest = pair.teacher.config.get_text_config().max_position_embeddings
    _check_length(len(prompts["teacher"]), longest)
    if text is None:
        answer = generate_ids(models[by], pair.tokenizer, [prompts[by]], max_new_tokens=pair.max_new_tokens)[0]
        answer = [token for token in answer if token not in stop_tokens(pair.tokenizer)]
    else:
        answer = completion_ids(pair.tokenizer, text, ends=False)
    _check_length(len(prompts["teacher"]) + len(answer), longest)
    if not answer:
        return Agreement(pair.reference, pair.teacher_reference, by, ())
    tops = {who: _top(models[who], prompts[who], answer, len(pair.tokenizer)) for who in models}
    other = tops["teacher" if by == "student" else "student"]
    guesses = {who: [_guesses(pair.tokenizer, *one) for one in zip(*top, strict=True)] for who, top in tops.items()}
    agrees = [likely[0] == token for likely, token in zip(other[0], answer, strict=True)]
    tokens = map(ScoredToken, token_texts(pair.tokenizer, answer), agrees, guesses["student"], guesses["teacher"])
    return Agreement(pair.reference, pair.teacher_reference, by, tuple(tokens))


def _check_length(tokens: int, longest: int) -> None:
    if tokens > longest:
        raise ServeError(f"the teacher reads at most {longest} tokens, its context included, and this is {tokens}: shorten it")


def _top(model: Any, prompt: Sequence[int], answer: Sequence[int], size: int) -> tuple[list[list[int]], list[list[float]]]:
    """Ids and probabilities of the TOP tokens at each token of the answer, (T, TOP) each; a padded head's rows do not count."""
    batch = make_batch([prompt], [answer]).to(next(model.parameters()).device)
    with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16):  # as students are measured
        values: Tensor = logits(model, hidden_states(model, batch).final[batch.predicts])  # (T, V)
    top = values[:, :size].float().softmax(dim=-1).topk(TOP, dim=-1)
    return top.indices.tolist(), top.values.tolist()


def _guesses(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], probabilities: Sequence[float]) -> Guesses:
    return tuple((token_text(tokenizer, token), round(p, 4)) for token, p in zip(ids, probabilities, strict=True))
