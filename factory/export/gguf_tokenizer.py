"""Writes a transformers tokenizer into a GGUF file, so that llama.cpp produces the same token ids.

Two kinds are supported. Byte-level BPE (GPT-2, SmolLM2) is written as tokens and merges. SentencePiece BPE with byte fallback
(Gemma) has scores instead of merges in GGUF: llama.cpp merges the pair whose token has the highest score, so a token's score
is minus the rank of the first merge that makes it. In both, the text of a special token is parsed as that token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from factory.errors import ExportError
from factory.models.chat import end_of_turn

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's space
BYTE_LEVEL = {"ByteLevel": "gpt-2", "Digits ByteLevel": "smollm"}  # pre-tokenizer → llama.cpp's name for it
UNMERGED = -1e9  # score of tokens that no merge makes: characters, bytes, special tokens


def write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """``write_tokenizer(writer, tokenizer, rows)``: tokens, merges or scores, special tokens and chat template.

    rows: of the model's embedding; rows without a token are written as unused tokens.
    Raises: ExportError for an unsupported tokenizer, or one with more tokens than the embedding has rows.
    """
    untyped: Any = tokenizer
    if len(untyped) > rows:
        raise ExportError(f"the tokenizer has {len(untyped)} tokens, but the model's embedding only {rows} rows")
    state = json.loads(untyped.backend_tokenizer.to_str())
    texts, types = _tokens(untyped, rows)
    if pre := _byte_level(state):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([f"{first} {second}" for first, second in _merges(state)])
    elif _sentencepiece(state):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(False)
        scores = _scores(state)
        writer.add_token_scores([scores.get(text, UNMERGED) for text in texts])
        added = (TokenType.USER_DEFINED, TokenType.CONTROL)  # matched before spaces are replaced
        texts = [text.replace(SPACE, " ") if kind in added else text for text, kind in zip(texts, types, strict=True)]
    else:
        raise ExportError(
            f"{type(tokenizer).__name__} cannot be written as GGUF; supported are byte-level BPE (GPT-2, SmolLM) and "
            "SentencePiece BPE with byte fallback (Gemma)"
        )
    writer.add_token_list(texts)
    writer.add_token_types(types)
    _write_special_tokens(writer, untyped)


def _tokens(tokenizer: Any, rows: int) -> tuple[list[str], list[TokenType]]:
    """Text and type of each embedding row."""
    texts, types = [f"[PAD{row}]" for row in range(rows)], [TokenType.UNUSED] * rows
    for text, row in tokenizer.get_vocab().items():
        texts[row], types[row] = text, TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL
    for row, token in tokenizer.added_tokens_decoder.items():
        if token.lstrip or token.rstrip or token.single_word:
            raise ExportError(f"token {token.content!r} strips the spaces around it, which GGUF cannot express")
        types[row] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    return texts, types


def _byte_level(state: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE, or None if the tokenizer is another kind."""
    steps = state["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    spaced = any(step.get("add_prefix_space") or step.get("individual_digits") is False for step in steps)
    plain = state["model"]["type"] == "BPE" and state["normalizer"] is None and not spaced
    return BYTE_LEVEL.get(" ".join(step.get("type", "") for step in steps)) if plain else None


def _sentencepiece(state: Mapping[str, Any]) -> bool:
    """Whether this is a BPE with byte fallback whose only normalization is SentencePiece's space."""
    model, normalizer = state["model"], state["normalizer"] or {}
    replaced = (normalizer.get("pattern"), normalizer.get("content")) == ({"String": " "}, SPACE)
    return bool(model["type"] == "BPE" and model["byte_fallback"] and replaced)


def _merges(state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in state["model"]["merges"]:  # "a b" in older files
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        yield first, second


def _scores(state: Mapping[str, Any]) -> dict[str, float]:
    """Token → minus the rank of the first merge that makes it."""
    scores: dict[str, float] = {}
    for rank, (first, second) in enumerate(_merges(state)):
        scores.setdefault(first + second, -float(rank))
    return scores


def _write_special_tokens(writer: GGUFWriter, tokenizer: Any) -> None:
    add = {
        "bos_token_id": writer.add_bos_token_id,
        "eos_token_id": writer.add_eos_token_id,
        "unk_token_id": writer.add_unk_token_id,
        "pad_token_id": writer.add_pad_token_id,
    }
    for key, write in add.items():
        if (token := getattr(tokenizer, key)) is not None:
            write(token)
    bos = tokenizer.bos_token_id
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
        if (end := end_of_turn(tokenizer)) != tokenizer.eos_token_id:
            writer.add_eot_token_id(end)
        if tokenizer.eos_token_id is None:
            writer.add_eos_token_id(end)  # llama.cpp would take token 11 for it
    # Where there is a template, begin-of-text is the template's to write, in a GGUF as in training.
    writer.add_add_bos_token(not tokenizer.chat_template and bos is not None and tokenizer("a")["input_ids"][:1] == [bos])
    writer.add_add_eos_token(False)
