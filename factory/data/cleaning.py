"""Cleaning: near duplicates, questions and answers that two splits share, and bad completions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from semhash import SemHash
from vicinity import Backend

from factory.data.sources import Example

SHARED_WORDS = 8  # texts are compared by their sequences of so many consecutive words
OVERLAP = 0.5  # share of such sequences from which two texts count as one
BOILERPLATE = 10  # a sequence in more prompts than this belongs to a form that they all use
LOOP_WORDS, LOOP_TIMES = 6, 3  # four words three times would catch a tenth of the worked sums that people write

WORD = re.compile(r"\w+(?:['’]\w+)*")  # noqa: RUF001 - typographic apostrophes are in real text
SENTENCE = re.compile(r"[.!?\n]+")

Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    """``words("It's 5 pm.") == ["it's", "5", "pm"]``"""
    return WORD.findall(text.casefold())


def ngrams(text: str) -> set[Gram]:
    """Every sequence of ``SHARED_WORDS`` words of the text; none where it has fewer."""
    return set(sequences(words(text), SHARED_WORDS))


def sequences(tokens: Sequence[str], size: int) -> list[Gram]:
    return [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]


# ------------------------------------------------------------------------------------------------------------ prompts


def near_duplicates(examples: Sequence[Example], encoder: Any, threshold: float) -> set[str]:
    """Ids of examples that are near duplicates of an earlier one: the cosine of their embeddings is at least ``threshold``.

    A chat is compared as a whole.

    The search is exact, because semhash's default, an approximate index over several threads, varies from run to run.
    """
    if not examples:
        return set()
    whole = {example.conversation: example.text for example in examples}  # the last turn of a chat has all of it
    records = [{"id": id, "text": text} for id, text in whole.items()]
    index = SemHash.from_records(records, columns=["text"], model=encoder, ann_backend=Backend.BASIC)
    duplicates = {duplicate.record["id"] for duplicate in index.self_deduplicate(threshold).filtered}
    return {example.id for example in examples if example.conversation in duplicates}


def contaminated(examples: Sequence[Example], held_out: Sequence[Example], forms: Set[Gram]) -> set[str]:
    """Ids of examples whose prompts overlap with a held-out one's, apart from ``forms``."""
    own, theirs = ({example.id: prompt_ngrams(example) - forms for example in part} for part in (examples, held_out))
    return overlapping(own, theirs)


def shared_answers(examples: Sequence[Example], held_out: Sequence[Example]) -> set[str]:
    """Ids of examples whose own answer overlaps with a held-out one's. Answers below ``SHARED_WORDS`` words never do."""
    own, theirs = ({example.id: ngrams(example.completion) for example in part} for part in (examples, held_out))
    return overlapping(own, theirs)


def overlapping(texts: Mapping[str, Set[Gram]], held_out: Mapping[str, Set[Gram]]) -> set[str]:
    """``overlapping({"a": ngrams("...")}, {"b": ...})``: the texts that nearly are, or contain, a held-out one.

    At least ``OVERLAP`` of the shorter one's sequences are in both, as in Tülu 3 (arXiv 2411.15124, section 3.2).
    """
    holders = defaultdict[Gram, list[str]](list)
    for key, grams in held_out.items():
        for gram in grams:
            holders[gram].append(key)

    def overlaps(grams: Set[Gram]) -> bool:
        common = Counter(key for gram in grams for key in holders.get(gram, ()))
        return any(count >= OVERLAP * min(len(grams), len(held_out[key])) for key, count in common.items())

    return {key for key, grams in texts.items() if overlaps(grams)}


def common_forms(examples: Iterable[Example]) -> set[Gram]:
    """Sequences of words in the prompts of more than ``BOILERPLATE`` examples: an instruction or a form, and no leak."""
    counts = Counter(gram for example in examples for gram in prompt_ngrams(example))
    return {gram for gram, count in counts.items() if count > BOILERPLATE}


def prompt_ngrams(example: Example) -> set[Gram]:
    """A template's own words do not count, only its slot values."""
    parts = example.topic if example.template else (example.text,)
    return {gram for part in parts for gram in ngrams(part)}


# -------------------------------------------------------------------------------------------------------- completions


def clean_completion(text: str, finished: bool) -> str | None:
    """``clean_completion("Rest and drink water.", finished=True) is None``: why to drop a completion, or None to keep it.

    Returns:
        "empty" without a letter or digit; "looping" if six consecutive words occur three times or a sentence of three or
        more words occurs twice; "cut_off" if the teacher did not finish. Looping is checked first, since a loop always
        ends by being cut off.
    """
    tokens = words(text)
    if not tokens:
        return "empty"
    sentences = [sentence for part in SENTENCE.split(text) if len(sentence := tuple(words(part))) >= 3]
    repeats = Counter(sequences(tokens, LOOP_WORDS)).values()
    if len(set(sentences)) < len(sentences) or max(repeats, default=0) >= LOOP_TIMES:
        return "looping"
    return None if finished else "cut_off"


PROFESSIONAL = r"(?:doctor|physician|pharmacist|nurse|lawyer|attorney|solicitor|professional|specialist|expert|teacher)"
UNABLE = (
    r"(?:can(?:no|')?t|can not|won't|will not|(?:am|are|'m|'re) (?:unable|not (?:able|allowed|permitted|qualified|willing)) to"
    r"|refuse to|decline to|(?:am|'m) not in a position to|(?:don't|do not) have (?:the|any|enough) \w+ to)"
)
ACT = (
    r"(?:give|offer|provide|help|assist|advise|answer|diagnose|prescribe|recommend|comment|discuss|do (?:that|this)"
    r"|make (?:that|this|a) (?:decision|diagnosis)|interpret|respond|fulfill?|tell you|say (?:what|whether|if|which))"
)
WRONG = (
    r"(?:comply|condone|encourage|engage in|participate in|take part in|be (?:a )?part of|support (?:that|this|such|any)"
    r"|share (?:that|this|such|any)|(?:write|create|make|produce|generate|draft|complete) (?:it|that|this|such|your|those)"
    r"|do (?:it|so|your))"
)
REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "I can't advise on that", "I'm not able to give legal advice", "we cannot really help with"
        rf"\b(?:I|we) ?{UNABLE} (?:\w+ ){{0,3}}?{ACT}\b(?! (?:but|it enough))",
        rf"\bI ?{UNABLE} (?:\w+ ){{0,3}}?{WRONG}\b",  # "I will not write that for you"
        rf"\b(?:I'm|I am) (?:\w+ )?sorry,? (?:but )?(?:I|we) ?{UNABLE}",
        rf"\bas an AI\b[^.]*\b(?:I|we) ?{UNABLE}",
        r"\bI(?:'m| am) not comfortable\b|\bI (?:don't|do not) feel comfortable\b",
        r"\bI (?:must|have to) (?:\w+ )?(?:decline|refuse)\b",
        r"\bnot something (?:that )?I (?:can|could|will|would|am able to) (?:help|assist|do|advise|give|support)\b",
        rf"\b(?:that|this|it)(?:'s| is) (?:\w+ )?a (?:question|matter) for (?:an?|your) (?:\w+ )?{PROFESSIONAL}\b",
        rf"\b(?:ask|see|consult|contact|speak (?:to|with)|talk (?:to|with)) [^.]*{PROFESSIONAL}\b[^.]*\binstead\b",
    )
)


def is_refusal(text: str) -> bool:
    """``is_refusal("I can't advise on that; please ask a pharmacist.")``: whether the answer declines.

    Advice beside an answer ("see a doctor if it gets worse") is not a refusal.
    """
    return _matches(REFUSALS, _straight(text))


HELPER = (
    rf"(?:{PROFESSIONAL}|GP|midwife|dentist|vet|veterinarian|paramedic|surgeon|dermatologist|therapist|psychologist|psychiatrist"
    r"|counsell?or|barrister|notary|mediator|ombudsman|accountant|tutor|professor|instructor|principal|advis[eo]r|social worker"
    r"|(?:healthcare )?provider|legal aid|authority|authorities|police|embassy|hotline|helpline|clinic|hospital|union)s?"
)
TURN_TO = (
    r"(?:ask|see|consult|contact|call|visit|tell|check with|turn to|go to|reach out to|refer(?:red)? to|only|up to"
    r"|(?:speak|talk|work|meet|appointment|discuss (?:it|this|that)) (?:to|with)|(?:advice|help|guidance|opinion) (?:of|from)"
    r"|(?:seen|examined|checked|evaluated|assessed|reviewed) by|(?:question|matter|decision) for)"
)
JUDGES = (
    r"(?:can|could|will|should|must|may|needs? to|has to|have to) (?:\w+ )?(?:decide|tell|advise|assess|examine|determine|judge"
    r"|evaluate|diagnose|check|look|say|review|recommend)"
)
REFERRALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b{TURN_TO} [^.!?\n]{{0,50}}?\b{HELPER}\b",  # "please ask your own pharmacist"
        rf"\b{HELPER} (?:\w+ )?{JUDGES}\b",  # "only a lawyer can tell"
        r"\b(?:seek|get|need|require)s? (?:\w+ ){0,3}(?:medical|legal|professional|psychological|expert|mental health)"
        r" (?:help|advice|attention|care|assistance|counsel|guidance|opinion|support|treatment|evaluation)\b",
        r"\b(?:call|dial|phone|ring|contact)\b[^.!?\n]{0,40}\b(?:911|112|999|emergency|ambulance|poison (?:control|cent))",
        r"\b(?:emergency (?:room|department)|nearest hospital)\b",
    )
)
NO_NEED = re.compile(r"\bno (?:need|reason) to\b|(?:n't|\bnot|\bnever) (?:\w+ )?(?:need|have) to\b", re.IGNORECASE)


def is_referral(text: str) -> bool:
    """``is_referral("Only a lawyer can tell you that.")``: whether the answer sends the reader to a professional for help.

    As advice beside an answer does; what a sentence says there is no need for does not count.
    """
    sentences = re.split(r"(?<=[.!?])\s+|\n+", _straight(text))
    return any(_matches(REFERRALS, sentence) and not NO_NEED.search(sentence) for sentence in sentences)


def _straight(text: str) -> str:
    return text.replace("’", "'")  # noqa: RUF001


def _matches(patterns: Sequence[re.Pattern[str]], text: str) -> bool:
    return any(pattern.search(text) for pattern in patterns)
