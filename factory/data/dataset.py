"""A domain's data set: examples → clean prompts, split → with completions, on disk, fingerprinted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets import Dataset, DatasetDict, Features, Value

from factory.config.schema import DataConfig
from factory.data.cleaning import clean_completion, contaminated, is_refusal, near_duplicates
from factory.data.sources import CountTokens, Example, one_line, sample_evenly, seeded_order
from factory.data.splitting import normalised, split_examples
from factory.errors import DataError

if TYPE_CHECKING:  # only its route() is called
    from factory.data.router import DomainRouter

SPLITS = ("train", "validation", "test")
OVERSAMPLE = 1.3  # of the cap, so that near duplicates can go without the encoder seeing every combination
MIN_HELD_OUT = 20  # validation and test may be this large whatever their share
MIN_TRAIN, MIN_TEST = 20, 2  # below this nothing can be trained or measured
THIN_RATIO, THIN_TRAIN = 1.25, 200
MANIFEST = "manifest.json"

FEATURES = Features(
    {name: Value("string") for name in ("id", "prompt", "completion", "source", "license", "template")}
    | {"topic": datasets.List(Value("string")), "refusal": Value("bool"), "own_completion": Value("bool")}
)


@dataclass(frozen=True)
class Disagreement:
    """A prompt of the domain's own sources that the router would send elsewhere (None: to no domain)."""

    prompt: str
    routed_to: str | None
    score: float


@dataclass(frozen=True)
class PromptSet:
    """Prompts ready for the teacher, each split in seeded order, so that its first n are a fair sample of it."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    dropped: dict[str, int]  # by reason
    disagreements: tuple[Disagreement, ...]  # all of them, the router's surest first


@dataclass(frozen=True)
class Completion:
    """What the teacher wrote; ``finished`` is False where it was cut at the most tokens."""

    text: str
    finished: bool


@dataclass(frozen=True)
class DatasetManifest:
    """What a data set holds and where it comes from."""

    domain: str
    fingerprint: str  # sha256 over the rows of all splits
    counts: dict[str, int]  # examples by split
    dropped: dict[str, int]  # by reason, of prompts and completions
    refusals: int
    sources: list[dict[str, Any]]  # id, license, n
    templates: int
    disagreements: int
    seed: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> DatasetManifest:
        return cls(**json.loads(text))


# ------------------------------------------------------------------------------------------------------------ prompts


def make_prompts(
    examples: Sequence[Example],
    *,
    domain: str,
    router: DomainRouter | None,
    encoder: Any,
    count_tokens: CountTokens,
    config: DataConfig,
    seed: int,
) -> PromptSet:
    """``make_prompts(examples, domain="legal", router=router, encoder=encoder, count_tokens=count, config=c, seed=0)``

    Drops, in this order and counted by reason: empty and too long prompts (none is ever cut), exact duplicates,
    combinations that mix splits, near duplicates, test prompts seen in train, and what is over ``max_examples``.
    The encoder embeds a sample of 1.3 times what is kept, never every combination.
    Without an encoder near duplicates stay; without a router there are no disagreements.
    """
    dropped: Counter[str] = Counter()
    usable = drop_duplicates(drop_lengths(examples, count_tokens, config, dropped), dropped)
    split = split_examples(sorted(usable, key=lambda example: seeded_order(seed, example.id)), config, seed)
    dropped["held_out_combination"] += split.held_out

    def limited(part: list[Example], limit: float) -> list[Example]:
        kept = sample_evenly(part, round(limit), seed)
        dropped["over_limit"] += len(part) - len(kept)
        return kept

    most = config.max_examples
    most_test, most_validation = (max(MIN_HELD_OUT, most * share) for share in (config.test, config.validation))
    train = limited(split.train, most * OVERSAMPLE)
    seen = contaminated(train, split.test)
    test = limited([example for example in split.test if example.id not in seen], most_test * OVERSAMPLE)
    in_train, in_test = near_duplicates(train, test, encoder, config.near_duplicate) if encoder else (set(), set())
    dropped["near_duplicate"] += len(in_train)
    dropped["contaminated"] += len(seen) + len(in_test)
    train = [example for example in train if example.id not in in_train]
    test = [example for example in test if example.id not in in_test]
    train, test = limited(train, most), limited(test, most_test)
    validation = limited(split.validation, most_validation)
    disagreements = find_disagreements([*train, *validation, *test], domain, router)
    counts = {reason: count for reason, count in dropped.items() if count}
    return PromptSet(tuple(train), tuple(validation), tuple(test), counts, disagreements)


def drop_lengths(
    examples: Iterable[Example], count_tokens: CountTokens, config: DataConfig, dropped: Counter[str]
) -> list[Example]:
    kept = []
    for example in examples:
        if not example.text.strip():
            dropped["empty_prompt"] += 1
        elif count_tokens(example.prompt) > config.max_prompt_tokens:
            dropped["long_prompt"] += 1
        else:
            kept.append(example)
    return kept


def drop_duplicates(examples: Iterable[Example], dropped: Counter[str]) -> list[Example]:
    """The first of examples whose texts differ in case and spaces only."""
    first: dict[str, Example] = {}
    for example in examples:
        if first.setdefault(normalised(example.text), example) is not example:
            dropped["duplicate"] += 1
    return list(first.values())


def find_disagreements(examples: Sequence[Example], domain: str, router: DomainRouter | None) -> tuple[Disagreement, ...]:
    """Reported and not dropped: the user, who chose the sources, may be right."""
    if router is None or not examples:
        return ()
    routes = router.route([example.text for example in examples])
    found = [
        Disagreement(example.text, route.domain, float(route.score))
        for example, route in zip(examples, routes, strict=True)
        if route.domain != domain
    ]
    return tuple(sorted(found, key=lambda disagreement: -disagreement.score))


def route_pool(examples: Sequence[Example], router: DomainRouter) -> dict[str, list[Example]]:
    """``route_pool(pool, router)["legal"]``: unlabelled examples by domain; those of no domain are left out."""
    routed: dict[str, list[Example]] = {}
    if examples:
        for example, route in zip(examples, router.route([example.text for example in examples]), strict=True):
            if route.domain is not None:
                routed.setdefault(route.domain, []).append(example)
    return routed


# ------------------------------------------------------------------------------------------------------------ data set


def finish_dataset(
    prompts: PromptSet,
    completions: Mapping[str, Completion],
    folder: Path,
    *,
    domain: str,
    seed: int,
    provenance: Mapping[str, Any],
) -> DatasetManifest:
    """Join prompts with the teacher's completions (by example id), drop bad ones, write data set and manifest.

    A prompt's own completion is used where it has one. The folder is a Hugging Face ``DatasetDict`` and
    ``manifest.json``; it appears whole or not at all, and replaces what was there.

    Raises:
        DataError: with fewer than 20 train or 2 test examples left, or where the folder cannot be written.
    """
    dropped = Counter(prompts.dropped)
    rows = {split: make_rows(getattr(prompts, split), completions, dropped) for split in SPLITS}
    refuse_too_few(domain, rows, dropped)
    every = [row for split in SPLITS for row in rows[split]]
    per_source = Counter((row["source"], row["license"]) for row in every)
    manifest = DatasetManifest(
        domain=domain,
        fingerprint=fingerprint(rows),
        counts={split: len(rows[split]) for split in SPLITS},
        dropped=dict(sorted(dropped.items())),
        refusals=sum(row["refusal"] for row in every),
        sources=[{"id": id, "license": license, "n": n} for (id, license), n in sorted(per_source.items())],
        templates=len({row["template"] for row in every if row["template"]}),
        disagreements=len(prompts.disagreements),
        seed=seed,
        provenance=dict(provenance),
    )
    write_folder(rows, manifest, folder)
    return manifest


def make_rows(
    examples: Iterable[Example], completions: Mapping[str, Completion], dropped: Counter[str]
) -> list[dict[str, Any]]:
    """One dictionary an example, with the columns of ``FEATURES``."""
    rows = []
    for example in examples:
        own = bool(example.completion)
        written = Completion(example.completion, finished=True) if own else completions.get(example.id)
        reason = "no_completion" if written is None else clean_completion(written.text, written.finished)
        if written is None or (reason and not own):
            dropped[reason or "no_completion"] += 1
            continue
        row = {**asdict(example), "completion": written.text.strip(), "topic": list(example.topic)}
        rows.append(row | {"refusal": is_refusal(written.text), "own_completion": own})
    return rows


def refuse_too_few(domain: str, rows: Mapping[str, Sequence[Any]], dropped: Mapping[str, int]) -> None:
    train, test = len(rows["train"]), len(rows["test"])
    if train >= MIN_TRAIN and test >= MIN_TEST:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1]))
    raise DataError(
        f"data set {domain!r} has {train} train and {test} test examples left, it needs at least {MIN_TRAIN} and "
        f"{MIN_TEST}; dropped: {reasons or 'nothing'}; add templates (two or more a source), slot values (four or "
        "more a slot), documents or another source"
    )


def fingerprint(rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """sha256 over every row of every split, in order."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in rows[split]:
            digest.update(json.dumps([split, row], sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def write_folder(rows: Mapping[str, list[dict[str, Any]]], manifest: DatasetManifest, folder: Path) -> None:
    """Written beside its place, then renamed into it."""
    partial, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("partial", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        splits = {  # by column: a list without rows would lose its columns
            split: Dataset.from_dict({name: [row[name] for row in rows[split]] for name in FEATURES}, features=FEATURES)
            for split in SPLITS
        }
        # One shard each: left to itself it writes none for a split without rows, and cannot read that back.
        DatasetDict(splits).save_to_disk(partial, num_shards=dict.fromkeys(SPLITS, 1))
        (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        what = f"data set {manifest.domain!r} cannot be written to {folder}"
        raise DataError(f"{what}: {error}; nothing was changed, check the space and rights there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def load_dataset_folder(folder: Path) -> tuple[DatasetDict, DatasetManifest]:
    """``data, manifest = load_dataset_folder(folder)``: what ``finish_dataset`` wrote, checked.

    Raises:
        DataError: where the folder is absent or damaged, or its rows are no longer those of the manifest.
    """
    if not (folder / MANIFEST).is_file():
        raise DataError(f"no data set in {folder} ({MANIFEST} is missing); build it again")
    try:
        manifest = DatasetManifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
        data = DatasetDict.load_from_disk(str(folder))
        found = fingerprint(data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = f"the data set in {folder} is damaged ({one_line(error)})"
        raise DataError(f"{what}; delete the folder and build it again") from error
    if found != manifest.fingerprint:
        raise DataError(
            f"the data set in {folder} was changed: its rows have fingerprint {found[:12]}, the manifest says "
            f"{manifest.fingerprint[:12]}; delete the folder and build it again"
        )
    return data, manifest


def small_dataset_warning(train_loss: float, validation_loss: float, manifest: DatasetManifest) -> str | None:
    """``small_dataset_warning(0.39, 0.59, manifest)``: one line if the data set is too thin for what it should teach, else None."""
    train = manifest.counts["train"]
    ratio = validation_loss / train_loss if train_loss > 0 else float("inf")
    if ratio <= THIN_RATIO and train >= THIN_TRAIN:
        return None
    signs = []
    if train < THIN_TRAIN:
        signs.append(f"{train} train examples (fewer than {THIN_TRAIN})")
    if ratio > THIN_RATIO:
        signs.append(f"validation loss {validation_loss:.3g} is {ratio:.2f} times the training loss {train_loss:.3g}")
    return (
        f"data set {manifest.domain!r} is thin: {' and '.join(signs)}; more templates and slot values help most, then "
        "a file, documents or teacher_prompts; more steps do not"
    )
