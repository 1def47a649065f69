"""Questions about students: is each best on its own domain, and what does each term of the objective do?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from factory.cache import remove_folder
from factory.errors import RegistryError
from factory.evaluation.fidelity import base_only, measure, with_adapter
from factory.evaluation.stats import ExampleSums, paired_difference, summarize
from factory.inference import load_version
from factory.models.base import load_base, trim_teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.adapter import adapter_training_set, distil_adapter
from factory.pipeline.base import make_base
from factory.pipeline.context import BuildContext, resolve_models
from factory.pipeline.dataset import make_dataset
from factory.pipeline.training_set import embed_rows
from factory.registry.manifest import MetricValue
from factory.registry.versions import Version

# ------------------------------------------------------------------------------------------------------------ adapter matrix


@dataclass(frozen=True)
class AdapterMatrix:
    """KL of every adapter on every domain's held-out text, and how far the domain's own adapter is ahead of each other."""

    kl: dict[str, dict[str, MetricValue]]  # domain → student or "base" → KL(teacher ‖ student), nats/token
    ahead: dict[str, dict[str, MetricValue]]  # domain → other → other's KL minus the own adapter's, paired by example

    def own_is_best(self, domain: str) -> bool:
        """Whether the domain's own adapter is ahead of every other beyond the 95 % interval."""
        return all(metric.low > 0 for metric in self.ahead[domain].values())


def adapter_matrix(context: BuildContext, versions: Sequence[Version]) -> AdapterMatrix:
    """``adapter_matrix(context, [healthcare, education, legal]).own_is_best("legal")``

    Measures every adapter, and the base alone, on the test split of every student's domain; all students share one base.
    Raises: RegistryError where they do not, or where two are of one domain.
    """
    students = _one_base_many_domains(versions)
    models = resolve_models(context.family, context.specs.root, context.device)
    loaded = load_version(versions[0], context.registry, context.device)  # its adapter is called "default"
    names = {versions[0].reference: "default"}
    for version in versions[1:]:
        names[version.reference] = version.name
        loaded.model.load_adapter(str(version.folder), version.name)
    candidates = {reference: with_adapter(loaded.model.eval(), name) for reference, name in names.items()}
    candidates["base"] = base_only(loaded.model)
    teacher, settings = trim_teacher(models.teacher, loaded.base.shape.tokens), context.settings().evaluate
    kl: dict[str, dict[str, MetricValue]] = {}
    ahead: dict[str, dict[str, MetricValue]] = {}
    for version, domain in zip(versions, students, strict=True):
        data = make_dataset(context, models, context.specs.domain(domain))
        rows = list(data.rows["test"])[: settings.examples]
        with context.progress(f"{domain}: every adapter", len(rows)) as advance:
            examples = tokenize_examples(rows, teacher.tokenizer, data.spec.teacher_context)
            sums = measure(teacher, candidates, examples, advance)
        own = sums[version.reference]
        kl[domain] = {name: summarize(one, None, context.bootstrap)["kl"] for name, one in sums.items()}
        ahead[domain] = {
            name: paired_difference(one.kl, own.kl, own.tokens, context.bootstrap)
            for name, one in sums.items()
            if name != version.reference
        }
    return AdapterMatrix(kl, ahead)


def _one_base_many_domains(versions: Sequence[Version]) -> list[str]:
    """Each student's domain."""
    domains = [version.manifest.domain for version in versions if version.manifest.kind == "student"]
    same = len({version.base for version in versions}) == 1
    if not same or not len(versions) == len(set(domains)) == len(domains) or len(domains) < 2:
        given = ", ".join(f"{version.reference} ({version.base})" for version in versions)
        raise RegistryError(
            f"a matrix needs two or more students of one base and of different domains, not {given}; factory list shows bases"
        )
    return domains


# ------------------------------------------------------------------------------------------------------------------ ablations


@dataclass(frozen=True)
class Ablation:
    """One variation of the objective, trained for the same steps and measured on the same examples."""

    name: str
    metrics: dict[str, MetricValue]
    seconds: float
    ahead: MetricValue | None  # KL of the first variation minus this one's, paired by example


WITHOUT_CONTEXT = "response, teacher without its context"
VARIATIONS: dict[str, dict[str, Any]] = {
    "response": {"feature": 0.0, "relation": 0.0, "lmbda": 0.0},
    "response + feature": {"relation": 0.0, "lmbda": 0.0},
    "response + relation": {"feature": 0.0, "lmbda": 0.0},
    "response + feature + relation": {"lmbda": 0.0},
    "response, half on-policy": {"feature": 0.0, "relation": 0.0, "lmbda": 0.5},
    WITHOUT_CONTEXT: {"feature": 0.0, "relation": 0.0, "lmbda": 0.0},
}


def ablations(
    context: BuildContext, domain: str, size: str, steps: int, variations: dict[str, dict[str, Any]] | None = None
) -> Iterator[Ablation]:
    """``for one in ablations(context, "healthcare", "small", steps=30)``: the same adapter, base, examples and steps.

    Every variation is judged against the teacher with its context.
    """
    models = resolve_models(context.family, context.specs.root, context.device)
    data, base = make_dataset(context, models, context.specs.domain(domain)), make_base(context, models, size)
    settings = context.settings(data.spec)
    rows = list(data.rows["test"])[: settings.evaluate.examples]
    embeddings = embed_rows(models, rows)
    held_out = tokenize_examples(rows, base.teacher.tokenizer, data.spec.teacher_context)
    first: ExampleSums | None = None
    for name, changes in (VARIATIONS if variations is None else variations).items():
        config = settings.distill.model_copy(update={"steps": steps, **changes})
        fresh = replace(base, base=load_base(base.version.folder, context.device))  # an adapter gets attached to it
        seen = data.without_context() if name == WITHOUT_CONTEXT else data
        training_set = adapter_training_set(context, models, seen, fresh, config)
        adapter, _, folder = distil_adapter(context, seen, fresh, training_set, config, name)
        remove_folder(folder)
        sums = measure(base.teacher, {"student": with_adapter(adapter, "default")}, held_out)["student"]
        ahead = None if first is None else paired_difference(first.kl, sums.kl, sums.tokens, context.bootstrap)
        first = first or sums
        yield Ablation(name, summarize(sums, embeddings, context.bootstrap), context.meter.seconds[name], ahead)
