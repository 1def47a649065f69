"""Counts and checks a request's tokens, in the vocabulary of the model that answers, before an engine sees them.

prompts = Prompts(registry, load_models, 1024)
prompts.ids(target, "The cat", "prompt")   # [504, 2644]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from factory.config.schema import TeacherContext
from factory.errors import ModelResolutionError
from factory.models.chat import messages as turns_of
from factory.models.chat import plain_turns, render
from factory.models.folders import load_tokenizer
from factory.pipeline.context import FamilyModels
from factory.registry.registry import Registry
from factory.serve.limits import APIError
from factory.serve.resolver import TEACHER, Target


class Prompts:
    """``Prompts(registry, load_models, max_tokens)``: loads each base's tokenizer once."""

    def __init__(self, registry: Registry, load_models: Callable[[], FamilyModels], max_tokens: int) -> None:
        self.registry, self.load_models, self.max_tokens = registry, load_models, max_tokens
        self._tokenizers: dict[str, Any] = {}  # by base; Any, because transformers' own types are partial

    def turns(self, target: Target, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """``prompts.turns(target, request.turns())``: as the engine is sent them. A special token in them is text.

        A teacher in a cascade is shown its domain's context first, which counts as part of the prompt: an engine has no more
        room than for the longest prompt and the longest answer.

        Raises: APIError 400 for more tokens than the limit, or messages that the template refuses.
        """
        tokenizer = self.tokenizer(target)
        turns = plain_turns(tokenizer, with_context(messages, target.context))
        try:
            text = render(tokenizer, turns, prompt=True)
        except ModelResolutionError as error:
            message = f"{target.base}: {error}"
            raise APIError(400, message, code="invalid_messages", param="messages") from None
        self._check_length(tokenizer(text, add_special_tokens=False)["input_ids"], "messages")
        return turns

    def count(self, target: Target, turns: list[dict[str, str]]) -> int:
        """``prompts.count(target, prompts.turns(target, messages))``: tokens of a prompt of which no engine told the usage."""
        tokenizer = self.tokenizer(target)
        return len(tokenizer(render(tokenizer, turns, prompt=True), add_special_tokens=False)["input_ids"])

    def ids(self, target: Target, prompt: str | list[int], param: str) -> list[int]:
        """``prompts.ids(target, prompt, "prompt")``: the ids of a text, or the given ids.

        Raises: APIError 400 for an empty prompt, more tokens than the limit, or ids outside the vocabulary.
        """
        ids = list(self.tokenizer(target)(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
        if not ids:
            raise APIError(400, f"{param} is empty", code="invalid_value", param=param)
        self.check_vocabulary(target, ids, param)
        self._check_length(ids, param)
        return ids

    def check_vocabulary(self, target: Target, ids: Iterable[int], param: str) -> None:
        """``prompts.check_vocabulary(target, ids, "logit_bias")``: raises APIError 400 for ids outside the vocabulary."""
        size, largest = len(self.tokenizer(target)), max(ids, default=0)
        if largest >= size:
            message = f"{param} has token id {largest}; the ids of {target.reference} are 0 to {size - 1}"
            raise APIError(400, message, code="invalid_value", param=param)

    def tokenizer(self, target: Target) -> Any:
        """``prompts.tokenizer(target)``: of the student's base, or of the teacher."""
        if target.base not in self._tokenizers:
            self._tokenizers[target.base] = load_tokenizer(self._folder(target))
        return self._tokenizers[target.base]

    def _folder(self, target: Target) -> Path:
        if target.base == TEACHER:
            return self.load_models().teacher_files.folder
        return self.registry.require_intact(self.registry.resolve(target.base)).folder

    def _check_length(self, ids: list[int], param: str) -> None:
        if len(ids) > self.max_tokens:
            message = f"{param} has {len(ids)} tokens; this server allows {self.max_tokens}"
            raise APIError(400, message, code="context_length_exceeded", param=param)


def with_context(messages: list[dict[str, str]], context: TeacherContext) -> list[dict[str, str]]:
    """``with_context(request.turns(), target.context)``: the context's turns, then the request's.

    Two system turns become one, since not every chat template takes a second.
    """
    shown = turns_of("", context)[:-1]  # without the prompt
    if shown and shown[0]["role"] == messages[0]["role"] == "system":
        both = {"role": "system", "content": f"{shown[0]['content']}\n\n{messages[0]['content']}"}
        return [both, *shown[1:], *messages[1:]]
    return [*shown, *messages]
