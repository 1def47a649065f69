"""The machine that this runs on."""

from __future__ import annotations

import os
from pathlib import Path


def machine_memory() -> int:
    """``machine_memory()``: bytes, of the container where that has less; 8 GB where the system does not say."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8_000_000_000
    try:
        return min(found, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no container, or "max"
        return found
