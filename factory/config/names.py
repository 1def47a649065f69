"""Names of domains, students, bases and aliases: they become folder names."""

from __future__ import annotations

import re

from factory.errors import RegistryError

# What else a command, a setting or the server's clients may mean: no domain is called so.
RESERVED = ("auto", "default", "none", "refuse", "teacher")
NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"  # no dots, no slashes


def is_name(text: str) -> bool:
    """``is_name("healthcare-small")``: whether it can be a folder name."""
    return len(text) <= 100 and re.fullmatch(NAME, text) is not None


def check_name(name: str, what: str = "name") -> str:
    """``check_name("healthcare-small")`` returns it. Raises: RegistryError unless it can be a folder name."""
    if not is_name(name):
        raise RegistryError(f"bad {what} {name!r}: use lower-case letters and digits, joined by single hyphens")
    return name
