"""``factory data NAME``: what a data set holds, what was dropped and why, a few rows, whether it is too small."""

from __future__ import annotations

from collections import Counter
from typing import Any

from factory.config.schema import DomainSpec, TeacherPromptSource
from factory.data.dataset import SPLITS, find_disagreements, small_dataset_warning
from factory.data.history import conversation_of, conversation_text
from factory.data.language import count_unknown
from factory.distill.target_store import describe_store
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import DomainDataset, load_prompts, load_router
from factory.registry.manifest import PersonalDataInfo
from factory.reports.view import describe_personal_data

SAMPLES = 5


def preview(context: BuildContext, models: FamilyModels, data: DomainDataset) -> dict[str, Any]:
    """``preview(context, models, make_dataset(context, models, spec))``: plain lists and dicts.

    "disagreements" are prompts that the router would send elsewhere, where it knows the domain. Whether the data set is too
    small is judged by its size alone; a build adds what its losses say.
    """
    manifest, rows = data.manifest, data.rows["train"].select(range(min(SAMPLES, len(data.rows["train"]))))
    prompts = [conversation_of(row) for split in data.rows.values() for row in split]
    routed = data.spec in context.routed_domains
    elsewhere = find_disagreements(prompts, data.spec.name, load_router(context, models)) if routed else []
    return {
        "domain": manifest.domain,
        "folder": str(data.folder),
        "fingerprint": manifest.fingerprint,
        "counts": manifest.counts,
        "dropped": manifest.dropped,
        "own_answers": sum(sum(split["own_completion"]) for split in data.rows.values()),
        "refusals": manifest.refusals,
        "sources": manifest.sources,
        "templates": manifest.templates,
        "personal_data": describe_personal_data(data.info.personal_data),
        "other_languages": count_unknown(prompts, models.family.languages).json(),
        "disagreements": len(elsewhere),
        "disagreement_examples": [[one.prompt, one.routed_to] for one in elsewhere[:SAMPLES]],
        "too_small": small_dataset_warning(1.0, 1.0, manifest),
        "soft_targets": [describe_store(folder) for folder in data.targets_folders()],
        "samples": [{name: row[name] for name in ("prompt", "completion", "source", "refusal")} for row in rows],
    }


def dry_preview(context: BuildContext, models: FamilyModels, spec: DomainSpec) -> dict[str, Any]:
    """``dry_preview(context, models, specs.domain("legal"))``: what a data set would hold; the teacher is asked for nothing.

    Prompts that the teacher would write are left out. No data set is kept.
    """
    written = [source for source in spec.sources if not isinstance(source, TeacherPromptSource)]
    prompts, identifiers = load_prompts(context, models, spec.model_copy(update={"sources": tuple(written)}))
    splits = {split: getattr(prompts, split) for split in SPLITS}
    every = [example for split in splits.values() for example in split]
    found = Counter((example.source, example.license) for example in every)
    return {
        "domain": spec.name,
        "dry_run": True,
        "counts": {split: len(examples) for split, examples in splits.items()},
        "dropped": prompts.dropped,
        "own_answers": sum(bool(example.completion) for example in every),
        "sources": [{"id": id, "license": license, "n": n} for (id, license), n in sorted(found.items())],
        "left_out": [source.id for source in spec.sources if source not in written],
        "personal_data": describe_personal_data(PersonalDataInfo(policy=spec.personal_data, found=identifiers)),
        "other_languages": count_unknown([example.text for example in every], models.family.languages).json(),
        "samples": [
            {"prompt": conversation_text(one.prompt, one.history), "completion": one.completion, "source": one.source}
            for one in prompts.train[:SAMPLES]
        ],
    }
