"""Readers of jsonl, csv and parquet files: rows as dictionaries, mistakes with their line.

for row in READERS[path.suffix](path): ...
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_jsonl(path: Path) -> Iterator[Row]:
    """``list(read_jsonl(path))``: one object per line; blank lines are skipped.

    Raises: ValueError with the number of a line that is not a JSON object.
    """
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not valid JSON ({error.msg} at column {error.colno})") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is a {type(row).__name__}, expected an object {{...}}")
            yield row


def read_csv(path: Path) -> Iterator[Row]:
    """``list(read_csv(path))``: rows by the names in the header.

    Raises: ValueError for a line with more fields than the header; csv.Error.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row:  # where DictReader puts surplus fields
                raise ValueError(f"line {reader.line_num} has more fields than the header")
            yield row


def read_parquet(path: Path) -> Iterator[Row]:
    """``list(read_parquet(path))``. Raises: ValueError (all of pyarrow's errors are)."""
    import pyarrow.parquet

    yield from pyarrow.parquet.read_table(path).to_pylist()


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


def beside(path: Path) -> str:
    """``beside(path)``: for the message about a missing path, what the nearest existing folder above it contains."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir())
    return f"in {folder}: {', '.join(names[:10]) or 'nothing'}{' ...' if len(names) > 10 else ''}"
