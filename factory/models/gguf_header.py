"""The header of a GGUF file, read before anything is made of it: its counts are what memory is taken for. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from factory.bounded import Bounded, BoundedError, Limits
from factory.errors import ModelResolutionError

LIMITS = Limits(seconds=120, memory=4 << 30, output=1 << 20)
WIDTHS = ("embedding_length", "feed_forward_length", "attention.head_count", "attention.key_length", "context_length")
MAX_WIDTH = 1 << 24


def check_header(path: Path) -> str | None:
    """``check_header(Path("model.gguf"))`` → "smollm": the kind of its pre-tokenizer, if it says one.

    Raises: ModelResolutionError for a header that cannot be read in bounded time and memory, or whose model is larger than the
        weights in the file.
    """
    try:
        [header] = _reader().ask(path)
    except BoundedError as error:
        raise ModelResolutionError(f"{path.name} cannot be converted: {error}") from None
    if wrong := header["wrong"]:
        raise ModelResolutionError(f"{path.name} cannot be converted: its header says {wrong}, and the file has fewer weights")
    kind: str | None = header["pre_tokenizer"]
    return kind


@lru_cache(maxsize=1)
def _reader() -> Bounded:
    return Bounded(read_header, LIMITS)


def read_header(path: Path) -> Iterator[dict[str, Any]]:
    """``[header] = read_header(path)``: what ``check_header``'s process does."""
    reader = GGUFReader(path)
    largest = {"block_count": len(reader.tensors)} | dict.fromkeys(WIDTHS, MAX_WIDTH)
    architecture = reader.fields["general.architecture"].contents()
    wrong = None
    for name, most in largest.items():
        field = reader.fields.get(f"{architecture}.{name}")
        value = field.contents() if field else 0
        if not all(isinstance(one, int) and one <= most for one in (value if isinstance(value, list) else [value])):
            wrong = f"{name} {value!r}"[:80]
    kind = reader.fields.get("tokenizer.ggml.pre")
    yield {"wrong": wrong, "pre_tokenizer": str(kind.contents())[:80] if kind else None}
