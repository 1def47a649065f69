"""What travels with an export: licences, the card, and what a report says."""

from __future__ import annotations

from dataclasses import replace

from support import exporting

from factory.export.metadata import ParityReport, card_with, chapter, described, notice

FOUND = ParityReport(
    "plants-mini@1", "0" * 64, "gguf", "adapter", "q8_0", 3, 90, 0.00123, 0.5, 0.99, None, 0.005, True, 2_500_000,
    {"exported": 92.4, "registered": 28.1}, "writing in one stream, prompt included", {},
)  # fmt: skip


def test_the_notice_names_whose_work_it_is_and_every_licence() -> None:
    text = notice(exporting.MANIFEST | {"name": "plants-mini", "version": 3, "notice": "No advice."})
    assert "plants-mini, version 3" in text and "changed" in text
    assert "Made from: path:./teacher, licence: apache-2.0." in text
    assert "Prompts: questions, licence: cc-by-4.0." in text
    assert text.endswith("Notice: No advice.\n")


def test_gemmas_terms_ask_for_a_sentence_of_their_own() -> None:
    assert "ai.google.dev/gemma/terms" in notice({"teacher": {"reference": "path:x", "license": "gemma"}})
    assert "gemma" not in notice(exporting.MANIFEST).lower()


def test_the_card_keeps_its_chapters_behind_the_new_one() -> None:
    card = card_with("---\nlibrary_name: peft\n---\n\n# a\n\nwords\n\n## Limits\n\nmany\n", "gguf", "## This export\n\nnear")
    assert card == "---\nlibrary_name: gguf\n---\n\n# a\n\nwords\n\n## This export\n\nnear\n\n## Limits\n\nmany\n"
    assert card_with("", "gguf", "## This export") == "\n## This export\n"


def test_one_line_says_what_how_near_how_large_and_how_fast() -> None:
    assert described(FOUND) == (
        "plants-mini@1 as gguf, adapter alone, q8_0: KL 0.00123 nats a token, same likeliest token 99.0%, bound 0.005, "
        "n 90 tokens of 3 texts; 2.5 MB; 92 tokens/s here, the registered one 28 (writing in one stream, prompt included)"
    )


def test_embeddings_have_a_distance_and_no_divergence() -> None:
    found = replace(
        FOUND, format="sentence-transformers", quantization=None, kl=None, top1_agreement=None, cosine_distance=1e-4
    )
    assert "largest cosine distance 0.0001, bound" in described(found)
    assert "KL" not in chapter(found) and "cosine distance of embeddings | 0.0001 |" in chapter(found)


def test_the_chapter_says_how_it_is_loaded() -> None:
    assert "llama-server" in chapter(FOUND)
    assert "ollama create" in chapter(replace(FOUND, format="ollama"))
