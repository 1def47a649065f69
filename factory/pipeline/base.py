"""A family's shared bases: cut from the teacher, or from an assistant between, then healed on all public domains.

    bases = Bases(specs, family, profile="default", registry=Registry("registry"))
    version = bases.base("small")

Layers are left out one by one, the one whose loss costs least first, and tokens are chosen by the family's text (models/);
healing is distillation of all weights. Before a step of training the teacher is checked: whether it knows the domains that
it is to teach.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from factory.cache import cache_key, home
from factory.config.schema import DistillConfig, FamilySpec, Settings, SizeSpec, Specs
from factory.distill.target_store import FORMAT, SoftTargetStore
from factory.distill.trainer import TrainingSet, asks_teacher, concat, distill
from factory.energy import EnergyMeter
from factory.errors import TrainingError
from factory.evaluation.fidelity import Candidate, fixed_model, measure, teacher_model
from factory.evaluation.healing import healing_report, healing_warnings, teacher_assistant_helps
from factory.evaluation.lm_eval import run_tasks
from factory.evaluation.stats import BootstrapConfig, ExampleSums
from factory.evaluation.teacher_check import TeacherCheck, check_teacher, references
from factory.models.base import (
    Base,
    assistant_teacher,
    choose_tokens,
    layers_of_teacher,
    load_base,
    load_external_base,
    prune_teacher,
    save_base,
    trim_teacher,
    trimming_cost,
)
from factory.models.chat import messages
from factory.models.forward import Batch
from factory.models.references import resolve
from factory.models.scoring import student_batches
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.context import DomainData, Materials, ProgressBar, no_progress
from factory.registry.manifest import BaseManifest, DatasetInfo, HealingReport
from factory.registry.provenance import git_commit, library_versions, merge_dataset_infos
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.card import model_card

CALIBRATION = 64  # examples on which the cost of trimming is measured; layers are chosen on the first batch of 16
CHECK = 64  # of a domain's held-out references, behind the teacher check
CASCADE_PROBE = 1 / 8  # of the healing steps, by which the routes to a small base are compared
HEALING_EXAMPLES = 48  # held-out examples a domain that say what healing brought


@dataclass(frozen=True)
class Route:
    """One way to heal a base: what it starts from, who teaches it, and what it learns from."""

    name: str
    base: Base
    teacher: Teacher
    training_set: TrainingSet


class Bases(Materials):
    """``Bases(specs, family, profile="demo", registry=registry).base("small")``: a family's bases, each made once."""

    def __init__(
        self,
        specs: Specs,
        family: FamilySpec,
        *,
        profile: str,
        registry: Registry,
        device: str = "auto",
        seed: int | None = None,
        resume: bool = True,
        force: bool = False,
        progress: ProgressBar = no_progress,
    ) -> None:
        super().__init__(specs, family, profile=profile, device=device, seed=seed, progress=progress)
        self.registry, self.resume, self.force = registry, resume, force
        self.commit = git_commit()  # of the code that is running, whatever is committed before it publishes

    def recipe(self, size_name: str) -> str:
        """What decides a base. It does not name the domains: a domain added later does not rebuild it."""
        size, heal = self.family.sizes[size_name], self.family.settings(self.profile).heal
        template, assistant = self.family.teacher.chat_template, self.family.teacher_assistant(size_name)
        path = [self.family.path, self.recipe(assistant)] if assistant else []
        return cache_key(
            self.teacher_files.sha256, template, size.model_dump(), heal.model_dump(), self.profile, self.seed, *path
        )

    def published_base(self, size_name: str) -> Version | None:
        """The newest base of this recipe in the registry."""
        recipe, name = self.recipe(size_name), f"{self.family.name}-{size_name}-base"
        for summary in reversed(self.registry.versions(kind="base", name=name)):
            version = self.registry.resolve(summary.reference)
            if version.manifest.settings_key == recipe:
                return version
        return None

    def base(self, size_name: str, assistant: Version | None = None) -> Version:
        """``factory.base("small")``: the family's shared base of a size; made, healed and published where there is none.

        ``assistant`` stands in for the one that the family's ``path`` would have made.
        """
        published = self.published_base(size_name)
        if published is not None:
            return published
        settings, recipe = self.family.settings(self.profile), self.recipe(size_name)
        named = self.family.teacher_assistant(size_name)
        between = assistant or (None if named is None else self.base(named))
        name, checkpoints = f"{self.family.name}-{size_name}-base", home() / "heal" / recipe
        datasets = [self.data(domain.name) for domain in self.public_domains]
        base, details = self._healed(self.family.sizes[size_name], settings, datasets, checkpoints, between)
        content = self._manifest(settings) | details | {"size": size_name, "settings_key": recipe, "name": name} | self._spent()
        infos = [DatasetInfo.model_validate(dataset_info(data)) for data in datasets]
        content["dataset"] = merge_dataset_infos(infos).model_dump()
        manifest = BaseManifest.model_validate(content)
        with self.registry.stage(name) as folder:
            save_base(base, folder)
            (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
            version = self.registry.publish(manifest, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return version

    def _healed(
        self, size: SizeSpec, settings: Settings, datasets: Sequence[DomainData], folder: Path, assistant: Version | None
    ) -> tuple[Base, dict[str, Any]]:
        """Prunes and trims the teacher (or takes another base), then distils all its weights on all public domains."""
        between = None if assistant is None else load_base(assistant.folder, self.device)
        with self.timed("prune"), self.progress("base: layers and tokens", 1) as advance:
            tokens = between.shape.tokens if between else choose_tokens(self.teacher, self._family_texts(datasets), size)
            teacher = trim_teacher(self.teacher, tokens)
            first = [data.rows["train"].select(range(min(CALIBRATION, len(data.rows["train"])))) for data in datasets]
            sequences = [
                tokenize_examples(rows, teacher.tokenizer, data.spec.teacher_context)
                for rows, data in zip(first, datasets, strict=True)
            ]
            mixed = [one for group in zip(*sequences, strict=False) for one in group][:CALIBRATION]
            calibration = [batch.to(self.device) for batch in student_batches(mixed, 16)]
            if size.base is not None:
                base = load_external_base(resolve(size.base, root=self.specs.root).folder, teacher)
            else:
                base = prune_teacher(teacher, tokens, size.layers or 1, calibration[0])
            untyped: Any = base.model
            untyped.to(self.device)
            cost = trimming_cost(self.teacher, teacher, tokens, calibration)
            advance(1)
        for data in datasets:
            self._refuse_unfit(data, self.check(data, teacher, fixed_model(base.model), tokens))

        def direct() -> Route:
            return Route("direct", base, teacher, self._healing(datasets, teacher, settings))

        if assistant is None or between is None:
            route, cascade = direct(), None
        else:
            route, cascade = self._route(direct, assistant, between, datasets, settings, folder, calibration[0], size)
        with self.timed("heal"):
            curve, healing, _ = self._heal(route, teacher, datasets, settings.heal, folder, "healing")
        base = route.base
        if route.name == "teacher_assistant" and between is not None:  # healed in the assistant's layer numbers
            base = replace(base, shape=replace(base.shape, layers=layers_of_teacher(base, between)))
        details = {
            "layers": base.shape.layers,
            "vocabulary": {"kept": len(teacher.tokenizer), "teacher": len(self.tokenizer), **cost},
            "parameters": count_parameters(base.model),
            "training": {"curve": curve, "config": settings.heal.model_dump(), "examples": len(route.training_set.indices)},
            "domains": {
                data.spec.name: {"dataset_key": data.folder.name, "fingerprint": data.manifest.fingerprint} for data in datasets
            },
            "path_choice": None if cascade is None else {k: v for k, v in cascade.items() if k != "route"},
            "path": ["teacher"] if cascade is None else cascade["route"],
            "healing": healing,
            "warnings": healing_warnings(healing),
        }
        return base, details

    def _healing(self, datasets: Sequence[DomainData], teacher: Teacher, settings: Settings) -> TrainingSet:
        training_sets = [self.training_set(data, teacher, settings.heal).slice(0, settings.heal.share) for data in datasets]
        return concat(training_sets)

    def _route(
        self,
        direct: Callable[[], Route],
        assistant: Version,
        between: Base,
        datasets: Sequence[DomainData],
        settings: Settings,
        folder: Path,
        calibration: Batch,
        size: SizeSpec,
    ) -> tuple[Route, dict[str, Any]]:
        """The route to heal a small base by: from the teacher, or from a larger base that has learnt from it.

        The assistant's layers are where the student's come from, and its distributions, without a context, are what it
        learns. Where the family says ``auto``, both routes are tried for a share of the steps and measured beside the
        teacher; the assistant's is kept if it is ahead beyond the interval.
        """
        taught = assistant_teacher(assistant, between, self.device)
        pruned = prune_teacher(taught, between.shape.tokens, size.layers or 1, calibration)
        untyped: Any = pruned.model
        untyped.to(self.device)
        plain = [data.without_context().first(settings.heal.share) for data in datasets]
        training_set = concat([self.training_set(data, taught, settings.heal) for data in plain])
        assisted = Route("teacher_assistant", pruned, taught, training_set)
        told: dict[str, Any] = {"teacher_assistant": assistant.reference, "chosen": "teacher_assistant", "probes": {}}
        if self.family.path != "auto":
            route = ["teacher", assistant.reference]
            return assisted, told | {"reason": f"the family file names {assistant.manifest.size}", "route": route}
        routes = {route.name: route for route in (direct(), assisted)}
        teacher = routes["direct"].teacher
        found = {name: self._probed(route, teacher, datasets, settings, folder) for name, route in routes.items()}
        helps, ahead = teacher_assistant_helps(
            found["direct"][1], found["teacher_assistant"][1], BootstrapConfig(settings.evaluate.bootstrap, self.seed)
        )
        told["probes"] = {name: report for name, (report, _) in found.items()}
        told |= {"chosen": "teacher_assistant" if helps else "direct", "ahead": ahead}
        told["reason"] = (
            f"after {found['direct'][0].steps} steps each the assistant's route is {'' if helps else 'not '}ahead beyond the "
            f"interval: by {ahead.value:.3f} [{ahead.low:.3f}, {ahead.high:.3f}] nats a token, n {ahead.n:,}"
        )
        return routes[told["chosen"]], told | {"route": ["teacher", *([assistant.reference] if helps else [])]}

    def _probed(
        self, route: Route, teacher: Teacher, datasets: Sequence[DomainData], settings: Settings, folder: Path
    ) -> tuple[HealingReport, ExampleSums]:
        """A short healing of a copy of the route's base, and its sums beside the teacher after it."""
        steps = max(1, round(settings.heal.steps * CASCADE_PROBE))
        short = settings.heal.model_copy(update={"steps": steps})
        tried = replace(route, base=replace(route.base, model=copy.deepcopy(route.base.model)))
        place = folder.with_name(f"{folder.name}-{route.name}")
        with self.timed("probe"):
            _, found, after = self._heal(tried, teacher, datasets, short, place, f"probe, {route.name}")
        shutil.rmtree(place, ignore_errors=True)
        return found, after

    def _heal(
        self, route: Route, teacher: Teacher, datasets: Sequence[DomainData], config: DistillConfig, folder: Path, what: str
    ) -> tuple[list[dict[str, float]], HealingReport, ExampleSums]:
        """Trains the route's base in place: the curve, and beside the teacher what it was before and is after."""
        held_out = [
            one
            for data in datasets
            for one in tokenize_examples(data.held_out[:HEALING_EXAMPLES], teacher.tokenizer, data.spec.teacher_context)
        ]
        base, candidate = route.base, {"student": fixed_model(route.base.model)}
        with self.progress(f"base: {what}", config.steps) as advance:
            before = measure(teacher, candidate, held_out)["student"]
            self._keep_or_clear(folder)
            if not asks_teacher(config):
                route.teacher.release()
            curve = distill(
                base.model, base, route.teacher, route.training_set, config, folder=folder, seed=self.seed, progress=advance
            )
            after = measure(teacher, candidate, held_out)["student"]
        teacher.release()
        bootstrap = BootstrapConfig(self.family.settings(self.profile).evaluate.bootstrap, self.seed)
        return curve, healing_report(config.steps, before, after, bootstrap), after

    # --------------------------------------------------------------------------------------------------- teacher check

    def check(
        self, data: DomainData, teacher: Teacher, base: Candidate, tokens: Sequence[int] | None, *, tasks: Sequence[str] = ()
    ) -> TeacherCheck:
        """``factory.check(data, teacher, base, tokens).reasons``: whether the teacher knows a domain; trains nothing."""
        config = self.family.settings(self.profile).evaluate
        with self.timed("check"), self.progress(f"{data.spec.name}: teacher check", 1) as advance:
            rows = references(data.held_out)[:CHECK]
            held_out = tokenize_examples(rows, teacher.tokenizer, data.spec.teacher_context)
            cost = trimming_cost(self.teacher, teacher, tokens, [b.to(self.device) for b in student_batches(held_out, 16)])
            training = teacher.tokenizer(list(data.rows["train"]["completion"]), add_special_tokens=False)["input_ids"]
            both = {"teacher": teacher_model(teacher), "base": base}
            found = check_teacher(
                teacher,
                base,
                held_out,
                training,
                BootstrapConfig(config.bootstrap, self.seed),
                kept_mass=cost["kept_mass"],
                tasks=run_tasks(both, teacher.tokenizer, tasks, root=self.specs.root) if tasks else (),
            )
            advance(1)
        return found

    def _refuse_unfit(self, data: DomainData, check: TeacherCheck) -> list[str]:
        """Raises TrainingError with the figures, unless ``force``; then what the card must say."""
        if check.reasons and not self.force:
            raise TrainingError(
                f"teacher pre-check failed for {data.spec.name}: {'; '.join(check.reasons)}; add references, a teacher_context or "
                "another teacher, or build anyway with --force, which the card will say"
            )
        return [f"built with --force although the teacher pre-check failed: {reason}" for reason in check.reasons]

    # ------------------------------------------------------------------------------------------------------- what both share

    def training_set(self, data: DomainData, teacher: Teacher, config: DistillConfig) -> TrainingSet:
        """Ids, stored soft targets and embeddings of a domain's training split."""
        self.teacher.release()  # the whole one, which wrote the data set; from here on the trimmed one is asked
        sequences = tokenize_examples(data.rows["train"], teacher.tokenizer, data.spec.teacher_context)
        key = cache_key(FORMAT, data.manifest.fingerprint, teacher.revision, sorted(teacher.tokenizer.get_vocab()), config.top_k,
                     config.temperature, self.family.teacher.chat_template, data.spec.teacher_context.model_dump())  # fmt: skip
        with self.timed("targets"), self.progress(f"{data.spec.name}: soft targets", len(sequences)) as advance:
            store = SoftTargetStore.make(
                data.targets_folder(key),
                teacher,
                sequences,
                top_k=config.top_k,
                temperature=config.temperature,
                progress=advance,
            )
        return TrainingSet(sequences, store, self.embeddings(data))

    def _family_texts(self, datasets: Sequence[DomainData]) -> list[str]:
        """What the family's vocabulary is chosen for: training texts, the teacher's contexts, general prompts."""
        rows = [row for data in datasets for row in data.rows["train"]]
        contexts = [turn["content"] for data in datasets for turn in messages("", data.spec.teacher_context)]
        return [
            *(f"{row['prompt']}\n{row['completion']}" for row in rows),
            *contexts,
            *(example.prompt for example in self.general),
        ]

    def _keep_or_clear(self, folder: Path) -> None:
        if not self.resume:
            shutil.rmtree(folder, ignore_errors=True)

    def _spent(self, per_1000_tokens_wh: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Seconds and energy by stage since the last version, which are counted from 0 again."""
        spent = {
            "seconds": self.seconds,
            "energy": {
                "method": self.energy.method,
                "stages_wh": self.energy.stages_wh,
                "per_1000_tokens_wh": dict(per_1000_tokens_wh or {}),
            },
        }
        self.seconds, self.energy = {}, EnergyMeter()
        return spent

    def _manifest(self, settings: Settings) -> dict[str, Any]:
        return {
            "family": self.family.name,
            "profile": self.profile,
            "seed": self.seed,
            "teacher": {
                "reference": self.family.teacher.model,
                "sha256": self.teacher_files.sha256,
                "revision": self.teacher_files.revision,
                "license": self.family.teacher.license,
                "parameters": self.teacher.parameters,
            },
            "encoder": {"reference": self.family.encoder.model, "license": self.family.encoder.license},
            "settings": settings.model_dump(),
            "libraries": library_versions(),
            "git_commit": self.commit,
        }


def dataset_info(data: DomainData) -> dict[str, Any]:
    """A data set as a manifest names it."""
    content = json.loads(data.manifest.to_json())
    kept = {key: content[key] for key in ("fingerprint", "counts", "dropped", "refusals", "sources", "templates")}
    return kept | {"personal_data": content["provenance"].get("personal_data")}


def count_parameters(model: torch.nn.Module) -> int:
    """A tied head counts once, as ``parameters()`` does."""
    return sum(parameter.numel() for parameter in model.parameters())
