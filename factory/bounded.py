"""Work on what strangers wrote, in a process that ends at its limits of time and memory.

reader = Bounded(read_pages, Limits(seconds=60, memory=2 << 30, output=1 << 26))
pages = list(reader.ask(Path("leave.pdf")))

The readers of PDF, Word, Excel, Parquet and GGUF, and Jinja, have no limit of their own: a page of a PDF may loop, a cell of a
table may stand for a gigabyte. Such a process has timers that the kernel keeps, so it ends in the midst of C code, and also
where nobody waits for it any more. It may crash alone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from factory.errors import FactoryError, in_one_line

PATIENCE = 10  # times as long by the clock as by the CPU: other programs may be busy, a disk slow
IDLE = 60  # seconds after which a process that nobody asks ends
IDLE_END = 3  # the exit code of such an end
ITEM, END, RAISED = "item", "end", "raised"


class BoundedError(Exception):
    """``str(error)`` → "it takes more than 60 seconds": the work failed, or ended at a limit, which ``at_limit`` tells."""

    def __init__(self, message: str, at_limit: bool = False) -> None:
        super().__init__(message)
        self.at_limit = at_limit


@dataclass(frozen=True)
class Limits:
    """``seconds`` of the CPU between two items, bytes of ``memory``, which only Linux counts, and of ``output`` of a call."""

    seconds: int
    memory: int
    output: int


class Bounded:
    """``Bounded(read_pages, Limits(60, 2 << 30, 1 << 26))``: calls of one generator function of a module, each in a process.

    A process starts at the first call, answers one call at a time, and ends with the program or after a minute without any.
    Arguments and items are pickled.
    """

    def __init__(self, function: Callable[..., Iterator[Any]], limits: Limits) -> None:
        self.name = f"{function.__module__}:{function.__qualname__}"
        self.limits = limits
        self._idle: list[_Process] = []

    def ask(self, *arguments: Any) -> Iterator[Any]:
        """``for page in reader.ask(path):`` what ``function(*arguments)`` yields.

        Raises: FactoryError as the function does; BoundedError for whatever else it raises, and where its process ends.
        """
        process = self._idle.pop() if self._idle else self._start()
        if process.owner != os.getpid():  # a fork must not share the pipes
            process = self._start()
        answer = _Answer(None, None)
        try:
            pickle.dump(arguments, process.requests)
            process.requests.flush()
            while (answer := pickle.load(process.answers)).kind == ITEM:
                yield answer.value
            self._idle.append(process)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):  # the last where it ended within an item
            code = process.popen.wait()
            if code != IDLE_END or answer.kind is not None:
                raise _ended(code, self.limits) from None
        finally:
            if answer.kind not in (END, RAISED):  # also where the caller wants no more
                process.stop()
        if answer.kind is None:  # it had just ended by itself
            yield from self.ask(*arguments)
        if isinstance(answer.value, Exception) and answer.kind == RAISED:
            raise answer.value

    def _start(self) -> _Process:
        package = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "factory.bounded", self.name, *map(str, astuple(self.limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        return _Process(popen, os.getpid(), weakref.finalize(self, _stop, popen, os.getpid()))


class _Answer(NamedTuple):
    kind: str | None
    value: Any


@dataclass(frozen=True)
class _Process:
    popen: subprocess.Popen[bytes]
    owner: int  # the process that started it
    stop: Callable[[], Any]  # once; at the latest when the program ends

    @property
    def requests(self) -> IO[bytes]:
        assert self.popen.stdin is not None
        return self.popen.stdin

    @property
    def answers(self) -> IO[bytes]:
        assert self.popen.stdout is not None
        return self.popen.stdout


def _stop(popen: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():
        return
    popen.kill()
    popen.wait()
    for pipe in (popen.stdin, popen.stdout):
        with contextlib.suppress(OSError):  # what was not yet flushed has no reader
            pipe.close()  # type: ignore[union-attr]


def _ended(code: int, limits: Limits) -> BoundedError:
    if code in (-signal.SIGPROF, -signal.SIGALRM):
        return BoundedError(f"it takes more than {limits.seconds} seconds", at_limit=True)
    return BoundedError(f"its reader ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}")


# ------------------------------------------------------------------------------------------------------ in the process


def main(name: str, limits: Limits) -> None:
    """``python -m factory.bounded module:function 60 2147483648 67108864``: answers calls from stdin until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who waits
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM, signal.SIGPROF))
    for ends in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(ends, signal.SIG_DFL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    memory = limits.memory if hard == resource.RLIM_INFINITY else min(limits.memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))
    while select.select([sys.stdin], [], [], IDLE)[0]:
        try:
            arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        _answer(function, arguments, answers, limits)
    os._exit(IDLE_END)


def _answer(function: Callable[..., Iterator[Any]], arguments: Any, answers: BinaryIO, limits: Limits) -> None:
    sent = 0
    try:
        with _timer(limits.seconds):
            items = iter(function(*arguments))
        while True:
            with _timer(limits.seconds):  # not while it waits for its reader
                item = pickle.dumps(_Answer(ITEM, next(items)))
            if (sent := sent + len(item)) > limits.output:
                raise BoundedError(f"it holds more than {limits.output >> 20:,} MB of text", at_limit=True)
            answers.write(item)
            answers.flush()
    except StopIteration:
        ended = _Answer(END, None)
    except MemoryError:
        ended = _Answer(RAISED, BoundedError(f"it takes more than {limits.memory >> 20:,} MB of memory", at_limit=True))
    except (FactoryError, BoundedError) as error:
        ended = _Answer(RAISED, error)
    except Exception as error:  # parsers of damaged files raise dozens of kinds
        ended = _Answer(RAISED, BoundedError(in_one_line(error)))
    pickle.dump(ended, answers)
    answers.flush()


@contextlib.contextmanager
def _timer(seconds: int) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    from factory.bounded import main as run  # errors are pickled by their module's name, which is not __main__

    run(sys.argv[1], Limits(*map(int, sys.argv[2:])))
