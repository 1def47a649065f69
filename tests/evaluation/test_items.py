"""Items: sampled over topics, alike in every build, and counted with an interval that few items keep wide."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from factory.evaluation.items import Item, sample_items, share_metrics
from factory.evaluation.stats import BootstrapConfig

TOPICS = st.lists(st.sampled_from(["", "rent", "work", "debt", "wills"]), max_size=20)


def items(topics: list[str]) -> list[Item]:
    return [Item(prompt=f"prompt {number}", topic=topic) for number, topic in enumerate(topics)]


@given(TOPICS, st.integers(0, 25))
def test_a_sample_is_spread_over_topics(topics: list[str], limit: int) -> None:
    sampled = Counter(item.cluster for item in sample_items(items(topics), limit))
    assert sampled.total() == min(limit, len(topics))
    for cluster, count in Counter(item.cluster for item in items(topics)).items():
        assert sampled[cluster] >= min(count, max(sampled.values(), default=0) - 1)


@given(TOPICS, st.integers(0, 25))
def test_a_smaller_sample_is_part_of_a_larger_one(topics: list[str], limit: int) -> None:
    everything = sample_items(items(topics), None)
    assert sorted(everything, key=str) == sorted(items(topics), key=str)
    assert sample_items(items(topics), limit) == everything[:limit]


def test_items_of_one_topic_count_as_one_cluster() -> None:
    alone = share_metrics({"student": [1, 0, 1, 0] * 10}, "right", "change", BootstrapConfig(500))["right"]
    clustered = share_metrics({"student": [1, 0, 1, 0] * 10}, "right", "change", BootstrapConfig(500), ["a", "b"] * 20)["right"]
    assert (alone.value, alone.n, alone.clusters) == (0.5, 40, 40)
    assert (clustered.value, clustered.n, clustered.clusters) == (0.5, 40, 2)
    assert clustered.high - clustered.low > alone.high - alone.low


def test_a_change_is_paired_and_never_certain() -> None:
    """Both are right on the same half: whatever is drawn, the difference is 0, and a few items still prove nothing."""
    half = [1.0, 0.0] * 10
    metrics = share_metrics({"student": half, "teacher": half}, "right", "change", BootstrapConfig(200))
    assert list(metrics) == ["right", "right_teacher", "change"]
    change = metrics["change"]
    assert change.value == 0 and -0.2 < change.low < 0 < change.high < 0.2


def test_without_items_or_models_there_are_no_metrics() -> None:
    assert share_metrics({"student": [], "teacher": []}, "right", "change", BootstrapConfig(100)) == {}
    assert share_metrics({}, "right", "change", BootstrapConfig(100)) == {}
