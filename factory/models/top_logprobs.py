"""What an API says of the likeliest tokens at each place of its answer (``top_logprobs``), as targets of a student.

said = read_top_logprobs(choice["logprobs"]["content"], "Gout is ...")
row["top_logprobs"] = said.pack()
ids, log_probs = named_targets(TokenBytes.of(tokenizer), completion, row["top_logprobs"], top_k=20)

Tokens come as text. They are placed by the bytes before them, so that a text which the student's tokenizer cuts otherwise
takes what was said where both cut, and itself elsewhere.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from factory.errors import ModelResolutionError
from factory.models.chat import end_of_turn
from factory.models.tokenize import REPLACEMENT, SPACE

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

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
        """Raises: ModelResolutionError for a tokenizer of another kind than byte-level or SentencePiece."""
        texts = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        added = tokenizer.added_tokens_decoder
        unicode_of = {char: byte for byte, char in bytes_to_unicode().items()}
        byte_level = _is_byte_level(tokenizer)

        def spelt(token: int, text: str) -> bytes:
            if token in added:
                return added[token].content.encode()
            if byte_level:
                return bytes(unicode_of[char] for char in text)
            if len(text) == 6 and text.startswith("<0x"):
                return bytes([int(text[3:5], 16)])
            return text.replace(SPACE, " ").encode()

        bytes_of = [spelt(token, text) for token, text in enumerate(texts)]
        end, ids = end_of_turn(tokenizer), dict[bytes, int]()
        for token in sorted(range(len(bytes_of)), key=lambda token: token in added):  # of two that write the same, text's own
            ids.setdefault(bytes_of[token], token)
        return cls(bytes_of, {**ids, b"": end}, end)


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
    ends = bool(completion) and completion[-1] == tokens.end
    text = b"".join(spelt[:-1] if ends else spelt)
    at = said.size - len(text)  # -1 where a SentencePiece tokenizer wrote a space before the text
    places = said.places if at == 0 or (at == -1 and text.startswith(b" ")) else {}
    ids = np.empty((len(completion), top_k), np.int64)
    log_probs = np.empty((len(completion), top_k + 1), np.float32)
    for row, (token, spelling) in enumerate(zip(completion, spelt, strict=True)):
        mass: dict[int, float] = {}
        for name, value in places.get(max(0, at), ()):
            if (known := tokens.ids.get(name)) is not None:
                mass[known] = mass.get(known, 0.0) + math.exp(value)
        ids[row], log_probs[row] = _row(mass or {token: 1.0}, top_k, len(tokens.bytes_of))
        at += len(spelling)
    return ids, log_probs


def _row(mass: Mapping[int, float], top_k: int, vocabulary: int) -> tuple[list[int], list[float]]:
    """The k likeliest, and all others together; where fewer were named, tokens that are hardly ever said fill it up."""
    chosen = sorted(mass, key=mass.__getitem__, reverse=True)[:top_k]
    known = [mass[token] for token in chosen]
    others = (token for token in range(vocabulary - 1, -1, -1) if token not in mass)
    filled = [*chosen, *(next(others) for _ in range(top_k - len(chosen)))]
    values = [*known, *[0.0] * (top_k - len(chosen)), max(0.0, 1.0 - sum(known))]
    return filled, [max(MIN_LOG_PROB, math.log(value)) if value > 0 else MIN_LOG_PROB for value in values]
