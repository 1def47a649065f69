"""NOTICE, card and one-line summaries of an export."""

from __future__ import annotations

from dataclasses import replace

from support import exporting, manifests

from factory.export.metadata import ParityReport, card_section, export_card, format_report, notice_text, parity_failure

REPORT = ParityReport(
    reference="plants-mini@1",
    manifest_sha256="0" * 64,
    format="gguf",
    part="adapter",
    quantization="q8_0",
    texts=3,
    tokens=90,
    kl=0.00123,
    log_prob_difference=0.5,
    top1_agreement=0.99,
    cosine_distance=None,
    bound=0.005,
    within=True,
    bytes=2_500_000,
    tokens_per_second={"exported": 92.4, "registered": 28.1},
    tokens_per_second_of="one stream, prompt included",
    libraries={},
)
EMBEDDINGS = replace(
    REPORT, format="sentence-transformers", part="merged", quantization=None, kl=None, top1_agreement=None, cosine_distance=1e-4
)


def test_the_notice_names_teacher_and_data_with_their_licences() -> None:
    text = notice_text(manifests.student_manifest("plants-mini", version=3, notice="No advice.", **exporting.ORIGIN))
    assert text.startswith("plants-mini, version 3: a derived model")
    assert "Derived from: path:./teacher, licence: apache-2.0." in text
    assert "Data: questions, licence: cc-by-4.0." in text
    assert text.endswith("Notice: No advice.\n")


def test_a_gemma_teacher_adds_the_sentence_that_its_terms_require() -> None:
    gemma = manifests.base_manifest(teacher=manifests.TEACHER | {"license": "gemma"})
    assert "subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms" in notice_text(gemma)
    assert "gemma" not in notice_text(manifests.base_manifest()).lower()


def test_the_card_keeps_its_metadata_and_sections_after_the_exports_own() -> None:
    card = export_card("---\nlicense: mit\nlibrary_name: peft\n---\n\n# a\n\nwords\n\n## Limits\n\nmany\n", REPORT)
    assert card == (
        f"---\nlicense: mit\nlibrary_name: gguf\n---\n\n# a\n\nwords\n\n{card_section(REPORT)}\n\n## Limits\n\nmany\n"
    )


def test_a_report_in_one_line() -> None:
    assert format_report(REPORT) == (
        "plants-mini@1 as gguf, adapter only, q8_0: KL 0.00123 nats/token (bound 0.005), top-1 agreement 99.0%, "
        "90 tokens of 3 texts; 2.5 MB; 92 tokens/s, published version 28 tokens/s (one stream, prompt included)"
    )
    assert "largest cosine distance 0.0001 (bound 0.005), 90 tokens" in format_report(EMBEDDINGS)


def test_a_failed_check_says_the_value_and_its_bound() -> None:
    assert parity_failure(replace(REPORT, kl=0.301, bound=0.15, part="merged", quantization="q4")) == (
        "parity check failed: KL 0.301 > 0.15 nats/token (plants-mini@1 as gguf, q4; 90 tokens of 3 texts)"
    )
    assert "cosine distance 0.5 > 0.005 (" in parity_failure(replace(EMBEDDINGS, cosine_distance=0.5))


def test_the_cards_section_has_what_was_measured_and_how_to_load_it() -> None:
    assert "llama-server" in card_section(REPORT)
    assert "ollama create" in card_section(replace(REPORT, format="ollama"))
    assert "| KL(published ‖ exported), nats/token | 0.00123 |" in card_section(REPORT)
    assert "cosine distance of embeddings | 0.0001 |" in card_section(EMBEDDINGS)
    assert "KL(" not in card_section(EMBEDDINGS)
