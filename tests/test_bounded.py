"""Work in a process of its own: its items arrive, and nothing that it does costs more than its limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.bounded import Bounded, BoundedError, Limits
from factory.errors import DataError

WORK = """
import itertools, os, signal, threading
from factory.errors import DataError

def work(what):
    yield what
    if what == "spin":
        while True:
            pass
    if what == "spin in C":
        10 ** 10 ** 8
    if what == "memory":
        yield len(b"x" * (1 << 29))
    if what == "endless":
        yield from itertools.repeat("x" * 1000)
    if what == "one large":
        yield "x" * (1 << 21)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "leave":
        os._exit(0)
    if what == "leave as one without work":
        os._exit(3)
    if what == "print":
        print("noise"); os.write(1, b"more noise")
    if what == "raise ours":
        raise DataError("line 3 is wrong")
    if what == "raise":
        class Own(Exception):
            pass
        raise Own("two\\nlines")
    if what == "exit":
        raise SystemExit(7)
    if what == "end later":
        threading.Timer(0.3, os._exit, [3]).start()
    yield "done"
"""


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bounded]:
    (tmp_path / "strange_work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(tmp_path))
    from strange_work import work  # type: ignore[import-not-found]

    yield Bounded(work, Limits(seconds=1, memory=1 << 28, output=1 << 20))
    sys.modules.pop("strange_work")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("spin", "it takes more than 1 seconds"),
        ("spin in C", "it takes more than 1 seconds"),
        ("memory", "it takes more than 256 MB of memory"),
        ("endless", "it holds more than 1 MB of text"),
        ("one large", "it holds more than 1 MB of text"),
        ("crash", "its reader ended with SIGSEGV"),
        ("leave", "its reader ended with exit code 0"),
        ("leave as one without work", "its reader ended with exit code 3"),
        ("exit", "its reader ended with exit code 7"),
        ("raise", "two lines"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's memory")
def test_what_has_no_end_ends_at_a_limit_and_the_next_call_is_answered(reader: Bounded, what: str, why: str) -> None:
    with pytest.raises(BoundedError) as caught:
        list(reader.ask(what))
    assert str(caught.value) == why and caught.value.at_limit == why.startswith("it ")
    assert list(reader.ask("well")) == ["well", "done"]


def test_our_own_errors_arrive_as_they_are(reader: Bounded) -> None:
    with pytest.raises(DataError, match=r"^line 3 is wrong$"):
        list(reader.ask("raise ours"))


def test_what_is_printed_is_no_answer(reader: Bounded) -> None:
    assert list(reader.ask("print")) == ["print", "done"]


def test_one_process_answers_many_calls_and_two_at_once_have_two(reader: Bounded) -> None:
    for _ in range(3):
        assert list(reader.ask("a")) == ["a", "done"]
    assert len(reader._idle) == 1
    assert list(zip(reader.ask("a"), reader.ask("b"), strict=True)) == [("a", "b"), ("done", "done")]
    assert len(reader._idle) == 2


def test_a_caller_that_wants_no_more_leaves_no_process(reader: Bounded) -> None:
    items = reader.ask("endless")
    assert next(items) == "endless"
    items.close()  # type: ignore[attr-defined]
    assert reader._idle == [] and list(reader.ask("a")) == ["a", "done"]


def test_a_process_that_ended_for_want_of_work_is_replaced(reader: Bounded) -> None:
    assert list(reader.ask("end later")) == ["end later", "done"]
    time.sleep(1)
    assert list(reader.ask("a")) == ["a", "done"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_outlives_no_limit_when_its_owner_is_killed(reader: Bounded, tmp_path: Path) -> None:
    program = f"""
from factory.bounded import Bounded, Limits
from strange_work import work
reader = Bounded(work, Limits(1, {1 << 28}, {1 << 20}))
print(list(reader.ask("a")), reader._idle[0].popen.pid, flush=True)
list(reader.ask("spin"))
"""
    environment = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{Path(__file__).parents[1]}"}
    owner: Any = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    child = int(owner.stdout.readline().split()[-1])
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 60
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """Nobody may have waited for one that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
