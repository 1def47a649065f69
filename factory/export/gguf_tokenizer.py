"""Writes a transformers tokenizer into a GGUF file, so that llama.cpp produces the same token ids.

Two kinds are supported. Byte-level BPE (GPT-2, Llama 3, Qwen, ...) is written as tokens and merges; llama.cpp knows ways to
split a text by name, and a tokenizer's is found by what it does. SentencePiece BPE with byte fallback (Gemma, Llama 2, Phi-3)
has scores instead of merges in GGUF: llama.cpp merges the pair whose token has the highest score, so a token's score is minus
the rank of the first merge that makes it. In both, the text of a special token is parsed as that token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from factory.errors import ExportError
from factory.models.chat import end_of_turn
from factory.models.tokenize import BYTE, SPACE

GPT2, DIGITS, BYTES = "ByteLevel", "Digits", "bytes"  # steps of pre-tokenizers, beside patterns that they split by
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}]*|{_END}"
QWEN2 = rf"{_WORDS}|\p{{N}}|{_SYMBOLS}]*|{_END}"
TEKKEN = rf"{'|'.join(_CASED)}|\p{{N}}|{_SYMBOLS}/]*|{_END}"
# Steps, and whether a word that is a token is taken without merging → llama.cpp's name for it.
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
    ((LLAMA3, BYTES), True): "llama-bpe",
    ((LLAMA3, BYTES), False): "dbrx",
    ((QWEN2, BYTES), False): "qwen2",
    ((TEKKEN, BYTES), True): "tekken",
}
KINDS = (
    "byte-level BPE that splits text as GPT-2, SmolLM, Llama 3, OLMo 2, Qwen or Mistral Nemo do, and SentencePiece BPE with "
    "byte fallback (Gemma, Llama 2, Phi-3)"
)
NOT_STRIPPED = {"<unk>", "<s>", "<|endoftext|>"}  # of Phi-3's added tokens, as llama.cpp knows them: they leave spaces
# Texts that llama.cpp takes for control tokens, whatever their type. Of byte-level BPE the vocabulary may have them as words.
CONTROL_WORDS = {"</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[", "<turn|>", "<PRE>", "<SUF>", "<MID>", "<PAD>"}
UNMERGED = -1e9  # score of tokens that no merge makes: characters, bytes, special tokens


def write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """``write_tokenizer(writer, tokenizer, rows)``: tokens, merges or scores, special tokens and chat template.

    rows: of the model's embedding; rows without a token are written as unused tokens.
    Raises: ExportError as ``check_tokenizer`` does, and for more tokens than the embedding has rows.
    """
    untyped: Any = tokenizer
    if len(untyped) > rows:
        raise ExportError(f"the tokenizer has {len(untyped)} tokens, but the model's embedding only {rows} rows")
    check_tokenizer(tokenizer)
    state = json.loads(untyped.backend_tokenizer.to_str())
    texts, types = _tokens(untyped, rows)
    if pre := _byte_level(state):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([f"{first} {second}" for first, second in _merges(state)])
        # No text has such a word: it is cut between letters and signs.
        words = {text for text, kind in zip(texts, types, strict=True) if kind == TokenType.NORMAL} & CONTROL_WORDS
        texts = [f"[{text}]" if text in words else text for text in texts]
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(bool(_space_prefix(state)))
        scores = _scores(state)
        writer.add_token_scores([scores.get(text, UNMERGED) for text in texts])
        added = (TokenType.USER_DEFINED, TokenType.CONTROL)  # matched before spaces are replaced
        texts = [text.replace(SPACE, " ") if kind in added else text for text, kind in zip(texts, types, strict=True)]
    writer.add_token_list(texts)
    writer.add_token_types(types)
    _write_special_tokens(writer, untyped)


def _tokens(tokenizer: Any, rows: int) -> tuple[list[str], list[TokenType]]:
    """Text and type of each embedding row."""
    texts, types = [f"[PAD{row}]" for row in range(rows)], [TokenType.UNUSED] * rows
    for text, row in tokenizer.get_vocab().items():
        texts[row], types[row] = text, TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL
    for row, token in tokenizer.added_tokens_decoder.items():
        types[row] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    return texts, types


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """``check_tokenizer(tokenizer)``. Raises: ExportError for one that llama.cpp has nothing like."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)  # none of a tokenizer written in Python
    state = json.loads(backend.to_str()) if backend is not None else {}
    if not state or (_byte_level(state) is None and _space_prefix(state) is None):
        raise ExportError(f"{type(tokenizer).__name__} cannot be written as GGUF; supported are {KINDS}")
    stripped = strips_as_phi3(tokenizer)
    for token in tokenizer.added_tokens_decoder.values():
        if not stripped and (token.lstrip or token.rstrip or token.single_word):
            raise ExportError(f"token {token.content!r} strips the spaces around it, which GGUF cannot express")


def strips_as_phi3(tokenizer: PreTrainedTokenizerBase) -> bool:
    """``strips_as_phi3(tokenizer)``: whether its added tokens take the spaces after them as Phi-3's do.

    GGUF has no field for it: llama.cpp does so where the model's name has "phi-3" in it.
    """
    added = list(tokenizer.added_tokens_decoder.values())
    after = {token.content for token in added if token.rstrip}
    others = any(token.lstrip or token.single_word for token in added)
    known = {"</s>", *NOT_STRIPPED} <= tokenizer.get_vocab().keys()  # else llama.cpp refuses the file
    return known and not others and after == {token.content for token in added} - NOT_STRIPPED


def differences(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """``differences(tokenizer)``: texts that llama.cpp is known to split otherwise, each in a few words; mostly none."""
    untyped: Any = tokenizer
    state = json.loads(untyped.backend_tokenizer.to_str())
    found = []
    if (state["normalizer"] or {}).get("type") == "NFC":
        found.append("text that is not in Unicode's form NFC (é as two characters): llama.cpp does not compose it")
    if _byte_level(state) == "tekken":
        found.append("words with capitals and letters outside ASCII, or with combining marks: llama.cpp tells case in ASCII")
    if _prepends(state) and any(SPACE in token.content for token in tokenizer.added_tokens_decoder.values()):
        found.append(f'the character "{SPACE}", which stands for a space')
    if strips_as_phi3(tokenizer):
        found.append("spaces outside ASCII (a no-break space) after a special token: llama.cpp does not strip them")
    if _prepends(state) == "first":
        found.append("text that does not begin with a special token: a chat does, a raw completion may not")
    return found


def _byte_level(state: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE, or None if the tokenizer is another kind."""
    steps = _steps(state)
    spaced = any(step.get("add_prefix_space") or step.get("individual_digits") is False for step in steps)
    changed = state["normalizer"] is not None and state["normalizer"]["type"] != "NFC"
    if state["model"]["type"] != "BPE" or changed or spaced:
        return None
    return PRE_TOKENIZERS.get((tuple(map(_step_name, steps)), bool(state["model"].get("ignore_merges"))))


def _steps(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    steps = state["pre_tokenizer"] or {}
    found: list[dict[str, Any]] = steps.get("pretokenizers", [steps])
    return found


def _step_name(step: Mapping[str, Any]) -> str:
    kind = str(step.get("type", ""))
    if kind == "ByteLevel" and not step.get("use_regex", True):
        return BYTES
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"].get("Regex", ""))
    return kind


def _space_prefix(state: Mapping[str, Any]) -> bool | None:
    """Whether a SentencePiece BPE with byte fallback puts a space before a text, or None if the tokenizer is another kind."""
    if state["model"]["type"] != "BPE" or not state["model"]["byte_fallback"]:
        return None
    return {"each": True, "first": False, "never": False}.get(_prepends(state) or "")


def _prepends(state: Mapping[str, Any]) -> str | None:
    """Where it puts a space before text: "each" between special tokens, "first" text alone, "never"; None: it does more."""
    normalizer, replaced = state["normalizer"], {"String": " "}
    parts = normalizer.get("normalizers", [normalizer]) if normalizer else []
    kinds = [(part["type"], part.get("prepend"), part.get("pattern"), part.get("content")) for part in parts]
    space = ("Replace", None, replaced, SPACE)
    steps = [step for step in _steps(state) if step]
    if kinds == [space] and all(step["type"] == "Split" for step in steps):
        return "never"
    if kinds == [("Prepend", SPACE, None, None), space] and not steps:
        return "each"
    if not kinds and [step["type"] for step in steps] == ["Metaspace"]:
        [step] = steps
        whole = step["replacement"] == SPACE and step.get("split") is False
        return step["prepend_scheme"] if whole and step["prepend_scheme"] in ("first", "never") else None
    return None


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
