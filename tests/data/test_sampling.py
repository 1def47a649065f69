"""Groups are taken in turn."""

from __future__ import annotations

from factory.data.sampling import turns


def test_each_has_its_place_within_its_group() -> None:
    assert turns(["a", "b", "a", "a", "b"]) == [0, 0, 1, 2, 1]
    assert turns([("a", 1), ("a", 2)]) == [0, 0]
    assert turns([]) == []
