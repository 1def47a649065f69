"""Chat templates: what a teacher's own leaves open is settled once, in its text, which everything else reads.

    resolve_teacher(family.teacher).folder  # its chat template is usable_template(tokenizer, family.teacher).text

Training, the server and GGUF files render this text, so a prompt has the same ids in all of them. In it

- `chat_template_kwargs` are set, and `enable_thinking` is false where nothing is said of it,
- today's date is ``TEMPLATE_DATE``,
- a system turn that the template refuses or leaves out goes into the first user turn,
- a prompt ends where its answer begins: with the empty <think> block, or the channel, that the template puts between them,
- and it begins with begin-of-text where the tokenizer begins a text so.

A template of plain turns stays as it is.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from factory.config.chat_template import PINNED, TEMPLATE_DATE, THINKING, template_variables
from factory.config.schema import TeacherSpec
from factory.errors import ModelResolutionError, in_one_line
from factory.models.chat import ANSWERS, end_of_turn, render
from factory.models.folders import load_tokenizer
from factory.models.references import ResolvedModel, resolve

SYSTEM_IN_USER_TURN = (
    "{% if messages[0]['role'] == 'system' and messages | length > 1 %}{% set messages = [{'role': messages[1]['role'], "
    "'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] %}{% endif %}"
)
THOUGHTS = re.compile(r"<think>\s*(</think>\s*)?$")
NO_THOUGHTS = "\n</think>\n\n"  # behind a prompt that leaves the block open
STRFTIME = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
TURNS = {  # templates to fall back on, by a token that a tokenizer of such models has
    "<|im_end|>": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "[/INST]": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
    "": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
}
SYSTEM, QUESTION = "Be brief.", "A question?"


@dataclass(frozen=True)
class ChatTemplate:
    """A template's text, and a line for people about each thing in it that was settled."""

    text: str
    notes: tuple[str, ...] = ()


def resolve_teacher(spec: TeacherSpec, *, root: Path = Path("."), quiet: bool = False) -> ResolvedModel:
    """``resolve_teacher(family.teacher, root=specs.root)``: as ``resolve``, with the chat template that all of it uses.

    Raises: ModelResolutionError as ``resolve`` does, and for a chat template that cannot be used, with one that can.
    """
    files = resolve(spec, root=root, quiet=quiet)
    tokenizer = load_tokenizer(files.folder)
    template = usable_template(tokenizer, spec)
    if template.text != tokenizer.chat_template:
        files = resolve(spec, root=root, chat_template=template.text, quiet=quiet)
    return replace(files, notes=template.notes)


def usable_template(tokenizer: PreTrainedTokenizerBase, spec: TeacherSpec) -> ChatTemplate:
    """``usable_template(tokenizer, family.teacher).text``: the template in the YAML, else the tokenizer's own, settled.

    Raises: ModelResolutionError if it cannot be used, with the reason and a template that would work.
    """
    if not spec.chat_template and not tokenizer.chat_template:
        raise ModelResolutionError(f"{spec.model} has no chat template; {working_template(tokenizer)}")
    try:
        given = spec.chat_template or tokenizer.get_chat_template()
        if not isinstance(given, str):
            raise ValueError(f"it is a {type(given).__name__}, not text")
        return _settled(tokenizer, given, spec.chat_template_kwargs)
    except ValueError as error:
        raise ModelResolutionError(
            f"the chat template of {spec.model} cannot be used: {error}; {working_template(tokenizer)}"
        ) from error


def _settled(tokenizer: PreTrainedTokenizerBase, given: str, settings: Mapping[str, Any]) -> ChatTemplate:
    """Raises: ValueError if it cannot be used."""
    known = template_variables(given)
    if unread := sorted(set(settings) - known):
        raise ValueError(f"it does not read {', '.join(unread)} (chat_template_kwargs); it reads {', '.join(sorted(known))}")
    pinned = {name: value for name, value in PINNED.items() if name in known and name not in settings}
    settings = {**pinned, **settings}
    text = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in settings.items()) + _freeze_date(given)
    notes = ["enable_thinking is false: students learn answers, not what comes before them"] if THINKING in pinned else []
    if not _takes_system_turn(_with(tokenizer, text)):
        text = SYSTEM_IN_USER_TURN + text
        notes.append("it takes no system turn: a context's goes into the first user turn")
    if (ending := _end_of_prompts(_with(tokenizer, text))) and not settings.get(THINKING):
        text = text.removesuffix("\n") + f"{{% if add_generation_prompt %}}{{{{ {_literal(ending)} }}}}{{% endif %}}"
        notes.append(f"prompts end with {ending!r}: students learn answers, not what comes before them")
    if _lacks_start(_with(tokenizer, text)):
        text = "{{ bos_token }}" + text
    _check(_with(tokenizer, text))
    return ChatTemplate(text, tuple(f"chat template: {note}" for note in notes))


def _freeze_date(text: str) -> str:
    frozen = STRFTIME.sub(lambda call: _literal(TEMPLATE_DATE.strftime(call[2])), text)
    if "strftime_now(" in frozen:
        raise ValueError("it writes today's date in a format that it computes, so that a prompt would change from day to day")
    return frozen


def _takes_system_turn(tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        return SYSTEM in _rendered(tokenizer, _conversation(SYSTEM, QUESTION))
    except ValueError:
        return False


def _end_of_prompts(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes between a prompt and its answer, or what closes a <think> block that its prompts open."""
    prompt = _rendered(tokenizer, _conversation("", QUESTION))
    whole = _rendered(tokenizer, _conversation("", QUESTION, ANSWERS[0]), prompt=False)
    before, found, _ = whole.rpartition(ANSWERS[0])
    if not found or QUESTION not in prompt:
        raise ValueError("it does not write messages as they are; one for images expects lists")
    if before.startswith(prompt):
        return before.removeprefix(prompt)
    if block := THOUGHTS.search(prompt):  # which some templates leave out of turns that are over
        return "" if block[1] else NO_THOUGHTS
    raise ValueError(f"a prompt ends with {prompt[-30:]!r}, but an answer is written after {before[-30:]!r}")


def _lacks_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    bos = tokenizer.bos_token_id
    begun = bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]
    return begun and _prompt_ids(tokenizer)[0] != bos


def _check(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises: ValueError for what cannot be settled."""
    if _prompt_ids(tokenizer)[:2] == [tokenizer.bos_token_id] * 2:
        raise ValueError("it writes begin-of-text twice")
    shown = _conversation(SYSTEM, QUESTION, ANSWERS[0], "And then?")
    text = _rendered(tokenizer, shown)
    if lost := [turn["content"] for turn in shown if turn["content"] not in text]:
        raise ValueError(f"it leaves out earlier turns of a conversation ({lost[0]!r})")
    try:
        end = end_of_turn(tokenizer)
    except ModelResolutionError:
        raise ValueError("it does not end an answer with a token of its own") from None
    name = str(tokenizer.decode([end]))
    if end not in tokenizer.added_tokens_decoder and name.strip():
        raise ValueError(f"it ends an answer with {name!r}, ordinary text of this tokenizer, where answers would be cut off")


def _prompt_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(_rendered(tokenizer, _conversation("", QUESTION)), add_special_tokens=False)["input_ids"])


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, prompt: bool = True) -> str:
    try:
        return render(tokenizer, turns, prompt=prompt)
    except ModelResolutionError as error:
        raise ValueError(f"it fails on plain messages ({in_one_line(error)})") from error


def _conversation(system: str, *turns: str) -> list[dict[str, str]]:
    """User and assistant in turn, after a system turn unless that is empty."""
    said = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    return [{"role": "system", "content": system}, *said] if system else said


def _with(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    other = copy.copy(tokenizer)
    other.chat_template = template
    return other


def _literal(value: Any) -> str:
    """As Jinja and YAML read it."""
    return json.dumps(value, ensure_ascii=False)


def working_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """``working_template(tokenizer)`` → "this one would work: chat_template: ...": in the words of YAML; tried, not guessed."""
    for token, text in TURNS.items():
        if token in tokenizer.added_tokens_encoder or not token:
            with suppress(ValueError):
                return f"this one would work: chat_template: {_literal(_settled(tokenizer, text, {}).text)}"
    return "no template would work: its tokenizer has no token that could end an answer; give it an eos_token"
