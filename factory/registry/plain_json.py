"""What files of JSON hold: plain numbers, texts, lists and dicts, in one form, with a checksum."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.errors import RegistryError


def plain_json(value: Any, where: str) -> Any:
    """``plain_json(content, "manifest")``: paths as text, tuples as lists, NumPy and torch scalars as numbers, NaN as None.

    Raises: RegistryError, which names the place, for any other type.
    """
    if isinstance(value, Mapping):
        return {str(key): plain_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item, f"{where}[{position}]") for position, item in enumerate(value)]
    if isinstance(value, str | Path):
        return str(value).encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return plain_json(value.item(), where)
    raise RegistryError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def to_json(content: Mapping[str, Any]) -> bytes:
    """``to_json(to_dict(manifest))``: as files hold it."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def parse_json(data: bytes) -> Any:
    """``parse_json(path.read_bytes())``: what ``to_json`` has written.

    Raises: ValueError for what it never writes, and Python's own parser reads or dies of: half a surrogate pair, NaN, numbers of
        thousands of digits, hundreds of nested lists.
    """
    from pydantic_core import from_json  # imported here: a checksum needs none of it

    return from_json(data, allow_inf_nan=False)


def checksum(content: Mapping[str, Any]) -> str:
    """``checksum(to_dict(manifest))``: sha256 of all fields but itself, in a fixed order."""
    kept = {key: value for key, value in content.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
