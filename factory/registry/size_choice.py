"""What the budget of a size was spent on."""

from __future__ import annotations

from factory.registry.entry import Count, Entry, MetricValue, Number


class SizeCandidate(Entry):
    """A base that was tried for a size's budget."""

    layers: Count
    intermediate_size: Count  # neurons of every MLP
    vocabulary: Count  # tokens
    parameters: Count
    bytes: Count | None = None  # of its GGUF file, where the budget is one of bytes
    kl: Number  # to the teacher, nats/token


class SizeChoice(Entry):
    """What a size's budget was spent on, and what else was tried."""

    candidates: tuple[SizeCandidate, ...]
    chosen: Count  # its place among them
    reason: str
    ahead: MetricValue | None = None  # KL of the next best less that of the chosen one (paired); None where not measured so
