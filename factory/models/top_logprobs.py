"""What an API says of the likeliest tokens at each place of its answer (``top_logprobs``), as targets of a student.

said = read_top_logprobs(choice["logprobs"]["content"], "Gout is ...")
row["top_logprobs"] = said.pack()
ids, log_probs = named_targets(TokenBytes.of(tokenizer), completion, row["top_logprobs"], top_k=20)

Tokens come as text and are placed by the bytes before them, so that teacher and student may cut a text otherwise: with other
tokenizers, or since the student's has one way for each text. A token of the teacher's that the student does not have counts
as the first one of its text; one of the student's that is several of the teacher's is as likely as all of these, one after the
other (the chain rule, as in TRL's GOLD trainer); and within a token of the teacher's, those that began otherwise are out.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from factory.errors import ModelResolutionError
from factory.models.chat import end_of_turn, stop_tokens
from factory.models.tokenize import BYTE, REPLACEMENT, SPACE

MAX_TOP_LOGPROBS = 20  # tokens at a place: what OpenAI's API gives at most
MIN_LOG_PROB = -80.0  # nats, of a token that is not possible
ROUNDING = 1.01  # of a sum of probabilities
LEFT_OUT = 3  # bytes: some servers leave out the tokens that are parts of a character
COVERED = 0.5  # of a text that log-probabilities are of: those of another text end soon
Named = tuple[tuple[bytes, float], ...]  # tokens, each with its log-probability in nats


@dataclass(frozen=True)
class TopLogprobs:
    """The likeliest tokens at places of a text: by the bytes before them. The place after its last byte is its end."""

    size: int  # bytes of the text
    places: Mapping[int, Named]

    def pack(self) -> str:
        """``said.pack()``: as text of a row, some 100 bytes a place."""
        places = [
            [at, [[token.decode("latin-1"), round(value, 4)] for token, value in named]] for at, named in self.places.items()
        ]
        return base64.b85encode(zlib.compress(json.dumps([self.size, places]).encode())).decode()

    @classmethod
    def unpack(cls, packed: str) -> TopLogprobs:
        """``TopLogprobs.unpack(row["top_logprobs"])``: as it was packed; nothing was said of a row without it."""
        if not packed:
            return cls(0, {})
        size, places = json.loads(zlib.decompress(base64.b85decode(packed)))
        return cls(size, {at: tuple((token.encode("latin-1"), value) for token, value in named) for at, named in places})


def read_top_logprobs(content: Any, text: str) -> TopLogprobs:
    """``read_top_logprobs(choice["logprobs"]["content"], text)``: of an answer, which is without space around it.

    Raises: ValueError, whose message goes on from "the teacher": it says none, no probabilities, or those of another text.
    """
    data = text.encode()
    if not data:
        return TopLogprobs(0, {})
    if not isinstance(content, list) or not content:
        raise ValueError("gave no top_logprobs; where it never does, leave teacher.tokenizer out")
    try:
        said = [(_bytes(one), tuple((_bytes(other), _nats(other)) for other in one["top_logprobs"])) for one in content]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError("gave top_logprobs in another format than OpenAI's") from None
    if any(sum(math.exp(value) for _, value in named) > ROUNDING for _, named in said):
        raise ValueError("gave top_logprobs that sum to more than one")
    places, end = _placed(said, data)
    if end < COVERED * len(data) and REPLACEMENT not in text:
        raise ValueError("gave top_logprobs of another text")
    return TopLogprobs(len(data), {at: named for at, named in places.items() if named})


def _placed(said: Sequence[tuple[bytes, Named]], data: bytes) -> tuple[dict[int, Named], int]:
    """What was said by the bytes of the text before it, and where the tokens stop being the text's."""
    places: dict[int, Named] = {}
    at = 0
    for token, named in said:
        written = token if at else token.lstrip()  # space before the text is no part of it
        found = data.find(written, at, at + LEFT_OUT + len(written))
        if found < 0 or at == len(data):
            if data[at:] == written[: len(data) - at]:  # its end, or a token of which only the beginning is in the text
                places[at] = named
                at = len(data)
            break
        places.setdefault(found, named)  # the first of all is what was likely first, whatever space it begins with
        at = found + len(written)
    return places, at


def _bytes(one: Mapping[str, Any]) -> bytes:
    """``bytes`` where it is given: a token may be a part of a character, which has no text."""
    return bytes(one["bytes"]) if one.get("bytes") is not None else str.encode(one["token"])


def _nats(one: Mapping[str, Any]) -> float:
    value = one["logprob"]
    if type(value) not in (int, float) or math.isnan(value):
        raise TypeError(value)
    return float(min(0.0, max(MIN_LOG_PROB, value)))


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """``TokenBytes.of(tokenizer).ids[b" the"]``: tokens by the bytes that they write."""

    bytes_of: Sequence[bytes]  # by id
    ids: Mapping[bytes, int]
    end: int  # of a turn; some servers show it as no text
    controls: Mapping[bytes, int | None]  # the teacher's own: what ends its answers ends the student's, others mean nothing

    def find(self, name: bytes) -> int | None:
        """``tokens.find(b" photosynthesis")``: that token, else the longest that it begins with: the first one of its text."""
        if name in self.ids:
            return self.ids[name]
        if name in self.controls:
            return self.controls[name]
        return next((self.ids[name[:size]] for size in range(len(name) - 1, 0, -1) if name[:size] in self.ids), None)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase | None = None) -> TokenBytes:
        """``TokenBytes.of(base_tokenizer, api_tokenizer)``: of a student, whose ``teacher`` may have other tokens.

        Raises: ModelResolutionError for a tokenizer of another kind than byte-level or SentencePiece.
        """
        texts = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        added = tokenizer.added_tokens_decoder
        unicode_of = {char: byte for byte, char in bytes_to_unicode().items()}
        byte_level = _is_byte_level(tokenizer)

        def is_byte(token: int) -> bool:
            return not byte_level and BYTE.fullmatch(texts[token]) is not None

        def spelt(token: int) -> bytes:
            if token in added:
                return added[token].content.encode()
            if byte_level:
                return bytes(unicode_of[char] for char in texts[token])
            return bytes.fromhex(texts[token][3:5]) if is_byte(token) else texts[token].replace(SPACE, " ").encode()

        bytes_of = [spelt(token) for token in range(len(texts))]
        end, ids = end_of_turn(tokenizer), dict[bytes, int]()
        for token in sorted(range(len(texts)), key=lambda token: (token in added, is_byte(token))):
            ids.setdefault(bytes_of[token], token)  # of several that write the same, the one that text is cut into
        return cls(bytes_of, {**ids, b"": end}, end, _controls(teacher, end) if teacher is not None else {})


def _controls(teacher: PreTrainedTokenizerBase, end: int) -> dict[bytes, int | None]:
    """The student's tokens for the teacher's control tokens."""
    stops = stop_tokens(teacher) if teacher.chat_template else [teacher.eos_token_id]
    added = teacher.added_tokens_decoder
    return {added[one].content.encode(): end if one in stops else None for one in added if added[one].special or one in stops}


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelResolutionError("teacher.tokenizer needs a tokenizer that the tokenizers library reads (tokenizer.json)")
    return "ByteLevel" in json.dumps(json.loads(backend.to_str())["decoder"])


def named_targets(tokens: TokenBytes, completion: Sequence[int], packed: str, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """``ids, log_probs = named_targets(tokens, completion, row["top_logprobs"], 20)``: (n, k) and (n, k + 1).

    What the API did not name is one bucket, the last column: nothing is renormalised. Where nothing was said, as of the end of
    a turn that an API does not show, or of a text that it did not write, all mass is on the completion's own token.
    """
    said = TopLogprobs.unpack(packed)
    spelt = [tokens.bytes_of[token] for token in completion]
    if completion and completion[-1] == tokens.end:
        spelt[-1] = b""
    text = b"".join(spelt)
    spaced = len(text) == said.size + 1 and text.startswith(b" ")  # as some SentencePiece tokenizers do
    if spaced:
        text, spelt[0] = text[1:], spelt[0][1:]
    answer = _Answer(text, said.places if len(text) == said.size else {})
    ids = np.empty((len(completion), top_k), np.int64)
    log_probs = np.empty((len(completion), top_k + 1), np.float32)
    at = 0
    for row, (token, spelling) in enumerate(zip(completion, spelt, strict=True)):
        mass: dict[int, float] = {}
        for name, share in answer.continued(at, spelling) if spelling or token == tokens.end else ():
            written = b" " + name if spaced and row == 0 and not name.startswith(b" ") else name
            known = token if name == spelling else tokens.find(written)
            if known is not None and share > 0:
                mass[known] = mass.get(known, 0.0) + share
        ids[row], log_probs[row] = _row(mass or {token: 1.0}, top_k, len(tokens.bytes_of))
        at += len(spelling)
    return ids, log_probs


@dataclass(frozen=True)
class _Answer:
    """A text, and what its teacher said at the places where its own tokens begin."""

    text: bytes
    places: Mapping[int, Named]

    @cached_property
    def order(self) -> list[int]:
        return sorted(self.places)

    def continued(self, at: int, spelling: bytes) -> Iterator[tuple[bytes, float]]:
        """What may come at a place, with its probability; ``spelling`` is the student's token that came.

        Within a token of the teacher's: given what of it is written. Where the student's token goes on after it, the teacher
        must have gone on so, too.
        """
        place = bisect_right(self.order, at) - 1
        if place < 0:
            return
        begun, ends = self.text[self.order[place] : at], self._end(place)
        named = [(name, math.exp(value)) for name, value in self.places[self.order[place]] if name.startswith(begun)]
        if begun:  # mass that ends before this place does not come here
            named = [(name[len(begun) :], share) for name, share in named if len(name) > len(begun)]
            total = sum(share for _, share in named)
            named = [(name, share / total) for name, share in named]
        for name, share in named:
            if name == self.text[at:ends] and len(name) < len(spelling):
                yield spelling, share * self._written(place + 1, at + len(spelling))
            else:
                yield name, share

    def _end(self, place: int) -> int:
        """Where the teacher's token that begins there ends."""
        return self.order[place + 1] if place + 1 < len(self.order) else len(self.text)

    def _written(self, place: int, end: int) -> float:
        """How likely the teacher's own tokens from there on are, up to ``end``; 0 where it did not name one."""
        share = 1.0
        while place < len(self.order) and self.order[place] < end:
            start = self.order[place]
            share *= math.exp(dict(self.places[start]).get(self.text[start : self._end(place)], -math.inf))
            place += 1
        return share


def _row(mass: Mapping[int, float], top_k: int, vocabulary: int) -> tuple[list[int], list[float]]:
    """The k likeliest, and all others together; where fewer were named, tokens that are hardly ever said fill it up."""
    chosen = sorted(mass, key=mass.__getitem__, reverse=True)[:top_k]
    known = [mass[token] for token in chosen]
    others = (token for token in range(vocabulary - 1, -1, -1) if token not in mass)
    filled = [*chosen, *(next(others) for _ in range(top_k - len(chosen)))]
    values = [*known, *[0.0] * (top_k - len(chosen)), max(0.0, 1.0 - sum(known))]
    return filled, [max(MIN_LOG_PROB, math.log(value)) if value > 0 else MIN_LOG_PROB for value in values]
