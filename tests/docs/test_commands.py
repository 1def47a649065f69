"""Every command in the documentation is one that the command line takes."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.markdown import ROOT, inline_commands, name_of, pages, shell_commands
from typer.main import get_command

ENTRY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["factory"]
MODULE, _, APP = ENTRY.partition(":")
CLI: Any = get_command(getattr(importlib.import_module(MODULE), APP))
HELP = {"--help", "-h"}

# What was typed then, and what is generated from the command line itself.
ELSEWHERE = {"docs/log.md", "docs/cli.md"}
WRITTEN = [page for page in pages() if name_of(page) not in ELSEWHERE]
written = pytest.mark.parametrize("page", WRITTEN, ids=name_of)


def problem(arguments: list[str], *, complete: bool) -> str | None:
    """Why the command line refuses these arguments; a call that is not ``complete`` may lack some, or hold placeholders."""
    if not arguments or arguments[0].startswith("-"):
        known = {name for parameter in CLI.params for name in parameter.opts} | HELP
        return None if set(arguments) <= known else f"unknown option of factory: {arguments}"
    name, *rest = arguments
    command = CLI.commands.get(name)
    if command is None:
        return f"unknown command: factory {name}"
    if complete:
        outcome = CliRunner().invoke(_parse_only(command), rest)
        return None if outcome.exit_code == 0 else outcome.output.strip().splitlines()[-1]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help",
        "-h",
    }
    unknown = [word for word in rest if word.startswith("-") and word.partition("=")[0] not in known]
    return f"factory {name} has no option {', '.join(unknown)}" if unknown else None


def _parse_only(command: Any) -> Any:
    """The same parameters, and nothing behind them."""
    parser = type(command)(command.name, params=command.params, callback=lambda **values: None)
    parser.context_settings = CLI.context_settings
    return parser


@written
def test_commands_in_blocks_are_accepted_as_they_stand(page: Path) -> None:
    found = [(arguments, problem(arguments, complete=True)) for arguments in shell_commands(page, "factory")]
    assert not [f"factory {' '.join(arguments)}: {why}" for arguments, why in found if why]


@written
def test_commands_in_the_text_have_known_names_and_options(page: Path) -> None:
    found = [(arguments, problem(arguments, complete=False)) for arguments in inline_commands(page, "factory")]
    assert not [f"factory {' '.join(arguments)}: {why}" for arguments, why in found if why]


def test_a_mistyped_command_option_or_value_is_found() -> None:
    assert problem(["bild", "healthcare"], complete=True)
    assert problem(["build", "healthcare", "--profil", "demo"], complete=False)
    assert problem(["export", "healthcare-small", "--format", "onnx", "--to", "out"], complete=True)
    assert problem(["export", "healthcare-small", "--format", "gguf"], complete=True)
    assert problem(["export", "REF", "--format", "F"], complete=False) is None


def test_every_command_is_mentioned_outside_the_generated_reference() -> None:
    calls = [call for page in WRITTEN for each in (shell_commands, inline_commands) for call in each(page, "factory")]
    assert set(CLI.commands) <= {call[0] for call in calls if call}


@written
def test_scripts_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"(?:python |`)(scripts/[\w/.-]+\.(?:py|sh|yaml))", page.read_text(encoding="utf-8"))
    assert not [script for script in named if not (ROOT / script).is_file()]
