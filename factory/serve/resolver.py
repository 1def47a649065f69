"""What the ``model`` of a request means: a version, the teacher, or whoever the router picks. Read afresh each time.

names = ModelResolver(registry, materials)
names.named("healthcare-small").reference            # "healthcare-small@3", its champion now
await names.routed("Can my landlord keep my deposit?")  # legal-small, with domain, score, threshold and why
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from torch import nn

from factory.data.router import DomainRouter, Route
from factory.errors import RegistryError
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.limits import APIError, Caller

TEACHER, AUTO, REFUSE = "teacher", "auto", "refuse"


@dataclass(frozen=True)
class Target:
    """Who answers one request, and why. ``version`` None is the teacher."""

    version: Version | None
    base: str  # what an engine holds: a base's reference, or the word teacher
    domain: str | None = None
    score: float | None = None  # the router's, of its best domain
    threshold: float | None = None
    why: str = "asked for by name"
    routing_ms: float | None = None  # what the router took, its turn included

    @property
    def reference(self) -> str:
        """``healthcare-small@3`` or ``teacher``: what an answer calls its model."""
        return self.version.reference if self.version else TEACHER

    @property
    def name(self) -> str:
        """``healthcare-small`` or ``teacher``: what a key opens."""
        return self.version.name if self.version else TEACHER

    @property
    def notice(self) -> str:
        """What an answer in this domain must say."""
        return str(self.version.raw.get("notice") or "") if self.version else ""

    @property
    def appends_notice(self) -> bool:
        spec = (self.version.raw.get("spec") or {}) if self.version else {}
        return bool(self.notice and spec.get("append_notice"))


class ModelResolver:
    """Nothing of the registry is kept: an alias that moved, or a version that came, counts from the next request on."""

    def __init__(self, registry: Registry, materials: Any) -> None:
        self.registry, self.materials = registry, materials
        self._reader = ThreadPoolExecutor(1, "router")  # one text after the other: an encoder takes every core

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def named(self, model: str) -> Target:
        """``names.named("healthcare-small@champion")``. Raises: APIError 404 for a name that means nothing."""
        if model == TEACHER:
            return Target(None, TEACHER)
        try:
            version = self.registry.resolve(model)
        except RegistryError as error:
            raise APIError(404, f"model {model!r}: {error}", code="model_not_found", param="model") from None
        return self._student(version)

    async def routed(self, text: str) -> Target:
        """``await names.routed(prompt)``: the domain's student of the family's default size, else what the family file says.

        Raises: APIError 400 where the router abstains and the family file says ``refuse``, 404 where it names nobody.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        route = await loop.run_in_executor(self._reader, lambda: self._router.route([text])[0])
        target = self._of_domain(route)
        taken = round(1000 * (loop.time() - begun), 1)
        return replace(target, score=round(route.score, 4), threshold=round(route.threshold, 4), routing_ms=taken)

    @cached_property
    def _router(self) -> DomainRouter:
        """Its encoder in bfloat16 from here on: half of the milliseconds, and the same domain for each of 300 real prompts."""
        router = self.materials.router
        if isinstance(self.materials.encoder, nn.Module):
            self.materials.encoder.bfloat16()
        return router

    def _of_domain(self, route: Route) -> Target:
        if route.domain is None:
            why = f"the router abstains: its best score is {route.score:.3f}, at least {route.threshold:.3f} is needed"
            return self._fallback(why, None)
        name = f"{route.domain}-{self.materials.family.default_size}"
        try:
            target = self._student(self.registry.resolve(name))
        except (RegistryError, APIError):
            return self._fallback(f"the router says {route.domain}, but {name} is not in the registry", route.domain)
        return replace(target, why=f"the router says {route.domain} with {route.score:.3f}")

    def _fallback(self, why: str, domain: str | None) -> Target:
        family = self.materials.family
        if family.serve.fallback == REFUSE:
            raise APIError(
                400, f"{why}, and family {family.name} refuses then; name a model", code="router_abstained", param="model"
            )
        return replace(self.named(family.serve.fallback), domain=domain, why=f"{why}; family {family.name} falls back")

    def _student(self, version: Version) -> Target:
        if version.base is None:
            message = f"model {version.reference!r} is a base, which only a student's adapter makes an answering model"
            raise APIError(404, message, code="model_not_found", param="model")
        return Target(version, version.base, domain=str(version.raw.get("domain") or "") or None)

    # ------------------------------------------------------------------------------------------------- GET /v1/models

    def listed(self, caller: Caller) -> list[dict[str, object]]:
        """``names.listed(caller)``: every name that a request may give, in OpenAI's shape, with root, parent and notice."""
        found = []
        for name in sorted({summary.name for summary in self.registry.versions("student")}):
            if not caller.may(name):
                continue
            numbers = [f"{name}@{one.number}" for one in self.registry.versions("student", name)]
            aliases = [f"{name}@{alias}" for alias in sorted(self.registry.aliases(name))]
            for reference in (name, *aliases, *numbers):
                try:
                    found.append(self.model(reference))
                except APIError:  # no sound version, or an alias of one that is gone
                    continue
        special = [TEACHER] if caller.may(TEACHER) else []
        return [*found, *map(self.model, [*special, AUTO])]

    def model(self, name: str) -> dict[str, object]:
        """``names.model("healthcare-small")``: ``root`` is the digest of what answers, ``parent`` its base."""
        own: dict[str, object] = {"id": name, "object": "model", "created": 0, "owned_by": "student-factory"}
        if name == AUTO:
            return own
        version = self.named(name).version
        if version is None:
            return own | {"root": self.materials.family.teacher.model, "parent": None}
        created = datetime.fromisoformat(str(version.raw.get("created"))).timestamp()
        facts = {"version": version.reference, "verdict": version.verdict, "notice": str(version.raw.get("notice") or "")}
        digest = version.raw.get("manifest_sha256")
        return own | {"created": int(created), "root": digest, "parent": version.base} | facts
