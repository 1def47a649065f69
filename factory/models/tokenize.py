"""Rows of a data set as token ids, and token ids as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from factory.config.schema import TeacherContexts
from factory.data.history import history_of
from factory.models.chat import completion_ids, prompt_ids

MAX_CHARACTER_TOKENS = 4  # a UTF-8 character has at most four bytes, so at most four byte tokens
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's space
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # its tokens for what has no other
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what an incomplete character decodes to


@dataclass(frozen=True)
class TokenizedExample:
    """One example as ids: the student's prompt, the teacher's prompt (with its context), and the completion both predict.

    ``reference`` says that the completion is a source's own, and not a model's; ``top_logprobs`` what an API said of it.
    """

    prompt: list[int]
    teacher_prompt: list[int]
    completion: list[int]
    reference: bool = False
    top_logprobs: str = ""


def row_text(row: Mapping[str, Any]) -> str:
    """``row_text(row)``: prompt and completion as one text, as an encoder sees them."""
    return f"{row['prompt']}\n{row['completion']}"


def tokenize_examples(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, contexts: TeacherContexts
) -> list[TokenizedExample]:
    """``tokenize_examples(dataset["train"], tokenizer, spec.contexts)``: one TokenizedExample per row.

    The teacher's prompt has the context of the row's ``source``, or the domain's where a row has no source; both have its
    ``history``, what was said before. A row without a prompt is a chunk of a document: it gets no end-of-turn token. Nothing is
    cut: what is too long is not in the data set.
    """
    return [
        TokenizedExample(
            prompt_ids(tokenizer, row["prompt"], history := history_of(row)),
            prompt_ids(tokenizer, row["prompt"], contexts.of(row.get("source")).then(history)),
            completion_ids(tokenizer, row["completion"], ends=bool(row["prompt"])),
            bool(row.get("own_completion")),
            row.get("top_logprobs", ""),
        )
        for row in rows
    ]


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """``token_text(tokenizer, 42)``: the decoded token, or its vocabulary entry if it is only part of a character."""
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if not text or REPLACEMENT in text else text


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """``token_texts(tokenizer, ids)``: one string per token; joined they are the decoded text.

    A character made of several tokens belongs to its last token; the others get "".
    """
    texts, start = [], 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False))
        incomplete = text.endswith(REPLACEMENT) and end < len(ids) and end - start < MAX_CHARACTER_TOKENS
        texts.append("" if incomplete else text)
        start = start if incomplete else end
    return tuple(texts)
