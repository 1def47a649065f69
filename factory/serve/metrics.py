"""What Prometheus may know: counts and times by route, model and status. Never a word of a prompt."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """``Metrics(queue, engines)``: of one app; ``metrics.text()`` is what ``GET /metrics`` answers."""

    def __init__(self, queue: Callable[[], float], engines: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("factory_requests", "Requests answered.", ["route", "model", "status"], registry=registry)
        self.seconds = Histogram(
            "factory_request_seconds", "From arrival to the last byte.", ["route"], buckets=SECONDS, registry=registry
        )
        self.first = Histogram(
            "factory_first_token_seconds", "From arrival to the first event.", [], buckets=SECONDS, registry=registry
        )
        self.tokens = Counter("factory_tokens", "Tokens read and written.", ["model", "kind"], registry=registry)
        self.routed = Counter("factory_routed", "What auto decided.", ["domain", "model"], registry=registry)
        Gauge("factory_queue_length", "Requests admitted and not yet done.", registry=registry).set_function(queue)
        Gauge("factory_engines", "Engines in memory, draining ones included.", registry=registry).set_function(engines)

    def text(self) -> bytes:
        return generate_latest(self._registry)
