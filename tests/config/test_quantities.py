"""Numbers as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from factory.config.quantities import BYTES, ByteCount, ParameterCount, read_quantity


@pytest.mark.parametrize(
    ("written", "found"),
    [("80M", 80_000_000), ("0.08B", 80_000_000), ("1.5 B", 1_500_000_000), ("135K", 135_000), (80_000_000, 80_000_000)],
)
def test_parameters_are_read_in_thousands_millions_and_billions(written: Any, found: int) -> None:
    assert TypeAdapter(ParameterCount).validate_python(written) == found


@pytest.mark.parametrize(("written", "found"), [("600MB", 600_000_000), ("0.6GB", 600_000_000), ("32 KB", 32_000), (600, 600)])
def test_bytes_are_read_in_powers_of_a_thousand(written: Any, found: int) -> None:
    assert TypeAdapter(ByteCount).validate_python(written) == found


@pytest.mark.parametrize("written", ["80m", "M", "1e6M", "-5M", "80MB", 0, -1, 1.5, None, "eighty"])
def test_anything_else_is_no_number_of_parameters(written: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ParameterCount).validate_python(written)


@given(number=st.integers(1, 10**6), unit=st.sampled_from(sorted(BYTES)))
def test_whole_numbers_are_multiplied_exactly(number: int, unit: str) -> None:
    assert read_quantity(f"{number}{unit}", BYTES) == number * BYTES[unit]
