"""A domain's data set: examples → clean, split prompts → prompts with completions, on disk."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets import Dataset, DatasetDict, Features, Value

from factory.cache import kept_folder, storage_errors
from factory.config.schema import DataConfig
from factory.config.sources import Turn
from factory.data.cleaning import clean_completion, common_forms, contaminated, is_refusal, near_duplicates, shared_answers
from factory.data.documents import CountTokens
from factory.data.drops import describe_dropped
from factory.data.history import NOTHING, history_of
from factory.data.sources import Example, sample_evenly, seeded_order
from factory.data.splitting import normalised, split_examples
from factory.errors import DataError, in_one_line

if TYPE_CHECKING:
    from factory.data.router import DomainRouter

SPLITS = ("train", "validation", "test")
OVERSAMPLE = 1.3  # of the caps, so that near duplicates can be dropped without embedding every combination
MIN_HELD_OUT = 20  # validation and test may be this large whatever their share
MIN_TRAIN, MIN_TEST = 20, 2  # examples that a data set needs
SMALL_TRAIN = 200  # a data set with fewer train examples is too small
MAX_LOSS_RATIO, MIN_LOSS_GAP = 1.25, 0.05  # so is one whose held-out loss is further above the training loss, nats/token
MANIFEST = "manifest.json"

FEATURES = Features(
    {name: Value("string") for name in ("id", "prompt", "completion", "source", "license", "template")}
    | {"topic": datasets.List(Value("string")), "refusal": Value("bool"), "own_completion": Value("bool")}
    | {"history": {"system": Value("string"), "examples": datasets.List({name: Value("string") for name in Turn.model_fields})}}
)


@dataclass(frozen=True)
class Disagreement:
    """A prompt of the domain's own sources that the router would send elsewhere; None: to no domain."""

    prompt: str
    routed_to: str | None
    score: float


@dataclass(frozen=True)
class PromptSet:
    """Prompts for the teacher; each split is in seeded order, so that its first n are a fair sample of it."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    dropped: dict[str, int]  # by reason


@dataclass(frozen=True)
class Completion:
    """What the teacher wrote; ``finished`` is False if it was cut off at the token limit."""

    text: str
    finished: bool
    top_logprobs: str = ""  # packed, of an API that says them: see models/top_logprobs.py


@dataclass(frozen=True)
class DatasetManifest:
    """What a data set holds and where it comes from."""

    domain: str
    fingerprint: str  # sha256 over the rows of all splits
    counts: dict[str, int]  # examples by split
    dropped: dict[str, int]  # prompts and completions by reason
    refusals: int
    sources: list[dict[str, Any]]  # id, license, n
    templates: int
    seed: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> DatasetManifest:
        return cls(**json.loads(text))


# -------------------- prompts


def make_prompts(
    examples: Sequence[Example],
    *,
    encoder: Any,
    count_prompt: Callable[[Example], int],
    count_answer: CountTokens,
    config: DataConfig,
    seed: int,
) -> PromptSet:
    """``make_prompts(examples, encoder=encoder, count_prompt=..., count_answer=..., config=settings.data, seed=0).train``

    ``count_prompt`` counts the tokens of a prompt and of what was said before it, in the chat template; ``count_answer`` those
    of an answer with its end of turn.
    Drops, in this order and counted by reason: empty and too long prompts, too long answers of sources (none is truncated),
    exact duplicates, combinations that mix splits, passages next to a held-out one, what two splits share, near duplicates, and
    what exceeds ``max_examples``. Only ``OVERSAMPLE`` times what is kept is compared and embedded. Without an encoder, near
    duplicates are kept.
    """
    dropped: Counter[str] = Counter()
    usable = drop_duplicates(drop_lengths(examples, count_prompt, count_answer, config, dropped), dropped)
    split = split_examples(sorted(usable, key=lambda example: seeded_order(seed, example.id)), config, seed)
    dropped["held_out_combination"] += split.held_out
    dropped["next_to_held_out"] += split.neighbours

    def limited(part: list[Example], limit: float) -> list[Example]:
        kept = sample_evenly(part, round(limit), seed)
        dropped["over_limit"] += len(part) - len(kept)
        return kept

    most = {name: max(MIN_HELD_OUT, config.max_examples * getattr(config, name)) for name in ("validation", "test")}
    most["train"] = config.max_examples
    parts = {name: limited(getattr(split, name), OVERSAMPLE * most[name]) for name in SPLITS}
    parts = keep_apart(parts, encoder, config.near_duplicate, dropped)
    kept = {name: tuple(limited(parts[name], most[name])) for name in SPLITS}
    return PromptSet(**kept, dropped={reason: count for reason, count in dropped.items() if count})


def keep_apart(
    parts: Mapping[str, list[Example]], encoder: Any, threshold: float, dropped: Counter[str]
) -> dict[str, list[Example]]:
    """What two splits share stays in one of them: train gives way to validation and test, validation to test.

    Of near duplicates, the first is kept in the same order: test, validation, train.
    """
    forms = common_forms(example for part in parts.values() for example in part)
    kept: list[Example] = []

    def without(part: list[Example], ids: set[str], reason: str) -> list[Example]:
        dropped[reason] += len(ids)
        return [example for example in part if example.id not in ids]

    for split in reversed(SPLITS):
        part = without(parts[split], contaminated(parts[split], kept, forms), "contaminated")
        kept += without(part, shared_answers(part, kept), "shared_answer")
    if encoder:
        kept = without(kept, near_duplicates(kept, encoder, threshold), "near_duplicate")
    ids = {example.id for example in kept}
    return {split: [example for example in part if example.id in ids] for split, part in parts.items()}


def drop_lengths(
    examples: Iterable[Example],
    count_prompt: Callable[[Example], int],
    count_answer: CountTokens,
    config: DataConfig,
    dropped: Counter[str],
) -> list[Example]:
    """Those that have a text, and neither a prompt nor an answer above its limit; a document's chunks have their own."""
    kept = []
    for example in examples:
        if not example.text.strip():
            dropped["empty_prompt"] += 1
        elif count_prompt(example) > config.max_prompt_tokens:
            dropped["long_prompt"] += 1
        elif example.prompt and example.completion and count_answer(example.completion) > config.max_completion_tokens:
            dropped["long_answer"] += 1
        else:
            kept.append(example)
    return kept


def drop_duplicates(examples: Iterable[Example], dropped: Counter[str]) -> list[Example]:
    """The first of examples whose texts differ only in case and spaces; two answers to one prompt are counted apart."""
    first: dict[str, Example] = {}
    for example in examples:
        kept = first.setdefault(normalised(example.text), example)
        if kept is not example:
            answers = {normalised(one.completion) for one in (kept, example) if one.completion}
            dropped["conflicting_answer" if len(answers) > 1 else "duplicate"] += 1
    return list(first.values())


def find_disagreements(texts: Sequence[str], domain: str, router: DomainRouter) -> list[Disagreement]:
    """``find_disagreements(prompts, "legal", router)``: prompts the router would send elsewhere, the surest first.

    They are reported and not dropped: the user, who chose the sources, may be right.
    """
    found = [
        Disagreement(text, route.domain, float(route.score))
        for text, route in zip(texts, router.route(texts), strict=True)
        if route.domain != domain
    ]
    return sorted(found, key=lambda disagreement: -disagreement.score)


def route_pool(examples: Sequence[Example], router: DomainRouter) -> dict[str, list[Example]]:
    """``route_pool(pool, router)["legal"]``: unlabelled examples by domain; those of no domain are left out."""
    routed: dict[str, list[Example]] = {}
    for example, route in zip(examples, router.route([example.text for example in examples]), strict=True):
        if route.domain is not None:
            routed.setdefault(route.domain, []).append(example)
    return routed


# -------------------- data set


def finish_dataset(
    prompts: PromptSet,
    completions: Mapping[str, Completion],
    folder: Path,
    *,
    domain: str,
    seed: int,
    provenance: Mapping[str, Any],
) -> DatasetManifest:
    """``finish_dataset(prompts, completions, folder, domain="legal", seed=0, provenance={}).counts``

    Joins prompts with the teacher's completions by example id, drops bad completions, and writes a Hugging Face
    ``DatasetDict`` with a ``manifest.json``. A prompt's own completion is used if it has one.

    Raises:
        DataError: fewer than ``MIN_TRAIN`` train or ``MIN_TEST`` test examples are left.
        StorageError: the folder cannot be written; an older one stays as it is.
    """
    dropped = Counter(prompts.dropped)
    rows = {split: make_rows(getattr(prompts, split), completions, dropped) for split in SPLITS}
    refuse_too_few(domain, rows, dropped)
    all_rows = [row for split in SPLITS for row in rows[split]]
    per_source = Counter((row["source"], row["license"]) for row in all_rows)
    manifest = DatasetManifest(
        domain=domain,
        fingerprint=fingerprint(rows),
        counts={split: len(rows[split]) for split in SPLITS},
        dropped=dict(sorted(dropped.items())),
        refusals=sum(row["refusal"] for row in all_rows),
        sources=[{"id": id, "license": license, "n": n} for (id, license), n in sorted(per_source.items())],
        templates=len({row["template"] for row in all_rows if row["template"]}),
        seed=seed,
        provenance=dict(provenance),
    )
    write_folder(rows, manifest, folder)
    return manifest


def make_rows(
    examples: Iterable[Example], completions: Mapping[str, Completion], dropped: Counter[str]
) -> list[dict[str, Any]]:
    """One dictionary per example, with the columns of ``FEATURES``, and ``top_logprobs`` where the teacher said them."""
    rows, said = [], any(one.top_logprobs for one in completions.values())
    for example in examples:
        own = bool(example.completion)
        written = Completion(example.completion, finished=True) if own else completions.get(example.id)
        reason = "no_completion" if written is None else clean_completion(written.text, written.finished)
        if written is None or (reason and not own):
            dropped[reason or "no_completion"] += 1
            continue
        row = {**asdict(example), "completion": written.text.strip(), "topic": list(example.topic)}
        row["history"] = example.history.model_dump()
        row |= {"top_logprobs": written.top_logprobs} if said else {}
        rows.append(row | {"refusal": is_refusal(written.text), "own_completion": own})
    return rows


def refuse_too_few(domain: str, rows: Mapping[str, Sequence[Any]], dropped: Mapping[str, int]) -> None:
    """Raises DataError if there are fewer than ``MIN_TRAIN`` train or ``MIN_TEST`` test examples."""
    train, test = len(rows["train"]), len(rows["test"])
    if train >= MIN_TRAIN and test >= MIN_TEST:
        return
    raise DataError(
        f"data set {domain!r} has {train} train and {test} test examples and needs at least {MIN_TRAIN} and {MIN_TEST}; "
        f"dropped: {describe_dropped(dropped)}; add templates (two or more per source), slot values (four or more per slot), "
        "documents or another source"
    )


def fingerprint(rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """``fingerprint(rows)``: sha256 over every row of every split, in order; nothing said before is as no word of it."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in rows[split]:
            said = {name: value for name, value in row.items() if name != "history" or history_of(row) != NOTHING}
            digest.update(json.dumps([split, said], sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def write_folder(rows: Mapping[str, list[dict[str, Any]]], manifest: DatasetManifest, folder: Path) -> None:
    """Writes the ``DatasetDict`` and its manifest in one step."""
    said = {name: Value("string") for row in rows["train"][:1] for name in row.keys() - FEATURES.keys()}  # top_logprobs
    features = Features(FEATURES | said)
    splits = {  # built by column: a list without rows would lose its columns
        split: Dataset.from_dict({name: [row[name] for row in rows[split]] for name in features}, features=features)
        for split in SPLITS
    }
    with storage_errors(f"cannot write data set {manifest.domain!r} to {folder}"), kept_folder(folder) as new:
        # One shard each: by default an empty split gets none, and then cannot be read back.
        DatasetDict(splits).save_to_disk(new, num_shards=dict.fromkeys(SPLITS, 1))
        (new / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def load_dataset_folder(folder: Path) -> tuple[DatasetDict, DatasetManifest]:
    """``data, manifest = load_dataset_folder(folder)``: what ``finish_dataset`` wrote, verified by its fingerprint.

    Raises:
        DataError: the folder is missing or damaged, or its rows have changed.
    """
    if not (folder / MANIFEST).is_file():
        raise DataError(f"no data set in {folder} ({MANIFEST} is missing); build it again")
    try:
        manifest = DatasetManifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
        data = DatasetDict.load_from_disk(str(folder))
        found = fingerprint(data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = f"the data set in {folder} is damaged ({in_one_line(error)})"
        raise DataError(f"{what}; delete the folder and build it again") from error
    if found != manifest.fingerprint:
        raise DataError(
            f"the data set in {folder} has changed: its rows have fingerprint {found[:12]}, its manifest has "
            f"{manifest.fingerprint[:12]}; delete the folder and build it again"
        )
    return data, manifest


def small_dataset_warning(train_loss: float, held_out_loss: float, manifest: DatasetManifest) -> str | None:
    """``small_dataset_warning(0.39, 0.59, manifest)``: one line if the data set is too small to train on, else None."""
    train = manifest.counts["train"]
    ratio = held_out_loss / train_loss if train_loss > 0 else float("inf")
    signs = []
    if train < SMALL_TRAIN:
        signs.append(f"{train} train examples (fewer than {SMALL_TRAIN})")
    if ratio > MAX_LOSS_RATIO and held_out_loss - train_loss > MIN_LOSS_GAP:
        signs.append(f"held-out loss {held_out_loss:.3g} is {ratio:.2f} times the training loss {train_loss:.3g}")
    if not signs:
        return None
    return (
        f"data set {manifest.domain!r} is too small: {' and '.join(signs)}; more templates and slot values help most, then "
        "a file, documents or teacher_prompts; more steps do not"
    )
