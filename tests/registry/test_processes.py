"""Many processes on one registry, and processes that are killed: nothing is lost, nothing is given twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support import exporting, registry_kills, registry_race

from factory.registry.registry import Registry

MEMORY = Path("/dev/shm")  # where every fsync is free


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


# -------------------------------------------------------------------------------------------------------------------- kills


def kills(folder: Path, every: int, *verbs: str) -> dict[str, int]:
    command = [sys.executable, registry_kills.__file__, folder, every, *verbs]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_verb_that_is_killed_has_happened_or_not(fast_folder: Path) -> None:
    found = kills(fast_folder, 7)
    assert set(found) == set(registry_kills.VERBS) - {"import"}
    assert min(found.values()) >= 2 and sum(found.values()) > 50


@pytest.mark.slow
@pytest.mark.big
def test_a_verb_that_is_killed_before_any_file_operation_has_happened_or_not(fast_folder: Path) -> None:
    assert sum(kills(fast_folder, 1).values()) > 400
    shutil.rmtree(fast_folder / "template")
    registry, _ = exporting.publish_student(fast_folder / "other")
    shutil.copytree(registry.resolve("mini-base").folder, fast_folder / "sent")
    assert kills(fast_folder, 1, "import")["import"] > 50


# -------------------------------------------------------------------------------------------------------------------- races


def race(root: Path, processes: int, seconds: float) -> Counter[str]:
    """So many processes at once; what they did, after a look that all of it is there."""
    command = [sys.executable, registry_race.__file__, str(root), str(seconds)]
    running = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in range(processes)
    ]
    done: list[tuple[str, str]] = []
    said = [process.communicate(timeout=seconds + 120) for process in running]  # of all, before one is judged
    for process, (out, err) in zip(running, said, strict=True):
        assert process.returncode == 0, err[-4000:]
        done += [(verb, what) for verb, what in map(json.loads, out.splitlines())]
    did: dict[str, Counter[str]] = {}
    for verb, what in done:
        did.setdefault(verb, Counter())[what] += 1
    registry = Registry(root)
    published, deleted = did.get("published", Counter()), did.get("deleted", Counter())
    assert max((*published.values(), *deleted.values()), default=1) == 1  # no number twice
    there = {one.reference for one in registry.versions()}
    assert there == set(published) - set(deleted)
    assert not any(registry.verify_all().values()) and registry.problems() == []
    for reference, times in did.get("recorded", Counter()).items():
        if reference in there:
            assert len(registry.resolve(reference).records) == times
    before: dict[tuple[str, str], int | None] = {}
    for move in registry.history():  # each begins where the last one ended
        assert before.get((move.name, move.alias)) == move.before
        before[move.name, move.alias] = move.number
    assert all(f"{name}@{number}" in there for (name, _), number in before.items() if number is not None)
    return Counter(verb for verb, _ in done)


def test_processes_that_work_at_once_lose_nothing(fast_folder: Path) -> None:
    assert race(fast_folder / "registry", 4, 3)["published"] > 4


@pytest.mark.slow
@pytest.mark.big
def test_eight_processes_lose_nothing_in_two_minutes(tmp_path: Path) -> None:
    print(race(tmp_path / "registry", 8, 120))
