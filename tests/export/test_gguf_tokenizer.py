"""What llama.cpp makes of a conversation, beside what training makes of it: the same text, and the same ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from gguf import GGUFReader
from support import tiny

from factory.config.schema import TeacherSpec
from factory.export.gguf import write_base_gguf
from factory.models.chat import NO_CONTEXT, messages, prompt_ids, render
from factory.models.llama_server import LlamaServer
from factory.models.templates import usable_template

TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@pytest.mark.parametrize("begins", [False, True], ids=["", "begin-of-text before any text"])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_nothink", "deepseek_r1_distill", "gemma", "gemma4", "llama3_2", "phi3"])
def test_a_prompt_has_the_ids_in_llamacpp_that_it_has_in_training(name: str, begins: bool, tmp_path: Path) -> None:
    tokenizer = tiny.with_control_tokens((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), begins=begins)
    tokenizer.chat_template = usable_template(tokenizer, TeacherSpec(model="path:theirs", license="MIT")).text
    model = tiny.llama(layers=1, vocabulary=len(tokenizer))
    write_base_gguf(model, tokenizer, tmp_path / "base.gguf", "f16", name="theirs", license="MIT")
    with LlamaServer(tmp_path / "base.gguf") as server:
        for context in (NO_CONTEXT, tiny.CONTEXT):
            turns = messages("what is asthma", context)
            text = server.apply_template(turns)
            ids = server._post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
            assert text == render(tokenizer, turns, prompt=True)
            assert ids == prompt_ids(tokenizer, "what is asthma", context)


def test_without_an_end_of_text_the_end_of_a_turn_stands_in_for_it(tmp_path: Path) -> None:
    """llama.cpp would stop at token 11, whatever that is."""
    write_base_gguf(
        tiny.llama(layers=1), tiny.tokenizer(eos_token=None), tmp_path / "base.gguf", "f16", name="theirs", license="MIT"
    )
    assert GGUFReader(tmp_path / "base.gguf").fields["tokenizer.ggml.eos_token_id"].contents() == 2
