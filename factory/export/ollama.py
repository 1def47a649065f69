"""A Modelfile for Ollama: the chat template in Go's syntax, where an answer stops, the notice and the licence.

    modelfile("healthcare-small-q8_0.gguf", tokenizer, notice="No medical advice.", license="...")

Ollama reads no Jinja. What a chat template writes before and after each turn is found by rendering it, whatever its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from factory.errors import ExportError, in_one_line
from factory.models.chat import stop_tokens

ROLES = ("system", "user", "assistant")
Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Pieces:
    """What a chat template writes around the words of each role."""

    start: str  # before the first turn
    before: dict[str, str]
    after: dict[str, str]
    answer: str  # after the last turn, where an answer shall begin

    def render(self, turns: Turns) -> str:
        """``pieces.render([{"role": "user", "content": "Hello"}])``: what the Go template gives."""
        said = [self.before[turn["role"]] + turn["content"] + self.after[turn["role"]] for turn in turns]
        return self.start + "".join(said) + self.answer


def pieces(tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """``pieces(tokenizer).before["user"]``: ``<|im_start|>user\\n``.

    Raises: ExportError for a template that does more than write before and after each turn.
    """
    try:
        found = _split(tokenizer)
        same = all(found.render(turns) == _rendered(tokenizer, turns, answer=True) for turns in _conversations())
    except (ValueError, TemplateError) as error:
        raise ExportError(f"its chat template cannot be written for Ollama ({in_one_line(error)}); export gguf") from error
    if not same:
        raise ExportError(
            "its chat template does more than write before and after each turn, which Ollama's cannot; export gguf"
        )
    return found


def go_template(found: Pieces) -> str:
    """``go_template(pieces(tokenizer))``: of the messages that Ollama hands over."""
    cases = [
        f'{"else " if position else ""}if eq .Role "{role}" }}}}{_literal(found.before[role])}{{{{ .Content }}}}'
        f"{_literal(found.after[role])}"
        for position, role in enumerate(ROLES)
    ]
    turns = "".join(f"{{{{ {case}" for case in cases)
    return f"{_literal(found.start)}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}{_literal(found.answer)}"


def modelfile(gguf: str, tokenizer: PreTrainedTokenizerBase, *, notice: str, license: str) -> str:
    """``(folder / "Modelfile").write_text(modelfile("model.gguf", tokenizer, notice="", license="Apache-2.0"))``

    notice becomes the system turn; without one there is none, as in training.
    """
    stops = [str(tokenizer.decode([token])) for token in stop_tokens(tokenizer)]
    lines = [f"FROM ./{gguf}", f"TEMPLATE {_quoted(go_template(pieces(tokenizer)))}"]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines += [f"SYSTEM {_quoted(notice)}"] if notice else []
    return "\n".join([*lines, f"LICENSE {_quoted(license)}"]) + "\n"


def _split(tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """From renderings of which each begins with the one before, so that the rest is the next turn's. Raises: ValueError."""
    user, answer, again, system = (_turn(role) for role in ("user", "assistant", "user", "system"))
    opened = _rendered(tokenizer, [user])
    answered = _rendered(tokenizer, [user, answer])
    before, after = {}, {}
    start, after["user"] = _around(user, opened)
    before["assistant"], after["assistant"] = _around(answer, _rest(answered, opened))
    before["user"], _ = _around(again, _rest(_rendered(tokenizer, [user, answer, again]), answered))
    start = start.removesuffix(before["user"])
    told = _rendered(tokenizer, [system, user])
    before["system"], after["system"] = _around(system, _rest(told, start).partition(before["user"] + user["content"])[0])
    return Pieces(start, before, after, _rest(_rendered(tokenizer, [user], answer=True), opened))


def _conversations() -> list[Turns]:
    """What a template may treat in another way: with and without a system turn, one turn and several."""
    user, answer, system = (_turn(role) for role in ("user", "assistant", "system"))
    return [[user], [system, user], [user, answer, user], [system, user, answer, user, answer, user]]


def _turn(role: str) -> dict[str, str]:
    return {"role": role, "content": f"words of {role}"}


def _around(turn: dict[str, str], text: str) -> tuple[str, str]:
    before, found, after = text.partition(turn["content"])
    if not found:
        raise ValueError(f"it does not write what {turn['role']} said")
    return before, after


def _rest(longer: str, shorter: str) -> str:
    if not longer.startswith(shorter):
        raise ValueError("it writes earlier turns in another way once there are more")
    return longer[len(shorter) :]


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Turns, *, answer: bool = False) -> str:
    text: Any = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
    return str(text)


def _literal(text: str) -> str:
    """Text that Go's templates leave as it is."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    """As a Modelfile holds more than one line; nothing in it is an escape. Raises: ExportError."""
    if '"""' in text:
        raise ExportError('a Modelfile cannot hold a text with three quotation marks ("""): take them out of the notice')
    return f'"""{text}"""'
