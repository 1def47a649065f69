"""Chat templates: those that trl ships, settled so that every engine renders the same, and the refusals of the others."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trl
import yaml
from jinja2 import TemplateError
from support import tiny
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from factory.config.schema import TeacherSpec
from factory.errors import ModelResolutionError
from factory.models.chat import NO_CONTEXT, completion_ids, end_of_turn, messages, prompt_ids, render, render_as_is, stop_tokens
from factory.models.templates import ChatTemplate, resolve_teacher, usable_template

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SHIPPED = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.jinja"))}
REFUSED = {name for name in SHIPPED if name.startswith(("idefics3", "llava_next", "smolvlm"))} | {"glm4moe"}
CHATML_OF = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + tiny.CHATML
usable = pytest.mark.parametrize("name", sorted(SHIPPED.keys() - REFUSED))


def settle(tokenizer: PreTrainedTokenizerFast, template: str | None = None, **settings: Any) -> ChatTemplate:
    spec = TeacherSpec(model="path:theirs", license="MIT", chat_template=template, chat_template_kwargs=settings)
    return usable_template(tokenizer, spec)


@cache
def settled(name: str, **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with a template of trl's, as it is used."""
    tokenizer = tiny.with_control_tokens(SHIPPED[name])
    tokenizer.chat_template = settle(tokenizer, **settings).text
    return tokenizer


# ------------------------------------------------------------------------------------------------- templates of trl's


@usable
def test_a_prompt_is_followed_by_its_answer_and_the_answer_by_a_token_of_its_own(name: str) -> None:
    tokenizer = settled(name)
    prompt = tokenizer.decode(prompt_ids(tokenizer, "what is light"))
    assert prompt.count("<think>") == prompt.count("</think>")
    whole = render(tokenizer, [*messages("what is light"), {"role": "assistant", "content": "it is sugar"}], prompt=False)
    assert end_of_turn(tokenizer) in tokenizer.added_tokens_decoder
    if not name.startswith("deepseek"):  # which forgets the block in turns that are over
        assert whole.startswith(prompt + "it is sugar" + tokenizer.decode([end_of_turn(tokenizer)]))


@pytest.mark.parametrize("name", sorted(SHIPPED))
@pytest.mark.parametrize("prompt", [False, True])
def test_a_template_is_rendered_as_transformers_renders_it(name: str, prompt: bool) -> None:
    tokenizer = tiny.with_control_tokens(SHIPPED[name])
    for turns in (messages("what is light"), messages("how is it treated", tiny.CONTEXT)):
        try:
            theirs = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        except (TemplateError, TypeError):
            with pytest.raises(ModelResolutionError):
                render_as_is(tokenizer, turns, prompt=prompt)
        else:
            assert render_as_is(tokenizer, turns, prompt=prompt) == theirs


def test_a_looping_template_is_refused_when_it_is_settled() -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + tiny.CHATML
    with pytest.raises(ModelResolutionError, match=r"it fails on plain messages \(.*it takes more than 5 seconds\); this one"):
        settle(tiny.with_control_tokens(tiny.CHATML), loops)


@usable
def test_the_teacher_reads_its_context(name: str) -> None:
    tokenizer = settled(name)
    text = tokenizer.decode(prompt_ids(tokenizer, "how is it treated", tiny.CONTEXT))
    places = [text.index(one) for one in ("be brief", "what is light", "it is sugar", "how is it treated")]
    assert places == sorted(places)


@usable
def test_a_settled_template_is_settled(name: str) -> None:
    tokenizer = settled(name)
    assert settle(tokenizer) == ChatTemplate(str(tokenizer.chat_template))
    assert "strftime_now(" not in str(tokenizer.chat_template)


@usable
def test_begin_of_text_is_written_once_where_the_tokenizer_writes_it(name: str) -> None:
    tokenizer = tiny.with_control_tokens(SHIPPED[name], begins=True)
    tokenizer.chat_template = settle(tokenizer).text
    for context in (NO_CONTEXT, tiny.CONTEXT):
        ids = prompt_ids(tokenizer, "what is light", context)
        assert ids[0] == tokenizer.bos_token_id and ids.count(ids[0]) == 1


@pytest.mark.parametrize("name", ["qwen2_5", "gemma3", "phi3", "llama3", "qwen3_instruct_2507", "lfm2_v2"])
def test_a_template_of_plain_turns_stays_as_it_is(name: str) -> None:
    assert settle(tiny.with_control_tokens(SHIPPED[name])) == ChatTemplate(SHIPPED[name])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_template_that_cannot_be_used_is_refused_with_one_that_can(name: str) -> None:
    tokenizer = tiny.with_control_tokens(SHIPPED[name])
    with pytest.raises(
        ModelResolutionError, match=r"the chat template of path:theirs cannot be used: it .*; this one would work"
    ) as raised:
        settle(tokenizer)
    assert "\n" not in str(raised.value)
    advised = yaml.safe_load(str(raised.value).partition("would work: ")[2])["chat_template"]
    assert settle(tokenizer, advised).text == advised


# ------------------------------------------------------------------------------------------------------------- thoughts


@pytest.mark.parametrize("name", ["qwen3", "qwen3_training", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_5_nothink"])
def test_qwen_does_not_think_unless_it_is_told_to(name: str) -> None:
    tokenizer = settled(name)
    asked = render(tokenizer, messages("what is light"), prompt=True)
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert asked == render(settled(name, enable_thinking=False), messages("what is light"), prompt=True)
    [note] = settle(tiny.with_control_tokens(SHIPPED[name])).notes
    assert note == "chat template: enable_thinking is false: students learn answers, not what comes before them"
    assert settle(tiny.with_control_tokens(SHIPPED[name]), enable_thinking=False).notes == ()


def test_thoughts_that_are_asked_for_are_not_cut_off() -> None:
    tokenizer = settled("qwen3_5_think", enable_thinking=True)
    assert render(tokenizer, messages("what is light"), prompt=True).endswith("assistant\n<think>\n")
    assert tokenizer.decode(completion_ids(tokenizer, "it is sugar")) == "it is sugar<|im_end|>"


def test_a_block_that_nothing_closes_is_closed_behind_the_prompt() -> None:
    tokenizer = tiny.with_control_tokens(SHIPPED["deepseek_r1_distill"])
    found = settle(tokenizer)
    tokenizer.chat_template = found.text
    assert render(tokenizer, messages("what is light"), prompt=True).endswith("<\uff5cAssistant\uff5c><think>\n\n</think>\n\n")
    assert found.notes == (
        "chat template: prompts end with '\\n</think>\\n\\n': students learn answers, not what comes before them",
    )


def test_an_answer_follows_the_channel_that_the_template_puts_before_it() -> None:
    tokenizer = settled("gptoss")
    assert render(tokenizer, messages("what is light"), prompt=True).endswith("<|start|>assistant<|channel|>final<|message|>")
    assert tokenizer.decode([end_of_turn(tokenizer)]) == "<|return|>"


# --------------------------------------------------------------------------------------------- dates, system turns, start


@pytest.mark.parametrize(
    ("name", "written"), [("llama3_1", "26 Jul 2024"), ("llama3_2", "26 Jul 2024"), ("gptoss", "2024-07-26")]
)
def test_today_is_always_the_same_day(name: str, written: str) -> None:
    assert written in render(settled(name), messages("what is light"), prompt=True)


def test_another_day_may_be_set() -> None:
    assert "Today Date: 01 May 2027" in render(settled("llama3_2", date_string="01 May 2027"), messages("a"), prompt=True)


@pytest.mark.parametrize(
    "template", [SHIPPED["gemma"], CHATML_OF, tiny.CHATML.replace("in messages", "in messages if m['role'] != 'system'")]
)
def test_a_system_turn_that_is_refused_or_left_out_goes_into_the_first_user_turn(template: str) -> None:
    tokenizer = tiny.with_control_tokens(template)
    found = settle(tokenizer)
    assert found.notes == ("chat template: it takes no system turn: a context's goes into the first user turn",)
    tokenizer.chat_template = found.text
    text = tokenizer.decode(prompt_ids(tokenizer, "how is it treated", tiny.CONTEXT))
    assert "user\nbe brief\n\nwhat is light<" in text and text.count("be brief") == 1
    assert prompt_ids(tokenizer, "a") == prompt_ids(tiny.with_control_tokens(template), "a")  # nothing else has changed


def test_begin_of_text_is_added_to_a_template_that_forgets_it() -> None:
    tokenizer = tiny.with_control_tokens(tiny.CHATML, begins=True)
    assert settle(tokenizer).text == "{{ bos_token }}" + tiny.CHATML
    assert settle(tiny.with_control_tokens(tiny.CHATML)).text == tiny.CHATML  # this tokenizer begins no text with it


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ bos_token }}{{ bos_token }}" + tiny.CHATML, "it writes begin-of-text twice"),
        (tiny.CHATML.replace("<|im_end|>", "<|end|>"), "it ends an answer with '<', ordinary text of this tokenizer"),
        ("{{ strftime_now(format) }}" + tiny.CHATML, "it writes today's date in a format that it computes"),
        (
            tiny.CHATML.replace("in messages", "in messages[-2:]"),
            r"it leaves out earlier turns of a conversation \('Be brief.'\)",
        ),
        (
            tiny.CHATML.replace("|im_start|>assistant", "|im_start|>model"),
            r"a prompt ends with '.*model\\n', but an answer is written after",
        ),
        ("{{ messages[0]['parts'][0] }}", "it fails on plain messages .*has no attribute 'parts'"),
        ("{{ messages[0]['content'] + 1 }}", "it fails on plain messages"),
    ],
)
def test_what_cannot_be_settled_is_refused(template: str, why: str) -> None:
    with pytest.raises(ModelResolutionError, match=why):
        settle(tiny.with_control_tokens(tiny.CHATML), template)


def test_a_variable_that_the_template_does_not_read_is_refused_with_those_that_it_reads() -> None:
    with pytest.raises(
        ModelResolutionError, match=r"does not read thinking \(chat_template_kwargs\); it reads .*enable_thinking"
    ):
        settled("qwen3", thinking=False)


def test_a_missing_template_is_refused_with_one_that_this_tokenizer_can_use() -> None:
    with pytest.raises(ModelResolutionError, match=r"path:theirs has no chat template; this one would work: .*<\|im_end\|>"):
        settle(tiny.tokenizer(None))
    with pytest.raises(ModelResolutionError, match=r"this one would work: .* eos_token "):
        settle(tiny.sentencepiece(None))


def test_a_tokenizer_with_marks_around_questions_is_advised_a_template_of_these() -> None:
    tokenizer = tiny.sentencepiece(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    with pytest.raises(ModelResolutionError) as raised:
        settle(tokenizer)
    advised = yaml.safe_load(str(raised.value).partition("would work: ")[2])["chat_template"]
    tokenizer.chat_template = settle(tokenizer, advised).text
    text = render(tokenizer, messages("how is it treated", tiny.CONTEXT), prompt=True)
    assert text == "<bos>[INST]be brief\n\nwhat is light[/INST]it is sugar<eos>[INST]how is it treated[/INST]"


def test_a_tokenizer_without_any_end_can_use_none() -> None:
    bare: Any = PreTrainedTokenizerFast(tokenizer_object=tiny.sentencepiece().backend_tokenizer)
    with pytest.raises(ModelResolutionError, match=r"no template would work: .*give it an eos_token"):
        settle(bare)


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    tiny.saved(tmp_path / "theirs", tiny.llama(layers=1), tiny.tokenizer(CHATML_OF))
    return tmp_path


def test_a_teacher_s_folder_has_the_settled_template(theirs: Path) -> None:
    files = resolve_teacher(TeacherSpec(model="path:theirs", license="MIT"), root=theirs)
    found = AutoTokenizer.from_pretrained(files.folder)
    assert found.chat_template == settle(tiny.tokenizer(CHATML_OF)).text
    assert [re.sub(":.*", "", note) for note in files.notes] == ["chat template"]
    assert stop_tokens(found) == [2]


def test_a_teacher_whose_template_is_plain_is_used_where_it_is(theirs: Path) -> None:
    tiny.tokenizer().save_pretrained(theirs / "theirs")
    files = resolve_teacher(TeacherSpec(model="path:theirs", license="MIT"), root=theirs)
    assert files.folder == theirs / "theirs" and files.notes == ()


def test_a_teacher_whose_template_cannot_be_used_is_not_resolved(theirs: Path) -> None:
    spec = TeacherSpec(model="path:theirs", license="MIT", chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(ModelResolutionError, match="the chat template of path:theirs cannot be used"):
        resolve_teacher(spec, root=theirs)
