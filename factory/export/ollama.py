"""Writes a Modelfile for Ollama: the chat template in Go syntax, stop sequences, the notice and the licence.

    modelfile("healthcare-small-q8_0.gguf", tokenizer, notice="No medical advice.", license="...")

Ollama does not read Jinja. The text that a chat template puts around each message is found by rendering conversations.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from factory.errors import ExportError, ModelResolutionError, in_one_line
from factory.models.chat import render_as_is, stop_tokens

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class MessageFormat:
    """The text that a chat template puts around messages."""

    start: str  # before the first message, a default system turn for example
    start_of_system: str  # the same where a conversation has a system message of its own
    before: dict[str, str]  # by role
    after: dict[str, str]  # by role
    generation_prompt: str  # after the last message, where the answer begins

    def render(self, messages: Messages) -> str:
        """``format.render([{"role": "user", "content": "Hello"}])``: the prompt, as the Go template renders it."""
        written = [self.before[message["role"]] + message["content"] + self.after[message["role"]] for message in messages]
        own = any(message["role"] == "system" for message in messages)
        return (self.start_of_system if own else self.start) + "".join(written) + self.generation_prompt


def message_format(tokenizer: PreTrainedTokenizerBase) -> MessageFormat:
    """``message_format(tokenizer).before["user"]``: ``<|im_start|>user\\n``.

    Raises: ExportError for a template that does more than put text around each message.
    """
    try:
        found = _split_template(tokenizer)
        same = all(found.render(messages) == _render(tokenizer, messages, prompt=True) for messages in _conversations())
    except (ValueError, ModelResolutionError) as error:
        raise ExportError(
            f"the chat template cannot be converted for Ollama ({in_one_line(error)}); use --format gguf"
        ) from error
    if not same:
        raise ExportError(
            "the chat template does more than put text around each message, which Ollama cannot express; use --format gguf"
        )
    return found


def go_template(found: MessageFormat) -> str:
    """``go_template(message_format(tokenizer))``: over ``.Messages``, which Ollama passes in."""
    cases = [
        f'{"else " if position else ""}if eq .Role "{role}" }}}}{_go_literal(found.before[role])}{{{{ .Content }}}}'
        f"{_go_literal(found.after[role])}"
        for position, role in enumerate(ROLES)
    ]
    body = "".join(f"{{{{ {case}" for case in cases)
    start, end = _go_literal(found.start), _go_literal(found.generation_prompt)
    if found.start_of_system != found.start:
        start = f"{{{{ if .System }}}}{_go_literal(found.start_of_system)}{{{{ else }}}}{start}{{{{ end }}}}"
    return f"{start}{{{{ range .Messages }}}}{body}{{{{ end }}}}{{{{ end }}}}{end}"


def modelfile(gguf: str, tokenizer: PreTrainedTokenizerBase, *, notice: str, license: str) -> str:
    """``(folder / "Modelfile").write_text(modelfile("model.gguf", tokenizer, notice="", license="Apache-2.0"))``

    notice: becomes the system message; if empty there is none, as in training.
    Raises: ExportError for a template that Ollama cannot express, or a text that a Modelfile cannot hold.
    """
    stops = [str(tokenizer.decode([token])) for token in stop_tokens(tokenizer)]
    lines = [f"FROM ./{gguf}", f"TEMPLATE {_quote(go_template(message_format(tokenizer)))}"]
    lines += [f"PARAMETER stop {_quote(stop)}" for stop in stops]
    lines += [f"SYSTEM {_quote(notice)}"] if notice else []
    return "\n".join([*lines, f"LICENSE {_quote(license)}"]) + "\n"


def _split_template(tokenizer: PreTrainedTokenizerBase) -> MessageFormat:
    """Each longer conversation extends the shorter one, so the difference belongs to the added messages. Raises: ValueError.

    What comes before a user's turn is what the first and a later one have in common there. An answer is looked at where a turn
    follows: in some templates the last one has an empty thought before it.
    """
    system, user, assistant = (_message(role) for role in ROLES)
    first = _render(tokenizer, [user])
    begun, after_user = _around(user, first)
    before_assistant, rest = _around(assistant, _added(_render(tokenizer, [user, assistant, user]), first))
    between, _ = _around(user, rest)
    before_user = _shared_end(begun, between)
    start, after_assistant = begun.removesuffix(before_user), between.removesuffix(before_user)
    opened, rest = _around(system, _render(tokenizer, [system, user]))
    start_of_system = start if opened.startswith(start) else ""
    return MessageFormat(
        start,
        start_of_system,
        {"system": opened.removeprefix(start_of_system), "user": before_user, "assistant": before_assistant},
        {"system": rest.partition(before_user + user["content"])[0], "user": after_user, "assistant": after_assistant},
        _added(_render(tokenizer, [user], prompt=True), first),
    )


def _shared_end(one: str, other: str) -> str:
    same = list(takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False)))
    return one[len(one) - len(same) :]


def _conversations() -> list[Messages]:
    """Those that a template may treat differently: with and without a system message, one turn and several."""
    system, user, assistant = (_message(role) for role in ROLES)
    return [[user], [system, user], [user, assistant, user], [system, user, assistant, user, assistant, user]]


def _message(role: str) -> dict[str, str]:
    return {"role": role, "content": f"words of {role}"}


def _around(message: dict[str, str], text: str) -> tuple[str, str]:
    before, found, after = text.partition(message["content"])
    if not found:
        raise ValueError(f"it does not write the {message['role']} message as it is")
    return before, after


def _added(longer: str, shorter: str) -> str:
    if not longer.startswith(shorter):
        raise ValueError("it renders earlier messages differently once more follow")
    return longer[len(shorter) :]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, prompt: bool = False) -> str:
    return render_as_is(tokenizer, messages, prompt=prompt)


def _go_literal(text: str) -> str:
    """Text that a Go template renders unchanged."""
    return text.replace("{{", '{{ "{{" }}')


def _quote(text: str) -> str:
    """A multi-line string of a Modelfile, which has no escapes. Raises: ExportError."""
    if '"""' in text:
        raise ExportError('a Modelfile cannot contain three quotation marks ("""): remove them from the notice')
    return f'"""{text}"""'
