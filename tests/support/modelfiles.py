"""A parser of Ollama's Modelfiles, and a renderer of the part of Go's templates that ours use."""

from __future__ import annotations

import re


def parse(text: str) -> list[tuple[str, str]]:
    """``parse("FROM ./a.gguf\\n")`` → ``[("FROM", "./a.gguf")]``; values in three quotation marks span lines."""
    found, position = [], 0
    while position < len(text):
        command = re.compile(r"(PARAMETER \w+|[A-Z]+) +").match(text, position)
        assert command, f"no command at {text[position : position + 40]!r}"
        position = command.end()
        if text.startswith('"""', position):
            end = text.index('"""', position + 3)
            value, position = text[position + 3 : end], end + 3
        else:
            end = text.index("\n", position)
            value, position = text[position:end], end
        assert text[position] == "\n"
        found.append((command[1], value))
        position += 1
    return found


def render(template: str, messages: list[dict[str, str]]) -> str:
    """``render("{{ range .Messages }}{{ .Content }}{{ end }}", messages)``: range, if, else if, else, fields, strings."""
    pieces = re.split(r"\{\{ (.*?) \}\}", template)  # text, action, text, ...
    written, position = _block(pieces, 0, messages, {}, True)
    assert position == len(pieces), "more ends than beginnings"
    return written


def _block(
    pieces: list[str], position: int, messages: list[dict[str, str]], dot: dict[str, str], live: bool
) -> tuple[str, int]:
    """From a text to the end that closes the block, or to the template's own."""
    written = ""
    while True:
        written += pieces[position] if live else ""
        if position + 1 == len(pieces):
            return written, len(pieces)
        action, position = pieces[position + 1], position + 2
        if action == "end" or action.startswith("else"):
            return written, position - 1
        if action == "range .Messages":
            after = _block(pieces, position, messages, dot, False)[1] + 1
            written += "".join(_block(pieces, position, messages, one, live)[0] for one in messages)
            position = after
        elif action.startswith("if "):
            text, position = _cases(pieces, action, position, messages, dot, live)
            written += text
        elif live:
            written += action.strip('"') if action.startswith('"') else dot[action.removeprefix(".").lower()]


def _cases(
    pieces: list[str], action: str, position: int, messages: list[dict[str, str]], dot: dict[str, str], live: bool
) -> tuple[str, int]:
    written, done = "", False
    while True:
        chosen = live and not done and _holds(action, messages, dot)
        text, position = _block(pieces, position, messages, dot, chosen)
        written, done = written + text, done or chosen
        action, position = pieces[position], position + 1
        if action == "end":
            return written, position


def _holds(action: str, messages: list[dict[str, str]], dot: dict[str, str]) -> bool:
    if action == "else":
        return True
    if action == "if .System":  # which Ollama fills from the messages
        return any(message["role"] == "system" for message in messages)
    role = re.fullmatch(r'(?:else )?if eq \.Role "(\w+)"', action)
    assert role, action
    return dot["role"] == role[1]
