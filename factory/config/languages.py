"""The languages that a model knows, as family files state them: codes that a text's language can be told by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

# What data/language.py can tell: ISO 639-1, where there is a code of two letters, else 639-3.
LISTED = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy ga gcf gcr gd
gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk
ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl
tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu
"""
CODES = frozenset(LISTED.split())


def _known(code: str) -> str:
    if code not in CODES:
        raise ValueError(
            f"{code!r} is no code of a language that can be told; write the two letters of ISO 639-1, such as en, de or zh"
        )
    return code


Languages = Annotated[
    tuple[Annotated[str, AfterValidator(_known)], ...],
    Field(
        exclude=True,  # decides nothing that is made, so it is in no key
        description="The languages that it knows, such as `[en, de]` (ISO 639-1): a text in another one is said to be. "
        "Nothing is said if left out.",
    ),
]


@dataclass(frozen=True)
class UnknownLanguage:
    """``str(unknown)`` → "the text seems to be in de, which the encoder (en) does not know"."""

    language: str
    known: Mapping[str, tuple[str, ...]]  # by model, "encoder" or "teacher": what it knows instead

    def __str__(self) -> str:
        return f"the text seems to be in {self.language}, which {describe_known(self.known)}"


def describe_known(known: Mapping[str, tuple[str, ...]]) -> str:
    """``describe_known({"encoder": ("en",), "teacher": ("en", "fr")})``

    → "the encoder (en) and the teacher (en, fr) do not know"
    """
    models = " and ".join(f"the {model} ({', '.join(languages)})" for model, languages in known.items())
    return f"{models} {'does' if len(known) == 1 else 'do'} not know"
