"""The whole flow on one page: read this first.

    factory = Factory(specs, family, profile="default", registry=Registry("registry"))
    version = factory.student("healthcare", "small")

sources → router → data set → teacher → base (pruned, trimmed, healed) → distil → evaluate_student → verdict → registry. Every step
keeps what it made on disk under the key of all that decides it, so that a stop loses little and nothing is made twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from factory.cache import cache_key, folder_bytes, home
from factory.config.schema import DistillConfig
from factory.data.dataset import small_dataset_warning
from factory.distill.target_store import FORMAT, SoftTargetStore
from factory.distill.trainer import TrainingSet, asks_teacher, concat, distill
from factory.evaluation.fidelity import fixed_model, measure, with_adapter
from factory.evaluation.gates import judge
from factory.evaluation.memorization import Canary, canary_rows, make_canaries
from factory.evaluation.suite import EvalTarget, evaluate_student, load_eval_suite
from factory.models.base import Base, attach_adapter, load_base, trim_teacher
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples
from factory.models.vocabulary import vocabulary_growth
from factory.pipeline.base import Bases, dataset_info
from factory.pipeline.context import DomainData
from factory.registry.manifest import StudentManifest
from factory.registry.versions import Version
from factory.reports.card import model_card

PROBE = 64  # examples of each split behind the small_dataset_warning warning
CANARY_REPEATS = 4  # times that each planted secret is in the training split
GROWTH_WARNING = 0.05  # more tokens than with the teacher's own tokenizer


class Factory(Bases):
    """``Factory(specs, family, profile="demo", registry=registry).student("healthcare", "small")``: one family's builds."""

    def student(self, domain: str, size_name: str, *, baselines: bool = False, canaries: int = 0) -> Version:
        """``factory.student("healthcare", "small")``: builds, assesses, judges and publishes one version.

        ``baselines`` trains and measures plain SFT as well; so many ``canaries`` are planted in the training split.
        Raises: TrainingError where the teacher should not teach this domain, unless the factory is to ``force`` it.
        """
        planted, suite = make_canaries(canaries, self.seed), load_eval_suite(self.specs.domain(domain), self.specs.root)
        version = self.base(size_name)
        data, settings = self.data(domain), self.family.settings(self.profile, self.specs.domain(domain))
        base = load_base(version.folder, self.device)
        teacher = trim_teacher(self.teacher, base.shape.tokens)
        check = self.check(data, teacher, fixed_model(base.model), base.shape.tokens, tasks=data.spec.tasks)
        forced = self._refuse_unfit(data, check)
        training_set = self.adapter_training_set(data, teacher, settings.distill, version)
        if planted:
            training_set = concat([training_set, self.canary_training_set(planted, data, teacher, settings.distill)])
        adapter, curve, folder = self.train_adapter(base, teacher, training_set, data, settings.distill, version, "distill")
        if baselines:
            self._add_sft(adapter, teacher, training_set, data, settings.distill, version)
        found = evaluate_student(self, EvalTarget(adapter, teacher, data, suite, planted, check.tasks), settings)
        figures = found.figures | check.metrics
        evaluation = vars(found.report) | self._sizes(adapter, version)
        evaluation["metrics"] = figures
        warnings = [*forced, *self._warnings(adapter, teacher, training_set, data, version), *found.warnings]
        warnings += version.manifest.warnings  # of the base
        name = f"{domain}-{size_name}"
        content = self._manifest(settings) | {
            "name": name,
            "domain": domain,
            "description": data.spec.description,
            "size": size_name,
            "base": version.reference,
            "path": [*version.manifest.path, version.reference],
            "training": {"curve": curve, "config": settings.distill.model_dump(), "examples": len(training_set.indices)},
            "dataset": dataset_info(data),
            "soft_targets": training_set.targets.describe() if training_set.targets else None,
            "warnings": warnings,
            "canaries": len(planted),
            "notice": data.spec.notice,
            "append_notice": data.spec.append_notice,
            "teacher_context": data.spec.teacher_context.model_dump(),
            "spec": data.spec.model_dump(),
            "spec_hash": cache_key(data.spec.model_dump()),
            "verdict": judge(figures, self.family.gates_of(data.spec)),
            "router": None if data.spec.private else self.router.version,
        }
        with self.registry.stage(name) as staged:
            adapter.save_pretrained(staged)  # the SFT baseline, where there is one, in a folder of its own
            adapter_bytes = (staged / "adapter_model.safetensors").stat().st_size
            evaluation["sizes"]["student"] |= {
                "adapter_bytes": adapter_bytes,
                "bytes": adapter_bytes + folder_bytes(version.folder),
            }
            manifest = StudentManifest.model_validate(
                content | {"evaluation": evaluation} | self._spent(found.per_1000_tokens_wh)
            )
            (staged / "README.md").write_text(model_card(manifest), encoding="utf-8")
            published = self.registry.publish(manifest, staged)
        shutil.rmtree(folder, ignore_errors=True)
        return published

    def canary_training_set(
        self, canaries: Sequence[Canary], data: DomainData, teacher: Teacher, config: DistillConfig
    ) -> TrainingSet:
        """The canaries as a training_set beside the domain's own: the same data set and targets with and without them."""
        rows = canary_rows(canaries, CANARY_REPEATS)
        sequences = tokenize_examples(rows, teacher.tokenizer, data.spec.teacher_context)
        key = cache_key(
            FORMAT, rows, teacher.revision, config.top_k, config.temperature, data.spec.teacher_context.model_dump()
        )
        store = SoftTargetStore.make(
            home() / "targets" / f"canaries-{key}", teacher, sequences, top_k=config.top_k, temperature=config.temperature
        )
        return TrainingSet(sequences, store, self.embed_rows(rows))

    def _sizes(self, adapter: Any, version: Version) -> dict[str, Any]:
        trained = sum(p.numel() for name, p in adapter.named_parameters() if ".default." in name)
        base_parameters = int(version.manifest.parameters)
        return {
            "sizes": {
                "teacher": {
                    "parameters": self.teacher.parameters,
                    "bytes": folder_bytes(self.teacher_files.folder),
                },
                "student": {"parameters": base_parameters + trained, "base_parameters": base_parameters},
            }
        }

    def adapter_training_set(self, data: DomainData, teacher: Teacher, config: DistillConfig, version: Version) -> TrainingSet:
        """A domain's training_set without the examples that healed the base: there it has learnt most of what they say."""
        training_set, healed = self.training_set(data, teacher, config), version.manifest.training.config
        part = version.manifest.domains.get(data.spec.name)
        seen = part is not None and part.fingerprint == data.manifest.fingerprint
        return training_set.slice(healed["share"], 1) if seen and healed["share"] < 1 else training_set

    def train_adapter(
        self,
        base: Base,
        teacher: Teacher,
        training_set: TrainingSet,
        data: DomainData,
        config: DistillConfig,
        version: Version,
        stage: str,
    ) -> tuple[Any, list[dict[str, float]], Path]:
        """Trains one LoRA adapter on the frozen base; ``folder`` holds its checkpoints until it is published."""
        base_key = version.manifest.manifest_sha256  # not its reference: another registry may have that too
        learnt = len(training_set.examples)  # tells with canaries from without; which they are, their number and the seed say
        key = cache_key(stage, base_key, data.manifest.fingerprint, learnt, config.model_dump(), self.seed)
        folder = home() / "distill" / key
        torch.manual_seed(self.seed)
        adapter = attach_adapter(base, config)
        with self.timed(stage), self.progress(f"{data.spec.name}: {stage}", config.steps) as advance:
            self._keep_or_clear(folder)
            if not asks_teacher(config):
                teacher.release()
            curve = distill(adapter, base, teacher, training_set, config, folder=folder, seed=self.seed, progress=advance)
        return adapter, curve, folder

    def _add_sft(
        self,
        adapter: Any,
        teacher: Teacher,
        training_set: TrainingSet,
        data: DomainData,
        config: DistillConfig,
        version: Version,
    ) -> None:
        """The baseline: the same adapter, completions, steps and learning rate, but plain next-token training."""
        off_policy = {"lmbda": 0.0, "beta": 0.0, "temperature": 1.0, "seq_kd": False}
        plain = config.model_copy(update=off_policy | {"response": 1.0, "feature": 0.0, "relation": 0.0})
        only_text = replace(training_set, targets=None)
        base = load_base(version.folder, self.device)
        sft, _, folder = self.train_adapter(base, teacher, only_text, data, plain, version, "sft")
        sft.save_pretrained(folder / "final")
        adapter.load_adapter(str(folder / "final"), "sft")
        shutil.rmtree(folder, ignore_errors=True)

    def _warnings(
        self, adapter: Any, teacher: Teacher, training_set: TrainingSet, data: DomainData, version: Version
    ) -> list[str]:
        """What a user should know: a data set that is too small, a vocabulary that does not fit."""
        found = []
        held = tokenize_examples(data.rows["validation"], teacher.tokenizer, data.spec.teacher_context)[:PROBE]
        seen = [training_set.examples[i] for i in training_set.indices[:PROBE]]
        if held:
            loss = []
            for part in (seen, held):
                sums = measure(teacher, {"student": with_adapter(adapter, "default")}, part)["student"]
                loss.append(float(sums.kl.sum() / sums.tokens.sum()))
            found.append(small_dataset_warning(loss[0], loss[1], data.manifest))
        texts = [f"{row['prompt']} {row['completion']}" for row in data.rows["train"]]
        if version.manifest.layers is not None:
            growth = vocabulary_growth(self.tokenizer, teacher.tokenizer, texts)  # type: ignore[arg-type]
            if growth > GROWTH_WARNING:
                found.append(
                    f"{data.spec.name} needs {growth:.1%} more tokens than with the teacher's tokenizer; a larger "
                    "`vocabulary`, or a base rebuilt with this domain, would help"
                )
        return [warning for warning in found if warning]
