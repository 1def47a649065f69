"""Writes a Modelfile for Ollama: the chat template in Go syntax, stop sequences, the notice and the licence.

    modelfile("healthcare-small-q8_0.gguf", tokenizer, notice="No medical advice.", license="...")

Ollama does not read Jinja. The text that a chat template puts around each message is found by rendering conversations.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from factory.errors import ExportError, ModelResolutionError, in_one_line
from factory.models.chat import render_as_is, stop_tokens

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class MessageFormat:
    """The text that a chat template puts around messages."""

    start: str  # before the first message
    before: dict[str, str]  # by role
    after: dict[str, str]  # by role
    generation_prompt: str  # after the last message, where the answer begins

    def render(self, messages: Messages) -> str:
        """``format.render([{"role": "user", "content": "Hello"}])``: the prompt, as the Go template renders it."""
        written = [self.before[message["role"]] + message["content"] + self.after[message["role"]] for message in messages]
        return self.start + "".join(written) + self.generation_prompt


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
    """Each conversation below extends the one before, so the difference belongs to the added message. Raises: ValueError."""
    system, user, assistant = (_message(role) for role in ROLES)
    first = _render(tokenizer, [user])
    second = _render(tokenizer, [user, assistant])
    third = _render(tokenizer, [user, assistant, user])
    before, after = {}, {}
    start, after["user"] = _around(user, first)
    before["assistant"], after["assistant"] = _around(assistant, _added(second, first))
    before["user"], _ = _around(user, _added(third, second))
    start = start.removesuffix(before["user"])
    with_system = _added(_render(tokenizer, [system, user]), start)
    before["system"], after["system"] = _around(system, with_system.partition(before["user"] + user["content"])[0])
    return MessageFormat(start, before, after, _added(_render(tokenizer, [user], prompt=True), first))


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
