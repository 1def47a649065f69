"""Whose numbers a key sees."""

from __future__ import annotations

import pytest

from factory.serve.auth import Caller
from factory.serve.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(lambda: 3, lambda: 1)
    for model in ("healthcare-small@1", "secret-small@2", "teacher", ""):
        metrics.requests.labels("completions", model, "200").inc()
        metrics.tokens.labels(model, "prompt").inc(5)
    for domain, model in (
        ("healthcare", "healthcare-small"),
        ("secret", "secret-small"),
        ("hidden", "teacher"),
        ("none", "teacher"),
    ):
        metrics.routed.labels(domain, model).inc()
    return metrics


def test_a_key_for_everything_sees_everything(metrics: Metrics) -> None:
    text = metrics.text(Caller()).decode()
    assert all(name in text for name in ("healthcare-small@1", "secret-small@2", 'domain="hidden"', "factory_queue_length 3.0"))


def test_a_key_sees_only_its_models_and_the_servers_totals(metrics: Metrics) -> None:
    text = metrics.text(Caller(frozenset({"healthcare-small", "teacher"}))).decode()
    assert 'factory_tokens_total{kind="prompt",model="healthcare-small@1"} 5.0' in text
    assert 'factory_routed_total{domain="none",model="teacher"} 1.0' in text
    assert "factory_queue_length 3.0" in text
    assert "secret" not in text
    assert "hidden" not in text
