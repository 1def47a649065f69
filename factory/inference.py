"""Load a published student, ask it, embed texts with it, and explain its next token beside its teacher's.

loaded = load_version(registry.resolve("healthcare-small"), registry, device)
embed(loaded, ["What is gout?", "Gout is a kind of arthritis."])  # (2, D), unit vectors
ask(load_chat_model(loaded.version, registry, device), "What are early signs of asthma?").answer
ask_cascade([lambda: student, lambda: teacher], "What are early signs of asthma?", keep=0.95).asked
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from factory.config.schema import DomainSpec, FamilySpec, Specs, TeacherContext
from factory.data.language import unknown_language
from factory.errors import TrainingError, UsageError
from factory.evaluation.answer_confidence import token_signals
from factory.evaluation.confidence import KEPT, Confidence, Decision, decide
from factory.evaluation.confidence import TOP as TOP_TOKENS
from factory.models.base import Base, load_base, load_student
from factory.models.chat import NO_CONTEXT, prompt_ids
from factory.models.domain_teacher import load_domain_teacher
from factory.models.embedding_head import EmbeddingHead, embed_texts, load_embedding_head, text_ids
from factory.models.generation import generate_ids
from factory.models.scoring import score_completions
from factory.models.teacher import Teacher
from factory.models.templates import resolve_teacher
from factory.models.tokenize import token_text
from factory.registry.registry import Registry
from factory.registry.versions import Version

TOP = 10  # tokens in each list of an explanation
MAX_NEW_TOKENS = 112  # of a base or a teacher; a student's own limit is in its manifest
MAX_PROMPT_TOKENS = 4096  # that `ask` takes; more where a student was trained on longer prompts


@dataclass(frozen=True)
class LoadedVersion:
    """A published student or base in memory, ready for inference."""

    version: Version
    base_version: Version  # for a base, the version itself
    base: Base
    model: Any  # student: peft's model; base: transformers' model
    head: EmbeddingHead | None = None  # of a student that was built with one


@dataclass(frozen=True)
class ChatModel:
    """A student, a base or the teacher, with what ``ask`` needs to know about it."""

    reference: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    notice: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    context: TeacherContext = NO_CONTEXT  # what it is shown before a question
    confidence: Confidence | None = None  # of a student that knows how sure it is
    languages: tuple[str, ...] = ()  # that its teacher knows, where that is stated
    max_prompt_tokens: int = MAX_PROMPT_TOKENS


@dataclass(frozen=True)
class Answer:
    """An answer, and the version that gave it."""

    reference: str
    question: str
    answer: str
    notice: str  # the domain's disclaimer, for example "no medical advice"
    seconds: float
    asked: tuple[str, ...] = ()  # of a cascade: its steps, with confidence and threshold
    language: str = ""  # where the question is in a language that the teacher does not know: one line that says so


@dataclass(frozen=True)
class TokenProb:
    """A candidate for the next token."""

    token: str
    teacher: float  # probability over the teacher's vocabulary
    student: float | None  # None: the token is not in the student's vocabulary


@dataclass(frozen=True)
class Explanation:
    """Next-token distributions of teacher and student after the same text."""

    reference: str
    text: str
    kl: float  # KL(teacher ‖ student), nats, over the student's vocabulary
    kept_mass: float  # the teacher's probability mass on the student's vocabulary
    teacher: tuple[TokenProb, ...]  # the teacher's top tokens, over its whole vocabulary
    student: tuple[TokenProb, ...]  # the student's top tokens
    missing: tuple[str, ...]  # those of the teacher's top tokens that the student's vocabulary lacks
    text_tokens: tuple[int, int]  # length of the text in the teacher's and the student's tokens


# ---------------------------------------------------------------------------------------------------------------- load


def load_version(version: Version, registry: Registry, device: torch.device, dtype: torch.dtype | None = None) -> LoadedVersion:
    """``load_version(registry.resolve("healthcare-small"), registry, device).model``: in evaluation mode.

    dtype: of the base's weights, by default ``compute_dtype(device)``; adapter weights are always float32.
    Raises: RegistryError where the version or its base is damaged; every byte of both is read first.
    """
    registry.require_intact(version)
    if version.base is None:
        base = load_base(version.folder, device, dtype)
        return LoadedVersion(version, version, base, base.model)
    base_version = registry.require_intact(registry.resolve(version.base))
    base = load_base(base_version.folder, device, dtype)
    head = load_embedding_head(version.folder)
    return LoadedVersion(version, base_version, base, load_student(base, version.folder), head)


def load_family_teacher(family: FamilySpec, specs: Specs, device: torch.device, domain: DomainSpec | None = None) -> Teacher:
    """``load_family_teacher(specs.family("default"), specs, device)``: with its whole vocabulary; or a ``domain``'s own."""
    files = resolve_teacher(family.weights, root=specs.root)
    teacher, own = Teacher.load(files, device), domain.teacher if domain else None
    return teacher if own is None else load_domain_teacher(own, files, teacher, specs.root)[1]


def domain_of(version: Version, specs: Specs) -> DomainSpec | None:
    """``domain_of(version, specs)``: as the domains folder describes it now; None of a base, or where it is gone."""
    return specs.domains.get(version.manifest.domain) if version.manifest.kind == "student" else None


def matching_family(version: Version, specs: Specs) -> FamilySpec:
    """``matching_family(version, specs)``: the version's family, as the domains folder describes it now.

    Raises: TrainingError if the family, or the domain, names another teacher than the one the version was distilled from.
    """
    family, teacher = specs.family(version.manifest.family), version.manifest.teacher.reference
    domain = domain_of(version, specs)
    now = family.taught_by(domain).teacher.reference
    if teacher != now:
        what, name = ("domain", domain.name) if domain and domain.teacher else ("family", family.name)
        raise TrainingError(
            f"{version.reference} was distilled from {teacher}, but {what} {name} now names {now}: "
            f"pass --domains with a folder that still has the older {what} file"
        )
    return family


# ----------------------------------------------------------------------------------------------------------------- ask


def load_chat_model(version: Version, registry: Registry, device: torch.device) -> ChatModel:
    """``load_chat_model(registry.resolve("healthcare-small"), registry, device)``: a student or a base."""
    loaded, manifest = load_version(version, registry, device), version.manifest
    if manifest.kind == "base":
        return ChatModel(version.reference, loaded.model, loaded.base.tokenizer, languages=manifest.teacher.languages)
    return ChatModel(
        version.reference,
        loaded.model,
        loaded.base.tokenizer,
        manifest.notice,
        manifest.max_completion_tokens,
        confidence=Confidence.load(version.folder),
        languages=manifest.teacher.languages,
        max_prompt_tokens=max(MAX_PROMPT_TOKENS, manifest.settings.get("data", {}).get("max_prompt_tokens", 0)),
    )


def load_teacher_chat_model(
    family: FamilySpec,
    specs: Specs,
    device: torch.device,
    context: TeacherContext = NO_CONTEXT,
    domain: DomainSpec | None = None,
) -> ChatModel:
    """``load_teacher_chat_model(specs.family("default"), specs, device)``: the teacher, without any domain's context.

    With a ``domain`` that names its own, that one.
    """
    teacher, spec = load_family_teacher(family, specs, device, domain), family.taught_by(domain).teacher
    return ChatModel(f"teacher {spec.reference}", teacher.model, teacher.tokenizer, context=context, languages=spec.languages)


def ask(chat_model: ChatModel, question: str) -> Answer:
    """``ask(chat_model, "What are early signs of asthma?").answer``: greedy decoding, so it is reproducible.

    Raises: UsageError if the question is empty, or longer than ``max_prompt_tokens`` or the model's positions allow.
    """
    begin = time.perf_counter()
    _, _, text = _answer(chat_model, question)
    seconds = time.perf_counter() - begin
    return Answer(
        chat_model.reference, question, text, chat_model.notice, seconds, language=_unknown_language(chat_model, question)
    )


def ask_cascade(steps: Sequence[Callable[[], ChatModel]], question: str, *, keep: float, abstain: str = "") -> Answer:
    """``ask_cascade([load_tiny, load_small, load_teacher], "What is gout?", keep=0.95).asked``: the first sure answer.

    The last step's answer is kept in any case, unless it is to ``abstain``: then that text stands for one that is not sure. A
    step is loaded once it is asked. ``asked`` says each with its confidence and threshold, as the server's headers do.

    Raises: what ``ask`` raises.
    """
    begin, asked, notice = time.perf_counter(), list[str](), ""
    for number, load in enumerate(steps, start=1):
        step, judged = load(), number < len(steps) or bool(abstain)
        ids, answer, text = _answer(step, question)
        notice = step.notice or notice  # a teacher has none of its own
        decision = _decide(step, ids, answer, keep) if judged else Decision(KEPT)
        asked.append(f"{step.reference} {decision.judgement}".strip())
        if decision.outcome == KEPT:
            break
    else:
        text = abstain
    language = _unknown_language(step, question)
    return Answer(step.reference, question, text, notice, time.perf_counter() - begin, tuple(asked), language)


def _unknown_language(chat_model: ChatModel, question: str) -> str:
    return str(unknown_language(question, {"teacher": chat_model.languages}) or "")


def _answer(chat_model: ChatModel, question: str) -> tuple[list[int], list[int], str]:
    """Ids of the prompt and of a greedy answer, and its text."""
    if not question.strip():
        raise UsageError("the question is empty: put it in quotes after the student's name")
    ids = prompt_ids(chat_model.tokenizer, question, chat_model.context)
    what = f"the question to {chat_model.reference}"
    _check_length(ids, chat_model.model, what, chat_model.max_new_tokens)
    if len(ids) > chat_model.max_prompt_tokens:
        raise UsageError(f"{what} has {len(ids):,} tokens, and at most {chat_model.max_prompt_tokens:,} are read: shorten it")
    [answer] = generate_ids(chat_model.model, chat_model.tokenizer, [ids], max_new_tokens=chat_model.max_new_tokens)
    return ids, answer, str(chat_model.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def _decide(step: ChatModel, prompt: list[int], answer: list[int], keep: float) -> Decision:
    scores = score_completions(step.model, [prompt], [answer], step.model.device, top=TOP_TOKENS) if answer else []
    return decide(step.confidence, [signal for score in scores for signal in token_signals(score)], keep, beginning=False)


# --------------------------------------------------------------------------------------------------------------- embed


def embed(loaded: LoadedVersion, texts: Sequence[str]) -> np.ndarray:
    """``embed(load_version(version, registry, device), ["What is gout?"])``: (N, D) float32 unit vectors.

    By the student's embedding head; the mean final hidden states of a version without one. No chat template is applied.
    Raises: UsageError if a text is empty.
    """
    if not all(text.strip() for text in texts):
        raise UsageError("a text is empty: leave it out")
    return embed_texts(loaded.model, text_ids(loaded.base.tokenizer, texts), loaded.head)


# ------------------------------------------------------------------------------------------------------------- explain


@torch.inference_mode()
def explain(version: Version, text: str, registry: Registry, specs: Specs, device: torch.device) -> Explanation:
    """``explain(version, "The movie was surprisingly", registry, specs, device).kl``: no chat template is applied.

    KL compares both models over the student's vocabulary and after the student's tokens; the teacher's distribution is
    renormalised. The teacher's top tokens come from its whole vocabulary, after its own tokens.

    Raises: UsageError if the text is empty or longer than the model's positions; TrainingError if the family names another
    teacher than the version's.
    """
    if not text.strip():
        raise UsageError("the text is empty: put its first words in quotes after the student's name")
    teacher = load_family_teacher(matching_family(version, specs), specs, device, domain_of(version, specs))
    loaded = load_version(version, registry, device)
    kept = torch.tensor(loaded.base.shape.tokens or range(len(teacher.tokenizer)), device=device)  # (K,) teacher ids
    student_ids, teacher_ids = _token_ids(loaded.base.tokenizer, text), _token_ids(teacher.tokenizer, text)
    for model, ids in ((loaded.model, student_ids), (teacher.model, teacher_ids)):
        _check_length(ids, model, f"the text to {version.reference}")

    student = _next_logits(loaded.model, student_ids)[: len(kept)].log_softmax(-1)  # (K,)
    renormalised = _next_logits(teacher.model, kept[student_ids].tolist())[kept].log_softmax(-1)  # (K,)
    whole = _next_logits(teacher.model, teacher_ids)[: len(teacher.tokenizer)].log_softmax(-1)  # (V,)
    student_id = {int(token): position for position, token in enumerate(kept.tolist())}  # by teacher id

    def token_prob(token: int) -> TokenProb:
        position = student_id.get(token)
        probability = None if position is None else float(student[position].exp())
        return TokenProb(token_text(teacher.tokenizer, token), float(whole[token].exp()), probability)

    teacher_top = tuple(token_prob(token) for token in whole.topk(TOP).indices.tolist())
    student_top = tuple(token_prob(token) for token in kept[student.topk(min(TOP, len(kept))).indices].tolist())
    return Explanation(
        version.reference,
        text,
        kl=float((renormalised.exp() * (renormalised - student)).sum()),
        kept_mass=float(whole[kept].exp().sum()),
        teacher=teacher_top,
        student=student_top,
        missing=tuple(candidate.token for candidate in teacher_top if candidate.student is None),
        text_tokens=(len(teacher_ids), len(student_ids)),
    )


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """With a begin-of-text token where the tokenizer adds one itself, as Gemma's does."""
    return list(tokenizer(text)["input_ids"])


def _check_length(ids: Sequence[int], model: Any, what: str, answer: int = 0) -> None:
    """Raises: UsageError if the ids and the longest answer have more tokens than the model has positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and len(ids) + answer > positions:
        after = f" after {answer} for the answer" if answer else ""
        raise UsageError(f"{what} has {len(ids)} tokens, but there is room for {positions - answer}{after}: shorten it")


def _next_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """(V,) float32 logits of the next token."""
    logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=model.device), logits_to_keep=1).logits
    return logits[0, -1].float()
