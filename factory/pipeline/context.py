"""What every stage of a build is given: the context of the build, and the models of its family.

context = make_context(specs, specs.family("default"), profile="demo", registry=Registry("registry"))
models = resolve_models(context.family, context.specs.root, context.device)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from factory.config.schema import DomainSpec, FamilySpec, Settings, Specs
from factory.energy import Meter
from factory.evaluation.stats import BootstrapConfig
from factory.models.device import pick_device
from factory.models.domain_teacher import load_domain_teacher
from factory.models.references import ResolvedModel, load_encoder
from factory.models.teacher import Teacher
from factory.models.templates import resolve_teacher
from factory.pipeline.api_teacher import account_of, require_teachable, resolve_api_teacher
from factory.pipeline.unfinished import NO_NOTE, BuildNote
from factory.registry.provenance import git_commit
from factory.registry.registry import Registry

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def no_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """``with no_progress("heal", 320) as advance:`` a progress bar that nobody sees."""
    yield lambda steps: None


def say_nothing(line: str) -> None:
    """``say_nothing("...")``: for callers that want no messages."""


@dataclass(frozen=True)
class BuildContext:
    """One build: what it is made from, where it goes, and how it reports. Stages read it and never change it."""

    specs: Specs
    family: FamilySpec
    profile: str
    registry: Registry
    device: torch.device
    seed: int
    resume: bool = True  # go on from checkpoints of an earlier, stopped build
    force: bool = False  # build even where the teacher pre-check fails; the card says so
    git_commit: str | None = field(default_factory=git_commit)  # of the code that runs, whatever is committed meanwhile
    meter: Meter = field(default_factory=Meter)  # of the version that is being made
    note: BuildNote = NO_NOTE  # of where the build keeps what it makes, for one that goes on with it
    progress: ProgressBar = no_progress
    say: Callable[[str], None] = say_nothing  # one line for people

    @property
    def public_domains(self) -> list[DomainSpec]:
        """Domains whose text may reach the shared base, the vocabulary and the router."""
        return [domain for domain in self.specs.domains.values() if not domain.private]

    @property
    def routed_domains(self) -> list[DomainSpec]:
        """What the router tells apart: the public domains; where all are private, these: no other student shares it then."""
        return self.public_domains or list(self.specs.domains.values())

    @property
    def healing_domains(self) -> list[DomainSpec]:
        """What a pruned base is healed on: the public domains, or where there are none the general pool."""
        pool = self.specs.pools[self.family.general]
        return self.public_domains or [DomainSpec(name=pool.name, description=pool.description, sources=pool.sources)]

    @property
    def bootstrap(self) -> BootstrapConfig:
        """Behind every interval of this build."""
        return BootstrapConfig(self.settings().evaluate.bootstrap, self.seed)

    def of_size(self, size: str) -> BuildContext:
        """``context.of_size("tiny").settings().heal``: the same build with that size's own `heal`."""
        return replace(self, family=self.family.of_size(size))

    def settings(self, domain: DomainSpec | None = None) -> Settings:
        """``context.settings(domain).distill``: the family's settings, the domain's and the profile's overrides applied."""
        return self.family.settings(self.profile, domain)


def make_context(
    specs: Specs,
    family: FamilySpec,
    *,
    registry: Registry,
    profile: str = "default",
    device: str = "auto",
    seed: int | None = None,
    resume: bool = True,
    force: bool = False,
    progress: ProgressBar = no_progress,
    say: Callable[[str], None] = say_nothing,
) -> BuildContext:
    """``make_context(specs, specs.family("default"), registry=Registry("registry"), profile="demo")``

    Raises: SpecError for an unknown profile, TrainingError for a device that is not there.
    """
    family.settings(profile)
    return BuildContext(
        specs,
        family,
        profile,
        registry,
        pick_device(device),
        family.seed if seed is None else seed,
        resume=resume,
        force=force,
        progress=progress,
        say=say,
    )


@dataclass(frozen=True)
class FamilyModels:
    """A family's teacher and encoder: files on this machine, weights in memory from their first use.

    Of a domain that names its own teacher, ``models.of(spec)`` has that one in the family's place.
    """

    family: FamilySpec  # with the teacher that these models have
    root: Path  # the folder of the YAML files, where `path:` references start
    device: torch.device
    teacher_files: ResolvedModel
    teacher: Teacher  # with its whole vocabulary
    family_models: FamilyModels | None = None  # those with the family's teacher, where this one is a domain's own

    @property
    def shared(self) -> FamilyModels:
        """``models.shared.teacher``: the family's, which base, vocabulary and router are made with."""
        return self.family_models or self

    def of(self, domain: DomainSpec) -> FamilyModels:
        """``models.of(spec).teacher``: the domain's own, where it names one, else the family's; whatever these models have.

        Raises: ModelResolutionError where that one has other tokens than the family's, or cannot be fetched.
        """
        shared = self.shared
        if domain.teacher is None:
            return shared
        if self.family.teacher == domain.teacher:
            return self
        files, teacher = load_domain_teacher(domain.teacher, shared.teacher_files, shared.teacher, self.root)
        return FamilyModels(shared.family.taught_by(domain), self.root, self.device, files, teacher, shared)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.teacher.tokenizer

    @cached_property
    def encoder(self) -> Any:
        if self.family_models is not None:
            return self.family_models.encoder
        return load_encoder(self.family.encoder, self.device.type, root=self.root)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """``models.embed(["What is gout?"])``: (N, D) float32 unit vectors of the encoder."""
        embeddings = self.encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(embeddings, dtype=np.float32)


def models_for(context: BuildContext, domain: DomainSpec) -> FamilyModels:
    """``models_for(context, spec)``: as ``resolve_models``, with who teaches the domain.

    Raises: SpecError for a domain that this family's teacher cannot teach, or must not see.
    """
    require_teachable(context.family, context.profile, domain)
    return taught(context, resolve_models(context.family, context.specs.root, context.device), domain)


def taught(context: BuildContext, models: FamilyModels, domain: DomainSpec) -> FamilyModels:
    """``taught(context, models, spec)``: with the domain's own teacher; what an API is asked is on the domain's account."""
    family = context.family
    if family.api is None or models.teacher.api is None:
        return models.of(domain)
    account = account_of(family, family.api, context.profile, context.seed, domain.name)
    return replace(models, teacher=replace(models.teacher, api=replace(models.teacher.api, account=account)))


def resolve_models(family: FamilySpec, root: Path, device: torch.device) -> FamilyModels:
    """``resolve_models(specs.family("default"), specs.root, device)``: fetches the teacher's files where they are missing.

    Raises: ModelResolutionError for a reference that cannot become a checked local folder.
    """
    if family.api is not None:
        return FamilyModels(family, root, device, *resolve_api_teacher(family, family.api, root, device))
    files = resolve_teacher(family.weights, root=root)
    return FamilyModels(family, root, device, files, Teacher.load(files, device))
