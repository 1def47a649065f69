"""How commands talk: results on stdout, progress on stderr, errors in one line, libraries kept quiet."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from factory.cache import FULL_DISK, disk_error, replace_file, storage_errors
from factory.errors import FactoryError

if TYPE_CHECKING:  # rich costs `factory list --json` and `factory --help` a tenth of a second
    from rich.progress import Progress

    from factory.pipeline.context import ProgressBar

LINE_EVERY = 60.0  # seconds between two progress lines of a stage where stderr is not a terminal
STOPPED = "stopped; run the same command again to continue"
PIPE_WIDTH = 160  # columns of a table that goes to a file or another command


class OneLineErrors(TyperGroup):
    """Commands whose expected failures are one line on stderr and an exit code, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with ended_by_sigterm(ctx):
                return super().invoke(ctx)
        except FactoryError as error:
            raise _fail(str(error), error.exit_code) from None
        except Terminated:
            say(STOPPED)
            raise typer.Exit(128 + signal.SIGTERM) from None
        except KeyboardInterrupt:
            say(f"\n{STOPPED}")  # a terminal has written ^C
            raise typer.Exit(128 + signal.SIGINT) from None
        except Exception as error:
            refused = disk_error(error)
            if refused is None:
                raise
            raise _fail(_what_the_disk_said(refused), FactoryError.exit_code) from None


def _what_the_disk_said(error: OSError) -> str:
    where = f" {os.path.dirname(os.path.abspath(error.filename))}" if isinstance(error.filename, str) else ""
    if error.errno in FULL_DISK:
        what = f"no space left on the disk{where and f' of{where}'}: free some"
    else:
        what = f"{error.strerror}{where and f' in{where}'}: check that disk and its permissions"
    return (
        f"{what}, or set FACTORY_HOME and --registry to another disk. Finished stages are kept; run the same command again to "
        "continue"
    )


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a service manager, a container or a shutdown sends: cleaned up after like Ctrl-C."""


@contextmanager
def ended_by_sigterm(ctx: Any) -> Iterator[None]:
    """``with ended_by_sigterm(ctx):`` SIGTERM raises Terminated, unless it means something else to whoever called us.

    A server that has answered what was open ends by the signal itself, as service managers expect.
    """

    def terminate(*_: Any) -> None:
        if ctx.invoked_subcommand == "serve":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        raise Terminated

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not ours:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fail(message: str, exit_code: int) -> typer.Exit:
    """Prints ``error: ...``, a line per mistake of a SpecError."""
    for line in message.splitlines():
        say(f"error: {line}")
    return typer.Exit(exit_code)


def say(line: str) -> None:
    """``say("wrote report.html")``: a line for people, on stderr, so that stdout can be piped."""
    typer.echo(line, err=True)


def print_json(content: Any) -> None:
    """``print_json(list_json(registry.versions()))`` on stdout."""
    typer.echo(_to_json(content))


def _to_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=str)


def print_table(*renderables: Any) -> None:
    """``print_table(list_table(versions), "a line")`` on stdout: as wide as the terminal, or PIPE_WIDTH in a pipe."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    console = Console(width=width, highlight=False, markup=False)
    for renderable in renderables:
        console.print(renderable)


def print_report(content: Any, *renderables: Any, json: bool, save: Path | None) -> None:
    """``print_report(benchmark_json(report), table, json=False, save=Path("report.json"))``: JSON or tables; a file.

    Raises: StorageError where the file cannot be written.
    """
    if save is not None:
        with storage_errors(f"cannot write {save}"):
            replace_file(save, _to_json(content).encode())
    print_json(content) if json else print_table(*renderables)


def format_duration(seconds: float) -> str:
    """``format_duration(1_500)`` → "25 min"."""
    if seconds < 10:
        return f"{f'{seconds:.1f}'.removesuffix('.0')} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


# ---------------------------------------------------------------------------------------------------------------- progress


def progress_bars(*, shown: bool) -> ProgressBar:
    """``make_context(..., progress=progress_bars(shown=not json))``

    A bar with a count and the time left; where stderr is not a terminal, a line a minute and one when a stage ends.
    """
    if not shown:
        return _no_progress
    return _bar if sys.stderr.isatty() else _lines


@contextmanager
def _no_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda steps: None


@contextmanager
def _lines(description: str, total: int) -> Iterator[Callable[[int], None]]:
    start = last_line = time.perf_counter()
    done = 0
    first: tuple[float, int] | None = None  # time and count of the first report, which may be of work found on disk

    def advance(steps: int) -> None:
        nonlocal done, last_line, first
        done, now = done + steps, time.perf_counter()
        first = first or (now, done)
        if now - last_line >= LINE_EVERY and first[1] < done < total:
            last_line = now
            left = (now - first[0]) * (total - done) / (done - first[1])
            say(f"{description}: {done} of {total}, {format_duration(left)} left")

    yield advance
    say(f"{description}: {done} of {total} in {format_duration(time.perf_counter() - start)}")


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    with _progress() as progress:
        task = progress.add_task(description, total=total)
        yield lambda steps: progress.advance(task, steps)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("left"), console=Console(stderr=True))


# ----------------------------------------------------------------------------------------------------------------- loading


def load_libraries(*, shown: bool) -> None:
    """``load_libraries(shown=not json)``: imports what takes seconds, saying so, and turns off these libraries' own output."""
    with _spinner("loading torch and transformers") if shown else contextlib.nullcontext():
        warnings.simplefilter("ignore")
        import datasets
        from transformers.utils import logging as transformers_logging

        verbosity: Any = transformers_logging  # its functions have no types
        verbosity.set_verbosity_error()
        verbosity.disable_progress_bar()
        datasets.utils.logging.set_verbosity_error()
        datasets.disable_progress_bars()
        for name in ("sentence_transformers", "trl", "peft", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _spinner(message: str) -> AbstractContextManager[Any]:
    """On a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(message)
