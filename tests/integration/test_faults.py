"""Disks that fill up or become read-only at any system call that writes: one line, nothing half written.

Every call of a command is counted first, those of safetensors, tokenizers, Arrow, torch and SQLite included
(``support.faults``). Then one of them fails, alone or with all after it. Nothing that is left may be taken for whole, which the
same command shows: it succeeds, with the same result.
"""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.faults import ALWAYS, Done, Faults
from support.workplace import Workplace

from factory.registry.registry import Registry
from factory.registry.versions import Version

ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO)
TOLD = ("run the command again", "run the same command again", "FACTORY_HOME")  # what to do: one of these
DIFFER = ("created", "seconds", "energy", "manifest_sha256", "base_sha256", "soft_targets", "files", "git_commit")
TIMED = ("speed", "metrics", "sizes")  # of an evaluation; metrics without those that measure time

pytestmark = pytest.mark.skipif(not Faults.possible(), reason="needs Linux and a C compiler")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    with Faults(tmp_path_factory.mktemp("faults")) as one:
        yield one


@pytest.fixture
def place(tmp_path: Path, models_folder: Path) -> Workplace:
    """Nothing is made yet."""
    new = Workplace(tmp_path / "place")
    new.write_all()
    shutil.copytree(models_folder, new.domains, dirs_exist_ok=True)
    return new


@pytest.fixture
def used(tmp_path: Path, built_once: Workplace) -> Workplace:
    """``plants-mini@1`` is published."""
    shutil.copytree(built_once.root, tmp_path / "place")
    return Workplace(tmp_path / "place")


def check(place: Workplace, done: Done) -> bool:
    """Whether it failed, and then in one line that says what to do; the registry has no more than a file to remove."""
    assert done.traceback == "" and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    problems = Registry(place.root / "registry").problems()
    assert [problem for problem in problems if "`factory gc` removes it" not in problem] == []
    if done.exit_code == 0:  # the call was not needed: that of a cache beside the result
        assert lines == []
        return False
    assert done.exit_code == 1 and len(lines) == 1, (done.exit_code, done.stderr)
    assert any(words in lines[0] for words in TOLD), lines[0]
    return True


def spread(calls: int, count: int, seed: int) -> list[tuple[int, int, int]]:
    """Which call fails, with what error and how often: evenly over all calls."""
    rng = random.Random(seed)
    chosen = range(1, calls + 1) if count >= calls else sorted(rng.sample(range(1, calls + 1), count))
    return [(at, ERRORS[number % len(ERRORS)], rng.choice([1, ALWAYS])) for number, at in enumerate(chosen)]


def weights_and_facts(version: Version) -> tuple[str, Any]:
    """Of a student: its adapter's checksum, and its manifest without what differs between two builds of the same."""
    manifest = json.loads((version.folder / "manifest.json").read_bytes())
    facts = {key: value for key, value in manifest.items() if key not in DIFFER}
    facts["evaluation"] = {key: value for key, value in manifest["evaluation"].items() if key not in TIMED}
    facts["kl"] = manifest["evaluation"]["metrics"]["kl"]
    return version.manifest.files["adapter_model.safetensors"].sha256, facts


# ------------------------------------------------------------------------------------------------------------------ quick


def promoted(place: Workplace) -> Any:
    version = Registry(place.root / "registry").resolve("plants-mini@champion")
    return version.number, [record["reason"] for record in version.records][-1:]


PROMOTE = ("promote", "plants-mini@1", "--override", "tests have no gates")


def test_a_promotion_fails_at_each_of_its_writes(used: Workplace, faults: Faults, tmp_path: Path) -> None:
    shutil.copytree(used.root, tmp_path / "counted")
    calls = faults.run(tmp_path / "counted", *PROMOTE).calls
    assert len(calls) >= 8
    for at, error, times in spread(len(calls), 8, seed=0):
        check(used, faults.run(used.root, *PROMOTE, at=at, error=error, times=times))
    assert faults.run(used.root, *PROMOTE).exit_code == 0
    assert promoted(used) == (1, ["tests have no gates"])


def test_a_data_set_fails_at_its_writes_and_is_made_by_the_same_command(
    place: Workplace, faults: Faults, tmp_path: Path
) -> None:
    shutil.copytree(place.root, tmp_path / "counted")
    whole = faults.run(tmp_path / "counted", "data", "stars", "--json")
    failed = 0
    for at, error, times in spread(len(whole.calls), 5, seed=1):
        failed += check(place, faults.run(place.root, "data", "stars", "--json", at=at, error=error, times=times))
    assert failed
    assert json.loads(faults.run(place.root, "data", "stars", "--json").stdout)["counts"] == json.loads(whole.stdout)["counts"]


@pytest.mark.parametrize("command", [("export", "plants-mini", "--format", "peft"), ("review", "plants-mini")])
def test_an_output_is_whole_or_not_there(used: Workplace, faults: Faults, tmp_path: Path, command: tuple[str, ...]) -> None:
    out = used.root / ("out" if command[0] == "export" else "out.csv")
    asked = (*command, "--to" if command[0] == "export" else "--out", str(out))
    calls = faults.run(used.root, *asked).calls
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    for at, error, times in spread(len(calls), 2, seed=2):
        failed = check(used, faults.run(used.root, *asked, at=at, error=error, times=times))
        assert out.exists() is not failed
        if out.exists():
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert faults.run(used.root, *asked).exit_code == 0 and out.exists()


def test_a_build_goes_on_after_its_disk_was_full(used: Workplace, faults: Faults) -> None:
    """A second version: the base and the data are there, so the faults meet the stages after them."""
    for at, error, times in ((40, errno.EROFS, ALWAYS), (130, errno.ENOSPC, 1)):
        assert check(used, faults.run(used.root, "build", "plants", at=at, error=error, times=times))
    assert faults.run(used.root, "build", "plants").exit_code == 0
    registry = Registry(used.root / "registry")
    first, second = (registry.resolve(f"plants-mini@{number}").manifest.files for number in (1, 2))
    assert first["adapter_model.safetensors"] == second["adapter_model.safetensors"]


# ------------------------------------------------------------------------------------------------------------------- long


@pytest.mark.slow
@pytest.mark.big
def test_a_build_from_nothing_survives_a_fault_at_every_write(place: Workplace, faults: Faults, tmp_path: Path) -> None:
    """One build, which meets a fault at every call in turn: finished stages are kept, so each attempt gets a little further."""
    shutil.copytree(place.root, tmp_path / "undisturbed")
    undisturbed = Workplace(tmp_path / "undisturbed")
    assert faults.run(undisturbed.root, "build", "plants").exit_code == 0
    rng, at, attempts = random.Random(4), 0, 0
    while True:
        at += 1
        done = faults.run(place.root, "build", "plants", at=at, error=ERRORS[at % len(ERRORS)], times=rng.choice([1, ALWAYS]))
        attempts += 1
        if not check(place, done) and len(done.calls) < at:
            break
    print(f"{attempts} faults")
    ours, theirs = (Registry(one.root / "registry").resolve("plants-mini@1") for one in (place, undisturbed))
    assert weights_and_facts(ours) == weights_and_facts(theirs)
