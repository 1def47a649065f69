"""What users write in ``domains/*.yaml``: families, domains and pools. No torch here: ``factory validate`` answers at once.

Every key has a description; ``docs/domains.md`` is generated from them (``python scripts/docs.py``).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from factory.config.endpoints import AnyTeacher, ApiTeacherSpec, EndpointSpec, Price
from factory.config.models import EncoderSpec, ModelSpec, SizeSpec, TeacherSpec
from factory.config.names import RESERVED
from factory.config.settings import (
    DEFAULT_PROFILE,
    PRIVATE_GATES,
    SECTIONS,
    ConfidenceConfig,
    DataConfig,
    DistillConfig,
    EmbedConfig,
    EvaluateConfig,
    Gate,
    HealConfig,
    OnPolicyConfig,
    RouterConfig,
    ServeConfig,
    Settings,
    TrainConfig,
)
from factory.config.sources import (
    SOURCE_KINDS,
    DocumentSource,
    FileSource,
    HubSource,
    Name,
    Source,
    SourceBase,
    Strict,
    TeacherContext,
    TeacherContexts,
    TeacherPromptSource,
    TemplateSource,
    Turn,
)
from factory.errors import SpecError

Spec = TypeVar("Spec")

__all__ = [
    "DEFAULT_PROFILE",
    "SECTIONS",
    "SOURCE_KINDS",
    "AnyTeacher",
    "ApiTeacherSpec",
    "ConfidenceConfig",
    "DataConfig",
    "DistillConfig",
    "DocumentSource",
    "DomainSpec",
    "EmbedConfig",
    "EncoderSpec",
    "EndpointSpec",
    "EvaluateConfig",
    "FamilySpec",
    "FileSource",
    "Gate",
    "HealConfig",
    "HubSource",
    "ModelSpec",
    "Name",
    "OnPolicyConfig",
    "PoolSpec",
    "Price",
    "Profile",
    "RouterConfig",
    "ServeConfig",
    "Settings",
    "SizeSpec",
    "Source",
    "SourceBase",
    "Specs",
    "Strict",
    "TeacherAdaptation",
    "TeacherContext",
    "TeacherContexts",
    "TeacherPromptSource",
    "TeacherSpec",
    "TemplateSource",
    "TrainConfig",
    "Turn",
]


class Profile(Strict):
    """Overrides under a name: `factory build --profile demo`. What is left out keeps the family's value."""

    data: dict[str, Any] = Field(default={}, description="Overrides of `data`.")
    heal: dict[str, Any] = Field(default={}, description="Overrides of `heal`.")
    distill: dict[str, Any] = Field(default={}, description="Overrides of `distill`.")
    embed: dict[str, Any] = Field(default={}, description="Overrides of `embed`.")
    confidence: dict[str, Any] = Field(default={}, description="Overrides of `confidence`.")
    evaluate: dict[str, Any] = Field(default={}, description="Overrides of `evaluate`.")


class TeacherAdaptation(Strict):
    """LoRA on the domain's own references before the teacher is asked: teacher correction (Minitron, arXiv 2408.11796).

    Answers and soft targets of the domain are then the adapted teacher's.
    """

    steps: int = Field(ge=1, description="Optimiser steps.")
    rank: int = Field(default=16, ge=1, description="LoRA rank; alpha is twice as much.")
    learning_rate: float = Field(default=5e-4, gt=0, description="Peak learning rate.")
    batch: int = Field(default=8, ge=1, description="References per step.")


class FamilySpec(Strict):
    """One teacher and the sizes of its students: `domains/<name>.family.yaml`."""

    name: Name = Field(description="As the file is called.")
    description: str = Field(default="", description="One line, for lists and cards.")
    teacher: AnyTeacher = Field(description="The model that students learn from, or the API that it is behind.")
    encoder: EncoderSpec = Field(description="Sentence encoder of the router and of the search for near duplicates.")
    sizes: dict[Name, SizeSpec] = Field(min_length=1, description="Sizes by name. A student is called `<domain>-<size>`.")
    default_size: Name = Field(description="The size that `factory build` takes without `--size`.")
    router: RouterConfig = Field(default=RouterConfig(), description="How the domain router is trained.")
    pool: tuple[Source, ...] = Field(
        default=(), description="Unlabelled sources; the router sends each text to a domain or to none."
    )
    general: Name = Field(
        description="A pool file, `<name>.pool.yaml`: the router learns to abstain on it, and forgetting is measured on it."
    )
    data: DataConfig = Field(default=DataConfig(), description="How prompts become a data set.")
    heal: HealConfig = Field(description="How the shared base is trained after pruning.")
    distill: DistillConfig = Field(description="How an adapter is trained.")
    embed: EmbedConfig = Field(default=EmbedConfig(), description="The head with which a student embeds texts.")
    confidence: ConfidenceConfig = Field(default=ConfidenceConfig(), description="How sure a student is of its own answers.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="How much held-out text is evaluated.")
    injections: str | None = Field(
        default=None, description="JSONL of tasks on texts that hide an instruction: does a student obey it?"
    )
    jailbreaks: str | None = Field(default=None, description="JSONL of harmful requests in disguise: does a student decline?")
    path: Literal["auto", "direct", "stepwise", "assistant"] = Field(
        default="direct",
        description="The distillation path to a smaller size. `direct`: cut from the teacher, which teaches it. `stepwise`: "
        "cut from the next larger size's base, taught by the teacher. `assistant`: cut from that base and taught by it. "
        "`auto`: try all three, and keep the best.",
    )
    gates: dict[str, Gate] = Field(
        default={}, description="By metric. A student that fails one is published but cannot be promoted."
    )
    serve: ServeConfig = Field(
        default=ServeConfig(), description="What `factory serve` does with the model `auto`, and with a domain's name."
    )
    models: dict[Name, EndpointSpec] = Field(
        default={}, description="Models elsewhere, by name: `serve.cascade` [may end with one](serving.md#a-model-elsewhere)."
    )
    profiles: dict[Name, Profile] = Field(default={}, description="Named overrides, for `--profile`.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of everything random.")

    @model_validator(mode="after")
    def default_size_exists(self) -> FamilySpec:
        if self.default_size not in self.sizes:
            raise ValueError(f"default_size {self.default_size!r} is not one of the sizes: {', '.join(self.sizes)}")
        return self

    @property
    def api(self) -> ApiTeacherSpec | None:
        """``family.api``: the API that its teacher is behind; None where its weights are at hand."""
        return self.teacher if isinstance(self.teacher, ApiTeacherSpec) else None

    @property
    def weights(self) -> TeacherSpec:
        """``family.weights``: its teacher, for what needs the model itself. Raises: SpecError where it is behind an API."""
        if isinstance(self.teacher, ApiTeacherSpec):
            raise SpecError(
                f"the teacher of family {self.name}, {self.teacher.reference}, is behind an API: it has no weights here"
            )
        return self.teacher

    def taught_by(self, domain: DomainSpec | None) -> FamilySpec:
        """``family.taught_by(spec).teacher``: the same family with the domain's own teacher, where it names one."""
        own = domain.teacher if domain is not None else None
        return self if own is None else self.model_copy(update={"teacher": own})

    @property
    def files(self) -> ModelSpec:
        """``family.files``: the model whose files every build needs first: the teacher, or the base of an API's students."""
        base = self.sizes[self.default_size].base
        return base if self.api is not None and base is not None else self.weights

    @property
    def languages(self) -> dict[str, tuple[str, ...]]:
        """``family.languages["teacher"]``: those that encoder and teacher know; without a model that states none."""
        stated = {"encoder": self.encoder.languages, "teacher": self.teacher.languages}
        return {model: languages for model, languages in stated.items() if languages}

    def larger_size(self, size: str) -> str | None:
        """``family.larger_size("tiny")``: the size whose base this one may be cut from, or None.

        The next larger of those that state their ``layers`` and have the same vocabulary; None where ``path`` is ``direct``.
        """
        own = self.sizes[size]
        if self.path == "direct" or own.layers is None:
            return None
        larger = {name: one.layers or 0 for name, one in self.sizes.items() if one.holds(own)}
        return min(larger, key=lambda name: larger[name], default=None)

    def gates_of(self, domain: DomainSpec) -> dict[str, Gate]:
        """``family.gates_of(domain)``: the family's gates, replaced by the domain's of the same metric; null removes one.

        A private domain has ``PRIVATE_GATES`` too, whatever its family says of these metrics.
        """
        shared = self.gates | PRIVATE_GATES if domain.private else self.gates
        return {name: gate for name, gate in (shared | domain.gates).items() if gate is not None}

    def of_size(self, size: str) -> FamilySpec:
        """``family.of_size("tiny").settings("demo").heal``: the family with this size's own `heal`.

        Raises: pydantic's ValidationError for an override that does not fit.
        """
        heal = HealConfig.model_validate(self.heal.model_dump() | self.sizes[size].heal)
        return self.model_copy(update={"heal": heal})

    def settings(self, profile: str, domain: DomainSpec | None = None) -> Settings:
        """``family.settings("demo", domain)``: the family's settings, then the domain's overrides, then the profile's.

        Raises: SpecError for an unknown profile; pydantic's ValidationError for an override that does not fit.
        """
        if profile != DEFAULT_PROFILE and profile not in self.profiles:
            known = ", ".join([DEFAULT_PROFILE, *self.profiles])
            raise SpecError(f"unknown profile {profile!r}: family {self.name} has {known}")
        return Settings(profile=profile, **{section: self.section(section, profile, domain) for section in SECTIONS})

    def section(self, section: str, profile: str, domain: DomainSpec | None = None) -> Any:
        """One of SECTIONS with its overrides. Raises: pydantic's ValidationError for an override that does not fit."""
        values = getattr(self, section).model_dump()
        for overrides in (domain, self.profiles.get(profile)):
            values |= getattr(overrides, section, {})
        return SECTIONS[section].model_validate(values)


class DomainSpec(Strict):
    """One domain: its prompts, how the teacher answers them and how its students are judged: `domains/<name>.yaml`."""

    name: Name = Field(description="As the file is called.")
    description: str = Field(description="One line: what belongs here.")
    sources: tuple[Source, ...] = Field(min_length=1, description="Where the prompts come from; kinds of source are below.")
    teacher_context: TeacherContext = Field(
        default=TeacherContext(), description="What the teacher alone is shown; a source may have its own."
    )
    teacher: TeacherSpec | None = Field(
        default=None,
        description="Another model than the family's teacher for this domain alone; the base stays the family's. It needs the "
        "very tokens of the family's teacher, and reads and writes with the family's chat template.",
    )
    teacher_adaptation: TeacherAdaptation | None = Field(
        default=None, description="Adapt the teacher to the references of these sources before it is asked; needs 20 of them."
    )
    notice: str = Field(default="", description="A notice for cards and answers, such as “This is not medical advice.”")
    append_notice: bool = Field(default=False, description="Whether the server appends the notice to every answer.")
    personal_data: Literal["refuse", "drop", "allow"] = Field(
        default="drop",
        description="Examples with e-mail addresses, phone or card numbers: stop the build, drop them, or keep them.",
    )
    bias_pairs: tuple[str, ...] = Field(
        default=(), description="Files of sentence pairs that differ in one group (YAML or JSONL)."
    )
    tasks: tuple[str, ...] = Field(
        default=(), description="lm-evaluation-harness tasks: YAML files, or names such as `pubmedqa`."
    )
    golden_set: str | None = Field(
        default=None, description="JSONL of questions with what an answer must and must not contain."
    )
    refusals: str | None = Field(
        default=None, description="JSONL of prompts to decline or to refer to a professional, and of harmless look-alikes."
    )
    gates: dict[str, Gate | None] = Field(default={}, description="Gates in place of the family's; `null` removes one.")
    private: bool = Field(
        default=False,
        description="Keep this text out of the shared base, the vocabulary and the router, and judge whether its student "
        "repeats it.",
    )
    distill: dict[str, Any] = Field(default={}, description="Overrides of the family's `distill`.")
    embed: dict[str, Any] = Field(default={}, description="Overrides of the family's `embed`.")
    confidence: dict[str, Any] = Field(default={}, description="Overrides of the family's `confidence`.")
    data: dict[str, Any] = Field(default={}, description="Overrides of the family's `data`.")

    @field_validator("name")
    @classmethod
    def name_means_nothing_else(cls, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"is reserved, as are {', '.join(one for one in RESERVED if one != name)}; choose another name")
        return name

    @field_validator("teacher")
    @classmethod
    def teacher_has_the_family_s_template(cls, teacher: TeacherSpec | None) -> TeacherSpec | None:
        if teacher is not None and (teacher.chat_template is not None or teacher.chat_template_kwargs):
            raise ValueError(
                "a domain's teacher reads and writes with its family's chat template, as its student does; leave chat_template "
                "and chat_template_kwargs out"
            )
        return teacher

    @property
    def contexts(self) -> TeacherContexts:
        """``spec.contexts.of(row["source"])``: what the teacher is shown with a row of this domain."""
        own = {source.id: source.teacher_context for source in self.sources if source.teacher_context is not None}
        return TeacherContexts(self.teacher_context, own)

    @property
    def has_own_teacher(self) -> bool:
        """Whether its students learn from another model than the family's teacher as it is."""
        return self.teacher is not None or self.teacher_adaptation is not None

    def unadapted(self) -> DomainSpec:
        """``spec.unadapted()``: the same domain, which the family's teacher answers as it is."""
        return self.model_copy(update={"teacher": None, "teacher_adaptation": None})

    def dump(self) -> dict[str, Any]:
        """``spec.dump()``: as manifests and cache keys have it.

        ``teacher``, which domains did not always have, is in it only where it is set, so that keys made before stay valid.
        """
        return self.model_dump(exclude={"teacher"} if self.teacher is None else None)


class PoolSpec(Strict):
    """Texts of no domain: `domains/<name>.pool.yaml`."""

    name: Name = Field(description="As the file is called.")
    description: str = Field(default="", description="One line.")
    sources: tuple[Source, ...] = Field(min_length=1, description="Where the texts come from.")


class Specs(BaseModel):
    """All YAML files of one folder, checked together."""

    model_config = ConfigDict(frozen=True)

    root: Path
    families: dict[str, FamilySpec]
    domains: dict[str, DomainSpec]
    pools: dict[str, PoolSpec]

    def family(self, name: str) -> FamilySpec:
        """``specs.family("default")``. Raises: SpecError that lists the families."""
        return _named(self.families, name, "family", self.root)

    def domain(self, name: str) -> DomainSpec:
        """``specs.domain("legal")``. Raises: SpecError that lists the domains."""
        return _named(self.domains, name, "domain", self.root)

    def family_of_size(self, size: str) -> FamilySpec:
        """``specs.family_of_size("tiny")``: the one family with this size. Raises: SpecError that lists the sizes."""
        for family in self.families.values():
            if size in family.sizes:
                return family
        sizes = [f"{size} ({family.name})" for family in self.families.values() for size in family.sizes]
        raise SpecError(f"unknown size {size!r}: {self.root} has {', '.join(sizes)}")


def _named(specs: Mapping[str, Spec], name: str, kind: str, root: Path) -> Spec:
    if name in specs:
        return specs[name]
    close = difflib.get_close_matches(name, specs, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise SpecError(f"unknown {kind} {name!r}: {hint}{root} has {', '.join(sorted(specs)) or 'none'}")
