"""Names of domains, students, bases and aliases: they become folder names."""

from __future__ import annotations

import re

from factory.errors import RegistryError

# What else a command, a setting or the server's clients may mean: no domain is called so.
RESERVED = ("auto", "default", "none", "refuse", "teacher")
NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"  # no dots, no slashes


def check_name(name: str, what: str = "name") -> str:
    """``check_name("healthcare-small")`` returns it. Raises: RegistryError unless it can be a folder name."""
    if len(name) > 100 or not re.fullmatch(NAME, name):
        raise RegistryError(f"bad {what} {name!r}: use lower-case letters and digits, joined by single hyphens")
    return name
