"""Taking groups in turn, so that a sample has some of each: of topics, templates, domains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable


def turns(groups: Iterable[Hashable]) -> list[int]:
    """``turns(["a", "b", "a"]) == [0, 0, 1]``: the place of each within its group; sorted by it, groups are taken in turn."""
    earlier: Counter[Hashable] = Counter()
    places = []
    for group in groups:
        places.append(earlier[group])
        earlier[group] += 1
    return places
