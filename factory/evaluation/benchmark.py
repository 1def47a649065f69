"""Is a student useful, and not only close to its teacher? How well models predict reference answers to real questions.

    questions = load_questions(Path("questions.jsonl")).without(training).sample(200, seed=0)
    bits, sizes = bits_per_byte(model, tokenizer, questions.rows, device=device)
    clusters = question_clusters(questions.rows)
    ratio(by_cluster(bits, clusters), by_cluster(sizes, clusters), bootstrap).value

Bits per byte (The Pile, arXiv 2101.00027, section 3.1) compare models of different tokenizers: the bits that a model needs
for the tokens of an answer, over the answer's bytes in UTF-8. A trimmed vocabulary is measured in the same way: it can spell
every text (factory.models.vocabulary), with more tokens, each of which counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factory.config.schema import TeacherContext
from factory.data.cleaning import BOILERPLATE, OVERLAP, ngrams, words
from factory.data.layouts import read_questions
from factory.data.records import Say, beside, silent, text_of
from factory.data.sources import seeded_sample
from factory.errors import DataError
from factory.evaluation.stats import BootstrapConfig, FloatArray, paired_difference, ratio
from factory.models.chat import NO_CONTEXT, completion_ids, prompt_ids
from factory.models.device import mixed_precision
from factory.models.scoring import completion_log_probs
from factory.registry.manifest import MetricValue

LONGEST = 800  # characters of a prompt or an answer, about 200 tokens; in characters, so that all models see the same rows
STUDENT, WHOLE = "student", "bf16"  # the name and the format of the model that every row is compared with


@dataclass(frozen=True)
class Question:
    """A question and an answer that the teacher did not write."""

    prompt: str
    reference: str
    document: str = ""  # where both come from: questions of one document are not independent
    history: TeacherContext = NO_CONTEXT  # what was said before


@dataclass(frozen=True)
class Questions:
    """The questions to measure on, and how many rows of the file were left out."""

    rows: tuple[Question, ...]
    without_reference: int = 0
    too_long: int = 0
    seen: int = 0  # in training rows of a model that is measured
    not_drawn: int = 0  # beyond the limit

    def without(self, training: Sequence[Question]) -> Questions:
        """``questions.without(training)``: only those that ``seen_in(training)`` does not know."""
        known = seen_in(self.rows, training)
        kept = tuple(row for number, row in enumerate(self.rows) if number not in known)
        return replace(self, rows=kept, seen=self.seen + len(known))

    def sample(self, limit: int, seed: int) -> Questions:
        """``questions.sample(200, seed=0)``: at most so many rows, in the file's order."""
        if limit >= len(self.rows):
            return self
        chosen = sorted(seeded_sample(len(self.rows), limit, f"{seed}/questions"))
        return replace(self, rows=tuple(self.rows[i] for i in chosen), not_drawn=len(self.rows) - limit)


# ----------------------------------------------------------------------------------------------------------- questions


def load_questions(path: Path, say: Say = silent) -> Questions:
    """``load_questions(Path("questions.jsonl")).rows``: in the file's order.

    The file is of any kind that a ``file`` source may have, and its rows may have a ``document``. Rows without an answer, or
    with more than ``LONGEST`` characters in either, are left out and counted.

    Raises: DataError for a missing file, a malformed row, or a file without usable rows.
    """
    if not path.is_file():
        raise DataError(f"there is no file of questions {path}; {beside(path)}")
    rows: list[Question] = []
    without_reference = too_long = 0
    for record, found in read_questions(path, say):
        if not found.completion:
            without_reference += 1
        elif max(len(found.prompt), len(found.completion)) > LONGEST:
            too_long += 1
        else:
            rows.append(Question(found.prompt, found.completion, text_of(record, "document")))
    if not rows:
        raise DataError(
            f"{path} has no usable question: {without_reference} have no answer, {too_long} are longer than {LONGEST} "
            'characters; give it rows like {"prompt": "...", "reference": "..."}'
        )
    return Questions(tuple(rows), without_reference, too_long)


def seen_in(rows: Sequence[Question], training: Sequence[Question]) -> set[int]:
    """``seen_in(questions, training)``: the numbers of the questions whose prompt or reference occurs in training rows.

    That is, the same prompt whatever its case and punctuation, or ``OVERLAP`` of the sequences of eight words of a prompt or
    a reference. What more than ``BOILERPLATE`` training prompts share is a form and not a leak; an answer of fewer than
    eight words is a label ("yes").
    """
    prompts = {_plain(one.prompt) for one in training}
    counts = Counter(gram for one in training for gram in ngrams(one.prompt))
    forms = {gram for gram, count in counts.items() if count > BOILERPLATE}
    answers = {gram for one in training for gram in ngrams(one.reference)}
    return {
        number
        for number, row in enumerate(rows)
        if _plain(row.prompt) in prompts
        or _mostly_in(ngrams(row.prompt) - forms, counts.keys())
        or _mostly_in(ngrams(row.reference), answers)
    }


def _mostly_in(grams: set[tuple[str, ...]], known: Set[tuple[str, ...]]) -> bool:
    return bool(grams) and len(grams & known) >= OVERLAP * len(grams)


def question_clusters(rows: Sequence[Question]) -> list[str]:
    """``question_clusters(questions)``: (E,) labels; questions that share an answer or a document are of one cluster.

    So are those that others connect: A and B by their answer, B and C by their document.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while parents.setdefault(key, key) != key:
            key = parents[key]
        return key

    answers = [f"answer\n{_plain(row.reference)}" for row in rows]
    for row, answer in zip(rows, answers, strict=True):
        if row.document:
            parents[root(f"document\n{row.document}")] = root(answer)
    return [root(answer) for answer in answers]


def _plain(text: str) -> str:
    """Equal for texts that differ only in case, spaces and punctuation; a text without words is itself."""
    return " ".join(words(text)) or text


# ------------------------------------------------------------------------------------------------------- bits and rows


def bits_per_byte(
    model: Any, tokenizer: Any, rows: Sequence[Question], *, context: TeacherContext = NO_CONTEXT, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """``bits, sizes = bits_per_byte(student, tokenizer, questions.rows, device=device)``: (E,) bits and (E,) bytes.

    The bits that the model needs for the answer's tokens after the question in its own chat template, and the answer's bytes
    in UTF-8; bits per byte are the ratio of their sums. The token that ends the turn is not counted. ``context`` is shown to
    the model before the question.
    """
    prompts = [prompt_ids(tokenizer, row.prompt, context.then(row.history)) for row in rows]
    answers = [completion_ids(tokenizer, row.reference, ends=False) for row in rows]
    with mixed_precision(device):
        log_probs = completion_log_probs(model, prompts, answers, device)
    bits = np.array([-float(one.sum(dtype=float)) for one in log_probs]) / math.log(2)
    return bits, reference_bytes(rows)


def reference_bytes(rows: Sequence[Question]) -> FloatArray:
    """``reference_bytes(questions)``: (E,) bytes of each reference in UTF-8."""
    return np.array([len(row.reference.encode()) for row in rows], dtype=float)


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model in one format."""

    name: str
    format: str  # "bf16", or the quantization of the weights
    parameters: int
    bytes: int  # on disk
    bits: FloatArray  # (C,) of each cluster's reference answers
    tasks: Mapping[str, MetricValue] = field(default_factory=dict)  # the share of right answers by task
    tokens_per_second: float | None = None  # one stream; None where it cannot run


@dataclass(frozen=True)
class Row:
    """One line of the table; see ``Measurement``."""

    name: str
    format: str
    parameters: int
    bytes: int
    bits_per_byte: MetricValue
    student_below: MetricValue | None  # how many fewer the student needs, paired; None for the student itself
    tasks: Mapping[str, MetricValue]
    tokens_per_second: float | None


def benchmark_rows(found: Sequence[Measurement], sizes: FloatArray, bootstrap: BootstrapConfig) -> list[Row]:
    """``benchmark_rows([student, teacher], sizes, bootstrap)[1].student_below.value``: above 0 the student predicts better.

    ``sizes`` (C,) are the bytes of each cluster's answers. A model is compared with the student in the same format, a
    quantized student with the whole one. n counts bytes.
    """
    students = {one.format: one.bits for one in found if one.name == STUDENT}

    def below(one: Measurement) -> MetricValue | None:
        if one.name == STUDENT and one.format == WHOLE:
            return None
        student = students[WHOLE] if one.name == STUDENT else students.get(one.format, students[WHOLE])
        return paired_difference(one.bits, student, sizes, bootstrap)

    return [
        Row(
            name=one.name,
            format=one.format,
            parameters=one.parameters,
            bytes=one.bytes,
            bits_per_byte=ratio(one.bits, sizes, bootstrap),
            student_below=below(one),
            tasks=one.tasks,
            tokens_per_second=one.tokens_per_second,
        )
        for one in found
    ]
