"""Every command: errors are one line with an exit code, and a name with a path in it is refused."""

from __future__ import annotations

import ast
import errno
import inspect
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.workplace import Refused, Workplace
from typer.testing import CliRunner

import factory.pipeline.base
import factory.pipeline.build
from factory.cli import app
from factory.cli.app import COMMANDS
from factory.cli.terminal import Terminated
from factory.distill.target_store import SoftTargetStore
from factory.errors import FactoryError, GateError, UsageError
from factory.registry.registry import Registry

EVERY_COMMAND = [command for commands in COMMANDS.values() for command in commands]


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=lambda command: command.__name__)
def test_a_command_has_at_most_ten_lines(command: Callable[..., None]) -> None:
    [function] = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    assert isinstance(function, ast.FunctionDef)
    first, last = function.body[1], function.body[-1]  # after the docstring
    assert (last.end_lineno or 0) - first.lineno < 10


def test_help_lists_the_commands_in_the_order_of_a_user_s_work() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    names = [command.__name__.rstrip("_") for command in EVERY_COMMAND]
    assert re.findall(r"^│ ([a-z]+) ", text, re.MULTILINE) == names


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("student-factory ")


@pytest.mark.parametrize(
    "arguments", [["build"], ["build", "plants", "--all"], ["plan"], ["ask", "plants-mini"], ["review", "x"], ["nonsense"]]
)
def test_a_misused_command_has_exit_code_2(workplace: Workplace, arguments: list[str]) -> None:
    assert workplace.run(*arguments).exit_code == 2


def test_an_error_a_misuse_and_a_failed_gate_have_different_exit_codes() -> None:
    assert [error.exit_code for error in (FactoryError, UsageError, GateError)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("command", "rest"), [("new", []), ("build", []), ("data", []), ("show", []), ("ask", ["x"]), ("promote", [])]
)
def test_a_name_with_a_path_in_it_is_refused(workplace: Workplace, refused: Refused, command: str, rest: list[str]) -> None:
    before = sorted(workplace.root.rglob("*"))
    assert "../plants" in refused(workplace.run(command, "../plants", *rest))
    assert sorted(workplace.root.rglob("*")) == before


@pytest.mark.parametrize("command", ["build", "plan", "data"])
def test_an_unknown_domain_is_named_with_those_that_exist(workplace: Workplace, refused: Refused, command: str) -> None:
    assert "did you mean plants?" in refused(workplace.run(command, "plant"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "huge"], "unknown size 'huge'"),
        (["--family", "llama"], "unknown family 'llama'"),
        (["--profile", "quick"], "family default has default, demo"),
    ],
)
def test_an_unknown_size_family_or_profile_is_one_line(
    workplace: Workplace, refused: Refused, arguments: list[str], words: str
) -> None:
    assert words in refused(workplace.run("build", "plants", *arguments))


def test_a_full_disk_while_publishing_leaves_nothing_behind(
    with_models: Workplace, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(base: Any, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "model.safetensors"))

    with monkeypatch.context() as patched:
        patched.setattr(factory.pipeline.base, "save_base", write_half)
        line = refused(with_models.run("build", "plants"))
    registry = with_models.root / "registry"
    assert str(registry) in line
    assert Registry(registry).versions() == [] and list((registry / ".staging").iterdir()) == []
    assert with_models.run("build", "plants").exit_code == 0  # the same command, with space again


def test_a_full_disk_anywhere_else_is_one_line_with_the_folder(
    with_models: Workplace, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "targets.npz"))

    monkeypatch.setattr(SoftTargetStore, "make", make)
    line = refused(with_models.run("build", "plants"))
    assert str(with_models.root / "home" / "targets") in line and "FACTORY_HOME" in line


@pytest.mark.parametrize(("raised", "exit_code"), [(KeyboardInterrupt, 130), (Terminated, 143), (ZeroDivisionError, 1)])
def test_ctrl_c_and_sigterm_say_how_to_continue_and_a_bug_keeps_its_traceback(
    with_models: Workplace, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException], exit_code: int
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(factory.pipeline.build, "build_student", stop)
    result = with_models.run("build", "plants")
    assert result.exit_code == exit_code
    stopped = raised is not ZeroDivisionError
    assert ("stopped; run the same command again to continue" in result.stderr.splitlines()) == stopped
    assert isinstance(result.exception, SystemExit if stopped else raised)


SLEEPING = """
import sys, time
import factory.cli.{module} as module
from factory.cli import app

def sleep(*_, **__):
    print("here", flush=True)
    time.sleep(60)

module.choose = sleep
sys.argv = ["factory", "{command}", *{arguments}]
app()
"""


@pytest.mark.parametrize(
    ("module", "command", "arguments", "returned"),
    [("students", "build", ["plants"], 143), ("serving", "serve", [], -signal.SIGTERM)],
)
def test_sigterm_ends_a_command_in_one_line_and_a_server_by_the_signal_itself(
    module: str, command: str, arguments: list[str], returned: int
) -> None:
    code = SLEEPING.format(module=module, command=command, arguments=arguments)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "here\n"
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == returned
    assert errors == ("stopped; run the same command again to continue\n" if returned > 0 else "")
