"""Damage to files: a flipped bit, a file cut off anywhere, an empty file."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import strategies as st


def flipped(content: bytes, offset: int, bit: int) -> bytes:
    """``flipped(b"ab", 1, 0)`` → ``b"ac"``."""
    return content[:offset] + bytes([content[offset] ^ (1 << bit)]) + content[offset + 1 :]


def damages(content: bytes) -> st.SearchStrategy[bytes]:
    """``data.draw(damages(path.read_bytes()))``: never the content itself; an empty file gets a byte."""
    if not content:
        return st.just(b"\0")
    flips = st.builds(flipped, st.just(content), st.integers(0, len(content) - 1), st.integers(0, 7))
    return flips | st.integers(0, len(content) - 1).map(lambda length: content[:length])


def damage(path: Path, rng: random.Random) -> str:
    """``damage(weights, random.Random(0))``: one of the three, and which; the file's times and mode stay as they are."""
    content, state = path.read_bytes(), path.stat()
    kind = rng.choice(["flipped", "cut off", "emptied"]) if content else "grown"
    if kind == "flipped":
        changed = flipped(content, rng.randrange(len(content)), rng.randrange(8))
    else:
        changed = {"cut off": content[: rng.randrange(len(content) or 1)], "emptied": b"", "grown": b"\0"}[kind]
    path.chmod(0o644)
    path.write_bytes(changed)
    path.chmod(state.st_mode)
    set_times(path, state.st_mtime_ns)
    return kind


def set_times(path: Path, nanoseconds: int) -> None:
    """As a copy that keeps times, or a disk that loses a bit, leaves them."""
    import os

    os.utime(path, ns=(nanoseconds, nanoseconds))
