"""Trimming a vocabulary without losing any text: which tokens to keep, and the resulting tokenizer and embeddings.

    kept = kept_tokens(tokenizer, texts, size=17_000)
    trimmed = trim_tokenizer(tokenizer, kept)  # new id of kept[i] is i
    trim_embeddings(model, kept)

    missing = missing_tokens(tokenizer, kept, count_tokens(tokenizer, new_texts), room=1_700)
    grown = trim_tokenizer(tokenizer, [*kept, *missing])  # every old token keeps its id

Two things hold for every text, in both kinds of BPE:

- it comes back from ``decode(encode(text))`` as the original tokenizer gives it back, because the 256 byte tokens stay:
  the byte alphabet of a byte-level BPE (GPT-2, SmolLM2), ``<0x00>`` to ``<0xFF>`` of a SentencePiece BPE with byte
  fallback (Gemma);
- if all of its original tokens are kept, it is cut exactly as before.

The second needs the kept set to be closed. Byte-level: a token has one merge, so both parts of every kept token's merge
are kept, recursively. SentencePiece: the merges come from scores and one token has many, of which a text takes one, so
every token is kept that the original merge process passes through on a kept token's own characters, these characters
included. (A token in a longer text got there by just these steps: no merge crossed its borders, and inside them the
process sees the same pairs in the same order.) Where a token has one merge, the second rule gives what the first gives,
so the code has the second alone. The merges that remain are those whose parts and result are kept, in their old order.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from factory.errors import ModelResolutionError, TrainingError
from factory.models.chat import render_as_is

# Added tokens without a meaning yet (Gemma 3 has 6,242); kept only if a text contains them.
PLACEHOLDER = re.compile(r"<\|?(unused|reserved|extra_id)\w*?\d+\|?>|\[unused\d+\]")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def kept_tokens(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], size: int) -> list[int]:
    """``kept_tokens(tokenizer, texts, 17_000)``: sorted old ids, closed under merges, at most ``size``.

    Always kept: special and added tokens (placeholders such as ``<unused7>`` aside), byte tokens, and what the chat
    template writes. Then the texts' tokens, most frequent first, each with what its merges pass through; then the
    tokenizer's most general merges (lowest rank; those in the texts' letters first), until there is no room.
    Raises: TrainingError if the tokenizer is not a BPE over bytes, or ``size`` is too small for what is always kept.
    """
    bpe = _read_bpe(tokenizer)
    kept: set[int] = set()
    for token in _always_kept(tokenizer, bpe):
        kept |= bpe.closure(token)
    if len(kept) > size:
        raise TrainingError(
            f"a vocabulary of {size} cannot hold the {len(kept)} special, byte and chat template tokens "
            f"of {type(tokenizer).__name__}; use at least {len(kept)}"
        )
    by_frequency = _by_frequency(count_tokens(tokenizer, texts))
    # Among the general merges, first those in letters that the texts use: most of a multilingual vocabulary is not.
    letters = {letter for token in by_frequency for letter in bpe.names[token]}
    by_generality = [bpe.ids[first + second] for first, second in bpe.ranks]  # a dict: in the order of ranks
    by_generality.sort(key=lambda token: not letters.issuperset(bpe.names[token]))
    return sorted(_filled(bpe, kept, chain(by_frequency, by_generality), size))


def missing_tokens(
    tokenizer: PreTrainedTokenizerFast, kept: Sequence[int], counts: Mapping[int, int], room: int
) -> tuple[int, ...]:
    """``missing_tokens(tokenizer, kept, count_tokens(tokenizer, texts), 3_600)``: old ids that texts use and ``kept`` lacks.

    Most frequent first, each with what its merges pass through, at most ``room`` of them: ``[*kept, *missing]`` is closed
    where ``kept`` is.
    """
    return tuple(_filled(_read_bpe(tokenizer), kept, _by_frequency(counts), len(kept) + room)[len(kept) :])


def trim_tokenizer(tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """``trim_tokenizer(tokenizer, kept)``: the same tokenizer with these tokens only; new id of ``kept[i]`` is ``i``.

    Chat template, special and added tokens, pre-tokenizer and decoder stay; ids in the post-processor follow.
    Raises: TrainingError if ``kept`` lacks a token that the tokenizer names (bos, eos, unk ...).
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    new_ids = {old: new for new, old in enumerate(kept)}
    names = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    lost = [token for token in _named_tokens(tokenizer) if tokenizer.convert_tokens_to_ids(token) not in new_ids]
    if lost or len(new_ids) != len(kept) or not new_ids.keys() <= names.keys():
        raise TrainingError(f"kept tokens must be distinct, known and hold all special tokens; missing: {lost}")
    model = state["model"]
    # Added tokens too: from the model's vocabulary they take their ids.
    model["vocab"] = {names[old]: new for old, new in new_ids.items()}
    model["merges"] = [
        [first, second]
        for first, second in _merges(model)
        if first in model["vocab"] and second in model["vocab"] and first + second in model["vocab"]
    ]
    state["added_tokens"] = [{**token, "id": new_ids[token["id"]]} for token in state["added_tokens"] if token["id"] in new_ids]
    state["post_processor"] = _with_new_ids(state["post_processor"], new_ids)
    backend = Tokenizer.from_str(json.dumps(state))

    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    named = {key: value for key in NAMED if (value := getattr(tokenizer, key)) is not None}
    extra = [token for token in _named_tokens(tokenizer) if token not in named.values()]
    backed_by: Any = PreTrainedTokenizerFast  # its constructor has no types
    trimmed: PreTrainedTokenizerFast = backed_by(
        tokenizer_object=backend,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        model_input_names=tokenizer.model_input_names,
        extra_special_tokens=[added.get(token, token) for token in extra],
        **{key: added.get(token, token) for key, token in named.items()},
    )
    return trimmed


def trim_embeddings(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """``trim_embeddings(model, kept)``: in place, row ``i`` of embedding and head is the old row ``kept[i]``.

    The dtype and a tie between embedding and head stay; vocabulary size and token ids in ``config`` and
    ``generation_config`` follow (an id whose token is gone becomes None).
    Raises: TrainingError if ``kept`` names a row that the model does not have.
    """
    untyped: Any = model
    embedding = untyped.get_input_embeddings()  # weight: (V, D)
    head = untyped.get_output_embeddings()  # weight: (V, D), or None
    rows = embedding.weight.shape[0]
    if not kept or not 0 <= min(kept) <= max(kept) < rows:
        raise TrainingError(f"kept tokens go up to {max(kept, default=None)}, the model's embedding has {rows} rows")
    index = torch.tensor(list(kept), device=embedding.weight.device)
    tied = head is not None and head.weight is embedding.weight
    embedding.weight = _rows(embedding.weight, index)
    embedding.num_embeddings = len(kept)
    new_ids = {old: new for new, old in enumerate(kept)}
    embedding.padding_idx = new_ids.get(embedding.padding_idx)
    if head is not None:
        head.weight = embedding.weight if tied else _rows(head.weight, index)
        head.out_features = len(kept)
        if getattr(head, "bias", None) is not None:
            head.bias = _rows(head.bias, index)
    for part in (untyped, untyped.base_model):
        if hasattr(part, "vocab_size"):
            part.vocab_size = len(kept)
        if hasattr(part, "padding_idx"):
            part.padding_idx = new_ids.get(part.padding_idx)
    configs = {id(c): c for c in (model.config, model.config.get_text_config(), model.generation_config)}
    for config in configs.values():  # the text's config is often the same object: renumber it once
        if config is not None:
            _renumber(config, new_ids)


def trim_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """``trim_padding(model, tokenizer)``: in place, embedding and head lose the rows beyond the tokenizer's tokens.

    Models pad them: Qwen3 has 151,936 rows for 151,669 tokens, and Qwen2.5's sizes differ among themselves. No text reaches
    such a row, but a softmax, a top-k or an argmax would. Raises: ModelResolutionError if a token has no row.
    """
    untyped: Any = model
    tokens, rows = count_rows(tokenizer), int(untyped.get_input_embeddings().weight.shape[0])
    if tokens > rows:
        raise ModelResolutionError(
            f"{model.name_or_path} has {rows} embedding rows for {tokens} tokens; resize its embeddings, or remove the "
            "tokens that were added to its tokenizer"
        )
    if tokens < rows:
        trim_embeddings(model, range(tokens))


def count_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """``count_rows(tokenizer)``: the embedding rows that it needs; more than its tokens where ids are left out."""
    return 1 + max(tokenizer.get_vocab().values())


def vocabulary_growth(original: PreTrainedTokenizerFast, trimmed: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """``vocabulary_growth(original, trimmed, texts)``: 0.02 where the trimmed tokenizer needs 2 % more tokens."""
    known = list(texts)
    before, after = (count_tokens(one, known).total() for one in (original, trimmed))
    return after / before - 1 if before else 0.0


def count_tokens(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Counter[int]:
    """``count_tokens(tokenizer, texts).total()``: how often each token is used."""
    counts: Counter[int] = Counter()
    for batch in _batches(texts, 1000):
        for encoding in tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


# ---------------------------------------------------------------------------------------------------------- closure


@dataclass(frozen=True)
class _Bpe:
    """A BPE's vocabulary and merges; a merge's result is always the two parts put together."""

    ids: Mapping[str, int]
    names: Mapping[int, str]
    ranks: Mapping[tuple[str, str], int]  # in order of rank
    byte_level: bool

    def closure(self, token: int) -> set[int]:
        """The token and all that the merge process passes through on its characters; itself alone if it is not reached.

        Tokens that no merges reach: special ones, bytes, and whole words of a tokenizer that looks these up first.
        """
        name = self.names[token]
        symbols = [s for character in name for s in self._symbols(character)]
        passed = set(symbols)
        while len(symbols) > 1:
            found = [(self.ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in self.ranks]
            if not found:
                return {token}
            _, i = min(found)  # lowest rank first, leftmost of equals: as the tokenizers library does
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            passed.add(symbols[i])
        return {self.ids[symbol] for symbol in passed if symbol in self.ids} | {token}

    def _symbols(self, character: str) -> list[str]:
        if character in self.ids or self.byte_level:
            return [character]
        return [f"<0x{byte:02X}>" for byte in character.encode("utf-8", "surrogatepass")]


def _read_bpe(tokenizer: PreTrainedTokenizerFast) -> _Bpe:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    byte_level = any(part["type"] == "ByteLevel" for part in _parts(state["pre_tokenizer"], "pretokenizers"))
    if model["type"] != "BPE" or not (byte_level or model["byte_fallback"]):
        kind = model["type"] if model["type"] != "BPE" else "BPE without bytes"
        raise TrainingError(f"a {kind} vocabulary cannot be trimmed without loss; leave `vocabulary` out of this size")
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise TrainingError("a BPE with word affixes cannot be trimmed; leave `vocabulary` out of this size")
    ids = tokenizer.get_vocab()
    merges = [(first, second) for first, second in _merges(model) if first + second in model["vocab"]]
    return _Bpe(
        ids=ids,
        names={token_id: token for token, token_id in ids.items()},
        ranks={merge: rank for rank, merge in enumerate(merges)},
        byte_level=byte_level,
    )


def _always_kept(tokenizer: PreTrainedTokenizerFast, bpe: _Bpe) -> list[int]:
    added = tokenizer.added_tokens_decoder
    kept = {token_id for token_id, token in added.items() if not PLACEHOLDER.fullmatch(token.content)}
    kept |= {bpe.ids[token] for token in _named_tokens(tokenizer)}
    if bpe.byte_level:
        general = ByteLevel.alphabet()
    else:  # printable characters too: three byte tokens for a "▁" would be lossless, but long
        general = [f"<0x{byte:02X}>" for byte in range(256)] + [chr(code) for code in range(0x20, 0x7F)] + ["▁", "\n"]
    kept |= {bpe.ids[token] for token in general if token in bpe.ids}
    template = "".join(_rendered_template(tokenizer))
    kept |= set(tokenizer.backend_tokenizer.encode(template, add_special_tokens=False).ids)
    return sorted(kept)


def _rendered_template(tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """A conversation with empty turns, with and without a system turn (which some templates refuse)."""
    if not tokenizer.chat_template:
        return
    turns = [{"role": role, "content": ""} for role in ("system", "user", "assistant", "user")]
    for conversation in (turns[1:], turns):
        try:
            yield render_as_is(tokenizer, conversation, prompt=True)
        except ModelResolutionError:
            continue


# ---------------------------------------------------------------------------------------------------------- details


def _named_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """bos, eos, unk, pad ... and extra special tokens, without the placeholders among the extra ones."""
    named = [str(value) for key in NAMED if (value := getattr(tokenizer, key)) is not None]
    extra = [str(token) for token in tokenizer.extra_special_tokens if not PLACEHOLDER.fullmatch(str(token))]
    return list(dict.fromkeys(named + extra))


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in model["merges"]:  # "a b" in older files
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        yield first, second


def _parts(component: dict[str, Any] | None, key: str) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer's steps, also out of a Sequence."""
    if component is not None:
        yield component
        for part in component.get(key, []):
            yield from _parts(part, key)


def _with_new_ids(processor: Any, new_ids: Mapping[int, int]) -> Any:
    """A post-processor names tokens as ``"ids": [2]`` (templates) and ``["</s>", 2]`` (BERT's and RoBERTa's)."""
    if isinstance(processor, dict):
        return {
            key: [new_ids[i] for i in value] if key == "ids" else _with_new_ids(value, new_ids)
            for key, value in processor.items()
        }
    if isinstance(processor, list):
        if len(processor) == 2 and isinstance(processor[0], str) and isinstance(processor[1], int):
            return [processor[0], new_ids[processor[1]]]
        return [_with_new_ids(part, new_ids) for part in processor]
    return processor


def _rows(weight: torch.Tensor, index: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight.detach()[index].clone(), requires_grad=weight.requires_grad)


def _renumber(config: Any, new_ids: Mapping[int, int]) -> None:
    """``vocab_size`` and every ``*_token_id``: an int, or a list of them."""
    if hasattr(config, "vocab_size"):
        config.vocab_size = len(new_ids)
    for key, value in list(vars(config).items()):
        if key.endswith("_token_id") and isinstance(value, int):
            setattr(config, key, new_ids.get(value))
        elif key.endswith("_token_id") and isinstance(value, list):
            setattr(config, key, [new_ids[old] for old in value if old in new_ids])


def _by_frequency(counts: Mapping[int, int]) -> list[int]:
    return sorted(counts, key=lambda token: (-counts[token], token))


def _filled(bpe: _Bpe, kept: Iterable[int], wanted: Iterable[int], size: int) -> list[int]:
    """``kept``, then the wanted tokens in their order, each with its closure, as long as there is room."""
    chosen = dict.fromkeys(kept)  # a set that remembers its order
    for token in wanted:
        if len(chosen) >= size:
            break
        if token not in chosen:
            closure = bpe.closure(token) - chosen.keys()
            if len(chosen) + len(closure) <= size:
                chosen |= dict.fromkeys(sorted(closure))
    return list(chosen)


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch
