"""What is recorded about a version after it was published: overrides of its gates, blind reviews.

    <version>/records.jsonl   one JSON object per line: {"kind", "at", ...}

Lines are only appended, each with a checksum. A line counts once its newline is written; readers ignore what a crash left after the last one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from factory.cache import sync

RECORDS = "records.jsonl"
CHECKSUM = "sha256"  # of the rest of the line; lines of older releases have none


def new_record(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """``new_record("review", {"wins": 7})``: with its kind and the time. Raises: RegistryError for what JSON cannot hold."""
    from factory.registry.plain_json import plain_json

    own = {"kind": kind, "at": utc_now()}
    return {**own, **plain_json(content, kind), **own}  # first in the line, and not to be overwritten


def utc_now() -> str:
    """``utc_now()`` → "2026-11-25T00:53:09Z"."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_records(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """``records, problems = read_records(version.folder)``: every record in order, and one line for each unreadable one."""
    from factory.registry.plain_json import parse_json  # imported here, as below: `factory list` reads no records

    try:
        lines = (folder / RECORDS).read_bytes().split(b"\n")[:-1]  # after the last newline: nothing, or half a line
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{RECORDS} cannot be read ({error.strerror})"]
    records, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        written = record.pop(CHECKSUM, None) if isinstance(record, dict) else None
        if isinstance(record, dict) and isinstance(record.get("kind"), str) and written in (None, _checksum(record)):
            records.append(record)
        else:
            problems.append(f"{RECORDS} line {number} was changed, or is not a record: restore the file from a copy")
    return records, problems


def _checksum(record: Mapping[str, Any]) -> str:
    from factory.registry.plain_json import checksum

    return checksum(record)


def append_record(folder: Path, record: Mapping[str, Any]) -> None:
    """``append_record(version.folder, new_record("override", {...}))``: on disk when it returns. Callers hold the lock.

    Raises: OSError where the disk refuses. Half a line may then remain, which readers ignore and the next call removes.
    """
    with (folder / RECORDS).open("a+b") as file:  # "a": writes go to the end
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps({**record, CHECKSUM: _checksum(record)}, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync(folder)
