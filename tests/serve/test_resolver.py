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


def resolver(
    registry: Registry, route: Route | None = None, fallback: str = TEACHER, cascade: tuple[str, ...] = ()
) -> ModelResolver:
    """Without a route, loading the router fails."""
    family: Any = SimpleNamespace(
        name="default",
        default_size="small",
        serve=SimpleNamespace(fallback=fallback, cascade=cascade),
        teacher=SimpleNamespace(reference="path:./teacher"),
        api=None,
        models={},
        languages={"encoder": ("en",)},
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


# ------------------------------------------------------------------------------------------------------------- cascades

SIZES = ("tiny", "small", TEACHER)
NOBODY = "nobody"  # a domain without a student


def steps(found: ModelResolver, model: str, caller: Caller) -> list[str]:
    return [step.reference for step in found.resolve(model, caller).cascade]


def test_a_domain_is_its_cascade_and_whoever_asks_one_model_asks_the_first(registry: Registry) -> None:
    manifests.publish(registry, "healthcare-tiny")
    target = resolver(registry, cascade=SIZES).resolve("healthcare", Caller())
    assert [step.reference for step in target.cascade] == ["healthcare-tiny@1", "healthcare-small@1", TEACHER]
    assert (target.reference, target.domain, target.reason) == ("healthcare-tiny@1", "healthcare", "named in the request")
    assert not any(step.cascade for step in target.cascade)


def test_the_teacher_of_a_cascade_has_the_context_and_the_notice_of_the_student_before_it(registry: Registry) -> None:
    manifests.publish(registry, "healthcare-tiny", teacher_context={"system": "of tiny", "examples": []}, notice="No advice.")
    turn = {"prompt": "What is gout?", "completion": "An illness."}
    context = {"system": "Be brief.", "examples": [turn], "sources": {"long": {"system": "Be long.", "examples": []}}}
    second = manifests.publish(registry, notice="Ask a doctor.", append_notice=True, teacher_context=context)
    registry.promote(second.reference, override="a test")
    teacher = resolver(registry, cascade=SIZES).resolve("healthcare", Caller()).cascade[-1]
    assert (teacher.context.system, [one.prompt for one in teacher.context.examples]) == ("Be brief.", ["What is gout?"])
    assert (teacher.notice, teacher.appends_notice, teacher.domain) == ("Ask a doctor.", True, "healthcare")
    alone = resolver(registry, cascade=SIZES).resolve(TEACHER, Caller())
    assert (alone.context.system, alone.notice) == ("", "")


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({"*"}, ["healthcare-tiny@1", "healthcare-small@1", TEACHER]),
        ({"healthcare-small", TEACHER}, ["healthcare-small@1", TEACHER]),
        ({"healthcare-tiny"}, ["healthcare-tiny@1"]),
    ],
)
def test_a_cascade_has_the_steps_that_the_key_allows(registry: Registry, models: set[str], expected: list[str]) -> None:
    manifests.publish(registry, "healthcare-tiny")
    assert steps(resolver(registry, cascade=SIZES), "healthcare", Caller(frozenset(models))) == expected


def test_a_cascade_leaves_out_a_student_that_is_not_in_the_registry(registry: Registry) -> None:
    assert steps(resolver(registry, cascade=SIZES), "healthcare", Caller()) == ["healthcare-small@1", TEACHER]


def test_a_cascade_whose_students_all_failed_their_gates_says_so(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    manifests.publish(registry, verdict={"status": "failed", "reasons": ("KL too high",)})
    with pytest.raises(APIError, match=r"healthcare-small.*gates") as refused:
        resolver(registry, cascade=SIZES).resolve("healthcare", Caller())
    assert refused.value.status == 404
    with pytest.raises(APIError, match=r"no such model|not allow"):  # and not to a key that may not know of it
        resolver(registry, cascade=SIZES).resolve("healthcare", Caller(frozenset({TEACHER})))


@pytest.mark.parametrize(
    ("model", "cascade"), [(NOBODY, SIZES), ("healthcare", ()), ("default", SIZES), ("../healthcare", SIZES)]
)
def test_a_name_without_a_cascade_is_an_unknown_model(registry: Registry, model: str, cascade: tuple[str, ...]) -> None:
    with pytest.raises(APIError) as error:
        resolver(registry, cascade=cascade).resolve(model, Caller())
    assert (error.value.status, error.value.code) == (404, "model_not_found")


@pytest.mark.parametrize("model", ["healthcare", NOBODY])
def test_a_key_for_the_teacher_alone_learns_no_domain(registry: Registry, model: str) -> None:
    with pytest.raises(APIError) as error:
        resolver(registry, cascade=SIZES).resolve(model, Caller(frozenset({TEACHER})))
    assert (error.value.status, error.value.message) == (403, f"this API key does not allow {model}")


def test_a_student_called_as_a_domain_is_the_student(registry: Registry) -> None:
    manifests.publish(registry, "healthcare-small-tiny")
    target = resolver(registry, cascade=SIZES).resolve("healthcare-small", Caller())
    assert (target.reference, target.cascade) == ("healthcare-small@1", ())


def test_cascades_are_listed_for_those_who_may_use_a_step(registry: Registry) -> None:
    manifests.publish(registry, "healthcare-tiny", notice="No advice.")
    manifests.publish(registry, "secret-small")
    found = resolver(registry, cascade=SIZES)
    listed = {model["id"]: model for model in found.list_models(HEALTHCARE)}
    assert [name for name in listed if "@" not in str(name)] == ["healthcare-small", "healthcare", AUTO]
    assert listed["healthcare"]["steps"] == ["healthcare-small@1"]
    everything = {model["id"]: model for model in found.list_models(Caller())}
    assert {"healthcare", "secret"} <= set(everything)
    assert everything["healthcare"]["steps"] == ["healthcare-tiny@1", "healthcare-small@1", TEACHER]
    assert "healthcare" not in {model["id"] for model in found.list_models(Caller(frozenset({TEACHER})))}


def test_auto_goes_on_with_the_cascade_of_the_routers_domain(registry: Registry) -> None:
    found = resolver(registry, routed("healthcare"), cascade=SIZES)
    target = asyncio.run(found.route(["What is gout?"], Caller()))
    assert [step.reference for step in target.cascade] == ["healthcare-small@1", TEACHER]
    assert (target.reason, target.score) == ("the router chose healthcare with score 0.700", 0.7)


def test_auto_needs_no_student_of_the_default_size_where_the_cascade_has_another(registry: Registry) -> None:
    manifests.publish(registry, "legal-tiny")
    found = resolver(registry, routed("legal"), cascade=SIZES)
    target = asyncio.run(found.route(["What is a lease?"], Caller(frozenset({"legal-tiny"}))))
    assert [step.reference for step in target.cascade] == ["legal-tiny@1"]


@pytest.mark.parametrize(
    ("domain", "reason"), [(None, "the router abstained"), ("legal", "legal-small is not in the registry")]
)
def test_auto_falls_back_without_a_cascade(registry: Registry, domain: str | None, reason: str) -> None:
    target = asyncio.run(resolver(registry, routed(domain), cascade=SIZES).route(["What is gout?"], Caller()))
    assert (target.reference, target.cascade) == (TEACHER, ())
    assert reason in target.reason
