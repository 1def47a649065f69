"""Builds that are killed with SIGKILL, in every stage, and go on at the next plain ``factory build``.

What is published is what an undisturbed build publishes, but for what a clock has measured: ``MEASURED``, and what follows from
it. ``scripts/test.sh --all`` kills a hundred times; the quick version once or twice in each stage.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.kills import ENVIRONMENT, STAGES, Killer, Moment, Ran
from support.workplace import Workplace

from factory.cache import sha256
from factory.distill.checkpoints import last_step
from factory.evaluation.evaluate import PARTS
from factory.models.teacher import read_completions
from factory.registry.manifest import to_dict
from factory.registry.registry import Registry
from factory.registry.versions import Version

# What a clock or a meter says, by where it is in a manifest.
MEASURED = [
    "created",
    "seconds",
    "energy",
    "soft_targets.teacher_seconds",
    "soft_targets.saved_seconds",
    "evaluation.speed",
]
# What follows from it: the card shows it, and a checksum and a size in bytes are of files that have it in them.
DERIVED = [
    "files.README.md",
    "manifest_sha256",
    "base_sha256",
    "evaluation.sizes.student.bytes",  # the base's folder, with its manifest and its card
]
ORDER = list(dict.fromkeys(STAGES.values()))
SEED, KILLS = 24, 100
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class Undisturbed:
    """What a build publishes that nobody kills, and how many events each stage has."""

    manifests: dict[str, dict[str, Any]]
    weights: dict[str, str]
    events: dict[str, int]


def published(place: Workplace) -> dict[str, Version]:
    registry = Registry(place.root / "registry")
    return {one.reference: registry.resolve(one.reference) for one in registry.versions()}


def manifests(place: Workplace) -> dict[str, dict[str, Any]]:
    """Without what differs between any two builds."""
    found = {}
    for reference, version in published(place).items():
        found[reference] = to_dict(version.manifest)
        for path in (*MEASURED, *DERIVED):
            drop(found[reference], path)
    return found


def drop(content: dict[str, Any], path: str) -> None:
    """A file's name may have a dot in it."""
    if path in content:
        del content[path]
        return
    first, _, rest = path.partition(".")
    if rest and content.get(first) is not None:
        drop(content[first], rest)


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """``differences({"kl": 0.5}, {"kl": 0.4})`` → [".kl: 0.5, and 0.4 undisturbed"]."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [line for name in ours for line in differences(ours[name], theirs[name], f"{path}.{name}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [line for i, one in enumerate(ours) for line in differences(one, theirs[i], f"{path}[{i}]")]
    return [] if ours == theirs else [f"{path}: {str(ours)[:80]}, and {str(theirs)[:80]} undisturbed"]


def weights(place: Workplace) -> dict[str, str]:
    return {
        reference: sha256(version.folder / name)
        for reference, version in published(place).items()
        for name in WEIGHTS
        if (version.folder / name).exists()
    }


def finished(place: Workplace) -> dict[str, set[str]]:
    """What is on disk, named as in ``Ran.work``; "trained" are the steps before the last checkpoint."""
    home = place.root / "home"
    notes = [json.loads(path.read_bytes().partition(b"\n")[2]) for path in (home / "targets").glob("*/notes.json")]
    trained = [path for kind in ("heal", "distill") for path in (home / kind).glob("*/")]
    return {
        "asked": {prompt for path in (home / "completions").glob("*.jsonl") for prompt in read_completions(path)},
        "scored": {shard["sha256"] for store in notes for shard in store.values()},
        "trained": {f"{path.name} {step}" for path in trained for step in range(1, last_step(path) + 1)},
        "measured": {path.stem for path in (home / "distill").glob("*/evaluation-*/*.json")},
    }


def make_place(folder: Path, models: Path) -> Workplace:
    """Always in the same folder, whose path an adapter's config has in it."""
    shutil.rmtree(folder / "place", ignore_errors=True)
    place = Workplace(folder / "place")
    place.family["heal"]["steps"], place.family["distill"]["steps"] = 10, 14  # of three batches an epoch
    place.write_all()
    shutil.copytree(models, place.domains, dirs_exist_ok=True)
    return place


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ENVIRONMENT.items():
            patched.setenv(name, value)
        yield Killer(tmp_path_factory.mktemp("killer"))


@pytest.fixture(scope="module")
def undisturbed(killer: Killer, models_folder: Path) -> Undisturbed:
    place = make_place(killer.folder, models_folder)
    ran = killer.build(place)
    assert ran.exit_code == 0 and "unfinished" not in ran.stderr, ran.stderr
    assert set(ran.events) == set(STAGES.values())
    return Undisturbed(manifests(place), weights(place), ran.events)


class Kills:
    """A build that is killed again and again, and all that it has ever had on disk."""

    def __init__(self, killer: Killer, place: Workplace) -> None:
        self.killer, self.place, self.stages = killer, place, Counter[str]()
        self.kept: dict[str, set[str]] = finished(place)

    def run(self, moment: Moment | None = None) -> Ran:
        """One process. It makes nothing again that was finished before."""
        ran = self.killer.build(self.place, moment)
        for kind, done in ran.work.items():
            assert not self.kept[kind] & set(done), (kind, moment)
        for kind, there in finished(self.place).items():
            self.kept[kind] |= there
        if ran.killed_in is not None:
            assert ran.exit_code in (-signal.SIGKILL, 128 + signal.SIGINT, 128 + signal.SIGTERM)
            self.stages[ran.killed_in] += 1
        return ran

    @property
    def ended(self) -> bool:
        """The student is published and the build's note gone: only the command's last lines were left."""
        return "plants-mini@1" in published(self.place) and not list((self.place.root / "home" / "builds").glob("*.json"))

    def finish(self, expected: Undisturbed) -> Ran | None:
        """The last process, which nobody kills, and what there is after it. None for a build that was killed after its end."""
        ran = None if self.ended else self.run()
        assert ran is None or ran.exit_code == 0, ran.stderr
        assert differences(manifests(self.place), expected.manifests) == []
        assert weights(self.place) == expected.weights
        registry = Registry(self.place.root / "registry")
        assert registry.problems() == []
        assert [problem for version in published(self.place).values() for problem in registry.verify(version)] == []
        assert leftovers(self.place) == []
        return ran


def leftovers(place: Workplace) -> list[str]:
    """Temporary files and folders, checkpoints and notes of builds that have ended."""
    home, registry = place.root / "home", place.root / "registry"
    temporary = [path for root in (home, registry) for path in root.rglob(".*-????????")]
    unfinished = [*(home / "builds").glob("*.json"), *(home / "heal").glob("*/"), *(home / "distill").glob("*/")]
    return [str(path.relative_to(place.root)) for path in (*temporary, *(registry / ".staging").iterdir(), *unfinished)]


def test_a_build_that_is_killed_in_every_stage_publishes_what_an_undisturbed_one_does(
    killer: Killer, undisturbed: Undisturbed, models_folder: Path
) -> None:
    rng, build = random.Random(SEED), Kills(killer, make_place(killer.folder, models_folder))
    for stage in ORDER:
        build.run(Moment(stage, rng.randint(1, undisturbed.events[stage])))
    assert build.stages == dict.fromkeys(ORDER, 1)
    last = build.finish(undisturbed)
    assert last is not None
    assert ("unfinished build: 72 of 72 answers" in last.stderr) != ("plants-mini@1 was published already" in last.stderr)


def test_ctrl_c_and_sigterm_leave_a_build_that_goes_on_and_say_how(
    killer: Killer, undisturbed: Undisturbed, models_folder: Path
) -> None:
    build = Kills(killer, make_place(killer.folder, models_folder))
    for stage, sent, exit_code in (("healing", signal.SIGINT, 130), ("publishing", signal.SIGTERM, 143)):
        ran = build.run(Moment(stage, undisturbed.events[stage] // 2, signal=sent))
        assert ran.exit_code == exit_code
        assert ran.stderr.splitlines()[-1] == "stopped; run the same command again to continue"
        assert "Traceback" not in ran.stderr
        assert not list((build.place.root / "registry" / ".staging").glob("*"))
    last = build.finish(undisturbed)
    assert last is not None
    assert (
        "going on with an unfinished build: 72 of 72 answers of the teacher, 6 of 6 soft-target shards, the base, "
        in last.stderr
    )
    assert f"training checkpoint at step 14 of 14, {len(PARTS)} of {len(PARTS)} parts of the evaluation" in last.stderr


@pytest.mark.slow
@pytest.mark.big
def test_a_hundred_kills_lose_nothing(killer: Killer, undisturbed: Undisturbed, models_folder: Path) -> None:
    """At an event, or within a tenth of a second after it: in the middle of what a library writes, or of a computation."""
    rng, stages, builds = random.Random(SEED), Counter[str](), 0
    while stages.total() < KILLS:
        build, builds = Kills(killer, make_place(killer.folder, models_folder)), builds + 1
        for stage in ORDER:
            moment = Moment(stage, rng.randint(1, undisturbed.events[stage]), rng.choice([0.0, rng.uniform(0, 0.1)]))
            ran = build.run(moment)
            print(f"build {builds}: event {moment.count} of {stage} + {moment.delay:.3f} s: killed in {ran.killed_in}")
            if ran.killed_in is None or build.ended:
                break  # its delay was longer than the rest of the build
        build.finish(undisturbed)
        stages += build.stages
    print(f"{stages.total()} kills in {builds} builds: {dict(stages)}")
    assert stages.keys() >= set(ORDER)
