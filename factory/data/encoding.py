"""Files as text: gzipped or not, in UTF-8, with a byte order mark, or in an encoding that is guessed."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import charset_normalizer

BLOCK = 1 << 20  # bytes that are read at once
MAX_UNPACKED = 1 << 32  # bytes of a file, also when unpacked: a gzipped one may grow a thousandfold
MAX_LINES = 100_000_000
MAX_RECORD = 1 << 26  # characters of a line, of a JSON record and of a CSV cell: an open quote does not fill the memory
ENCODINGS = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "shift_jis", "gb18030", "big5", "euc_kr"]  # besides Unicode
WESTERN = "cp1252"  # and what it looks like where the text is in an encoding with other letters in the same places:
CENTRAL = re.compile(r"[¹³º¾][^\W\d]")  # the Polish, Romanian and Slovak letters of cp1250
HUNGARIAN, TURKISH = frozenset("áéíóöõúüûä"), frozenset("çðýöþüâîû")
CONTROL = bytes(set(range(0x20)) - set(b"\t\n\r"))  # which make a text look like none
BYTE_ORDER_MARKS = {  # UTF-32's first: UTF-16's begins the same
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_bytes(path: Path) -> BinaryIO:
    """``with open_bytes(path) as file:`` unpacked where the name ends in .gz."""
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def open_text(path: Path, encoding: str) -> TextIO:
    """``with open_text(path, encoding_of(path)) as file:`` with its own line ends, which CSV may have inside a cell."""
    return io.TextIOWrapper(open_bytes(path), encoding, newline="")


def lines_of(file: TextIO) -> Iterator[str]:
    """``for line in lines_of(file):`` each with its end. Raises: ValueError for one of more than ``MAX_RECORD`` characters."""
    for number, line in enumerate(iter(partial(file.readline, MAX_RECORD + 1), ""), start=1):
        if len(line) > MAX_RECORD:
            raise ValueError(f"line {number} has more than {MAX_RECORD:,} characters")
        yield line


def encoding_of(path: Path) -> str:
    """``encoding_of(path)`` → "utf-8": by its byte order mark, else UTF-8 where that fits, else guessed.

    Raises: ValueError with the first wrong line where most lines outside ASCII are UTF-8, and so some are damaged; for a file
        of more than ``MAX_UNPACKED`` bytes or ``MAX_LINES`` lines.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    good = line = 0
    bad: list[int] = []  # lines
    sample = b""
    with open_bytes(path) as file:
        start = file.read(BLOCK)
        file.seek(0)
        if encoding := _unicode_of(start):
            for _ in _pieces(file):
                pass
            return encoding
        for piece in _pieces(file):
            try:
                good += not decoder.decode(piece, final=not piece).isascii()
            except UnicodeDecodeError:
                decoder.reset()
                bad.append(line + 1)
                sample += piece if len(sample) < BLOCK else b""
            line += piece.count(b"\n")
    if good > len(bad) > 0:
        raise ValueError(f"line {bad[0]} is not UTF-8, as {good} others are; mend it, or save the file as UTF-8")
    if not bad:
        return "utf-8"
    sample = sample.translate(None, CONTROL)
    found = charset_normalizer.from_bytes(sample, cp_isolation=ENCODINGS)
    guess, matches = found.best(), {name for one in found for name in one.could_be_from_charset}
    if guess is None:
        raise ValueError(f"line {bad[0]} is not UTF-8; save the file as UTF-8")
    return western(sample.decode(WESTERN)) if WESTERN in {guess.encoding, *matches} else guess.encoding


def _unicode_of(start: bytes) -> str | None:
    """By its byte order mark; UTF-16 without one has zeros in every other byte of what is mostly ASCII."""
    marked = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    zeros = {"utf-16-le": start[1::2].count(0), "utf-16-be": start[::2].count(0)}
    likely = max(zeros, key=lambda name: zeros[name])
    return marked or (likely if zeros[likely] > len(start) // 4 and zeros[likely] > 2 * sum(zeros.values()) // 3 else None)


def western(text: str) -> str:
    """``western("pøíliš") == "cp1250"``: the encoding of what was read as cp1252, in which much of cp1250 passes for letters.

    It is cp1252 unless letters of Central Europe or of Turkish show through.
    """
    letters = {letter for letter in text.lower() if letter.isalpha() and not letter.isascii()} - set("ªº")
    if letters & set("šž") or CENTRAL.search(text) or (letters & set("õû") and letters <= HUNGARIAN):
        return "cp1250"
    return "cp1254" if letters & set("ðþý") and letters <= TURKISH else WESTERN


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of whole lines where they are ASCII, otherwise single lines; at last b""."""
    size = lines = 0
    while block := file.read(BLOCK // 4) + file.readline(BLOCK // 4):
        size, lines = size + len(block), lines + block.count(b"\n")
        if size > MAX_UNPACKED or lines > MAX_LINES:
            raise ValueError(f"it has more than {MAX_LINES:,} lines or {MAX_UNPACKED:,} bytes, unpacked; split it")
        yield from [block] if block.isascii() else io.BytesIO(block)
    yield b""


def describe_encoding(encoding: str) -> str:
    """``describe_encoding("cp1252") == ", cp1252"``; nothing for UTF-8, which is expected."""
    return "" if encoding in ("utf-8", "utf-8-sig") else f", {encoding}"
