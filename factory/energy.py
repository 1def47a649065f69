"""How much electrical energy each stage of a build takes, as codecarbon estimates it; no network, no file, no log line.

    meter = EnergyMeter()
    with meter.stage("heal"):
        ...
    meter.stages_wh  # {"heal": 12.3}
    meter.method     # how codecarbon found it, in one line

Energy is of the whole machine while a stage runs, other programs included: that is what RAPL and NVML count, and what the
estimates for machines without them stand for. codecarbon's CO2 is not reported: it would need to know where the power is from.
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

MIN_SECONDS = 1.0  # of a measured action: a processor's load is counted in hundredths of a second, NVML's energy in tenths
READ = {"intel_rapl": "RAPL", "windows_emi": "the Energy Meter Interface", "intel_power_gadget": "Intel Power Gadget"}


class EnergyMeter:
    """``with meter.stage("heal"): …``, then ``meter.stages_wh`` (Wh) and ``meter.method``.

    A stage entered again adds to its sum; one inside another counts for the outer one alone. Where codecarbon does not start,
    ``stages_wh`` stays empty and ``method`` says why: nothing is ever raised, for a build must not fail because of it.
    """

    def __init__(self) -> None:
        self.method = "energy was not measured: no stage has run"
        self._wh: dict[str, float] = {}
        self._inside = False
        self._failed = False

    @property
    def stages_wh(self) -> dict[str, float]:
        """Wh by stage in the order they were entered first; empty where codecarbon failed: a part would pass for the whole."""
        return {} if self._failed else dict(self._wh)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """``with meter.stage("heal"): …``: its energy counts even where it ends in an exception, which passes."""
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
        """A tracker of its own for each stage: the hardware is looked at once a process, and a stopped one cannot go on.

        Not codecarbon's tasks: these read a counter at both ends alone, and RAPL's turns over within minutes on a big machine.
        """
        if self._failed:
            return None
        try:
            tracker = _tracker()
            tracker.get_detected_hardware()  # raises, where start() would only log
            self.method = _method(tracker)
            tracker.start()
            return tracker
        except Exception as error:  # of any kind: what it reads differs on every machine
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
    """Every setting by which a user's codecarbon file could ask for a file, a log or the network is given here.

    A processor whose power codecarbon does not know may be described there or as ``CODECARBON_FORCE_CPU_POWER`` (watts).
    """
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads log_level
    return OfflineEmissionsTracker(
        tracking_mode="machine",
        measure_power_secs=15,
        country_iso_code=None,
        cloud_provider=None,
        force_carbon_intensity_g_co2e_kwh=0.0,  # asks no service, and does not load tables that only CO2 needs
        force_ram_power=None,
        pue=1.0,
        output_methods=[],
        output_handlers=[],
        emissions_endpoint=False,
        output_dir=tempfile.gettempdir(),  # Power Gadget's own log
        allow_multiple_runs=True,  # a lock would be a file, and two builds may run
        log_level="critical",
    )


def _method(tracker: Any) -> str:
    """codecarbon keeps what it chose in private fields alone."""
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
