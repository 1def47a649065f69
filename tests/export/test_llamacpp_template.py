"""What llama.cpp's own Jinja makes of a chat template."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import trl
from support import tiny

from factory.config.schema import TeacherSpec
from factory.errors import ServeError
from factory.export import llamacpp_template
from factory.export.llamacpp_template import template_problem
from factory.models.templates import usable_template

GEMMA = (Path(trl.__file__).parent / "chat_templates" / "gemma.jinja").read_text(encoding="utf-8")
UNKNOWN_TEST = "{% set plain = messages | selectattr('tool_calls', 'undefined') | list %}"  # Mistral Nemo's own has it


@pytest.mark.parametrize("template", [tiny.CHATML, GEMMA])
def test_a_template_that_llamacpp_renders_alike_has_no_problem(template: str) -> None:
    tokenizer = tiny.with_control_tokens(template, begins=True)
    tokenizer.chat_template = usable_template(tokenizer, TeacherSpec(model="path:theirs", license="MIT")).text
    assert template_problem(tokenizer) is None


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (UNKNOWN_TEST, "cannot read the chat template (selectattr: unknown test 'tool_calls')"),
        ("{{ '%s' % 3 }}", 'cannot read the chat template (Unknown operator "%" between String and Integer)'),
        ("{{ none }}", "writes another prompt from the chat template ('<|im_start|>user"),
        ("{{ messages[0] }}", "writes another prompt from the chat template ('<|im_start|>user"),
    ],
)
def test_one_that_it_cannot_read_or_reads_otherwise_is_told_with_the_reason(before: str, why: str) -> None:
    problem = template_problem(tiny.tokenizer(before + tiny.CHATML))
    assert problem is not None and problem.startswith(f"llama.cpp {why}") and "\n" not in problem


def test_what_is_not_the_template_s_fault_is_not_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ServeError("llama.cpp cannot load template.gguf: out of memory")

    monkeypatch.setattr(llamacpp_template, "LlamaServer", refuse)
    with pytest.raises(ServeError, match="out of memory"):
        template_problem(tiny.tokenizer("{{ '' }}" + tiny.CHATML))


def test_without_llamacpp_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(llamacpp_template, "find_spec", importlib.util.find_spec)
    assert template_problem(tiny.tokenizer(UNKNOWN_TEST + tiny.CHATML)) is None
