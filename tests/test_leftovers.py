"""Temporary files and folders of processes that were killed are removed; those of living ones never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from factory.cache import atomic_file, atomic_folder
from factory.leftovers import clear, temporary_folder

WRITING = """
import sys
from pathlib import Path
from factory import cache
with getattr(cache, sys.argv[1])(Path(sys.argv[2])) as new:
    print("writing", flush=True)
    sys.stdin.readline()
    (new if sys.argv[1] == "atomic_file" else new / "file").write_text("whole")
"""


def write(kind: str, target: Path) -> subprocess.Popen[str]:
    """A process in the middle of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, kind, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "rows"
    living, killed = write(kind, target), write(kind, target)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    if kind == "atomic_file":
        with atomic_file(target) as new:
            new.write_text("ours")
    else:
        with atomic_folder(target) as new:
            (new / "file").write_text("ours")
    assert len(list(tmp_path.iterdir())) == 2  # ours, and what the living one writes
    living.communicate("go on\n")
    assert living.returncode == 0 and [path.name for path in tmp_path.iterdir()] == ["rows"]
    assert (target if kind == "atomic_file" else target / "file").read_text() == "whole"


def test_only_temporaries_of_the_same_target_are_removed(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".rows", ".rows-2-abcdefgh", ".rows-short", "rows-abcdefgh", ".other-abcdefgh")]
    for path in (*kept, tmp_path / ".rows-abcdefgh"):
        path.touch()
    with atomic_file(tmp_path / "rows") as new:
        new.touch()
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "rows"])


def test_a_link_is_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = tmp_path / "link"
    link.symlink_to(outside)
    clear([link, tmp_path / "gone"])
    assert link.is_symlink() and outside.is_dir()


def test_no_folder_is_lost_to_another_that_clears_at_the_same_time(tmp_path: Path) -> None:
    stop = threading.Event()

    def always_clear() -> None:
        while not stop.is_set():
            clear(tmp_path.iterdir())

    clearing = threading.Thread(target=always_clear)
    clearing.start()
    try:
        for _ in range(300):
            with temporary_folder(tmp_path, "new-") as folder:
                (folder / "file").write_text("kept")
                assert (folder / "file").read_text() == "kept"
                os.rename(folder, tmp_path.parent / "elsewhere")
                assert (tmp_path.parent / "elsewhere" / "file").read_text() == "kept"
            (tmp_path.parent / "elsewhere" / "file").unlink()
            (tmp_path.parent / "elsewhere").rmdir()
    finally:
        stop.set()
        clearing.join()
