"""Languages that a model does not know: what is said of ten languages, and that nothing is said of English."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import support
import yaml
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from factory.config import SHIPPED
from factory.config.languages import CODES
from factory.config.load import load_specs
from factory.data.language import MIN_BYTES, NO_LANGUAGE, count_unknown, other_language, unknown_language
from factory.data.sources import fill_templates

ENGLISH = ("en",)
SENTENCES: dict[str, list[str]] = yaml.safe_load(Path(support.__file__).with_name("sentences.yaml").read_text("utf-8"))
ASKED = [(language, sentence) for language, sentences in SENTENCES.items() for sentence in sentences]


def texts_in(value: Any) -> list[str]:
    """Every text of a JSON value that is long enough to be looked at."""
    if isinstance(value, str):
        return [value] if len(value.encode()) >= MIN_BYTES else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in texts_in(part)]


def shipped_texts(every: int) -> list[str]:
    """Every so many of the prompts in domains/, and all that its students are asked."""
    specs = load_specs(SHIPPED)
    sources = [source for one in (*specs.domains.values(), *specs.pools.values()) for source in one.sources]
    prompts = [example.prompt for source in sources for example in fill_templates(source, 0)]  # type: ignore[arg-type]
    lines = [line for path in sorted(Path(SHIPPED, "evals").glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    evals = [text for line in lines for text in texts_in(json.loads(line))]
    return list(dict.fromkeys([*texts_in(prompts[::every]), *evals]))


def taken_for_another(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if other_language(text, ENGLISH) is not None]


def test_no_english_text_of_the_shipped_domains_is_taken_for_another_language() -> None:
    texts = shipped_texts(every=12)
    assert len(texts) > 8000 and taken_for_another(texts) == []


@pytest.mark.slow
@pytest.mark.big
def test_none_of_all_of_them_is() -> None:
    """The figure in docs/my-own-data.md."""
    texts = shipped_texts(every=1)
    assert len(texts) > 50_000 and taken_for_another(texts) == []


@pytest.mark.parametrize("begin", ["what is", "how do I treat", "who may keep", "tell me about", "is it bad for"])
def test_no_english_question_of_a_few_words_is(begin: str) -> None:
    about = ["asthma", "a broken contract", "my deposit", "Vasco da Gama", "quid pro quo", "DNA", "a sprained ankle", "pizza"]
    assert taken_for_another([f"{begin} {one}" for one in about]) == []


def test_questions_in_ten_languages_are_found() -> None:
    """The figure in docs/my-own-data.md."""
    assert len(SENTENCES) == 10 and len(ASKED) == 120
    found = [other_language(sentence, ENGLISH) for _, sentence in ASKED]
    assert 120 - found.count(None) == 118  # in French and Italian a rainbow is an arc
    assert sum(one == language for one, (language, _) in zip(found, ASKED, strict=True)) == 117


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_nothing_is_said_of_a_language_that_is_known_beside_english(language: str) -> None:
    assert [one for one in SENTENCES[language] if other_language(one, ("en", language)) is not None] == []


def test_the_languages_that_may_be_stated_are_those_that_can_be_told() -> None:
    assert set(LanguageIdentifier.from_model_file(MODEL_FILE).labels) - {NO_LANGUAGE} == CODES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Was ist Gicht?",  # 14 bytes
        "1234567890 1234567890 1234567890",
        "x = [1, 2, 3]; y = {a: b * 2 for a, b in zip(x, x)}",
        "🙂🙂🙂🙂🙂🙂🙂🙂",
        "What does 'Wie geht es dir?' mean in English?",
        "Translate to German: The dog is hungry.",
        "\ud800 broken, and still it is only English text",
    ],
)
def test_short_texts_signs_code_and_quotations_are_no_language(text: str) -> None:
    assert other_language(text, ENGLISH) is None


def test_a_model_that_states_no_languages_is_not_checked() -> None:
    assert other_language(SENTENCES["de"][0], ()) is None
    assert unknown_language(SENTENCES["de"][0], {}) is None


def test_who_does_not_know_a_language_is_said_in_one_line() -> None:
    german = SENTENCES["de"][0]
    assert str(unknown_language(german, {"encoder": ENGLISH, "teacher": ("en", "fr")})) == (
        "the text seems to be in de, which the encoder (en) and the teacher (en, fr) do not know"
    )
    assert str(unknown_language(german, {"encoder": ENGLISH, "teacher": ("en", "de")})) == (
        "the text seems to be in de, which the encoder (en) does not know"
    )
    assert unknown_language("what are the early signs of asthma?", {"encoder": ENGLISH}) is None


def test_the_end_of_a_long_text_is_not_read() -> None:
    assert other_language("what are the early signs of asthma? " * 100 + SENTENCES["de"][0] * 10_000, ENGLISH) is None


def test_texts_are_counted_by_language() -> None:
    texts = [*SENTENCES["de"][:3], SENTENCES["ru"][2], *["what are the early signs of asthma?"] * 6]
    found = count_unknown(texts, {"encoder": ("en", "ru"), "teacher": ENGLISH})
    assert found.describe() == (
        "4 of 10 (40.0%) seem to be in de (3), ru (1), which the encoder (en, ru) and the teacher (en) do not know"
    )
    assert found.json()["unknown"] == {"de": 3, "ru": 1}
    none = count_unknown(texts[4:], {"teacher": ENGLISH})
    assert (none.share, none.describe(), none.json()["unknown_to"]) == (0, "", [])
    assert count_unknown([], {"teacher": ENGLISH}).share == 0
