"""Is each student best on its own domain? Every adapter of one base on the held-out text of every domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factory.data.splitting import cluster_of
from factory.errors import RegistryError
from factory.evaluation.fidelity import base_only, measure, with_adapter
from factory.evaluation.stats import paired_difference, summarize
from factory.inference import load_version
from factory.models.adapter import load_adapter
from factory.models.base import trim_teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.context import BuildContext, resolve_models
from factory.pipeline.dataset import make_dataset
from factory.registry.manifest import MetricValue
from factory.registry.versions import Version


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
        load_adapter(loaded.model, context.registry.require_intact(version).folder, version.name)
    candidates = {reference: with_adapter(loaded.model.eval(), name) for reference, name in names.items()}
    candidates["base"] = base_only(loaded.model)
    shared, settings = trim_teacher(models.teacher, loaded.base.shape.tokens), context.settings().evaluate
    kl: dict[str, dict[str, MetricValue]] = {}
    ahead: dict[str, dict[str, MetricValue]] = {}
    for version, domain in zip(versions, students, strict=True):
        spec = context.specs.domain(domain)
        data, taught = make_dataset(context, models, spec), models.of(spec)
        teacher = shared if taught is models else trim_teacher(taught.teacher, loaded.base.shape.tokens)
        rows = list(data.rows["test"])[: settings.examples]
        with context.progress(f"{domain}: every adapter", len(rows)) as advance:
            examples = tokenize_examples(rows, teacher.tokenizer, data.spec.contexts)
            measured = measure(teacher, candidates, examples, advance)
        labels = [cluster_of(row) for row in rows]
        sums = {name: one.by_cluster(labels) for name, one in measured.items()}
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
