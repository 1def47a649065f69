"""Who answers a request: the student version, the teacher or the router's choice that its ``model`` means at this moment.

resolver = ModelResolver(registry, family, load_router)
resolver.resolve("healthcare-small", caller).reference           # "healthcare-small@3", the champion today
resolver.resolve("healthcare", caller).cascade                   # its steps: healthcare-tiny, healthcare-small, teacher
await resolver.route(["Can my landlord keep it?"], caller)       # legal-small, with domain, score, threshold and reason

No answer, error or header names a student that the caller's API key does not allow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from operator import attrgetter

from factory.config.cascades import cascade_domains, cascade_students
from factory.config.languages import UnknownLanguage
from factory.config.names import RESERVED, is_name
from factory.config.schema import FamilySpec, TeacherContext
from factory.data.language import unknown_language
from factory.data.router import DomainRouter, Route
from factory.errors import RegistryError
from factory.registry.layout import kind_of
from factory.registry.manifest import StudentManifest
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.auth import Caller, student_name
from factory.serve.limits import APIError

TEACHER, AUTO, REFUSE = "teacher", "auto", "refuse"


@dataclass(frozen=True)
class Target:
    """Who answers one request, and why. Without a ``version`` it is the teacher, or a model elsewhere.

    A cascade is its first step, with every step in ``cascade``: whoever asks one model only asks that.
    """

    version: Version | None
    base: str  # what an engine loads: a base's reference, or "teacher"; of a model elsewhere its name in the family file
    domain: str | None = None
    score: float | None = None  # the router's score of its best domain
    threshold: float | None = None
    reason: str = "named in the request"
    routing_ms: float | None = None  # with the wait for the router
    language: str | None = None  # of a routed text, where encoder or teacher does not know it
    cascade: tuple[Target, ...] = ()  # every step, this one included
    student: Version | None = None  # of a last step that is none: the student before it, whose context and notice count

    @property
    def reference(self) -> str:
        """``healthcare-small@3``, ``teacher`` or ``giant``: the ``model`` of the response."""
        return self.version.reference if self.version else self.base

    @property
    def name(self) -> str:
        """``healthcare-small``, ``teacher`` or ``giant``: the name that an API key allows."""
        return self.version.name if self.version else self.base

    @property
    def notice(self) -> str:
        """What every answer of this student must be accompanied by."""
        manifest = self._student
        return manifest.notice if manifest else ""

    @property
    def appends_notice(self) -> bool:
        """Whether the notice is also appended to the text of an answer."""
        manifest = self._student
        return bool(manifest and manifest.notice and manifest.append_notice)

    @property
    def context(self) -> TeacherContext:
        """What a teacher is shown before the request's messages: the domain's context in a cascade, else nothing."""
        if self.student is None or not isinstance(self.student.manifest, StudentManifest):
            return TeacherContext()
        return TeacherContext.kept(self.student.manifest.teacher_context)

    @property
    def _student(self) -> StudentManifest | None:
        version = self.version or self.student
        manifest = version.manifest if version else None
        return manifest if isinstance(manifest, StudentManifest) else None


class ModelResolver:
    """Reads the registry at every request, so a moved alias or a new version counts from the next request on."""

    def __init__(
        self,
        registry: Registry,
        family: FamilySpec,
        load_router: Callable[[], DomainRouter],
        private: Collection[str] = (),
    ) -> None:
        self.registry, self.family, self.load_router, self.private = registry, family, load_router, private
        self._router_thread = ThreadPoolExecutor(1, "router")  # one text at a time: the encoder uses every core

    def close(self) -> None:
        self._router_thread.shutdown(wait=False, cancel_futures=True)

    def resolve(self, model: str, caller: Caller) -> Target:
        """``resolver.resolve("healthcare-small@champion", caller)``. Raises: what ``find_version`` does."""
        if model == TEACHER:
            caller.require(TEACHER)
            if self.family.api is not None:
                message = f"the teacher of family {self.family.name} is behind an API and is not served (GET /v1/models)"
                raise APIError(404, message, code="model_not_found", param="model")
            return Target(None, TEACHER)
        if steps := self._cascade(model, caller):
            return replace(steps[0], cascade=steps)
        for name in self._students(model):
            if caller.may(name) and kind_of(self.registry.root, name):
                find_version(self.registry, name, caller)  # says why that step cannot be asked
        return _student_target(find_version(self.registry, model, caller))

    def _cascade(self, domain: str, caller: Caller) -> tuple[Target, ...]:
        """The steps of a domain's cascade that exist and that the caller may use; none for a name of anything else.

        Without a student there is no cascade: the teacher alone would tell whoever may use it which domains there are.
        """
        students: list[Target] = []
        for name in self._students(domain):
            with suppress(APIError):  # not in the registry, not allowed, or no version that passed
                students.append(replace(_student_target(find_version(self.registry, name, caller)), domain=domain))
        last = self.family.serve.cascade[-1] if students else ""
        if not caller.may(last) or last not in (TEACHER, *self.family.models):
            return tuple(students)
        if self._must_stay(last, students[-1]):
            reason = f"{students[0].reason}; {last} is not asked, since text of this private domain must not leave"
            return (replace(students[0], reason=reason), *students[1:])
        return (*students, Target(None, last, domain=domain, student=students[-1].version))

    def _must_stay(self, last: str, student: Target) -> bool:
        """Whether the domain is private, by its YAML now or when its student was built, and its text may not leave."""
        assert student.version is not None and isinstance(student.version.manifest, StudentManifest)
        private = student.domain in self.private or bool(student.version.manifest.spec.get("private"))
        return private and last in self.family.models and not self.family.models[last].may_leave

    def _students(self, domain: str) -> list[str]:
        """Names of a cascade's students, whether they exist or not; none for a name of anything else."""
        if not is_name(domain) or domain in RESERVED or kind_of(self.registry.root, domain):
            return []
        return cascade_students(self.family, domain)

    async def route(self, texts: Sequence[str], caller: Caller) -> Target:
        """``await resolver.route([last_turn, text], caller)``: the domain's cascade, else its student in the default size.

        Of several texts the one that the router is surest of decides, the first of equals: "And in children?" belongs to the
        question before it, and a new subject to itself (docs/log.md, "conversations").
        Where the router abstains, or the domain has no student that the caller may use, ``serve.fallback`` of the family file
        decides.

        Raises: APIError 400 if the fallback is ``refuse``, 403 if the caller may not use it, 404 if it is an unknown model.
        """
        loop = asyncio.get_running_loop()
        start = loop.time()
        within = copy_context()  # the request's id, for what is logged there
        route, unknown = await loop.run_in_executor(self._router_thread, within.run, self._read, texts)
        target = self._routed_target(route, f"; {unknown}" if unknown else "", caller)
        return replace(
            target,
            score=round(route.score, 4),
            threshold=round(route.threshold, 4),
            language=unknown.language if unknown else None,
            routing_ms=round(1000 * (loop.time() - start), 1),
        )

    def _read(self, texts: Sequence[str]) -> tuple[Route, UnknownLanguage | None]:
        """The surest route, and the newest text's language if it is not known."""
        route = max(self.load_router().route(texts), key=attrgetter("score"))
        return route, unknown_language(texts[0], self.family.languages)

    def _routed_target(self, route: Route, language: str, caller: Caller) -> Target:
        if route.domain is None:
            reason = f"the router abstained: best score {route.score:.3f}, threshold {route.threshold:.3f}{language}"
            return self._fallback(reason, None, caller)
        reason = f"the router chose {route.domain} with score {route.score:.3f}{language}"
        if steps := self._cascade(route.domain, caller):
            return replace(steps[0], cascade=steps, reason=reason)
        name = f"{route.domain}-{self.family.default_size}"
        if not caller.may(name):
            reason = f"the router chose a student that this API key does not allow{language}"
            return self._fallback(reason, None, caller)
        try:
            target = self.resolve(name, caller)
        except APIError:
            missing = f"the router chose {route.domain}, but {name} is not in the registry{language}"
            return self._fallback(missing, route.domain, caller)
        return replace(target, reason=reason)

    def _fallback(self, reason: str, domain: str | None, caller: Caller) -> Target:
        fallback, family = self.family.serve.fallback, self.family.name
        if fallback == REFUSE:
            message = f"{reason}, and family {family} has no fallback; name a model (GET /v1/models lists them)"
            raise APIError(400, message, code="router_abstained", param="model")
        if not caller.may(student_name(fallback)):
            message = f"{reason}, nor does this API key allow the fallback of family {family}; name a model (GET /v1/models)"
            raise APIError(403, message, code="model_not_allowed", param="model")
        return replace(self.resolve(fallback, caller), domain=domain, reason=f"{reason}; fallback of family {family}")

    # ------------------------------------------------------------------------------------------------- GET /v1/models

    def list_models(self, caller: Caller) -> list[dict[str, object]]:
        """``resolver.list_models(caller)``: every name that this caller may request, as ``describe`` describes it."""
        models: list[dict[str, object]] = []
        names: list[str] = []
        students = groupby(self.registry.versions("student"), key=attrgetter("name"))  # one scan; sorted by name and number
        for name, summaries in ((name, list(group)) for name, group in students if caller.may(name)):
            names.append(name)
            aliases = sorted(f"{name}@{alias}" for summary in summaries for alias in summary.aliases)
            for reference in (name, *aliases, *(summary.reference for summary in summaries)):
                with suppress(APIError):  # no valid version, or a damaged one
                    models.append(self.describe(reference, caller))
        cascades = [domain for domain in cascade_domains(self.family, names) if self._cascade(domain, caller)]
        teacher = [TEACHER] if caller.may(TEACHER) and self.family.api is None else []
        return [*models, *(self.describe(name, caller) for name in (*cascades, *teacher, AUTO))]

    def describe(self, name: str, caller: Caller) -> dict[str, object]:
        """``resolver.describe("healthcare-small", caller)``: OpenAI's model object.

        ``root`` is the checksum of the version's manifest (of the teacher, its reference); ``parent`` is the base. A cascade
        has its ``steps`` instead.

        Raises: what ``resolve`` does.
        """
        model: dict[str, object] = {"id": name, "object": "model", "created": 0, "owned_by": "student-factory"}
        if name == AUTO:
            return model
        target = self.resolve(name, caller)
        if target.cascade:
            return model | {"steps": [step.reference for step in target.cascade], "notice": target.notice}
        if target.version is None:
            return model | {"root": self.family.teacher.reference, "parent": None}
        version = target.version
        return model | {
            "created": int(datetime.fromisoformat(version.manifest.created).timestamp()),
            "root": version.manifest.manifest_sha256,
            "parent": version.base,
            "version": version.reference,
            "verdict": version.verdict,
            "notice": target.notice,
        }


def find_version(registry: Registry, model: str, caller: Caller) -> Version:
    """``find_version(registry, "healthcare-small@champion", caller)``.

    Raises: APIError 403 for a model that the key gives no access to, 404 for an unknown one; either names only models that the
        key allows.
    """
    caller.require(model)
    try:
        return registry.resolve(model)
    except RegistryError as error:
        message = str(error)
        if kind_of(registry.root, student_name(model)) is None:  # the registry's own message lists every student
            known = sorted({summary.name for summary in registry.versions("student") if caller.may(summary.name)})
            message = f"no such model; this API key allows {', '.join(known) or 'none of those that exist'}"
        raise APIError(404, f"model {model!r}: {message}", code="model_not_found", param="model") from None


def _student_target(version: Version) -> Target:
    if not isinstance(version.manifest, StudentManifest):
        message = f"model {version.reference!r} is a base and answers nothing by itself; name one of its students"
        raise APIError(404, message, code="model_not_found", param="model")
    return Target(version, version.manifest.base, domain=version.manifest.domain)
