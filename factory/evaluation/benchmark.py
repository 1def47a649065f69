"""Whether a student is useful, not only faithful: how well it predicts reference answers to real questions.

Bits per byte (The Pile, arXiv 2101.00027, section 3.1): nats that a model needs for the tokens of an answer, over ln 2 and
over the answer's bytes in UTF-8. Tokens differ between tokenizers, bytes do not, so teacher, students and models of other
families stand beside each other. A trimmed vocabulary is measured by the same rule: it can write every text, for byte-level
BPE keeps its 256 byte tokens and a SentencePiece BPE its byte fallback (factory.models.vocabulary). What it lacks it spells
with more tokens, each of which is predicted and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from factory.config.schema import TeacherContext
from factory.data.sources import beside, read_jsonl, seeded_sample
from factory.errors import DataError, in_one_line
from factory.evaluation.metrics import DASH
from factory.evaluation.stats import BootstrapConfig, paired_difference, ratio
from factory.models.chat import NO_CONTEXT, completion_ids, prompt_ids, split_prefix
from factory.models.forward import hidden_states, logits, make_batch, positions_at_once, unwrap
from factory.registry.manifest import MetricValue

if TYPE_CHECKING:
    from rich.table import Table

BATCH = 16
LONGEST = 800  # characters of a prompt and of an answer, some 200 tokens: in characters, so that all models see the same rows
PROMPT_FIELDS = ("prompt", "question")
REFERENCE_FIELDS = ("response", "completion", "reference")


@dataclass(frozen=True)
class Question:
    """What somebody asked, and an answer that was not written by the teacher."""

    prompt: str
    reference: str


@dataclass(frozen=True)
class Questions:
    """The questions to measure on, and how many rows of the file are not among those that could be."""

    rows: list[Question]
    without_reference: int
    too_long: int


def load_questions(path: Path, limit: int | None, seed: int) -> Questions:
    """``load_questions(Path("questions.jsonl"), limit=200, seed=0).rows``: at most ``limit`` of the file's rows, in its order.

    A row has ``prompt`` or ``question``, and ``response``, ``completion`` or ``reference``; one without an answer, or with more
    than ``LONGEST`` characters in either, is left out and counted.
    Raises: DataError for a missing file, a line that is no such row, or a file that leaves nothing.
    """
    if not path.is_file():
        raise DataError(f"no file of questions {path}; {beside(path)}")
    asked: list[Question] = []
    without_reference = too_long = 0
    try:
        for number, row in enumerate(read_jsonl(path), start=1):
            prompt = _text(row, PROMPT_FIELDS, number)
            if not prompt:
                raise ValueError(f"row {number} has no {' or '.join(PROMPT_FIELDS)}; it has {', '.join(row) or 'nothing'}")
            reference = _text(row, REFERENCE_FIELDS, number)
            if not reference:
                without_reference += 1
            elif max(len(prompt), len(reference)) > LONGEST:
                too_long += 1
            else:
                asked.append(Question(prompt, reference))
    except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"cannot read questions from {path}: {in_one_line(error)}") from error
    if not asked:
        raise DataError(
            f"no question of {path} can be used: {without_reference} have no {' or '.join(REFERENCE_FIELDS)}, {too_long} are "
            f'longer than {LONGEST} characters; give it rows like {{"prompt": "...", "reference": "..."}}'
        )
    if limit is not None and limit < len(asked):
        asked = [asked[i] for i in sorted(seeded_sample(len(asked), limit, f"{seed}/questions"))]
    return Questions(asked, without_reference, too_long)


def _text(row: Mapping[str, Any], names: Sequence[str], number: int) -> str:
    """The first of these fields that is not blank, "" if none is there."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f"row {number}: {name} is a {type(value).__name__}, it must be a text")
        value.encode()  # half a character (a lone surrogate) is no text: UnicodeEncodeError is a ValueError
        if value.strip():
            return value.strip()
    return ""


@torch.inference_mode()
def bits_per_byte(
    model: Any, tokenizer: Any, rows: Sequence[Question], *, context: TeacherContext = NO_CONTEXT, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """``bits, bytes_ = bits_per_byte(student, tokenizer, questions.rows, device=device)``: (E,) and (E,), one a question.

    The bits that the model needs for the answer's tokens after its own chat template's prompt, and the answer's bytes in UTF-8;
    their sums' ratio is the figure. The token that ends the turn is not counted: it is no byte of the answer. The rest of a
    turn's template is given. ``context`` is what the teacher reads before the question.
    """
    prompts = [prompt_ids(tokenizer, row.prompt, context) for row in rows]
    answers = [completion_ids(tokenizer, row.reference, ends=False) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]) + len(answers[i]))
    bits = np.zeros(len(rows))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        nats = _nats(model, [prompts[i] for i in chosen], [answers[i] for i in chosen], device)
        bits[chosen] = np.array(nats) / math.log(2)
    return bits, np.array([len(row.reference.encode()) for row in rows], dtype=float)


def _nats(model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], device: torch.device) -> list[float]:
    """Summed over each answer's tokens, (B,). Few logits exist at once: N positions of 262,144 tokens would be gigabytes."""
    prefix, rest = split_prefix(prompts)
    batch = make_batch(rest, answers).to(device)
    targets = torch.tensor([token for answer in answers for token in answer], device=device)  # (N,)
    size = positions_at_once(unwrap(model).config.get_text_config().vocab_size)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        states = hidden_states(model, batch, prefix).final[batch.predicts]  # (N, H)
        parts = [
            cross_entropy(logits(model, some).float(), wanted, reduction="none")
            for some, wanted in zip(states.split(size), targets.split(size), strict=True)
        ]
    return [float(part.double().sum()) for part in torch.cat(parts).split([len(answer) for answer in answers])]


def benchmark_figures(bits: Mapping[str, np.ndarray], bytes_: np.ndarray, bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``benchmark_figures({"student": bits, "teacher": bits}, bytes_, bootstrap)["student"].value``

    Bits per byte by the name of a model; n counts bytes. Where "student" is among them also ``student_below_<other>``: the
    other's bits per byte less the student's on the same questions, above 0 where the student predicts the answers better.
    """
    figures = {name: ratio(one, bytes_, bootstrap) for name, one in bits.items()}
    if "student" in bits:
        figures |= {
            f"student_below_{name}": paired_difference(one, bits["student"], bytes_, bootstrap)
            for name, one in bits.items()
            if name != "student"
        }
    return figures


@dataclass(frozen=True)
class Row:
    """One model's line: its bits per byte, and the share right of each task that was run."""

    name: str
    parameters: int
    bits_per_byte: MetricValue
    student_below: MetricValue | None = None  # paired; None for the student itself
    tasks: Mapping[str, MetricValue] = field(default_factory=dict)


def benchmark_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """``benchmark_json(rows)``: one plain dict a model."""
    return [
        {
            "name": row.name,
            "parameters": row.parameters,
            "bits_per_byte": asdict(row.bits_per_byte),
            "student_below": asdict(row.student_below) if row.student_below is not None else None,
            "tasks": {task: asdict(figure) for task, figure in row.tasks.items()},
        }
        for row in rows
    ]


def benchmark_table(rows: Sequence[Row]) -> Table:
    """``console.print(benchmark_table(rows))``: a line a model; a column a task, where any was run."""
    from rich.table import Table
    from rich.text import Text

    tasks = list(dict.fromkeys(task for row in rows for task in row.tasks))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("parameters", "bits per byte", "student below it by, paired", *tasks):
        table.add_column(Text(name), justify="right")
    for row in rows:
        figures = [row.bits_per_byte, row.student_below, *(row.tasks.get(task) for task in tasks)]
        cells = [row.name, f"{row.parameters / 1e6:.1f} M", *map(_written, figures)]
        table.add_row(*map(Text, cells))
    table.caption = "bits per byte of the reference answers: lower is better; 95 % intervals"
    return table


def _written(figure: MetricValue | None) -> str:
    return DASH if figure is None or math.isnan(figure.value) else str(figure)
