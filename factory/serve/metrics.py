"""Metrics for Prometheus: counts and durations by route, model and status, and never any text of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from factory.serve.auth import Caller, student_name

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # upper bounds of the histograms' buckets
NO_DOMAIN = "none"


class Metrics:
    """``Metrics(lambda: queue.length, engines.count).text(caller)``: one app's metrics, as ``GET /metrics`` returns them."""

    def __init__(self, queue_length: Callable[[], float], engine_count: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("factory_requests", "Requests answered.", ["route", "model", "status"], registry=registry)
        self.seconds = Histogram(
            "factory_request_seconds", "From arrival to the last byte.", ["route"], buckets=SECONDS, registry=registry
        )
        self.first = Histogram(
            "factory_first_token_seconds", "From arrival to the first event.", [], buckets=SECONDS, registry=registry
        )
        self.tokens = Counter("factory_tokens", "Tokens read and generated.", ["model", "kind"], registry=registry)
        self.steps = Counter(
            "factory_cascade_steps", "Steps of cascades that were asked.", ["model", "outcome"], registry=registry
        )
        self.step_seconds = Histogram(
            "factory_cascade_step_seconds",
            "Of a step, until its answer was judged.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.cost = Counter(
            "factory_cost", "Paid for models elsewhere, in the currency of their price.", ["model"], registry=registry
        )
        self.routed = Counter("factory_routed", "Decisions of the model `auto`.", ["domain", "model"], registry=registry)
        queue = Gauge("factory_queue_length", "Requests admitted and not yet finished.", registry=registry)
        queue.set_function(queue_length)
        engines = Gauge("factory_engines", "Engines in memory, draining ones included.", registry=registry)
        engines.set_function(engine_count)

    def count_tokens(self, model: str, usage: Mapping[str, int]) -> None:
        """``metrics.count_tokens("healthcare-small@1", {"prompt_tokens": 9, "completion_tokens": 4})``"""
        for kind in ("prompt", "completion"):
            self.tokens.labels(model, kind).inc(usage[f"{kind}_tokens"])

    def text(self, caller: Caller) -> bytes:
        """``metrics.text(caller)``: without models and domains that the caller's key does not allow."""
        visible = CollectorRegistry()
        visible.register(_Visible(self._registry, caller))
        return generate_latest(visible)


@dataclass(frozen=True)
class _Visible(Collector):
    """What one caller may see of a registry."""

    registry: CollectorRegistry
    caller: Caller

    def collect(self) -> Iterator[Metric]:
        for family in self.registry.collect():
            family.samples = [sample for sample in family.samples if self._may_see(sample.labels)]
            yield family

    def _may_see(self, labels: Mapping[str, str]) -> bool:
        model, domain = labels.get("model", ""), labels.get("domain", NO_DOMAIN)
        may_model = not model or self.caller.may(student_name(model))
        return may_model and (domain == NO_DOMAIN or self.caller.may_domain(domain))
