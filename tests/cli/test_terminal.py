"""Progress on stderr: bars on a terminal, lines elsewhere, nothing beside JSON."""

from __future__ import annotations

import errno
import io
import sys

import pytest

from factory.cache import disk_error
from factory.cli.terminal import format_duration, progress_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(shown: bool) -> None:
    with progress_bars(shown=shown)("healthcare: distill", 4) as advance:
        advance(1)
        advance(3)


def test_a_pipe_gets_one_line_per_finished_stage(capsys: pytest.CaptureFixture[str]) -> None:
    run(shown=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("healthcare: distill: 4 of 4 in ")
    assert captured.err.count("\n") == 1


def test_a_pipe_gets_the_time_left_every_minute_and_work_found_on_disk_does_not_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 30.0, 65.0, 70.0, 130.0, 131.0])
    monkeypatch.setattr("factory.cli.terminal.time.perf_counter", lambda: next(clock))
    with progress_bars(shown=True)("base: healing", 100) as advance:
        advance(50)  # of a stopped build, at 5 s
        advance(5)  # at 30 s
        advance(5)  # at 65 s: 10 steps in 60 s
        advance(5)  # at 70 s
        advance(35)  # at 130 s: the end has a line of its own
    assert capsys.readouterr().err.splitlines() == [
        "base: healing: 60 of 100, 4 min left",
        "base: healing: 100 of 100 in 2 min",
    ]


def test_a_stage_that_fails_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress_bars(shown=True)("x", 4):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_json_gets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run(shown=False)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(shown=True)
    assert "healthcare: distill" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.41, "0.4 s"), (2.02, "2 s"), (75, "75 s"), (119.7, "2 min"), (1500, "25 min"), (9000, "2.5 h")]
)
def test_durations_are_written_for_people(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (RuntimeError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),  # as safetensors says it
        (Exception("Read-only file system (os error 30)"), errno.EROFS),  # tokenizers
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"), errno.EIO),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 163072 vs 162960"), errno.EIO),
        (RuntimeError("basic_ios::clear: iostream error"), errno.EIO),
        (OSError(errno.EACCES, "Permission denied"), errno.EACCES),
        (OSError(errno.ECONNREFUSED, "Connection refused"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
        (RuntimeError("size mismatch"), None),
    ],
)
def test_what_a_disk_refuses_is_recognised_in_every_library_s_words(error: Exception, code: int | None) -> None:
    found = disk_error(error)
    assert (found and found.errno) == code
