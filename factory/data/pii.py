"""Personal identifiers: how many of each kind, never their values. Presidio's patterns and checksums, without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from factory.data.sources import Example
from factory.errors import DataError

if TYPE_CHECKING:
    from presidio_analyzer import PatternRecognizer, RecognizerResult
    from presidio_analyzer.predefined_recognizers import PhoneRecognizer

Policy = Literal["refuse", "drop", "allow"]

MIN_DIGITS = 4  # of the shortest identifier without an "@", an IP address
MIN_SCORE = 0.4  # presidio's score of a valid phone number; patterns below it need a context
NEAR = 24  # characters before a number in which a label may stand

AT = re.compile("@")
DIGIT = re.compile(r"\d")
LONG_NUMBER = re.compile(r"(?:\d\W{0,3}){8}")
PLAIN = str.maketrans({**dict.fromkeys(range(0x2010, 0x2016), "-"), 0xA0: " ", 0x202F: " "})  # dashes and fixed spaces
GROUP = re.compile(r"\w{3}")

# Card digits by issuer: without them, one in ten long numbers or rows of years has a valid checksum.
CARD = (
    r"(?<![\w.,-])(?:(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|35\d\d|6011|64[4-9]\d|65\d\d)([- ]?)\d{4}\1\d{4}\1\d{4}"
    r"|3[47]\d\d([- ]?)\d{6}\2\d{5}|3(?:0[0-5]|[68]\d)\d([- ]?)\d{6}\3\d{4})(?![\w-]|[.,]\d)"
)
# Presidio's own pattern skips well-known examples such as 078-05-1120, which are what people test a filter with.
SOCIAL_SECURITY = r"(?<![\w-])(?!000|666)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])"
# Phone numbers by shape, allocated or not: (555) 123-4567, 07700 900123, +44 7700 900123.
PHONE_SHAPES = (
    r"(?<![\w-])(?:\+?1[-. ])?(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?![\w-])",
    r"(?<!\w)(?:0[127]\d{3} \d{6}|07\d{9})(?!\w)",
    r"(?<!\w)\+(?=(?:[ ().-]{0,2}\d){10,15}(?!\w))\d[\d ().-]+\d",
)
PHONE_LABEL = (
    r"phone|telephone|tel|mobile|cellphone|cell(?=:| is| no| number)|fax|call|dial|(?:ring|text) (?:me|us|him|her|them)"
)
PHONE_LABELLED = r"(?:[2-9]\d\d[-. ]\d{4}|0\d{2,4}[- ]?\d{3,4}[- ]?\d{3,4}|\d{10})(?![\w-])"
RECORD_LABEL = r"mrn|(?:medical|health|patient|hospital|chart) (?:record )?(?:number|no|id|identifier)|medical record"
RECORD = r"[a-z]{0,3}-?(?=(?:-?\d){6,12}(?![\w-]))\d[\d-]+\d"
NHS = r"\d{3}[- ]?\d{3}[- ]?\d{4}\b"
NHS_SPELT = (
    r"(?<![\w-])\d{3} \d{3} \d{4}(?![\w-])"  # phone numbers look alike, but rarely with these spaces and a valid check digit
)
DRIVER_LABEL = r"driver['’]?s?['’]? licen[cs]e|driving licen[cs]e"  # noqa: RUF001 - typographic apostrophes are in real text
DRIVER_LICENCE = r"(?=(?:[a-z-]{0,5}\d){6})[a-z0-9][a-z0-9-]{5,18}\b"


@dataclass(frozen=True)
class Rule:
    """One way to recognise one kind of identifier."""

    kind: str
    recogniser: PatternRecognizer | PhoneRecognizer
    needs: re.Pattern[str] = DIGIT  # a cheap pattern: texts without it skip the recogniser
    accepts: Callable[[str, RecognizerResult], bool] = lambda text, result: True


def find_identifiers(text: str) -> Counter[str]:
    """``find_identifiers("Write to ann@example.com")["email"] == 1``: counts by kind.

    Kinds: email, iban, card, social_security, nhs_number, phone, medical_record, medical_licence, medicare, passport,
    driver_licence, national_insurance, ip_address. Characters that match two kinds count as the first.
    Precision goes before recall: a number that could be anything (nine digits) counts only after a word that labels it.
    Names and postal addresses are not detected.
    """
    if "@" not in text and len(DIGIT.findall(text)) < MIN_DIGITS:
        return Counter()
    plain = text.translate(PLAIN)
    found: list[tuple[str, int, int]] = []
    for rule in _rules():
        if not rule.needs.search(plain):
            continue
        for result in rule.recogniser.analyze(plain, rule.recogniser.supported_entities):
            free = all(result.end <= start or end <= result.start for _, start, end in found)
            if free and result.score >= MIN_SCORE and rule.accepts(plain, result):
                found.append((rule.kind, result.start, result.end))
    return Counter(kind for kind, _, _ in found)


def filter_pii(
    examples: Sequence[Example], policy: Policy, *, domain: str, dropped: Counter[str]
) -> tuple[list[Example], dict[str, dict[str, int]]]:
    """``examples, found = filter_pii(examples, domain.personal_data, domain=domain.name, dropped=dropped)``

    Searches prompts and completions. ``drop`` removes examples with an identifier and counts them in
    ``dropped["personal_data"]``; ``allow`` keeps them; ``refuse`` raises. ``found`` is source id → kind → count.

    Raises:
        DataError: under ``refuse``, with the counts by source and kind, and without the values.
    """
    kept: list[Example] = []
    found: dict[str, Counter[str]] = {}
    personal: set[str] = set()  # chats from their first identifier on
    for example in examples:
        identifiers = find_identifiers(example.prompt) + find_identifiers(example.completion)
        if identifiers:
            found[example.source] = found.get(example.source, Counter()) + identifiers
            personal.add(example.conversation)
        if example.conversation in personal and policy == "drop":  # the turns before it are shown with a turn of a chat
            dropped["personal_data"] += 1
        else:
            kept.append(example)
    if found and policy == "refuse":
        listed = "; ".join(
            f"{source}: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}"
            for source, kinds in found.items()
        )
        raise DataError(
            f"domain {domain!r} refuses personal data, but its sources contain some ({listed}); clean them, "
            "or set `personal_data: drop` to leave these examples out"
        )
    return kept, {source: dict(kinds.most_common()) for source, kinds in found.items()}


@cache
def _rules() -> tuple[Rule, ...]:
    """The most reliable rules first. Built on first use, because importing presidio takes seconds."""
    import tldextract
    from presidio_analyzer import Pattern, PatternRecognizer
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        EmailRecognizer,
        IbanRecognizer,
        IpRecognizer,
        MedicalLicenseRecognizer,
        NhsRecognizer,
        PhoneRecognizer,
        UkNinoRecognizer,
        UsMbiRecognizer,
    )

    # Presidio's own e-mail check downloads a list of suffixes into the home folder; tldextract ships with one.
    suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    def real_domain(text: str, result: RecognizerResult) -> bool:
        return bool(suffixes(text[result.start : result.end].rpartition("@")[2]).fqdn)

    def spelt_in_groups(text: str, result: RecognizerResult) -> bool:
        return not text[result.start : result.end].isdigit()

    def looks_like_address(text: str, result: RecognizerResult) -> bool:
        """Neither section 4.2.1.3 nor 1:2:3:4:5:6:7:8, unless "IP" precedes it."""
        address = text[result.start : result.end]
        before, after = text[max(0, result.start - NEAR) : result.start], text[result.end : result.end + 2]
        if re.search(r"[\d.]$", before) or re.match(r"\.\d", after):  # part of a longer number
            return False
        said = re.search(r"\bip(?:v[46])?\b", before, re.IGNORECASE)
        return bool(said or (GROUP.search(address) and DIGIT.search(address)))

    def own(*patterns: str) -> list[Pattern]:
        return [Pattern("own", pattern, 0.5) for pattern in patterns]

    def shapes(entity: str, *patterns: str) -> PatternRecognizer:
        return PatternRecognizer(entity, patterns=own(*patterns))

    social_security = labelled(r"ssn|social security|soc\.? sec", r"\d{3}[- .]?\d\d[- .]?\d{4}\b")
    medical_licence = own(labelled(r"dea|medical licen[cs]e", r"[a-z]{2}\d{7}\b"))
    return (
        Rule("email", PatternRecognizer("EMAIL_ADDRESS", patterns=EmailRecognizer.PATTERNS), AT, real_domain),
        Rule("iban", IbanRecognizer()),
        Rule("card", CreditCardRecognizer(patterns=own(CARD))),
        Rule("social_security", shapes("US_SSN", SOCIAL_SECURITY, social_security)),
        Rule("nhs_number", NhsRecognizer(patterns=own(labelled("nhs", NHS), NHS_SPELT))),
        Rule("phone", shapes("PHONE_NUMBER", *PHONE_SHAPES, labelled(PHONE_LABEL, PHONE_LABELLED))),
        # Some other regions' numbers have no distinct form: years and sums would match.
        Rule("phone", PhoneRecognizer(supported_regions=("US", "GB")), LONG_NUMBER, spelt_in_groups),
        Rule("medical_record", shapes("MEDICAL_RECORD", labelled(RECORD_LABEL, RECORD))),
        Rule("medical_licence", MedicalLicenseRecognizer(patterns=medical_licence)),
        Rule("medicare", UsMbiRecognizer()),
        Rule("passport", shapes("PASSPORT", labelled("passport", r"[a-z]{0,2}\d{6,9}\b"))),
        Rule("driver_licence", shapes("DRIVER_LICENCE", labelled(DRIVER_LABEL, DRIVER_LICENCE))),
        Rule("national_insurance", UkNinoRecognizer()),
        Rule("ip_address", IpRecognizer(), accepts=looks_like_address),
    )


def labelled(label: str, number: str) -> str:
    """``labelled("mrn", r"\\d{6,8}")`` finds the number in "MRN no. is 123456": a pattern for the ``regex`` library."""
    between = r"\W{0,4}(?:(?:number|no|num|nr|id|card|is|was|of|at|on|me|us|him|her|them)\b\W{0,4}){0,3}"
    return rf"\b(?=\w{{0,6}}-?\d|[(+])(?<=\b(?:{label})\b{between}){number}"
