"""What a key may still use: no more than its limits over any time, and never less for who waits as it was told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.serve.auth import Caller
from factory.serve.limits import APIError
from factory.serve.rates import Rates


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(rates: Rates, caller: Caller) -> int | None:
    """The seconds of ``Retry-After``; None where the request was let in."""
    try:
        rates.take_request(caller)
    except APIError as error:
        assert (error.status, error.code) == (429, "rate_limit_exceeded")
        assert error.body()["error"]["type"] == "rate_limit_error"
        return int(error.headers["Retry-After"])
    return None


def test_a_key_has_its_requests_of_a_minute_and_then_waits_as_it_is_told() -> None:
    clock = Clock()
    rates, caller = Rates(clock), Caller(key="a", requests_per_minute=6)
    assert [refused(rates, caller) for _ in range(7)] == [None] * 6 + [10]
    clock.now += 9
    assert refused(rates, caller) == 1
    clock.now += 1
    assert refused(rates, caller) is None
    assert refused(rates, caller) == 10
    assert refused(rates, Caller(key="b", requests_per_minute=6)) is None
    assert all(refused(rates, Caller(key="c")) is None for _ in range(1000))


@given(rate=st.integers(1, 100), waits=st.lists(st.floats(0, 90), min_size=1, max_size=60))
def test_over_any_time_no_more_are_let_in_than_a_minute_saves_up_and_brings(rate: int, waits: list[float]) -> None:
    clock = Clock()
    rates, caller, let_in = Rates(clock), Caller(key="a", requests_per_minute=rate), []
    for wait in waits:
        clock.now += wait
        for _ in range(10):
            told = refused(rates, caller)
            if told is None:
                let_in.append(clock.now)
                continue
            clock.now += told
            assert refused(rates, caller) is None  # who waits as it was told is let in
            let_in.append(clock.now)
    for first, start in enumerate(let_in):
        for last, end in enumerate(let_in[first:], start=1):
            assert last <= rate + (end - start) * rate / 60 + 1e-3


@pytest.mark.parametrize(("limits", "seconds"), [({"tokens_per_minute": 60}, 41), ({"tokens_per_day": 86_400}, 14_001)])
def test_tokens_are_taken_when_they_are_known_and_a_debt_is_waited_for(limits: dict[str, int], seconds: int) -> None:
    clock = Clock()
    rates, caller = Rates(clock), Caller(key="a", **limits)
    rates.require_tokens(caller)
    rates.take_tokens(caller, sum(limits.values()) + seconds - 1)
    with pytest.raises(APIError, match=rf"has used its [\d,]+ tokens per \w+; try again in {seconds} s") as error:
        rates.require_tokens(caller)
    assert error.value.headers["Retry-After"] == str(seconds)
    clock.now += seconds - 1
    with pytest.raises(APIError):
        rates.require_tokens(caller)
    clock.now += 1
    rates.require_tokens(caller)


def test_what_was_not_needed_is_given_back_and_no_more() -> None:
    rates, caller = Rates(Clock()), Caller(key="a", tokens_per_minute=100)
    rates.take_tokens(caller, 150)
    with pytest.raises(APIError):
        rates.require_tokens(caller)
    rates.take_tokens(caller, -140)
    rates.require_tokens(caller)
    rates.take_tokens(caller, -500)
    rates.take_tokens(caller, 100)
    with pytest.raises(APIError):
        rates.require_tokens(caller)


def test_of_two_limits_the_tighter_one_counts() -> None:
    rates, caller = Rates(Clock()), Caller(key="a", tokens_per_minute=1000, tokens_per_day=10)
    rates.take_tokens(caller, 10)
    with pytest.raises(APIError, match="10 tokens per day"):
        rates.require_tokens(caller)


def test_a_limit_that_changes_in_the_file_counts_at_once() -> None:
    rates, first = Rates(Clock()), Caller(key="a", requests_per_minute=1)
    assert [refused(rates, first), refused(rates, first)] == [None, 60]
    changed: Any = Caller(key="a", requests_per_minute=2)
    assert [refused(rates, changed) for _ in range(3)] == [None, None, 30]


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    clock = Clock()
    rates, caller = Rates(clock), Caller(key="a", requests_per_minute=2)
    assert refused(rates, caller) is None
    clock.now -= 500
    assert [refused(rates, caller), refused(rates, caller)] == [None, 30]
