"""What is said of llama.cpp before anything is made."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from support import architectures, tiny
from transformers import GPT2Config

from factory.config.models import SizeSpec
from factory.export.foresight import llamacpp_notes
from factory.export.gguf_tokenizer import QWEN2

WHOLE = SizeSpec(vocabulary=350)


def config(name: str, **changed: Any) -> Any:
    found: Any = architectures.CONFIGS[name](360)
    for key, value in changed.items():
        setattr(found, key, value)
    return found


def test_most_teachers_have_nothing_to_be_said() -> None:
    for name in ("Llama 3", "Qwen3", "Gemma 2", "Granite", "OLMo 2"):
        assert llamacpp_notes(config(name), tiny.tokenizer(), SizeSpec(layers=2)) == []


def test_an_architecture_without_gguf_is_told_with_what_works() -> None:
    [note] = llamacpp_notes(GPT2Config(), tiny.tokenizer(), WHOLE)
    assert note.startswith("gpt2 cannot be written as GGUF (supported: llama, ")
    assert note.endswith("so no gguf, no ollama, and factory serve only with an upstream; peft and merged work")


def test_texts_that_llamacpp_splits_otherwise_are_named() -> None:
    [note] = llamacpp_notes(config("Qwen3"), tiny.split_by(QWEN2, composed=True), WHOLE)
    assert note.startswith("other token ids in llama.cpp: text that is not in Unicode's form NFC")


def test_a_tokenizer_that_llamacpp_has_nothing_like_is_told() -> None:
    class Slow:
        added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012 - a stand-in

    for tokenizer in (tiny.split_by("[a-z]+"), Slow()):
        [note] = llamacpp_notes(config("Qwen3"), tokenizer, WHOLE)
        assert "cannot be written as GGUF; supported are byte-level BPE that splits text as GPT-2" in note


def test_a_template_that_llamacpp_cannot_read_is_told_with_one_that_it_can() -> None:
    unread = tiny.tokenizer("{% set plain = messages | selectattr('tool_calls', 'undefined') | list %}" + tiny.CHATML)
    [note] = llamacpp_notes(config("Mistral"), unread, WHOLE)
    assert note.startswith("llama.cpp cannot read the chat template (selectattr: unknown test 'tool_calls'): so no gguf, no")
    unread.chat_template = yaml.safe_load(note.partition("would work: ")[2])["chat_template"]
    assert llamacpp_notes(config("Mistral"), unread, WHOLE) == []


def test_a_template_that_ollama_cannot_express_is_told() -> None:
    numbered = tiny.tokenizer(tiny.CHATML.replace("{{ '<|im_start|>' + m", "{{ loop.index }}{{ '<|im_start|>' + m"))
    [note] = llamacpp_notes(config("Qwen3"), numbered, WHOLE)
    assert note.startswith("no ollama: the chat template does more than put text around each message, which Ollama cannot")


def test_a_shorter_context_is_told() -> None:
    [note] = llamacpp_notes(config("Mistral", sliding_window=100), tiny.tokenizer(), WHOLE)
    assert note == "contexts of 100 of 2,048 tokens in llama.cpp, which computes longer ones otherwise"


@pytest.mark.parametrize("size", [SizeSpec(layers=2), SizeSpec(parameters=40_000)])
def test_layers_without_rope_are_told_where_layers_leave(size: SizeSpec) -> None:
    [note] = llamacpp_notes(config("SmolLM3"), tiny.tokenizer(), size)
    assert note.startswith("a GGUF file only if every 4th of the layers that stay is one without RoPE")
    assert llamacpp_notes(config("SmolLM3"), tiny.tokenizer(), SizeSpec(intermediate_size=32)) == []
