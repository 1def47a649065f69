"""How commands talk: results on stdout, progress on stderr, errors in one line, libraries in silence."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from factory.errors import FactoryError

if TYPE_CHECKING:  # rich costs `factory list --json` and `factory --help` a tenth of a second
    from rich.progress import Progress

    from factory.pipeline.context import ProgressBar

LINE_EVERY = 60.0  # seconds between two lines of a stage where stderr is no terminal
PIPE_WIDTH = 160  # of a table that goes to a file or another command
STOPPED = "stopped; the same command goes on from here"


class OneLineErrors(TyperGroup):
    """A group of commands whose expected failures are one line on stderr and the error's exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FactoryError as error:
            raise _failed(str(error), error.exit_code) from None
        except KeyboardInterrupt:
            say(f"\n{STOPPED}")
            raise typer.Exit(130) from None
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise _failed(
                f"no space left on the disk of {_folder_of(error)}: free some, or set FACTORY_HOME and --registry to "
                "another disk; what was finished is kept, the same command goes on from here"
            ) from None


def is_disk_full(error: Exception) -> bool:
    """Also where safetensors or torch hide the system's error in one of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "PytorchStreamWriter failed writing" in str(error)


def _folder_of(error: Exception) -> str:
    name = error.filename if isinstance(error, OSError) else None
    return os.path.dirname(os.path.abspath(name)) if isinstance(name, str) else os.getcwd()


def _failed(message: str, code: int = 1) -> typer.Exit:
    """That exit code after ``error: ...``; the mistakes of a SpecError each have their own line."""
    for line in message.splitlines():
        say(f"error: {line}")
    return typer.Exit(code)


def say(line: str) -> None:
    """``say("answered by healthcare-small@3")``: for people, on stderr, so that stdout can be piped."""
    typer.echo(line, err=True)


def print_json(content: Any) -> None:
    """``print_json(list_json(registry.versions()))`` on stdout."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, default=str))


def print_table(*renderables: Any) -> None:
    """``print_table(list_table(versions), "a line")`` on stdout: as wide as the terminal, wide where there is none."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    console = Console(width=width, highlight=False, markup=False)
    for renderable in renderables:
        console.print(renderable)


# ----------------------------------------------------------------------------------------------------------- progress


def progress_bars(*, shown: bool) -> ProgressBar:
    """``progress_bars(shown=not json)``: for ``Factory(progress=...)``.

    A bar with a count and the time that is left; where stderr is no terminal a line a minute and one at a stage's end.
    """
    if not shown:
        return _silent
    return _bar if sys.stderr.isatty() else _line


@contextmanager
def _silent(description: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda steps: None


@contextmanager
def _line(description: str, total: int) -> Iterator[Callable[[int], None]]:
    begun = said = time.perf_counter()
    done = 0
    first: tuple[float, int] | None = None  # time and count of the first report, which may be of work found on disk

    def advance(steps: int) -> None:
        nonlocal done, said, first
        done, now = done + steps, time.perf_counter()
        first = first or (now, done)
        if now - said >= LINE_EVERY and first[1] < done < total:
            said = now
            left = (now - first[0]) * (total - done) / (done - first[1])
            say(f"{description}: {done} of {total}, {_duration(left)} left")

    yield advance
    say(f"{description}: {done} of {total} in {_duration(time.perf_counter() - begun)}")


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


def _duration(seconds: float) -> str:
    """``_duration(75)`` → "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


# ------------------------------------------------------------------------------------------------------------- silence


def load_libraries(*, shown: bool) -> None:
    """Imports what takes seconds, saying so, and silences what these libraries write by themselves."""
    with _waiting("loading torch and transformers") if shown else contextlib.nullcontext():
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


def _waiting(what: str) -> AbstractContextManager[Any]:
    """A spinner on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(what)
