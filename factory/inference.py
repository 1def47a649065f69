"""A published student at work: its answer to a question, and what it expects next beside what its teacher expects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from factory.config.schema import FamilySpec, Specs
from factory.errors import TrainingError
from factory.evaluation.fidelity import generate_text
from factory.models.base import Base, load_base, load_student
from factory.models.chat import prompt_ids
from factory.models.references import resolve
from factory.models.teacher import Teacher
from factory.registry.registry import Registry
from factory.registry.versions import Version

TOP = 10
MAX_NEW_TOKENS = 112


@dataclass(frozen=True)
class ChatModel:
    """A model that can be asked: a student, a base, or the teacher."""

    reference: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    notice: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS


@dataclass(frozen=True)
class Answer:
    """What was said, by which version."""

    reference: str
    question: str
    answer: str
    notice: str  # what an answer in this domain must say ("no medical advice")
    seconds: float


@dataclass(frozen=True)
class TokenProb:
    """One possible next token."""

    token: str
    teacher: float  # probability, teacher's vocabulary
    student: float | None  # None: the student's vocabulary lacks this token


@dataclass(frozen=True)
class Explanation:
    """Next-token distributions after one text."""

    reference: str
    text: str
    kl: float  # KL(teacher ‖ student), nats, both over the student's vocabulary
    kept_mass: float  # of the teacher's distribution, on tokens that the student has
    teacher: tuple[TokenProb, ...]  # the teacher's most likely tokens, its whole vocabulary
    student: tuple[TokenProb, ...]  # the student's most likely tokens
    lacking: tuple[str, ...]  # of the teacher's, those that the student's vocabulary lacks
    text_tokens: tuple[int, int]  # tokens that the text is cut into: teacher's, student's vocabulary


# ----------------------------------------------------------------------------------------------------------------- ask


def load_chat_model(version: Version, registry: Registry, device: torch.device) -> ChatModel:
    """``load_chat_model(registry.resolve("healthcare-small"), registry, device)``: a student, or a base alone."""
    base, model = _load(version, registry, device)
    data = (version.raw.get("settings") or {}).get("data") or {}
    return ChatModel(
        version.reference,
        model,
        base.tokenizer,
        str(version.raw.get("notice") or ""),
        int(data.get("max_completion_tokens") or MAX_NEW_TOKENS),
    )


def load_teacher_chat_model(family: FamilySpec, specs: Specs, device: torch.device) -> ChatModel:
    """``load_teacher_chat_model(specs.family("default"), specs, device)``: the whole teacher, without any domain's context."""
    teacher = _load_teacher(family, specs, device)
    return ChatModel(f"teacher {family.teacher.model}", teacher.model, teacher.tokenizer)


def ask(chat_model: ChatModel, question: str) -> Answer:
    """``ask(chat_model, "What are early signs of asthma?").answer``: greedy, so the same each time.

    Raises: TrainingError for an empty question.
    """
    if not question.strip():
        raise TrainingError("the question is empty: write one in quotes after the student's name")
    begun = time.perf_counter()
    ids = prompt_ids(chat_model.tokenizer, question)
    text = generate_text(chat_model.model, chat_model.tokenizer, [ids], max_new_tokens=chat_model.max_new_tokens)[0]
    return Answer(chat_model.reference, question, text, chat_model.notice, time.perf_counter() - begun)


def _load(version: Version, registry: Registry, device: torch.device) -> tuple[Base, Any]:
    if version.kind == "base":
        base = load_base(version.folder, device)
        return base, base.model
    base = load_base(registry.resolve(version.base or "").folder, device)
    return base, load_student(base, version.folder)


def _load_teacher(family: FamilySpec, specs: Specs, device: torch.device) -> Teacher:
    files = resolve(family.teacher, root=specs.root, chat_template=family.teacher.chat_template)
    return Teacher.load(files, device)


# ------------------------------------------------------------------------------------------------------------- explain


@torch.inference_mode()
def explain(version: Version, text: str, registry: Registry, specs: Specs, device: torch.device) -> Explanation:
    """``explain(version, "The movie was surprisingly", registry, specs, device).kl``: the text is continued as it is.

    KL compares both over the student's tokens, on the student's cut of the text: the teacher's probabilities of the
    tokens that the student has, renormalised. The teacher's list is of its whole vocabulary and its own cut.

    Raises: TrainingError for an empty text, or where the family file names another teacher than the student's.
    """
    if not text.strip():
        raise TrainingError("the text is empty: write its first words in quotes after the student's name")
    teacher = _load_teacher(family_of(version, specs), specs, device)
    base, student = _load(version, registry, device)
    own = _ids(base.tokenizer, text)
    kept = torch.tensor(base.shape.tokens or range(len(teacher.tokenizer)), device=device)  # (K,) the teacher's ids
    mine = _next(student, own)[: len(kept)].log_softmax(-1)  # (K,) at student ids
    ours = _next(teacher.model, kept[torch.tensor(own, device=device)].tolist())[kept].log_softmax(-1)  # (K,)
    theirs_ids = _ids(teacher.tokenizer, text)
    theirs = _next(teacher.model, theirs_ids)[: len(teacher.tokenizer)].log_softmax(-1)  # (V,)
    new_id = {int(old): new for new, old in enumerate(kept.tolist())}

    def guess(old: int) -> TokenProb:
        new = new_id.get(old)
        return TokenProb(
            _written(teacher.tokenizer, old),
            float(theirs[old].exp()),
            None if new is None else float(mine[new].exp()),
        )

    first = tuple(guess(old) for old in theirs.topk(TOP).indices.tolist())
    second = tuple(guess(int(kept[new])) for new in mine.topk(min(TOP, len(kept))).indices.tolist())
    return Explanation(
        version.reference,
        text,
        kl=float((ours.exp() * (ours - mine)).sum()),
        kept_mass=float(theirs[kept].exp().sum()),
        teacher=first,
        student=second,
        lacking=tuple(one.token for one in first if one.student is None),
        text_tokens=(len(theirs_ids), len(own)),
    )


def family_of(version: Version, specs: Specs) -> FamilySpec:
    """The family file of a student, if it still names the teacher that the student learned from."""
    family = specs.family(str(version.raw.get("family")))
    known = version.raw.get("teacher") or {}
    if known.get("reference") != family.teacher.model:
        raise TrainingError(
            f"{version.reference} learned from {known.get('reference')}, but family {family.name} now names "
            f"{family.teacher.model}: give the folder with the older family file as --domains"
        )
    return family


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text as it stands, after a begin-of-text token where the tokenizer itself writes one (Gemma does)."""
    return list(tokenizer(text)["input_ids"])


def _next(model: Any, ids: Sequence[int]) -> Tensor:
    """(V,) float32 logits of what follows."""
    logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=model.device), logits_to_keep=1).logits
    return logits[0, -1].float()


def _written(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """As text, or as the vocabulary has it where it is only a part of a character."""
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if not text or "\N{REPLACEMENT CHARACTER}" in text else text


# ------------------------------------------------------------------------------------------------------------- writing


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """``explanation_json(explain(...))``: plain lists and dicts."""
    return asdict(explanation)


def explanation_table(explanation: Explanation) -> Any:
    """``print_table(explanation_table(explain(...)))``: a rank a line, teacher left, student right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("teacher", "p", "student's p", "student", "p", "teacher's p"):
        table.add_column(heading, justify="left" if heading in ("teacher", "student") else "right")
    for left, right in zip(explanation.teacher, explanation.student, strict=True):
        first = (repr(left.token), f"{left.teacher:.3f}", _probability(left.student))
        second = (repr(right.token), _probability(right.student), f"{right.teacher:.3f}")
        table.add_row(*map(Text, (*first, *second)))
    return table


def explanation_line(explanation: Explanation) -> str:
    """One line under the table: how far apart they are, and what the student cannot say."""
    lacking = ", ".join(map(repr, explanation.lacking)) or "none"
    return (
        f"KL(teacher ‖ student) {explanation.kl:.3f} nats; the student's vocabulary holds {explanation.kept_mass:.1%} "
        f"of the teacher's distribution, and lacks of its first ten tokens: {lacking}"
    )


def _probability(value: float | None) -> str:
    return "no such token" if value is None else f"{value:.3f}"
