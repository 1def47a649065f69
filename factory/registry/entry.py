"""What the parts of a manifest are made of: frozen entries, and measured values with their interval."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

Count = Annotated[int, Field(ge=0, lt=2**53)]  # what JSON, SQLite and a browser hold exactly
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]  # null in a file: not finite


class Entry(BaseModel):
    """A frozen part of a manifest that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MetricValue:
    """``MetricValue(0.412, 0.380, 0.440, 5120, 24)``: a measured value, its 95 % interval and n; NaN where it was not measured.

    ``n`` counts completion tokens unless the metric says otherwise. ``clusters`` are the independent rows that were resampled for
    the interval (templates, documents, topics); None where nothing was.
    """

    value: Number
    low: Number
    high: Number
    n: Count
    clusters: Count | None = None

    def __str__(self) -> str:
        """``0.412 [0.380, 0.440]``."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class ImportInfo(Entry):
    """Where a version was published that `factory import` took in."""

    reference: str  # there
    created: str
    manifest_sha256: str


class FileInfo(Entry):
    sha256: str
    bytes: Count


class ApiUsage(Entry):
    """What a teacher behind an API was asked for one domain, stopped builds included, until this version was made."""

    requests: Count
    prompt_tokens: Count
    completion_tokens: Count
    uncounted: Count  # requests without a count, which are counted as what they cost at most
    cost: Number  # in the currency of the family's price; 0 without one
