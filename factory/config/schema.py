"""What users write in ``domains/*.yaml``, checked strictly. No torch here: ``factory validate`` answers at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from factory.errors import SpecError

NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"  # becomes a folder name: no dots, no slashes
Name = Annotated[str, Field(pattern=NAME, max_length=40)]
Weight = Annotated[float, Field(ge=0.0)]
Spec = TypeVar("Spec")


class Strict(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---------------------------------------------------------------------------------------------------------- sources


class SourceBase(Strict):
    id: Name
    license: str
    completions: Literal["source", "teacher"] = "source"  # "source": use its completions where it has them
    limit: int | None = Field(default=None, ge=1)  # at most so many examples, drawn with the seed


class TemplateSource(SourceBase):
    """``What are early signs of {condition}?`` with every value of every slot."""

    kind: Literal["templates"]
    templates: tuple[str, ...] = Field(min_length=1)
    slots: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def every_slot_is_filled(self) -> TemplateSource:
        for template in self.templates:
            for slot in re.findall(r"{(\w*)}", template):
                if not self.slots.get(slot):
                    raise ValueError(f"template {template!r} needs slot {slot!r}; slots here: {sorted(self.slots)}")
        return self


class FileSource(SourceBase):
    """A jsonl, csv or parquet file; fields name its columns."""

    kind: Literal["file"]
    path: str
    prompt: str = "prompt"
    completion: str | None = None
    id_field: str | None = None


class DocumentSource(SourceBase):
    """A folder of .txt and .md files, cut into chunks; every token of a chunk is a completion token."""

    kind: Literal["documents"]
    path: str
    chunk_tokens: int = Field(default=160, ge=16)


class HubSource(SourceBase):
    """``datasets.load_dataset(dataset, name, split=split, revision=revision)``."""

    kind: Literal["hub"]
    dataset: str
    revision: str
    name: str | None = None
    split: str = "train"
    prompt: str = "prompt"
    completion: str | None = None
    id_field: str | None = None


class TeacherPromptSource(SourceBase):
    """The teacher writes prompts itself from the opening of a user turn (Magpie, arXiv 2406.08464)."""

    kind: Literal["teacher_prompts"]
    count: int = Field(ge=1)
    opening: str = ""  # first words of the user turn, to steer the teacher into the domain
    temperature: float = Field(default=1.0, gt=0)


Source = Annotated[TemplateSource | FileSource | DocumentSource | HubSource | TeacherPromptSource, Field(discriminator="kind")]


# --------------------------------------------------------------------------------------------------------- settings


DEFAULT_PROFILE = "default"


class ModelSpec(Strict):
    """``model: hub:org/name@revision | pypi:package==version/file | path:./folder``."""

    model: str = Field(pattern=r"^(hub:[^@\s]+@\S+|path:\S+|pypi:[\w.-]+==[\w.]+/\S+)$")
    license: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")  # of the wheel or file; needed for pypi:
    parts: dict[str, str] = Field(default_factory=dict)  # pypi: more wheels whose files are joined, requirement: sha256

    @model_validator(mode="after")
    def pypi_is_pinned(self) -> ModelSpec:
        if self.model.startswith("pypi:") and self.sha256 is None:
            raise ValueError(f"{self.model} needs sha256: (the wheel's, as `pip hash` prints it)")
        return self


class TeacherSpec(ModelSpec):
    chat_template: str | None = None  # Jinja; for a teacher that has none, or to leave its default system turn out


class SizeSpec(Strict):
    """Either pruned from the teacher (``layers``, ``vocabulary``) or any causal model with its vocabulary (``base``)."""

    layers: int | None = Field(default=None, ge=1)
    vocabulary: int | None = Field(default=None, ge=300)  # at most so many tokens; None keeps the teacher's
    base: ModelSpec | None = None

    @model_validator(mode="after")
    def pruned_or_named(self) -> SizeSpec:
        if self.base is not None and self.layers is not None:
            raise ValueError("a size has either `layers` (pruned from the teacher) or `base`, not both")
        if self.base is None and self.layers is None:
            raise ValueError("a size needs `layers` (pruned from the teacher) or `base`")
        return self


class TrainConfig(Strict):
    """One optimiser's settings."""

    steps: int = Field(ge=1)
    batch: int = Field(default=32, ge=1)  # examples per step
    learning_rate: float = Field(gt=0)


class DistillConfig(TrainConfig):
    """The objective: response (GKD), feature and relation terms, and the adapter it trains.

    ``lmbda``, ``beta``, ``temperature`` and ``seq_kd`` are those of GKD (Agarwal et al. 2023, arXiv 2306.13649).
    """

    lmbda: float = Field(default=0.0, ge=0, le=1)  # share of steps on the student's own samples
    beta: float = Field(default=0.0, ge=0, le=1)  # 0: KL(teacher || student), 1: KL(student || teacher)
    temperature: float = Field(default=1.0, gt=0)  # of both distributions in the loss, and of sampling
    seq_kd: bool = False  # off-policy steps on fresh teacher samples instead of the stored completions
    max_new_tokens: int = Field(default=96, ge=1)  # of a sampled completion
    response: Weight = 1.0
    feature: Weight = 0.0
    relation: Weight = 0.0
    top_k: int = Field(default=36, ge=1)  # teacher log-probabilities kept per position, besides the remaining mass
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"

    @model_validator(mode="after")
    def something_is_learnt(self) -> DistillConfig:
        if self.response == self.feature == self.relation == 0:
            raise ValueError("response, feature and relation are all 0: there is nothing to learn from")
        return self

    @model_validator(mode="after")
    def relation_sees_pairs(self) -> DistillConfig:
        if self.relation > 0 and self.batch < 32:
            raise ValueError(f"relation > 0 needs batch >= 32 (a batch of {self.batch} has too few pairs)")
        return self


class HealConfig(DistillConfig):
    """How the shared base is trained: the same objective, on all its weights, with all public domains."""

    share: float = 1.0  # of each domain's training examples; below 1 its adapter takes the rest

    @model_validator(mode="after")
    def both_have_examples(self) -> HealConfig:
        if not (0.1 <= self.share <= 0.9 or self.share == 1):
            raise ValueError(f"share is 0.1 to 0.9, or 1 where base and adapters learn from the same, not {self.share}")
        return self


class DataConfig(Strict):
    """How a data set is made from prompts."""

    max_prompt_tokens: int = Field(default=192, ge=8)
    max_completion_tokens: int = Field(default=128, ge=8)
    max_examples: int = Field(default=2000, ge=20)  # prompts a domain, after routing and cleaning
    repetition_penalty: float = Field(default=1.1, ge=1)  # of the teacher's completions; 1 lets a small teacher loop
    near_duplicate: float = Field(default=0.95, gt=0, le=1)  # cosine of the family's encoder
    validation: float = Field(default=0.05, gt=0, lt=0.5)
    test: float = Field(default=0.1, gt=0, lt=0.5)


class RouterConfig(Strict):
    max_false_rejection: float = Field(default=0.05, gt=0, lt=1)  # in-domain texts sent to no domain, at most
    max_per_domain: int = Field(default=2000, ge=20)  # texts a domain to train on


class EvaluateConfig(Strict):
    """How much held-out text is measured."""

    examples: int = Field(default=150, ge=2)  # held-out examples a domain
    general: int = Field(default=60, ge=2)  # of the general pool
    bootstrap: int = Field(default=1000, ge=100)  # resamples behind every interval


class Gate(Strict):
    """``kl: {at_most: 0.8}``: a bound on a reported figure; ``of: low`` or ``high`` judges that end of its interval."""

    at_most: float | None = None
    at_least: float | None = None
    of: Literal["value", "low", "high"] = "value"
    required: bool = True  # a figure that was not measured fails; False passes it over (canaries are planted on demand)

    @model_validator(mode="after")
    def one_bound(self) -> Gate:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a gate has either at_most or at_least")
        return self


class ServeConfig(Strict):
    """What ``factory serve`` does with a request for the model ``auto``."""

    # Who answers where the router abstains: the teacher, a student by name, or nobody (the client is told so).
    fallback: Literal["teacher", "refuse"] | Name = "teacher"


class Profile(Strict):
    """Overrides by name: ``factory build --profile demo``. Anything left out keeps its value."""

    data: dict[str, Any] = Field(default_factory=dict)
    heal: dict[str, Any] = Field(default_factory=dict)
    distill: dict[str, Any] = Field(default_factory=dict)
    evaluate: dict[str, Any] = Field(default_factory=dict)


class FamilySpec(Strict):
    """``domains/<name>.family.yaml``: one teacher and the students it may have."""

    name: Name
    description: str = ""
    teacher: TeacherSpec
    encoder: ModelSpec
    sizes: dict[Name, SizeSpec] = Field(min_length=1)
    default_size: Name
    router: RouterConfig = RouterConfig()
    pool: tuple[Source, ...] = ()  # unlabelled texts: each goes to a domain's data set or to none
    general: Name  # a pool file, domains/<name>.pool.yaml: the router abstains on it, what is forgotten is measured on it
    data: DataConfig = DataConfig()
    heal: HealConfig
    distill: DistillConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    # Between the teacher and a smaller size: none; auto tries the next larger size and keeps the better; or sizes by name.
    path: Literal["auto", "none"] | tuple[Name, ...] = "none"
    gates: dict[str, Gate] = Field(default_factory=dict)  # by figure; what fails one is published and never promoted
    serve: ServeConfig = ServeConfig()
    profiles: dict[Name, Profile] = Field(default_factory=dict)
    seed: int = 0

    @model_validator(mode="after")
    def default_size_is_a_size(self) -> FamilySpec:
        if self.default_size not in self.sizes:
            raise ValueError(f"default_size {self.default_size!r} is no size; sizes here: {', '.join(self.sizes)}")
        return self

    @model_validator(mode="after")
    def path_is_of_sizes(self) -> FamilySpec:
        for name in self.path if isinstance(self.path, tuple) else ():
            if name not in self.sizes:
                raise ValueError(f"path: {name!r} is not a size; sizes here: {', '.join(self.sizes)}")
            if self.sizes[name].layers is None:
                raise ValueError(f"path: {name!r} has a base of its own; a teacher assistant is pruned from the teacher")
        return self

    def teacher_assistant(self, size: str) -> str | None:
        """``family.teacher_assistant("tiny")``: the size that may stand between the teacher and this one, or None.

        The next larger of those that ``path`` names (of all, where it is ``auto``) with as many tokens.
        """
        own = self.sizes[size]
        if self.path == "none" or own.layers is None:
            return None
        named = self.sizes if self.path == "auto" else self.path
        larger = {
            name: one.layers
            for name in named
            if (one := self.sizes[name]).layers is not None and one.layers > own.layers and one.vocabulary == own.vocabulary
        }
        return min(larger, key=lambda name: larger[name] or 0, default=None)

    def gates_of(self, domain: DomainSpec) -> dict[str, Gate]:
        """``family.gates_of(domain)``: the family's gates, a domain's in place of those of the same figure; null removes."""
        return {name: gate for name, gate in (self.gates | domain.gates).items() if gate is not None}

    def settings(self, profile: str, domain: DomainSpec | None = None) -> Settings:
        """``family.settings("demo", domain)``: the family's settings, then the domain's overrides, then the profile's.

        Raises: SpecError for an unknown profile; pydantic's ValidationError for an override that does not fit.
        """
        if profile != DEFAULT_PROFILE and profile not in self.profiles:
            known = ", ".join([DEFAULT_PROFILE, *self.profiles])
            raise SpecError(f"unknown profile {profile!r} of family {self.name}; it has: {known}")
        return Settings(profile=profile, **{section: self.section(section, profile, domain) for section in SECTIONS})

    def section(self, section: str, profile: str, domain: DomainSpec | None = None) -> Any:
        """One of SECTIONS with its overrides. Raises: pydantic's ValidationError for one that does not fit."""
        values = getattr(self, section).model_dump()
        for overrides in (domain, self.profiles.get(profile)):
            values |= getattr(overrides, section, {})
        return SECTIONS[section].model_validate(values)


class Settings(Strict):
    """What one build uses, all overrides applied."""

    profile: str
    data: DataConfig
    heal: HealConfig
    distill: DistillConfig
    evaluate: EvaluateConfig


# What a profile may override; a domain has data and distill of its own.
SECTIONS: dict[str, type[Strict]] = {
    "data": DataConfig,
    "heal": HealConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
}


class Turn(Strict):
    """A worked example that only the teacher sees."""

    prompt: str
    completion: str


class TeacherContext(Strict):
    """Shown to the teacher alone; the student learns to answer as if it had read it (arXiv 2112.00861)."""

    system: str = ""
    examples: tuple[Turn, ...] = ()


class DomainSpec(Strict):
    """``domains/<name>.yaml``."""

    name: Name
    description: str
    sources: tuple[Source, ...] = Field(min_length=1)
    teacher_context: TeacherContext = TeacherContext()
    notice: str = ""  # what a card and an answer must say ("no medical advice")
    append_notice: bool = False  # whether the server puts the notice at the end of every answer, or beside it only
    personal_data: Literal["refuse", "drop", "allow"] = "drop"  # examples with e-mail addresses, phone, card numbers, …
    bias_pairs: tuple[str, ...] = ()  # files of counterfactual pairs (YAML of templates, or JSONL), for bias transfer
    tasks: tuple[str, ...] = ()  # lm-evaluation-harness: paths of task YAMLs here, or names of its own (pubmedqa)
    golden_set: str | None = None  # JSONL of questions and what an answer must and must not contain
    gates: dict[str, Gate | None] = Field(default_factory=dict)  # in place of the family's; null removes one
    private: bool = False  # keep this text out of the shared base, the vocabulary and the router
    distill: dict[str, Any] = Field(default_factory=dict)  # overrides of the family's distill
    data: dict[str, Any] = Field(default_factory=dict)  # overrides of the family's data


class PoolSpec(Strict):
    """``domains/<name>.pool.yaml``: texts of no domain."""

    name: Name
    description: str = ""
    sources: tuple[Source, ...] = Field(min_length=1)


# ---------------------------------------------------------------------------------------------------------- together


class Specs(BaseModel):
    """Every YAML of one folder, checked together."""

    model_config = ConfigDict(frozen=True)

    root: Path
    families: dict[str, FamilySpec]
    domains: dict[str, DomainSpec]
    pools: dict[str, PoolSpec]

    def family(self, name: str) -> FamilySpec:
        """Raises: SpecError with the families that exist."""
        return _known(self.families, name, "family", self.root)

    def domain(self, name: str) -> DomainSpec:
        """Raises: SpecError with the domains that exist."""
        return _known(self.domains, name, "domain", self.root)

    def family_of_size(self, size: str) -> FamilySpec:
        """The one family that has this size. Raises: SpecError with the sizes that exist."""
        for family in self.families.values():
            if size in family.sizes:
                return family
        sizes = [f"{size} ({family.name})" for family in self.families.values() for size in family.sizes]
        raise SpecError(f"unknown size {size!r}; sizes in {self.root}: {', '.join(sizes)}")


def _known(specs: Mapping[str, Spec], name: str, what: str, root: Path) -> Spec:
    if name in specs:
        return specs[name]
    close = difflib.get_close_matches(name, specs, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise SpecError(f"unknown {what} {name!r}: {hint}{root} has {', '.join(sorted(specs)) or 'none'}")


SOURCE_KINDS: dict[str, type[SourceBase]] = {
    "templates": TemplateSource,
    "file": FileSource,
    "documents": DocumentSource,
    "hub": HubSource,
    "teacher_prompts": TeacherPromptSource,
}
