"""Model names without a server: what they mean now, and where the router's decisions lead."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import manifests

from factory.data.router import Route
from factory.registry.registry import Registry
from factory.serve.auth import Caller
from factory.serve.limits import APIError
from factory.serve.resolver import AUTO, TEACHER, ModelResolver


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two versions of healthcare-small, the first one champion."""
    registry = Registry(tmp_path / "registry")
    manifests.publish(registry, notice="No medical advice.", append_notice=True)
    manifests.publish(registry)
    registry.promote("healthcare-small@1")
    return registry


def resolver(registry: Registry, route: Route | None = None, fallback: str = TEACHER) -> ModelResolver:
    """Without a route, loading the router fails."""
    family: Any = SimpleNamespace(
        name="default",
        default_size="small",
        serve=SimpleNamespace(fallback=fallback),
        teacher=SimpleNamespace(model="path:./teacher"),
    )

    def load_router() -> Any:
        assert route is not None, "the router was loaded"
        return SimpleNamespace(route=lambda texts: [route] * len(texts))

    return ModelResolver(registry, family, load_router)


def routed(domain: str | None) -> Route:
    return Route(domain=domain, score=0.7, threshold=0.5, scores={})


def test_a_bare_name_is_the_champion_and_a_promotion_counts_at_once(registry: Registry) -> None:
    found = resolver(registry)
    assert found.resolve("healthcare-small", Caller()).reference == "healthcare-small@1"
    registry.promote("healthcare-small@2", override="a test")
    assert found.resolve("healthcare-small", Caller()).reference == "healthcare-small@2"


@pytest.mark.parametrize(
    "change",
    [{"created": "yesterday"}, {"created": None}, {"notice": "\ud800"}, {"canaries": 10**30}, {"evaluation": [1]}],
    ids=lambda change: " ".join(change),
)
def test_a_damaged_version_leaves_the_list_of_models_to_the_others(registry: Registry, change: dict[str, Any]) -> None:
    path = registry.resolve("healthcare-small@2").folder / "manifest.json"
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    names = [model["id"] for model in resolver(registry).list_models(Caller(frozenset({"healthcare-small"})))]
    assert names == ["healthcare-small", "healthcare-small@champion", "healthcare-small@1", AUTO]


def test_the_notice_comes_from_the_versions_manifest(registry: Registry) -> None:
    names = ("healthcare-small@1", "healthcare-small@2", TEACHER)
    first, second, teacher = (resolver(registry).resolve(name, Caller()) for name in names)
    assert (first.notice, first.appends_notice) == ("No medical advice.", True)
    assert (second.notice, second.appends_notice) == (teacher.notice, teacher.appends_notice) == ("", False)


@pytest.mark.parametrize("model", ["nobody", "healthcare-small@9", "default-small-base"])
def test_unknown_names_and_bases_are_404(registry: Registry, model: str) -> None:
    with pytest.raises(APIError) as error:
        resolver(registry).resolve(model, Caller())
    assert (error.value.status, error.value.code) == (404, "model_not_found")


def test_models_are_listed_without_loading_the_router(registry: Registry) -> None:
    names = [model["id"] for model in resolver(registry).list_models(Caller())]
    versions = ["healthcare-small", "healthcare-small@champion", "healthcare-small@1", "healthcare-small@2"]
    assert names == [*versions, TEACHER, AUTO]
    assert [model["id"] for model in resolver(registry).list_models(Caller(frozenset()))] == [AUTO]


def test_a_list_scans_the_registry_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("education-small", "legal-small"):
        manifests.publish(registry, name)
    scans, versions = [], registry.versions
    monkeypatch.setattr(registry, "versions", lambda *which: scans.append(which) or versions(*which))
    assert len(resolver(registry).list_models(Caller())) == 4 + 2 + 2 + len([TEACHER, AUTO])
    assert scans == [("student",)]


# ----------------------------------------------------------------------------------------- what a key learns of other models

HEALTHCARE = Caller(frozenset({"healthcare-small", "absent-small"}))


def test_a_404_names_only_models_that_the_key_allows(registry: Registry) -> None:
    manifests.publish(registry, "secret-small")
    with pytest.raises(APIError) as error:
        resolver(registry).resolve("absent-small", HEALTHCARE)
    assert error.value.status == 404
    assert error.value.message == "model 'absent-small': no such model; this API key allows healthcare-small"
    with pytest.raises(APIError, match="allows none of those that exist") as empty:
        resolver(registry).resolve("absent-small", Caller(frozenset({"absent-small"})))
    assert "secret" not in empty.value.message + error.value.message


def test_a_version_that_is_missing_is_a_404_with_those_that_exist(registry: Registry) -> None:
    with pytest.raises(APIError, match="versions: 1, 2"):
        resolver(registry).resolve("healthcare-small@9", HEALTHCARE)


@pytest.mark.parametrize("model", ["secret-small", "secret-small@1", "nobody", TEACHER, "default-small-base"])
def test_whether_another_model_exists_is_not_said(registry: Registry, model: str) -> None:
    manifests.publish(registry, "secret-small")
    with pytest.raises(APIError, match="does not allow") as error:
        resolver(registry).resolve(model, HEALTHCARE)
    assert error.value.status == 403


def test_auto_falls_back_where_the_key_does_not_allow_the_routers_choice(registry: Registry) -> None:
    manifests.publish(registry, "secret-small", domain="secret")
    found = resolver(registry, routed("secret"), fallback="healthcare-small")
    target = asyncio.run(found.route(["What is gout?"], HEALTHCARE))
    assert (target.reference, target.domain) == ("healthcare-small@1", None)
    assert "secret" not in target.reason
    assert "does not allow" in target.reason


@pytest.mark.parametrize(("fallback", "status"), [("refuse", 400), (TEACHER, 403), ("other-small@1", 403)])
@pytest.mark.parametrize("domain", ["secret", "nowhere"])
def test_auto_names_neither_a_forbidden_student_nor_a_forbidden_fallback(
    registry: Registry, domain: str, fallback: str, status: int
) -> None:
    manifests.publish(registry, "secret-small", domain="secret")
    with pytest.raises(APIError) as error:
        asyncio.run(resolver(registry, routed(domain), fallback).route(["What is gout?"], HEALTHCARE))
    assert error.value.status == status
    assert not any(name in error.value.message for name in (domain, "other-small", TEACHER))


@pytest.mark.parametrize(
    ("domain", "reference", "reason"),
    [
        ("healthcare", "healthcare-small@1", "the router chose healthcare with score 0.700"),
        ("legal", TEACHER, "the router chose legal, but legal-small is not in the registry; fallback of family default"),
        (None, TEACHER, "the router abstained: best score 0.700, threshold 0.500; fallback of family default"),
    ],
)
def test_a_routed_text_has_a_target_and_a_reason(registry: Registry, domain: str | None, reference: str, reason: str) -> None:
    target = asyncio.run(resolver(registry, routed(domain)).route(["What is gout?"], Caller()))
    assert (target.reference, target.reason, target.domain) == (reference, reason, domain)
    assert (target.score, target.threshold) == (0.7, 0.5)


@pytest.mark.parametrize(
    ("last", "conversation", "expected"),
    [
        (Route("education", 0.6, 0.5, {}), Route("healthcare", 0.9, 0.5, {}), "healthcare"),  # a follow-up
        (Route("healthcare", 0.9, 0.5, {}), Route("legal", 0.6, 0.5, {}), "healthcare"),  # a new subject
        (Route("healthcare", 0.7, 0.5, {}), Route("legal", 0.7, 0.5, {}), "healthcare"),  # equally sure
    ],
)
def test_a_conversation_is_routed_by_the_text_that_the_router_is_surest_of(
    registry: Registry, last: Route, conversation: Route, expected: str
) -> None:
    found = resolver(registry)
    found.load_router = lambda: SimpleNamespace(route=lambda texts: [last, conversation][: len(texts)])
    target = asyncio.run(found.route(["And in children?", "And in children?\nWhat is asthma?"], Caller()))
    assert (target.domain, target.reference) == (expected, "healthcare-small@1")
    assert target.score == max(last.score, conversation.score)


def test_a_family_without_a_fallback_answers_400(registry: Registry) -> None:
    with pytest.raises(APIError, match="name a model") as error:
        asyncio.run(resolver(registry, routed(None), fallback="refuse").route(["What is gout?"], Caller()))
    assert (error.value.status, error.value.code) == (400, "router_abstained")
