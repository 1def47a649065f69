"""The whole flow on one page: read this first.

    factory = Factory(specs, family, profile="default", registry=Registry("registry"))
    version = factory.student("healthcare", "small")

sources → router → data set → teacher → base (pruned, trimmed, healed) → distil → evaluate → registry. Every step keeps
what it made on disk under the key of all that decides it, so that a stop loses little and nothing is made twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from factory.card import model_card
from factory.data.dataset import thinness
from factory.distill.store import FORMAT, SoftTargetStore
from factory.distill.targets import batches_of, encode
from factory.distill.trainer import Lesson, distill, join_lessons
from factory.manifests import Version
from factory.materials import DomainData, Materials, ProgressBar, no_progress
from factory.models.chat import NO_CONTEXT, messages
from factory.models.references import home, resolve
from factory.models.student import (
    Base,
    attach_adapter,
    choose_tokens,
    foreign_base,
    load_base,
    prune_teacher,
    save_base,
    trim_teacher,
    trimming_cost,
)
from factory.models.teacher import Teacher
from factory.models.vocabulary import vocabulary_growth
from factory.provenance import digest, git_commit, library_versions, merged_datasets
from factory.quality.evaluate import EvalReport, HeldOut, evaluate, folder_bytes, measure, switched
from factory.registry import Registry
from factory.spec import DistillConfig, FamilySpec, Settings, SizeSpec, Specs

CALIBRATION = 64  # examples on which the cost of trimming is measured; layers are chosen on the first batch of 16
PROBE = 64  # examples of each split behind the thinness warning
GROWTH_WARNING = 0.05  # more tokens than with the teacher's own tokenizer


class Factory(Materials):
    """``Factory(specs, family, profile="demo", registry=registry).student("healthcare", "small")``: one family's builds."""

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
        baselines: bool = False,
        progress: ProgressBar = no_progress,
    ) -> None:
        super().__init__(specs, family, profile=profile, device=device, seed=seed, progress=progress)
        self.registry, self.resume, self.baselines = registry, resume, baselines
        self.commit = git_commit()  # of the code that is running, whatever is committed before it publishes

    # ------------------------------------------------------------------------------------------------------------ base

    def recipe(self, size_name: str) -> str:
        """What decides a base. It does not name the domains: a domain added later does not rebuild it."""
        size, heal = self.family.sizes[size_name], self.family.settings(self.profile).heal
        template = self.family.teacher.chat_template
        return digest(self.teacher_files.sha256, template, size.model_dump(), heal.model_dump(), self.profile, self.seed)

    def published_base(self, size_name: str) -> Version | None:
        """The newest base of this recipe in the registry."""
        recipe, name = self.recipe(size_name), f"{self.family.name}-{size_name}-base"
        for summary in reversed(self.registry.versions(kind="base", name=name)):
            version = self.registry.resolve(summary.reference)
            if version.manifest.get("recipe") == recipe:
                return version
        return None

    def base(self, size_name: str) -> Version:
        """``factory.base("small")``: the family's shared base of a size; made, healed and published where there is none."""
        published = self.published_base(size_name)
        if published is not None:
            return published
        size, settings = self.family.sizes[size_name], self.family.settings(self.profile)
        recipe, name = self.recipe(size_name), f"{self.family.name}-{size_name}-base"
        datasets = [self.data(domain.name) for domain in self.public_domains]
        checkpoints = home() / "heal" / recipe
        base, details = self._healed(size, settings, datasets, checkpoints)
        manifest = self._manifest(settings) | details | {"size": size_name, "recipe": recipe, "seconds": self.seconds}
        manifest["dataset"] = merged_datasets([json.loads(data.manifest.to_json()) for data in datasets])
        with self.registry.stage(name) as folder:
            save_base(base, folder)
            (folder / "README.md").write_text(model_card(manifest | {"kind": "base", "name": name}), encoding="utf-8")
            version = self.registry.publish("base", name, folder, manifest)
        shutil.rmtree(checkpoints, ignore_errors=True)
        self.seconds = {}
        return version

    def _healed(
        self, size: SizeSpec, settings: Settings, datasets: Sequence[DomainData], folder: Path
    ) -> tuple[Base, dict[str, Any]]:
        """Prunes and trims the teacher (or takes another base), then distils all its weights on all public domains."""
        with self.timed("prune"), self.progress("base: layers and tokens", 1) as advance:
            tokens = choose_tokens(self.teacher, self._family_texts(datasets), size)
            teacher = trim_teacher(self.teacher, tokens)
            sequences = [encode(data.rows["train"], teacher.tokenizer, data.spec.teacher_context) for data in datasets]
            mixed = [one for group in zip(*sequences, strict=False) for one in group][:CALIBRATION]
            calibration = [batch.to(self.device) for batch in batches_of(mixed, 16)]
            if size.base is not None:
                base = foreign_base(resolve(size.base, root=self.specs.root).folder, teacher)
            else:
                base = prune_teacher(teacher, tokens, size.layers or 1, calibration[0])
            untyped: Any = base.model
            untyped.to(self.device)
            cost = trimming_cost(self.teacher, teacher, tokens, calibration)
            advance(1)
        lessons = [self.lesson(data, teacher, settings.heal).between(0, settings.heal.share) for data in datasets]
        lesson = join_lessons(lessons)
        with self.timed("heal"), self.progress("base: healing", settings.heal.steps) as advance:
            self._keep_or_clear(folder)
            curve = distill(base.model, base, teacher, lesson, settings.heal, folder=folder, seed=self.seed, progress=advance)
        details = {
            "layers": base.shape.layers,
            "vocabulary": {"kept": len(teacher.tokenizer), "teacher": len(self.tokenizer), **cost},
            "parameters": count_parameters(base.model),
            "training": {"curve": curve, "config": settings.heal.model_dump(), "examples": len(lesson.examples)},
            "domains": {data.spec.name: data.manifest.fingerprint for data in datasets},
        }
        return base, details

    def lesson(self, data: DomainData, teacher: Teacher, config: DistillConfig) -> Lesson:
        """Ids, stored soft targets and embeddings of a domain's training split."""
        self.teacher.release()  # the whole one, which wrote the data set; from here on the trimmed one is asked
        sequences = encode(data.rows["train"], teacher.tokenizer, data.spec.teacher_context)
        key = digest(FORMAT, data.manifest.fingerprint, teacher.revision, sorted(teacher.tokenizer.get_vocab()), config.top_k,
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
        return Lesson(sequences, store, self.embeddings(data))

    # --------------------------------------------------------------------------------------------------------- student

    def student(self, domain: str, size_name: str) -> Version:
        """``factory.student("healthcare", "small")``: builds, evaluates and publishes one version."""
        version = self.base(size_name)
        data, settings = self.data(domain), self.family.settings(self.profile, self.specs.domain(domain))
        base = load_base(version.folder, self.device)
        teacher = trim_teacher(self.teacher, base.shape.tokens)
        lesson = self.adapter_lesson(data, teacher, settings.distill, version)
        adapter, curve, folder = self.train_adapter(base, teacher, lesson, data, settings.distill, version, "distill")
        if self.baselines:
            self._add_sft(adapter, teacher, lesson, data, settings.distill, version)
        evaluation = self._evaluation(adapter, teacher, data, settings, version)
        manifest = self._manifest(settings) | {
            "domain": domain,
            "size": size_name,
            "base": version.reference,
            "training": {"curve": curve, "config": settings.distill.model_dump(), "examples": len(lesson.examples)},
            "dataset": json.loads(data.manifest.to_json()),
            "targets": lesson.targets.describe() if lesson.targets else None,
            "evaluation": evaluation,
            "warnings": self._warnings(adapter, teacher, lesson, data, version),
            "notice": data.spec.notice,
            "spec": data.spec.model_dump(),
            "spec_hash": digest(data.spec.model_dump()),
            "verdict": {"status": "unchecked", "reasons": []},
            "router": None if data.spec.private else {"version": self.router.version},
        }
        name = f"{domain}-{size_name}"
        with self.registry.stage(name) as staged:
            adapter.save_pretrained(staged, selected_adapters=["default"])
            adapter_bytes = (staged / "adapter_model.safetensors").stat().st_size
            evaluation["sizes"]["student"] |= {
                "adapter_bytes": adapter_bytes,
                "bytes": adapter_bytes + folder_bytes(version.folder),
            }
            manifest["seconds"] = self.seconds
            (staged / "README.md").write_text(model_card(manifest | {"kind": "student", "name": name}), encoding="utf-8")
            published = self.registry.publish("student", name, staged, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        self.seconds = {}
        return published

    def adapter_lesson(self, data: DomainData, teacher: Teacher, config: DistillConfig, version: Version) -> Lesson:
        """A domain's lesson without the examples that healed the base: there it has learnt most of what they say."""
        lesson, healed = self.lesson(data, teacher, config), version.manifest["training"]["config"]
        seen = version.manifest["domains"].get(data.spec.name) == data.manifest.fingerprint
        return lesson.between(healed["share"], 1) if seen and healed["share"] < 1 else lesson

    def train_adapter(
        self,
        base: Base,
        teacher: Teacher,
        lesson: Lesson,
        data: DomainData,
        config: DistillConfig,
        version: Version,
        stage: str,
    ) -> tuple[Any, list[dict[str, float]], Path]:
        """Trains one LoRA adapter on the frozen base; ``folder`` holds its checkpoints until it is published."""
        base_key = version.manifest["manifest_sha256"]  # not its reference: another registry may have that too
        key = digest(stage, base_key, data.manifest.fingerprint, config.model_dump(), self.seed)
        folder = home() / "distill" / key
        torch.manual_seed(self.seed)
        adapter = attach_adapter(base, config)
        with self.timed(stage), self.progress(f"{data.spec.name}: {stage}", config.steps) as advance:
            self._keep_or_clear(folder)
            curve = distill(adapter, base, teacher, lesson, config, folder=folder, seed=self.seed, progress=advance)
        return adapter, curve, folder

    def _add_sft(
        self, adapter: Any, teacher: Teacher, lesson: Lesson, data: DomainData, config: DistillConfig, version: Version
    ) -> None:
        """The baseline: the same adapter, completions, steps and learning rate, but plain next-token training."""
        off_policy = {"lmbda": 0.0, "beta": 0.0, "temperature": 1.0, "seq_kd": False}
        plain = config.model_copy(update=off_policy | {"response": 1.0, "feature": 0.0, "relation": 0.0})
        only_text = replace(lesson, targets=None)
        base = load_base(version.folder, self.device)
        sft, _, folder = self.train_adapter(base, teacher, only_text, data, plain, version, "sft")
        sft.save_pretrained(folder / "final")
        adapter.load_adapter(str(folder / "final"), "sft")
        shutil.rmtree(folder, ignore_errors=True)

    def _evaluation(
        self, adapter: Any, teacher: Teacher, data: DomainData, settings: Settings, version: Version
    ) -> dict[str, Any]:
        """The EvalReport on the domain's test split and on general text, with sizes, as the manifest holds it."""
        test = list(data.rows["test"])[: settings.evaluate.examples]
        general = self.general_rows()
        with self.timed("evaluate"), self.progress(f"{data.spec.name}: evaluate", len(test) + len(general)) as advance:
            held_out = HeldOut(
                [row["prompt"] for row in test],
                encode(test, teacher.tokenizer, data.spec.teacher_context),
                self.embed_rows(test),
                encode(general, teacher.tokenizer, NO_CONTEXT),
            )
            report: EvalReport = evaluate(adapter, teacher, held_out, settings.evaluate, seed=self.seed, progress=advance)
        trained = sum(p.numel() for name, p in adapter.named_parameters() if ".default." in name)
        base_parameters = int(version.manifest["parameters"])
        return report.to_dict() | {
            "sizes": {
                "teacher": {
                    "parameters": self.teacher.parameters,
                    "bytes": folder_bytes(self.teacher_files.folder),
                },
                "student": {"parameters": base_parameters + trained, "base_parameters": base_parameters},
            }
        }

    def _warnings(self, adapter: Any, teacher: Teacher, lesson: Lesson, data: DomainData, version: Version) -> list[str]:
        """What a user should know: a data set too thin, a vocabulary that does not fit, texts that belong elsewhere."""
        found = []
        held = encode(data.rows["validation"], teacher.tokenizer, data.spec.teacher_context)[:PROBE]
        seen = [lesson.sequences[i] for i in lesson.examples[:PROBE]]
        if held:
            loss = []
            for part in (seen, held):
                sums = measure(teacher, {"student": switched(adapter, "default")}, part)["student"]
                loss.append(float(sums.kl.sum() / sums.tokens.sum()))
            found.append(thinness(loss[0], loss[1], data.manifest))
        texts = [f"{row['prompt']} {row['completion']}" for row in data.rows["train"]]
        if version.manifest["layers"] is not None:
            growth = vocabulary_growth(self.tokenizer, teacher.tokenizer, texts)  # type: ignore[arg-type]
            if growth > GROWTH_WARNING:
                found.append(
                    f"{data.spec.name} needs {growth:.1%} more tokens than with the teacher's tokenizer; a larger "
                    "`vocabulary`, or a base rebuilt with this domain, would help"
                )
        if data.manifest.disagreements:
            found.append(
                f"the router would send {data.manifest.disagreements} of {data.spec.name}'s own prompts elsewhere, "
                f"for example {data.manifest.provenance['disagreements'][0][0]!r}"
            )
        return [warning for warning in found if warning]

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


def count_parameters(model: torch.nn.Module) -> int:
    """A tied head counts once, as ``parameters()`` does."""
    return sum(parameter.numel() for parameter in model.parameters())
