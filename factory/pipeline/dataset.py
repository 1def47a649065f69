"""Stage `dataset`: a domain's data set with the teacher's completions, kept under the key of all that decides it.

data = make_dataset(context, models, specs.domain("legal"))
data.rows["train"], data.manifest.counts
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

from datasets import DatasetDict

from factory.cache import cache_key, home, is_intact, is_kept
from factory.config.schema import DomainSpec, PoolSpec, TeacherContext, TeacherPromptSource
from factory.data.dataset import (
    MANIFEST,
    Completion,
    DatasetManifest,
    PromptSet,
    finish_dataset,
    load_dataset_folder,
    make_prompts,
    make_rows,
    route_pool,
)
from factory.data.pii import filter_pii
from factory.data.records import Say, silent
from factory.data.router import DomainRouter
from factory.data.sources import Example, content_hash, load_examples, sample_evenly
from factory.data.splitting import in_blocks, split_examples
from factory.errors import DataError
from factory.models.chat import NO_CONTEXT, NO_CONTEXTS, completion_ids, prompt_ids
from factory.models.teacher import Progress, Teacher
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.teacher_adaptation import adapt_teacher, adaptation_parts
from factory.registry.manifest import DatasetInfo, PersonalDataInfo, SourceInfo, StudentManifest, TeacherAdaptationInfo
from factory.registry.plain_json import plain_json

SHOWN = 200  # characters of the first prompt, and of its answer: a teacher that does not suit is seen within seconds
DATASET_FORMAT = 4  # raised when the rows, or what is written of them, are chosen otherwise, so that older folders are not read
EVALUATED = {"bias_pairs", "tasks", "golden_set", "refusals", "gates"}
# Fields of a domain's YAML that decide nothing about its rows (its `data` overrides are part of the settings).
# `teacher` is in the key as its sha256; `teacher_adaptation` has a part of its own, so that data sets without one keep theirs.
OWN_TEACHER = {"teacher", "teacher_adaptation"}
NOT_DATA = {"description", "notice", "append_notice", "distill", "embed", "data", *OWN_TEACHER, *EVALUATED}


@dataclass(frozen=True)
class DomainDataset:
    """One domain's data set on disk."""

    spec: DomainSpec
    key: str  # cache key of all that decides it
    folder: Path
    rows: DatasetDict
    manifest: DatasetManifest

    @property
    def held_out(self) -> list[Any]:
        """The rows that decisions before the final evaluation may look at."""
        return list(self.rows["validation"]) or list(self.rows["test"])

    @property
    def info(self) -> DatasetInfo:
        """As a version's manifest describes it."""
        found, personal = self.manifest, self.manifest.provenance.get("personal_data")
        return DatasetInfo(
            fingerprint=found.fingerprint,
            counts=found.counts,
            dropped=found.dropped,
            refusals=found.refusals,
            sources=tuple(SourceInfo(**source) for source in found.sources),
            templates=found.templates,
            personal_data=PersonalDataInfo(**personal) if personal else None,
        )

    @property
    def adaptation(self) -> TeacherAdaptationInfo | None:
        """Of the teacher whose completions these are; None where it answered as it is."""
        found = self.manifest.provenance.get("teacher_adaptation")
        return TeacherAdaptationInfo(**found) if found else None

    def without_context(self) -> DomainDataset:
        """``data.without_context()``: the same examples, which a teacher then sees as its student does."""
        sources = tuple(source.model_copy(update={"teacher_context": None}) for source in self.spec.sources)
        return replace(self, spec=self.spec.model_copy(update={"teacher_context": NO_CONTEXT, "sources": sources}))

    def first(self, share: float) -> DomainDataset:
        """``data.first(0.5)``: only the first half of the training examples, as a data set of its own."""
        count = round(share * len(self.rows["train"]))
        rows = DatasetDict({**self.rows, "train": self.rows["train"].select(range(count))})
        fingerprint = f"{self.manifest.fingerprint[:12]}-first-{count}"
        return replace(self, rows=rows, manifest=replace(self.manifest, fingerprint=fingerprint))

    def targets_folder(self, key: str) -> Path:
        """``data.targets_folder(key)``: the soft targets of this data set, by what else decides them."""
        return home() / "targets" / f"{self.spec.name}-{self.manifest.fingerprint[:12]}-{key}"

    def targets_folders(self) -> list[Path]:
        """Every folder of soft targets of this data set."""
        pattern = self.targets_folder("*")
        return sorted(pattern.parent.glob(pattern.name))


# -------------------------------------------------------------------------------------------------------------------- keys


def router_key(context: BuildContext) -> str:
    """``router_key(context)``: of all that decides the router.

    That is its domains' sources, the general pool, the settings, the encoder and the seed; no context is routed.
    """
    root, unrouted = context.specs.root, {"sources": {"__all__": {"teacher_context"}}}
    routed = [
        [domain.model_dump(include={"name", "sources"}, exclude=unrouted), content_hash(domain.sources, root)]
        for domain in context.routed_domains
    ]
    return cache_key(
        routed, general_key(context), context.family.router.model_dump(), context.family.encoder.model_dump(), context.seed
    )


def router_folder(context: BuildContext) -> Path:
    """``router_folder(context)``: where the router is, or will be."""
    return home() / "routers" / router_key(context)


def general_key(context: BuildContext) -> str:
    """``general_key(context)``: of the general pool's content."""
    pool = general_pool(context)
    return cache_key(pool.model_dump(), content_hash(pool.sources, context.specs.root))


def dataset_key(context: BuildContext, teacher_sha256: str, spec: DomainSpec) -> str:
    """``dataset_key(context, models.of(spec).teacher_files.sha256, spec)``: of all that decides a domain's rows.

    File contents are included. The router counts only where the family has a pool for it to sort, so that a new domain leaves
    the others as they are.
    """
    family = context.family
    return cache_key(
        DATASET_FORMAT,
        spec.model_dump(exclude=NOT_DATA),
        context.settings(spec).data.model_dump(),
        context.seed,
        teacher_sha256,
        *family.teacher.template_parts,
        family.encoder.model_dump(),
        [source.model_dump() for source in family.pool],
        router_key(context) if family.pool and not spec.private else None,
        content_hash([*spec.sources, *family.pool], context.specs.root),
        *adaptation_parts(spec),
    )


def dataset_folder(spec: DomainSpec, key: str) -> Path:
    """``dataset_folder(spec, dataset_key(...))``: where the data set is, or will be."""
    return home() / "data" / f"{spec.name}-{key}"


# ------------------------------------------------------------------------------------------------------- examples and router


def general_pool(context: BuildContext) -> PoolSpec:
    """``general_pool(context)``: prompts of no domain; the router abstains on them, forgetting is measured on them."""
    return context.specs.pools[context.family.general]


def load_domain_examples(
    context: BuildContext, models: FamilyModels, sources: Iterable[Any], say: Say = silent
) -> list[Example]:
    """``load_domain_examples(context, models, spec.sources)``: of these sources; ``say`` hears how each file was read.

    The teacher is loaded only where a source has it write prompts.
    """

    def count(text: str) -> int:
        return len(models.tokenizer(text, add_special_tokens=False)["input_ids"])

    def write(source: TeacherPromptSource, seed: int) -> list[str]:
        return models.teacher.write_prompts(source, seed)

    return load_examples(
        list(sources), root=context.specs.root, seed=context.seed, count_tokens=count, write_prompts=write, say=say
    )


def general_examples(context: BuildContext, models: FamilyModels) -> list[Example]:
    """``general_examples(context, models)``: every prompt of the general pool."""
    return load_domain_examples(context, models.shared, general_pool(context).sources)


def split_general(context: BuildContext, models: FamilyModels) -> tuple[list[Example], list[Example]]:
    """``taught, held_out = split_general(context, models)``: what adapters may learn, and what forgetting is measured on.

    No template and no value is in both. A pool that is too small to be split is held out as a whole.
    """
    every = in_blocks(general_examples(context, models))
    split = split_examples(every, context.settings().data, context.seed)
    held_out = [*split.test, *split.validation]
    return (split.train, held_out) if split.train and held_out else ([], every)


def load_router(context: BuildContext, models: FamilyModels) -> DomainRouter:
    """``load_router(context, models).route(["Can my landlord keep my deposit?"])``: trained once, then read from disk.

    It learns from its domains' own texts and the general pool.
    """
    folder = router_folder(context)
    if is_kept(folder, context.say):
        return DomainRouter.load(folder, models.encoder)
    with context.meter.stage("router"), context.progress("router", 1) as advance:
        labelled: list[tuple[Example, str | None]] = [
            (example, domain.name)
            for domain in context.routed_domains
            for example in load_domain_examples(context, models, [s for s in domain.sources if s.kind != "teacher_prompts"])
        ]
        labelled += [(example, None) for example in general_examples(context, models)]
        router = DomainRouter.fit(
            [example.text for example, _ in labelled],
            [name for _, name in labelled],
            models.encoder,
            context.family.router,
            context.seed,
            groups=[example.template or example.id for example, _ in labelled],
        )
        router.save(folder)
        advance(1)
    return router


# ---------------------------------------------------------------------------------------------------------------- data set


def find_dataset(context: BuildContext, models: FamilyModels, spec: DomainSpec) -> DomainDataset | None:
    """``find_dataset(context, models, spec)``: the data set where it is on disk already; makes nothing, drops a damaged one."""
    key = dataset_key(context, models.of(spec).teacher_files.sha256, spec)
    folder = dataset_folder(spec, key)
    if not is_kept(folder, context.say):
        return None
    rows, manifest = load_dataset_folder(folder)
    return DomainDataset(spec, key, folder, rows, manifest)


def published_rows(manifest: StudentManifest) -> DatasetDict:
    """``published_rows(version.manifest)["train"]``: the very rows that a student was trained and measured on.

    Raises: DataError where they are not on this machine.
    """
    fingerprint = manifest.dataset.fingerprint
    for path in sorted((home() / "data").glob(f"{manifest.domain}-*/{MANIFEST}")):
        if is_intact(path.parent) and json.loads(path.read_bytes()).get("fingerprint") == fingerprint:
            return load_dataset_folder(path.parent)[0]
    raise DataError(
        f"the rows that {manifest.name}@{manifest.version} was trained on (data set {fingerprint[:12]}) are not in {home()}; "
        f"if the domain has not changed, `factory data {manifest.domain} --family {manifest.family} --profile "
        f"{manifest.profile} --seed {manifest.seed}` makes them again"
    )


def load_prompts(context: BuildContext, models: FamilyModels, spec: DomainSpec) -> tuple[PromptSet, dict[str, Any]]:
    """``load_prompts(context, models, specs.domain("legal"))``: clean and split; and how many personal identifiers were found.

    The teacher answers nothing for it.
    """
    dropped = Counter[str]()
    with context.meter.stage("data"), context.progress(f"{spec.name}: prompts", 1) as advance:
        every = load_domain_examples(context, models, spec.sources, context.say)
        if context.family.pool and not spec.private:
            pool = load_domain_examples(context, models.shared, context.family.pool)
            every += route_pool(pool, load_router(context, models)).get(spec.name, [])
        kept, identifiers = filter_pii(every, spec.personal_data, domain=spec.name, dropped=dropped)
        prompts = make_prompts(
            in_blocks(kept, context.say),
            encoder=models.encoder,
            count_prompt=lambda example: len(prompt_ids(models.tokenizer, example.prompt, example.history)),
            count_answer=lambda text: len(completion_ids(models.tokenizer, text, ends=False)) + 1,
            config=context.settings(spec).data,
            seed=context.seed,
        )
        advance(1)
    return replace(prompts, dropped=prompts.dropped | dropped), identifiers


def make_dataset(context: BuildContext, models: FamilyModels, spec: DomainSpec) -> DomainDataset:
    """``make_dataset(context, models, specs.domain("legal")).manifest.counts``: made where it is not on disk yet.

    Where the domain asks for it, the teacher is adapted first, and its adapter made again where it is no longer on disk.
    Raises: DataError where too few examples are left, or too few references to adapt the teacher to.
    """
    models = models.of(spec)
    found = find_dataset(context, models, spec)
    if found is not None:
        adapt_teacher(
            context, models, spec, found.key, lambda split: [row for row in found.rows[split] if row["own_completion"]]
        )
        return found
    key = dataset_key(context, models.teacher_files.sha256, spec)
    prompts, identifiers = load_prompts(context, models, spec)
    adapted = adapt_teacher(context, models, spec, key, partial(_reference_rows, prompts))
    teacher = adapted.teacher if adapted else models.teacher
    completions = _complete(context, teacher, [*prompts.train, *prompts.validation, *prompts.test], spec)
    provenance: dict[str, Any] = {
        "teacher": models.family.teacher.reference,
        "teacher_sha256": models.teacher_files.sha256,
        "teacher_context": spec.contexts.dump(),
        "personal_data": {"policy": spec.personal_data, "found": identifiers},  # counts, never the values
    }
    if adapted:
        adapted.teacher.release()
        provenance["teacher_adaptation"] = plain_json(adapted.info.model_dump(), "teacher_adaptation")
    finish_dataset(prompts, completions, dataset_folder(spec, key), domain=spec.name, seed=context.seed, provenance=provenance)
    made = find_dataset(context, models, spec)
    assert made is not None
    return made


def _reference_rows(prompts: PromptSet, split: str) -> list[dict[str, Any]]:
    """The rows of a split that come with a completion of their own, as the data set will have them."""
    return make_rows([example for example in getattr(prompts, split) if example.completion], {}, Counter())


def _complete(
    context: BuildContext, teacher: Teacher, examples: Sequence[Example], spec: DomainSpec | None
) -> Mapping[str, Completion]:
    """The teacher's completions of the examples that have none, one context after the other.

    ``spec`` None is the general pool, without a context.
    """
    if all(example.completion for example in examples):
        return {}
    config = context.settings(spec).data
    contexts = spec.contexts if spec else NO_CONTEXTS
    by_context: dict[TeacherContext, list[Example]] = {}
    for example in examples:
        by_context.setdefault(contexts.of(example.source), []).append(example)

    def ask(group: Sequence[Example], shown: TeacherContext, progress: Progress | None = None) -> Mapping[str, Completion]:
        return teacher.complete(
            group,
            shown,
            folder=home() / "completions",
            max_new_tokens=config.max_completion_tokens,
            repetition_penalty=config.repetition_penalty,
            seed=context.seed,
            progress=progress,
            say=context.say,
            note=partial(context.note.add, "answers"),
        )

    with context.meter.stage("completions"):
        if spec and not spec.private:
            first = next(example for example in examples if not example.completion)
            written = ask([first], contexts.of(first.source))[first.id].text
            question, answer = (shorten(text, SHOWN, placeholder=" …") for text in (first.prompt, written))
            context.say(f"{spec.name}: first answer, to “{question}”: {answer or '(empty)'}")
        with context.progress(f"{spec.name if spec else 'general'}: teacher's answers", len(examples)) as advance:
            answers = [ask(group, shown, advance) for shown, group in by_context.items()]
            return {id: completion for group in answers for id, completion in group.items()}


def make_general_rows(context: BuildContext, models: FamilyModels) -> list[dict[str, Any]]:
    """``make_general_rows(context, models)``: held-out prompts of the general pool with the teacher's own answers.

    It sees no context. None where it finishes none of them: forgetting is then not measured, and this says so before anything
    is trained.
    """
    settings = context.settings()
    chosen = sample_evenly(split_general(context, models)[1], settings.evaluate.general, context.seed)
    rows = make_rows(chosen, _complete(context, models.teacher, chosen, None), Counter())
    if not rows:
        context.say(
            f"the teacher finished none of {len(chosen)} general prompts, so forgetting outside the domain is not measured; "
            f"raise data.max_completion_tokens ({settings.data.max_completion_tokens}) to measure it"
        )
    return rows


def general_training_rows(context: BuildContext, models: FamilyModels, count: int) -> list[dict[str, Any]]:
    """``general_training_rows(context, models, 500)``: prompts of the general pool that no evaluation asks, with answers.

    The teacher sees no context. An answer that was cut off teaches as much, since only what comes next at each token is learnt.
    """
    taught, _ = split_general(context, models)
    if not taught:
        context.say(f"the general pool {context.family.general} is too small to learn from: what it has is held out")
    chosen = sample_evenly(taught, count, context.seed)
    completions = _complete(context, models.teacher, chosen, None)
    whole = {name: replace(completion, finished=True) for name, completion in completions.items()}
    return make_rows(chosen, whole, Counter())
