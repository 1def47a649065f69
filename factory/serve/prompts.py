"""How many tokens a request has, in the vocabulary of whoever answers: checked before any engine is asked.

prompts = Prompts(registry, materials, 1024)
prompts.ids(target, "The cat", "prompt")   # [504, 2644]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from factory.registry.registry import Registry
from factory.serve.limits import APIError
from factory.serve.resolver import TEACHER, Target


class Prompts:
    """``Prompts(registry, materials, most)``: tokenizers of the bases are loaded once."""

    def __init__(self, registry: Registry, materials: Any, most: int) -> None:
        self.registry, self.materials, self.most = registry, materials, most
        self._tokenizers: dict[str, Any] = {}  # by base; transformers' own types of them are partial

    def chat_tokens(self, target: Target, turns: list[dict[str, str]]) -> int:
        """``prompts.chat_tokens(target, turns)``: as the base's chat template writes them.

        Raises: APIError 400 for more tokens than may be sent, and for turns that the template refuses.
        """
        tokenizer = self.tokenizer(target)
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            message = f"the chat template of {target.base} refuses these messages: {error}"
            raise APIError(400, message, code="invalid_messages", param="messages") from None
        return len(self._checked(tokenizer(text, add_special_tokens=False)["input_ids"], "messages"))

    def ids(self, target: Target, prompt: str | list[int], param: str) -> list[int]:
        """``prompts.ids(target, prompt, "prompt")``: a text's ids, or the given ones.

        Raises: APIError 400 for no tokens or more than may be sent, and for ids that the vocabulary has not.
        """
        tokenizer = self.tokenizer(target)
        ids = list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
        if not ids:
            raise APIError(400, f"{param} is empty", code="invalid_value", param=param)
        self.check_known(target, ids, param)
        return self._checked(ids, param)

    def check_known(self, target: Target, ids: list[int], param: str) -> None:
        """``prompts.check_known(target, ids, "logit_bias")``. Raises: APIError 400 for ids that the vocabulary has not."""
        size = len(self.tokenizer(target))
        if max(ids) >= size:
            message = f"{param} has token {max(ids)}, but {target.reference} has {size}, from 0 to {size - 1}"
            raise APIError(400, message, code="invalid_value", param=param)

    def tokenizer(self, target: Target) -> Any:
        if target.base not in self._tokenizers:
            self._tokenizers[target.base] = AutoTokenizer.from_pretrained(self._folder(target))
        return self._tokenizers[target.base]

    def _folder(self, target: Target) -> Path:
        if target.base == TEACHER:
            return self.materials.teacher_files.folder
        return self.registry.resolve(target.base).folder

    def _checked(self, ids: list[int], param: str) -> list[int]:
        if len(ids) > self.most:
            message = f"{param} has {len(ids)} tokens, and at most {self.most} may be sent here"
            raise APIError(400, message, code="context_length_exceeded", param=param)
        return ids
