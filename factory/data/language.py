"""Whether a text is in a language that a model does not know. Only what is sure is said; short texts are not.

unknown_language("Was sind frühe Anzeichen von Asthma?", family.languages)   # UnknownLanguage: "de", and who does not know it
count_unknown(prompts, family.languages).describe()

Whether the text is in a known language is asked, and not which other one it is: neighbours such as Spanish and Galician are
often confused, but neither is ever taken for English (docs/my-own-data.md has the figures).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from factory.config.languages import UnknownLanguage, describe_known

Known = Mapping[str, tuple[str, ...]]  # by model, "encoder" or "teacher": the languages that it knows
NOT_STATED: Known = {}
MIN_BYTES = 20  # of a text in UTF-8: four English words, ten letters of Cyrillic, seven Chinese characters
MAX_CHARACTERS = 2000  # of a text that are read
MAX_KNOWN = 0.002  # probability of all known languages together, from which on a text may be in one of them
MIN_OTHER = 0.1  # probability of another language that is named; less has no language at all
MAX_NAMED = 5  # languages that a line names
NO_LANGUAGE = "zxx"  # the detector's own class for numbers, signs and code


def other_language(text: str, known: Sequence[str]) -> str | None:
    """``other_language("Wie entsteht ein Regenbogen?", ("en",)) == "de"``; None in a known language, or if it is not sure."""
    return _other(_ranked(text), known) if known else None


def _ranked(text: str) -> list[tuple[str, float]]:
    """All languages, the likeliest first, with their probabilities; none of a short text."""
    text = text.strip()[:MAX_CHARACTERS]
    return list(_detector().rank(text)) if len(text.encode(errors="replace")) >= MIN_BYTES else []


def _other(ranked: Sequence[tuple[str, float]], known: Sequence[str]) -> str | None:
    if not ranked:
        return None
    likely, probability = ranked[0]
    sure = probability >= MIN_OTHER and likely != NO_LANGUAGE
    return likely if sure and sum(p for language, p in ranked if language in known) < MAX_KNOWN else None


def unknown_language(text: str, known: Known) -> UnknownLanguage | None:
    """``unknown_language(question, {"teacher": ("en",)})``: the text's language, and the models that do not know it."""
    stated = {model: codes for model, codes in known.items() if codes}
    ranked = _ranked(text) if stated else []
    found = {model: language for model, codes in stated.items() if (language := _other(ranked, codes))}
    if not found:
        return None
    return UnknownLanguage(next(iter(found.values())), {model: known[model] for model in found})


@dataclass(frozen=True)
class UnknownCount:
    """How many of some texts are in languages that a model does not know."""

    texts: int
    languages: Mapping[str, int]  # by code, the most frequent first
    known: Known  # of those models

    @property
    def count(self) -> int:
        return sum(self.languages.values())

    @property
    def share(self) -> float:
        return self.count / self.texts if self.texts else 0.0

    def json(self) -> dict[str, Any]:
        """``counted.json()``: plain values."""
        return {
            "texts": self.texts,
            "unknown": dict(self.languages),
            "unknown_to": list(self.known),
            "said": self.describe(),
        }

    def describe(self) -> str:
        """``counted.describe()`` → "12 of 40 (30.0%) seem to be in de (12), which the teacher (en) does not know".

        "" where there are none.
        """
        if not self.languages:
            return ""
        languages = [f"{language} ({count:,})" for language, count in self.languages.items()]
        more = f" and {len(languages) - MAX_NAMED} more" if len(languages) > MAX_NAMED else ""
        found = f"{self.count:,} of {self.texts:,} ({self.share:.1%}) seem to be in {', '.join(languages[:MAX_NAMED])}{more}"
        return f"{found}, which {describe_known(self.known)}"


def count_unknown(texts: Sequence[str], known: Known) -> UnknownCount:
    """``count_unknown(prompts, family.languages).share``: every text is looked at."""
    found = [one for text in texts if (one := unknown_language(text, known)) is not None]
    models = {model: codes for model, codes in known.items() if any(model in one.known for one in found)}
    return UnknownCount(len(texts), dict(Counter(one.language for one in found).most_common()), models)


@cache
def _detector() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
