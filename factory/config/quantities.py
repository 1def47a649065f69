"""Large numbers as people write them: ``80M`` parameters, ``600MB``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

PARAMETERS = {"K": 10**3, "M": 10**6, "B": 10**9}
BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def read_quantity(value: Any, units: Mapping[str, int]) -> Any:
    """``read_quantity("0.08B", PARAMETERS) == 80_000_000``; anything else comes back as it is."""
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(units)})", value.strip()) if isinstance(value, str) else None
    return int(Decimal(found[1]) * units[found[2]]) if found else value


ParameterCount = Annotated[int, BeforeValidator(lambda value: read_quantity(value, PARAMETERS)), Field(gt=0)]
ByteCount = Annotated[int, BeforeValidator(lambda value: read_quantity(value, BYTES)), Field(gt=0)]
