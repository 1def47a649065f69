"""Energy by stage: sums of what a tracker says, nothing where there is none, and one real stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import codecarbon
import pytest

import factory.energy as module
from factory.energy import Meter

ROOT = Path(__file__).parents[1]


class FakeTracker:
    """Draws 2 Wh between its start and its stop, and remembers what became of it."""

    made: list[FakeTracker]
    fails_at = ""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.steps: list[str] = []
        self._hardware = [type("RAM", (), {})(), SimpleNamespace(_mode="intel_rapl")]
        FakeTracker.made.append(self)
        self._step("made")

    def get_detected_hardware(self) -> None:
        self._step("detected")

    def start(self) -> None:
        self._step("started")

    def stop(self) -> None:
        self._step("stopped")
        self.final_emissions_data = SimpleNamespace(energy_consumed=0.002)  # kWh

    def _step(self, name: str) -> None:
        if name == self.fails_at:
            raise OSError("no counter\nof any kind")
        self.steps.append(name)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeTracker]:
    FakeTracker.made, FakeTracker.fails_at = [], ""
    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", FakeTracker)
    monkeypatch.setattr(module, "MIN_SECONDS", 0.0)
    return FakeTracker


def test_stages_have_their_wh_and_one_entered_again_their_sum(fake: type[FakeTracker]) -> None:
    meter = Meter()
    assert meter.stages_wh == {} and meter.method == "energy was not measured: no stage has run"
    for name in ("targets", "heal", "targets"):
        with meter.stage(name):
            assert fake.made[-1].steps == ["made", "detected", "started"]
    assert meter.stages_wh == {"targets": 4.0, "heal": 2.0} and list(meter.stages_wh) == ["targets", "heal"]
    assert [one.steps[-1] for one in fake.made] == ["stopped"] * 3
    assert meter.method.endswith("for the whole machine: memory modelled from its size, processor read from RAPL")


def test_a_stage_inside_another_counts_for_the_outer_one_alone(fake: type[FakeTracker]) -> None:
    meter = Meter()
    with meter.stage("build"):
        with meter.stage("heal"):
            pass
        with meter.stage("build"):
            pass
    assert meter.stages_wh == {"build": 2.0} and len(fake.made) == 1
    with meter.stage("heal"):
        pass
    assert meter.stages_wh == {"build": 2.0, "heal": 2.0}


def test_an_exception_passes_and_its_stage_has_its_energy(fake: type[FakeTracker]) -> None:
    meter = Meter()
    with pytest.raises(KeyboardInterrupt), meter.stage("build"), meter.stage("heal"):
        raise KeyboardInterrupt
    assert meter.stages_wh == {"build": 2.0}
    with meter.stage("heal"):
        pass
    assert meter.stages_wh == {"build": 2.0, "heal": 2.0}


@pytest.mark.parametrize("step", ["made", "detected", "started", "stopped"])
def test_where_codecarbon_fails_energy_is_absent_and_the_method_says_why(fake: type[FakeTracker], step: str) -> None:
    meter = Meter()
    with meter.stage("prune"):
        pass
    fake.fails_at = step
    ran = []
    for name in ("heal", "distill"):
        with meter.stage(name):
            ran.append(name)
    assert ran == ["heal", "distill"] and meter.stages_wh == {}
    assert meter.method == "energy was not measured: codecarbon failed with OSError: no counter of any kind"
    assert len(fake.made) == 2  # it is not tried again
    assert meter.energy_of(lambda: 1) is None


def test_without_codecarbon_energy_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    meter = Meter()
    with pytest.raises(ZeroDivisionError), meter.stage("heal"):
        raise ZeroDivisionError
    assert meter.stages_wh == {} and "codecarbon failed with ModuleNotFoundError" in meter.method and "\n" not in meter.method


def test_the_energy_of_an_action_is_wh_per_1000_tokens_inside_a_stage_too(fake: type[FakeTracker]) -> None:
    meter = Meter()
    assert meter.energy_of(lambda: 50) == pytest.approx(40.0)  # 2 Wh for 50 tokens
    with meter.stage("evaluate"):
        assert meter.energy_of(lambda: 8) == pytest.approx(250.0)
    assert meter.stages_wh == {"evaluate": 2.0}
    assert meter.energy_of(lambda: 0) is None
    with pytest.raises(ZeroDivisionError):
        meter.energy_of(lambda: 1 // 0)
    assert [one.steps[-1] for one in fake.made] == ["stopped"] * 5


def test_a_short_action_is_repeated_and_all_its_tokens_count(fake: type[FakeTracker], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.4, 0.8, 1.2])
    monkeypatch.setattr(module, "MIN_SECONDS", 1.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    assert Meter().energy_of(lambda: 10) == pytest.approx(1000 * 2 / 30)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("GPU", {}, "GPU read from its driver"),
        ("CPU", {"_mode": "cpu_load", "_tdp": 65.0}, "processor from its load and 65 W at full load"),
        ("CPU", {"_mode": "constant", "_tdp": 85}, "processor at half of 85 W throughout"),
        ("CPU", {"_mode": "windows_emi"}, "processor read from the Energy Meter Interface"),
        ("AppleSiliconChip", {"chip_part": "CPU"}, "CPU read from powermetrics"),
        ("Raspberry", {"description": lambda self: "Raspberry (5 > CPU)"}, "Raspberry (5 > CPU)"),
    ],
)
def test_each_part_of_a_machine_has_a_plain_line(kind: str, fields: dict[str, Any], words: str) -> None:
    assert module._source(type(kind, (), fields)()) == words


REAL_STAGE = """
import json, threading, time
from factory.energy import Meter
meter = Meter()
with meter.stage("heal"):
    time.sleep(0.15)
threads = [thread.name for thread in threading.enumerate()]
print(json.dumps({"wh": meter.stages_wh.get("heal"), "method": meter.method, "threads": threads}))
"""


def test_a_real_stage_has_energy_and_leaves_no_thread_no_file_and_no_line(tmp_path: Path) -> None:
    """In a process of its own: where builds ran before, codecarbon's timers may be between two beats."""
    settings = {"CODECARBON_LOG_LEVEL": "debug", "CODECARBON_OUTPUT_DIR": "/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", REAL_STAGE],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert 0 < found["wh"] < 5, found["method"]
    assert found["method"].startswith("an estimate by codecarbon ")
    assert found["threads"] == ["MainThread"]
    assert list(tmp_path.iterdir()) == []


def test_reading_the_module_does_not_load_codecarbon() -> None:
    code = "import sys, factory.energy; factory.energy.Meter(); sys.exit('codecarbon' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
