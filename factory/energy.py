"""The seconds and the electrical energy of each stage of a build.

    meter = Meter()
    with meter.stage("heal"):
        ...
    meter.seconds    # {"heal": 990.4}
    meter.stages_wh  # {"heal": 12.3}, an estimate
    meter.method     # how codecarbon made the estimate, in one line

Energy is that of the whole machine while a stage runs, other programs included: RAPL and NVML count nothing else, and the
estimates for machines without them stand for the same. No network, file or log line is used, and CO2 is not reported, since
it would depend on where the power comes from.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from factory.errors import in_one_line

MIN_SECONDS = 1.0  # of a measured action: CPU load is counted in hundredths of a second, NVML's energy in tenths
READ = {"intel_rapl": "RAPL", "windows_emi": "the Energy Meter Interface", "intel_power_gadget": "Intel Power Gadget"}


class Meter:
    """``with meter.stage("heal"): ...``, then ``meter.seconds``, ``meter.stages_wh`` and ``meter.method``.

    One meter belongs to one version and is handed to the stages that make it. A stage that is entered again adds to its sum;
    energy inside a nested stage counts for the outer one. Where codecarbon cannot start, ``stages_wh`` stays empty and
    ``method`` says why. Nothing is ever raised: a build must not fail because of its meter.
    """

    def __init__(self) -> None:
        self.method = "energy was not measured: no stage has run"
        self.seconds: dict[str, float] = {}
        self._wh: dict[str, float] = {}
        self._inside = False
        self._failed = False

    @property
    def stages_wh(self) -> dict[str, float]:
        """Wh by stage, in the order of first entry; empty where codecarbon failed, since a part would pass for the whole."""
        return {} if self._failed else dict(self._wh)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """``with meter.stage("heal"): ...``: counted even where it ends in an exception, which passes through."""
        begun = time.perf_counter()
        try:
            with self._energy(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    @contextmanager
    def _energy(self, name: str) -> Iterator[None]:
        if self._inside:
            yield
            return
        self._inside = True
        tracker = self._start()
        try:
            yield
        finally:
            self._inside = False
            wh = self._stop(tracker)
            if wh is not None:
                self._wh[name] = self._wh.get(name, 0.0) + wh

    def energy_of(self, action: Callable[[], int]) -> float | None:
        """``meter.energy_of(lambda: len(sample(...)[0]))``: Wh per 1,000 tokens of an action that returns how many it wrote.

        A short action is repeated until ``MIN_SECONDS`` have passed. It may run inside a stage, which counts it too.
        None where codecarbon failed or no token was written.
        """
        tracker = self._start()
        tokens, begun = 0, time.perf_counter()
        try:
            while (written := action()) > 0:
                tokens += written
                if time.perf_counter() - begun >= MIN_SECONDS:
                    break
        finally:
            wh = self._stop(tracker)
        return 1000 * wh / tokens if wh is not None and tokens else None

    def _start(self) -> Any | None:
        """A new tracker for each stage: a stopped one cannot go on, and the hardware is detected once per process anyway.

        Not codecarbon's tasks: they read a counter at both ends only, and RAPL's wraps within minutes on a big machine.
        """
        if self._failed:
            return None
        try:
            tracker = _tracker()
            tracker.get_detected_hardware()  # raises, where start() would only log
            self.method = _method(tracker)
            tracker.start()
            return tracker
        except Exception as error:  # of any kind: what it reads differs between machines
            self._fail(error)
            return None

    def _stop(self, tracker: Any | None) -> float | None:
        """Wh since ``_start``; the tracker's threads end here."""
        if tracker is None:
            return None
        try:
            tracker.stop()
            return 1000 * float(tracker.final_emissions_data.energy_consumed)
        except Exception as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self.method = f"energy was not measured: codecarbon failed with {type(error).__name__}: {in_one_line(error)}"


def _tracker() -> Any:
    """Sets everything by which a user's codecarbon file could ask for a file, a log or the network.

    The power of a CPU that codecarbon does not know can be given there, or as ``CODECARBON_FORCE_CPU_POWER`` in watts.
    """
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it logs before it reads log_level
    return OfflineEmissionsTracker(
        tracking_mode="machine",
        measure_power_secs=15,
        country_iso_code=None,
        cloud_provider=None,
        force_carbon_intensity_g_co2e_kwh=0.0,  # asks no service and loads no tables that only CO2 needs
        force_ram_power=None,
        pue=1.0,
        output_methods=[],
        output_handlers=[],
        emissions_endpoint=False,
        output_dir=tempfile.gettempdir(),  # Power Gadget's own log
        allow_multiple_runs=True,  # a lock would be a file, and two builds may run at once
        log_level="critical",
    )


def _method(tracker: Any) -> str:
    """One line from codecarbon's private fields: it has no public ones for what it chose."""
    parts = ", ".join(_source(part) for part in tracker._hardware)
    return f"an estimate by codecarbon {version('codecarbon')} for the whole machine: {parts}"


def _source(part: Any) -> str:
    """``_source(CPU(...))``: "processor from its load and 65 W at full load"."""
    kind, mode, watts = type(part).__name__, getattr(part, "_mode", None), getattr(part, "_tdp", None)
    if kind == "RAM":
        return "memory modelled from its size"
    if kind == "GPU":
        return "GPU read from its driver"
    if kind == "AppleSiliconChip":
        return f"{part.chip_part} read from powermetrics"
    if mode in READ:
        return f"processor read from {READ[mode]}"
    if mode == "cpu_load":
        return f"processor from its load and {watts:g} W at full load"
    if mode == "constant":
        return f"processor at half of {watts:g} W throughout"
    return str(part.description())
