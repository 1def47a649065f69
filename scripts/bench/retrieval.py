"""Does a student find the answer to a question among 1,000 texts? For docs/results/retrieval.md:

    python scripts/bench/retrieval.py DATA healthcare-medium@1 --fit 2000 --save docs/results/retrieval.json
    python scripts/docs.py

Recall@10 and @1 of a question's own answer (300 characters of it), of teacher, base and student by their mean final states, of
the student by its head, and of the encoder. ``--fit`` also fits a head on unlabelled texts of the same kind, none of which is
asked or searched for. Choose a student that was not trained on these questions.

Bytes are those of weights in a file, on the grid of the student's base; of the encoder in float32, and rounded to q8_0, whose
time is still that of float32. Milliseconds are of one text at a time, all models in turn. DATA holds the files in ``SOURCES``;
without them the script says so and ends.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.load import load_specs
from factory.errors import FactoryError
from factory.evaluation.retrieval import found_within
from factory.evaluation.stats import BootstrapConfig, relation_alignment, share
from factory.inference import load_version
from factory.models.base import count_parameters
from factory.models.device import pick_device
from factory.models.embedding_head import EmbeddingHead, fit_embedding_head, pool_texts, text_ids, unit_length
from factory.models.quantization import round_weights, rounded_bytes
from factory.pipeline.context import resolve_models
from factory.pipeline.embedding import MAX_TOKENS
from factory.pipeline.provenance import environment
from factory.registry.manifest import MetricValue
from factory.registry.plain_json import plain_json, to_json
from factory.registry.provenance import git_commit
from factory.registry.registry import Registry

LONGEST = 300  # characters of an answer or an excerpt
ALIGNED = 150  # questions, and as many answers to others, behind the alignment with the encoder
TIMED, ROUNDS = 24, 3
BOOTSTRAP = BootstrapConfig()


@dataclass(frozen=True)
class Source:
    """Questions with answers; texts that answer none of them; and further questions of the same kind to fit a head on."""

    questions: str
    distractors: str | None = None
    alike: str | None = None


SOURCES = {
    "MedQuAD": Source("healthcare/medquad.jsonl"),
    "psychology": Source("education/openstax_psychology.jsonl"),
    "American government": Source(
        "legal/openstax_american_government.jsonl",
        distractors="legal/cuad_clauses.jsonl",
        alike="education/openstax_psychology.jsonl",
    ),
}


@dataclass(frozen=True)
class Collection:
    """What is asked and what is searched; the first texts are the questions' own answers."""

    questions: Sequence[str]
    texts: Sequence[str]
    unlabelled: Sequence[str]  # neither


@dataclass(frozen=True)
class Embedder:
    """A model that reads texts as (N, H) states, and the bytes of its weights."""

    name: str
    bytes: int
    read: Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the real texts")
    parser.add_argument("student", help="healthcare-medium@1")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--fit", type=int, default=0, metavar="N", help="unlabelled texts of a source for a head of its own")
    parser.add_argument("--texts", type=int, default=1000, help="that are searched")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    files = [file for one in SOURCES.values() for file in (one.questions, one.distractors) if file]
    missing = [file for file in files if not (given.data / file).is_file()]
    if missing:
        print(f"skipped: {given.data} lacks {len(missing)} of {len(files)} files, the first is {missing[0]}")
        return
    embedders, head = load_embedders(given)
    collections = {name: collect(given.data, source, given.texts, given.fit) for name, source in SOURCES.items()}
    times = milliseconds(embedders, collections["MedQuAD"].texts[:TIMED])
    report = {
        "student": given.student,
        "git_commit": git_commit(),
        "environment": environment(pick_device(given.device)),
        "models": {one.name: {"bytes": one.bytes, "milliseconds": times[one.name]} for one in embedders},
        "sources": {name: measure(name, embedders, head, collection) for name, collection in collections.items()},
    }
    if given.save:
        given.save.write_bytes(to_json(plain_json(report, given.save.name)))


# ---------------------------------------------------------------------------------------------------------------- texts


def collect(data: Path, source: Source, count: int, fit: int) -> Collection:
    """So many texts to search, with as many of them answers as there are; and ``fit`` others at most."""
    rng = random.Random(0)
    pairs = distinct_pairs(data / source.questions, rng)
    asked, rest = pairs[:count], pairs[count:]
    beside = excerpts(data / source.distractors, rng) if source.distractors else []
    wanted = count - len(asked)
    rest += distinct_pairs(data / source.alike, rng) if source.alike else []
    unlabelled = [*chain.from_iterable(rest), *beside[wanted:]]
    rng.shuffle(unlabelled)
    questions, answers = zip(*asked, strict=True)
    return Collection(questions, [*answers, *beside[:wanted]], unlabelled[:fit])


def distinct_pairs(path: Path, rng: random.Random) -> list[tuple[str, str]]:
    """Questions with their answers, shuffled; no question and no answer is there twice."""
    pairs = [(row["prompt"].strip(), row["response"][:LONGEST].strip()) for row in read_rows(path)]
    rng.shuffle(pairs)
    seen: set[str] = set()
    kept = []
    for pair in pairs:
        if all(pair) and not seen.intersection(pair):
            kept.append(pair)
            seen.update(pair)
    return kept


def excerpts(path: Path, rng: random.Random) -> list[str]:
    """Those that the prompts of contracts quote, shuffled, each once."""
    found = [row["prompt"].partition(":\n")[2].rpartition("\n\n")[0][:LONGEST].strip() for row in read_rows(path)]
    rng.shuffle(found)
    return [text for text in dict.fromkeys(found) if text]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


# --------------------------------------------------------------------------------------------------------------- models


def load_embedders(given: argparse.Namespace) -> tuple[list[Embedder], EmbeddingHead | None]:
    """The encoder first, with which others are compared; the student last, and the head that it was built with."""
    registry, specs, device = Registry(given.registry), load_specs(given.domains), pick_device(given.device)
    version = registry.resolve(given.student)
    student = load_version(version, registry, device)
    base = load_version(student.base_version, registry, device)
    models = resolve_models(specs.family(version.manifest.family), specs.root, device)
    grid = getattr(student.base_version.manifest, "quantization", None) or "q8_0"
    rounded = copy.deepcopy(models.encoder)
    round_weights(rounded.transformers_model, "q8_0")
    base_bytes = rounded_bytes(base.model, grid)
    adapter_bytes = (version.folder / "adapter_model.safetensors").stat().st_size

    def states(model: Any, tokenizer: Any) -> Callable[[Sequence[str]], np.ndarray]:
        return lambda texts: pool_texts(model, text_ids(tokenizer, texts, MAX_TOKENS))

    def encoded(encoder: Any) -> Callable[[Sequence[str]], np.ndarray]:
        return lambda texts: np.asarray(encoder.encode(list(texts), show_progress_bar=False))

    embedders = [
        Embedder("encoder", 4 * count_parameters(models.encoder), encoded(models.encoder)),
        Embedder("encoder, q8_0", rounded_bytes(rounded.transformers_model, "q8_0"), encoded(rounded)),
        Embedder("teacher", rounded_bytes(models.teacher.model, grid), states(models.teacher.model, models.tokenizer)),
        Embedder("base", base_bytes, states(base.model, base.base.tokenizer)),
        Embedder("student", base_bytes + adapter_bytes, states(student.model, student.base.tokenizer)),
    ]
    return embedders, student.head


def milliseconds(embedders: Sequence[Embedder], texts: Sequence[str]) -> dict[str, float]:
    """Of one text at a time, the median of so many rounds; all models take turns, so that a busy minute is everybody's."""
    taken: dict[str, list[float]] = {one.name: [] for one in embedders}
    for _ in range(ROUNDS):
        for one in embedders:
            begin = time.perf_counter()
            for text in texts:
                one.read([text])
            taken[one.name].append(1000 * (time.perf_counter() - begin) / len(texts))
    return {name: statistics.median(each) for name, each in taken.items()}


# -------------------------------------------------------------------------------------------------------------- measure


def measure(source: str, embedders: Sequence[Embedder], built: EmbeddingHead | None, collection: Collection) -> dict[str, Any]:
    """A row for each model, and for the student with each of its heads: the one that it was built with, and one of its own."""
    encoder, student = embedders[0], embedders[-1]
    rows: dict[str, dict[str, Any]] = {}
    reference = selection(*map(encoder.read, (collection.questions, collection.texts)))
    for one in embedders:
        heads: dict[str, EmbeddingHead | None] = {one.name: None}
        if one is student:
            heads |= student_heads(encoder, student, built, collection.unlabelled)
        questions, texts = map(one.read, (collection.questions, collection.texts))
        for name, head in heads.items():
            asked, searched = (head.embed(part) if head else unit_length(part) for part in (questions, texts))
            metrics = {f"recall@{depth}": recall(asked, searched, depth) for depth in (10, 1)}
            metrics["alignment"] = relation_alignment(selection(asked, searched), reference, BOOTSTRAP)
            print(f"{source:<22}{name:<36}" + "  ".join(f"{key} {metric}" for key, metric in metrics.items()), flush=True)
            rows[name] = {key: asdict(metric) for key, metric in metrics.items()} | {"head_bytes": head.bytes if head else 0}
    counts = {"questions": collection.questions, "texts": collection.texts, "fitted_on": collection.unlabelled}
    return {name: len(texts) for name, texts in counts.items()} | {"rows": rows}


def student_heads(
    encoder: Embedder, student: Embedder, built: EmbeddingHead | None, unlabelled: Sequence[str]
) -> dict[str, EmbeddingHead]:
    heads = {"student with its head": built} if built else {}
    if unlabelled:
        heads["student with a head of this source"] = fit_embedding_head(student.read(unlabelled), encoder.read(unlabelled))
    return heads


def selection(questions: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Vectors whose similarities are compared with the encoder's: some questions, and answers to others."""
    return np.concatenate([questions[:ALIGNED], texts[ALIGNED : 2 * ALIGNED]])


def recall(questions: np.ndarray, texts: np.ndarray, depth: int) -> MetricValue:
    found = found_within(questions, texts, depth)
    return share(found.astype(float), np.ones(len(found)), BOOTSTRAP)


if __name__ == "__main__":
    try:
        main()
    except FactoryError as error:
        sys.exit(f"error: {error}")
