"""``factory``: every command, in the order of ``factory --help``.

A command is a plain function. Its module imports nothing heavy: torch is loaded inside the commands that need it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from factory.cli import answers, domains, machine, registry, research, serving, students
from factory.cli.terminal import OneLineErrors

COMMANDS: dict[str, list[Callable[..., None]]] = {
    "Domains": [domains.new, domains.validate, domains.data, domains.route],
    "Students": [
        students.plan,
        students.build,
        students.list_,
        students.show,
        students.compare,
        students.promote,
        answers.review,
        answers.ask,
        answers.explain,
        answers.benchmark,
        students.export,
    ],
    "Registry": [
        registry.verify,
        registry.history,
        registry.demote,
        registry.delete,
        registry.import_,
        registry.reindex,
        registry.gc,
    ],
    "Serving": [serving.serve, serving.key],
    "Research": [research.experiment],
    "Machine": [machine.doctor],
}


def print_version(wanted: bool) -> None:
    if wanted:
        from factory import __version__

        typer.echo(f"student-factory {__version__}")
        raise typer.Exit()


def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distil a teacher into small domain students, and keep them in a local registry."""


def make_app() -> typer.Typer:
    """``make_app()()`` runs the command line."""
    options: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(
        cls=OneLineErrors,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=options,
    )
    app.callback()(main)
    for panel, commands in COMMANDS.items():
        for command in commands:
            app.command(command.__name__.rstrip("_"), rich_help_panel=panel)(command)
    return app


app = make_app()
