"""Is a student useful, and not only close to its teacher? How well models predict reference answers to real questions.

    questions = load_questions(Path("questions.jsonl"), limit=200, seed=0)
    bits, sizes = bits_per_byte(model, tokenizer, questions.rows, device=device)
    benchmark_metrics({"student": bits}, sizes, bootstrap)["student"].value

Bits per byte (The Pile, arXiv 2101.00027, section 3.1) compare models of different tokenizers: the bits that a model needs
for the tokens of an answer, over the answer's bytes in UTF-8. A trimmed vocabulary is measured in the same way: it can spell
every text (factory.models.vocabulary), with more tokens, each of which counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factory.config.schema import TeacherContext
from factory.data.formats import beside, read_jsonl
from factory.data.sources import seeded_sample
from factory.errors import DataError, in_one_line
from factory.evaluation.stats import BootstrapConfig, paired_difference, ratio
from factory.models.chat import NO_CONTEXT, completion_ids, prompt_ids
from factory.models.scoring import completion_log_probs
from factory.registry.manifest import MetricValue

LONGEST = 800  # characters of a prompt or an answer, about 200 tokens; in characters, so that all models see the same rows
PROMPT_FIELDS = ("prompt", "question")
REFERENCE_FIELDS = ("response", "completion", "reference")


@dataclass(frozen=True)
class Question:
    """A question and an answer that the teacher did not write."""

    prompt: str
    reference: str


@dataclass(frozen=True)
class Questions:
    """The questions to measure on, and how many rows of the file were left out."""

    rows: list[Question]
    without_reference: int
    too_long: int


def load_questions(path: Path, limit: int | None, seed: int) -> Questions:
    """``load_questions(Path("questions.jsonl"), limit=200, seed=0).rows``: at most ``limit`` rows, in the file's order.

    A row has ``prompt`` or ``question``, and ``response``, ``completion`` or ``reference``. Rows without an answer, or with
    more than ``LONGEST`` characters in either, are left out and counted.

    Raises: DataError for a missing file, a malformed row, or a file without usable rows.
    """
    if not path.is_file():
        raise DataError(f"there is no file of questions {path}; {beside(path)}")
    rows: list[Question] = []
    without_reference = too_long = 0
    try:
        for number, row in enumerate(read_jsonl(path), start=1):
            prompt = _text(row, PROMPT_FIELDS, number)
            if not prompt:
                raise ValueError(f"row {number} has no {' or '.join(PROMPT_FIELDS)}; its fields: {', '.join(row) or 'none'}")
            reference = _text(row, REFERENCE_FIELDS, number)
            if not reference:
                without_reference += 1
            elif max(len(prompt), len(reference)) > LONGEST:
                too_long += 1
            else:
                rows.append(Question(prompt, reference))
    except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"cannot read questions from {path}: {in_one_line(error)}") from error
    if not rows:
        raise DataError(
            f"{path} has no usable question: {without_reference} have no {' or '.join(REFERENCE_FIELDS)}, {too_long} are "
            f'longer than {LONGEST} characters; give it rows like {{"prompt": "...", "reference": "..."}}'
        )
    if limit is not None and limit < len(rows):
        rows = [rows[i] for i in sorted(seeded_sample(len(rows), limit, f"{seed}/questions"))]
    return Questions(rows, without_reference, too_long)


def _text(row: Mapping[str, Any], names: Sequence[str], number: int) -> str:
    """The first of these fields that is not blank, or ""."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f"row {number}: {name} is a {type(value).__name__}, not a text")
        value.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
        if value.strip():
            return value.strip()
    return ""


def bits_per_byte(
    model: Any, tokenizer: Any, rows: Sequence[Question], *, context: TeacherContext = NO_CONTEXT, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """``bits, sizes = bits_per_byte(student, tokenizer, questions.rows, device=device)``: (E,) bits and (E,) bytes.

    The bits that the model needs for the answer's tokens after the question in its own chat template, and the answer's bytes
    in UTF-8; bits per byte are the ratio of their sums. The token that ends the turn is not counted. ``context`` is shown to
    the model before the question.
    """
    prompts = [prompt_ids(tokenizer, row.prompt, context) for row in rows]
    answers = [completion_ids(tokenizer, row.reference, ends=False) for row in rows]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        log_probs = completion_log_probs(model, prompts, answers, device)
    bits = np.array([-float(one.sum(dtype=float)) for one in log_probs]) / math.log(2)
    return bits, np.array([len(row.reference.encode()) for row in rows], dtype=float)


def benchmark_metrics(bits: Mapping[str, np.ndarray], sizes: np.ndarray, bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``benchmark_metrics({"student": bits, "teacher": teacher_bits}, sizes, bootstrap)["student_below_teacher"].value``

    Bits per byte by model; n counts bytes. If "student" is among them, also ``student_below_<other>``: the other's bits per
    byte minus the student's, paired; above 0 where the student predicts the answers better.
    """
    metrics = {name: ratio(one, sizes, bootstrap) for name, one in bits.items()}
    if "student" in bits:
        metrics |= {
            f"student_below_{name}": paired_difference(one, bits["student"], sizes, bootstrap)
            for name, one in bits.items()
            if name != "student"
        }
    return metrics


@dataclass(frozen=True)
class Row:
    """One model's results: bits per byte, and the accuracy on each task that was run."""

    name: str
    parameters: int
    bits_per_byte: MetricValue
    student_below: MetricValue | None = None  # by how much the student needs fewer, paired; None for the student itself
    tasks: Mapping[str, MetricValue] = field(default_factory=dict)
