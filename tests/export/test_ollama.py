"""A Modelfile's Go template renders the same prompt as the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl
from support import exporting, modelfiles, tiny
from transformers import PreTrainedTokenizerFast

from factory.config.schema import TeacherSpec
from factory.errors import ExportError
from factory.export.ollama import go_template, message_format, modelfile
from factory.models.templates import usable_template

CONVERSATIONS = [
    ["user"],
    ["system", "user"],
    ["user", "assistant", "user"],
    ["system", "user", "assistant", "user", "assistant", "user"],
]
WORDS = [
    "What is gout?",
    "A kind of arthritis,\nin two lines.",
    "{{ x }} and 'y'",
    "Größe 東京",
    "Be brief.",
    "Soon?",
]


def conversation(roles: list[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": WORDS[position]} for position, role in enumerate(roles)]


def chatml() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def questions() -> PreTrainedTokenizerFast:
    return tiny.sentencepiece(exporting.QUESTIONS)


def with_template(name: str) -> PreTrainedTokenizerFast:
    """Of a publisher, settled as a teacher's is."""
    tokenizer = tiny.with_control_tokens((Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8"))
    tokenizer.chat_template = usable_template(tokenizer, TeacherSpec(model="path:theirs", license="MIT")).text
    return tokenizer


THEIRS = ["qwen2_5", "qwen3", "llama3_1", "llama3_2"]
TOKENIZERS = [chatml(), questions(), *map(with_template, THEIRS)]


@pytest.mark.parametrize(
    "tokenizer", [chatml(), questions(), *map(with_template, THEIRS)], ids=["chatml", "questions", *THEIRS]
)
@pytest.mark.parametrize("roles", CONVERSATIONS, ids=[str(len(roles)) for roles in CONVERSATIONS])
def test_the_go_template_renders_what_the_chat_template_renders(tokenizer: Any, roles: list[str]) -> None:
    rendered = modelfiles.render(go_template(message_format(tokenizer)), conversation(roles))
    assert rendered == tokenizer.apply_chat_template(conversation(roles), tokenize=False, add_generation_prompt=True)


def test_the_text_around_messages_of_both_shipped_templates() -> None:
    first, second = message_format(chatml()), message_format(questions())
    assert (first.start, first.before["user"], first.after["user"]) == ("", "<|im_start|>user\n", "<|im_end|>\n")
    assert first.generation_prompt == first.before["assistant"] == "<|im_start|>assistant\n"
    assert (second.start, second.before["system"], second.after["system"]) == ("<bos>", "", "\n\n")
    assert (second.before["user"], second.generation_prompt, second.after["assistant"]) == ("Question:\n", "Answer:\n", "\n\n")


def test_braces_in_a_chat_template_are_escaped() -> None:
    tokenizer = tiny.tokenizer(tiny.CHATML.replace("<|im_start|>' +", "<|im_start|>{' + '{' +"))
    rendered = modelfiles.render(go_template(message_format(tokenizer)), conversation(["user"]))
    assert rendered == tokenizer.apply_chat_template(conversation(["user"]), tokenize=False, add_generation_prompt=True)
    assert "{{user" in rendered


def test_the_modelfile_has_template_stops_notice_and_licence() -> None:
    text = modelfile("a-q8_0.gguf", chatml(), notice='No advice,\nnot even "some".', license="Apache-2.0\nfor all")
    commands = modelfiles.parse(text)
    assert [name for name, _ in commands] == ["FROM", "TEMPLATE", "PARAMETER stop", "SYSTEM", "LICENSE"]
    values = dict(commands)
    assert (values["FROM"], values["PARAMETER stop"]) == ("./a-q8_0.gguf", "<|im_end|>")
    assert values["TEMPLATE"] == go_template(message_format(chatml()))
    assert (values["SYSTEM"], values["LICENSE"]) == ('No advice,\nnot even "some".', "Apache-2.0\nfor all")


def test_an_empty_line_is_a_stop_sequence_too() -> None:
    stops = [value for name, value in modelfiles.parse(modelfile("a", questions(), notice="", license="")) if "stop" in name]
    assert sorted(stops) == ["\n\n", "<eos>"]


def test_without_a_notice_there_is_no_system_message() -> None:
    assert "SYSTEM" not in modelfile("a", chatml(), notice="", license="MIT")


def test_three_quotation_marks_are_refused() -> None:
    with pytest.raises(ExportError, match="three quotation marks"):
        modelfile("a", chatml(), notice='say """no"""', license="")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{{ '<|im_start|>' +", "{% if loop.last %}LAST{% endif %}{{ '<|im_start|>' +"), "differently once more follow"),
        (("m['content']", "m['content'][:3]"), "does not write the user message as it is"),
        (
            ("{% for m in", "{% if messages|length > 5 %}LONG{% endif %}{% for m in"),
            "does more than put text around",
        ),
        (("{% for m in", "{{ raise_exception('no') if messages[0]['role'] == 'system' }}{% for m in"), "for Ollama"),
    ],
    ids=["last message", "shortened", "long conversations", "no system message"],
)
def test_a_template_that_ollama_cannot_express_is_refused(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        message_format(tiny.tokenizer(tiny.CHATML.replace(*change)))
