"""Tiny builds in processes of their own, which are killed, or sent a signal, at an event of a stage.

    killer = Killer(folder)                     # with ENVIRONMENT in the environment
    killer.build(place)                         # undisturbed: the number of events in each stage
    killer.build(place, Moment("healing", 12))  # SIGKILL at the twelfth event in healing

An event is a file that is opened, made, renamed or removed. What is in the middle of one, as a half-written file, is met by a
delay after it. Each build is a fork of a process that has loaded torch, with one thread.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from support.workplace import Workplace

STAGES = {  # of a function of the pipeline, the outermost on the stack; in the order of a build
    "load_context": "resolve",
    "plan": "resolve",
    "resolve_models": "resolve",
    "make_dataset": "data sets",
    "choose_base_tokens": "cutting",
    "cut_base": "cutting",
    "require_teachers": "cutting",
    "direct_path": "soft targets",
    "heal_base": "healing",
    "_publish": "publishing the base",
    "gather_eval_data": "router",
    "train_adapter": "adapter",
    "fit_student_confidence": "evaluation",
    "evaluate_adapter": "evaluation",
    "publish_student": "publishing",
}
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}
PRELOAD = ["factory.cli.app", "factory.pipeline.build", "factory.pipeline.plan", "sentence_transformers", "codecarbon"]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "GIT_DIR": os.devnull,  # no commit in a manifest: somebody may commit, or edit a file, while builds are killed
}


@dataclass(frozen=True)
class Moment:
    """Of a build: the ``count``-th event in a stage, and so many seconds after it."""

    stage: str
    count: int
    delay: float = 0.0
    signal: signal.Signals = signal.SIGKILL


@dataclass(frozen=True)
class Ran:
    """How a process ended and what it did: "asked" prompts, "scored" shards, "trained" steps, "measured" parts."""

    exit_code: int
    stderr: str
    work: dict[str, list[str]]
    events: dict[str, int]  # by stage; only of one that was not killed
    killed_in: str | None


class Killer:
    """``Killer(folder).build(place, Moment("healing", 12)).exit_code`` → -9."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(PRELOAD)

    def build(self, place: Workplace, moment: Moment | None = None) -> Ran:
        log = self.folder / "log.jsonl"
        log.unlink(missing_ok=True)
        process = self._processes.Process(target=build, args=(place, log, moment))
        process.start()
        process.join()
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        work: dict[str, list[str]] = {}
        for row in rows:
            if "did" in row:
                work.setdefault(row["did"], []).append(row["what"])
        ended: dict[str, Any] = next((row for row in rows if "events" in row), {})
        return Ran(
            process.exitcode if process.exitcode else ended["exit_code"],
            ended.get("stderr", ""),
            work,
            ended.get("events", {}),
            next((row["killed_in"] for row in rows if "killed_in" in row), None),
        )


def build(place: Workplace, log: Path, moment: Moment | None) -> None:
    """``factory build plants`` in this process, and a line in ``log`` for each thing that it did."""
    import torch

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests that run in a shell's background inherit that it is ignored
    torch.set_num_threads(1)
    gc.freeze()  # what the parent has loaded is not searched at every collection
    os.environ["FACTORY_HOME"] = str(place.root / "home")
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(**row: Any) -> None:
        os.write(handle, json.dumps(row).encode() + b"\n")

    in_small_parts()
    record_work(note)
    events = Counter[str]()
    watch(place.root, events, moment, note)
    result = place.run("build", "plants")
    note(events=events, exit_code=result.exit_code, stderr=result.stderr)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception


def in_small_parts() -> None:
    """Several shards, chunks and checkpoints in a tiny build, and no time spent on measuring energy."""
    from factory import energy
    from factory.distill import target_store, training_arguments
    from factory.models import teacher

    energy._tracker, energy.MIN_SECONDS = no_energy, 0.0
    teacher.CHUNK, target_store.SHARD = 16, 8
    training_arguments.SAVE_EVERY, training_arguments.LOG_EVERY = 4, 2  # type: ignore[misc]


def no_energy() -> None:
    raise RuntimeError("of a test")


def record_work(note: Callable[..., None]) -> None:
    """Notes what is finished and must not be done again."""
    from factory.distill import target_store
    from factory.distill.trainer import DistillTrainer
    from factory.evaluation import evaluate
    from factory.models.teacher import Teacher

    def after(owner: Any, name: str, did: str, describe: Callable[..., list[str]]) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            found = original(*arguments, **named)
            for what in describe(*arguments):
                note(did=did, what=what)
            return found

        setattr(owner, name, wrapped)

    after(Teacher, "_write", "asked", lambda teacher, examples, *_: [one.prompt for one in examples])
    after(target_store, "_write", "scored", lambda folder, layout, span, arrays: [stored(layout, arrays)])
    after(
        DistillTrainer,
        "training_step",
        "trained",
        lambda trainer, *_: [f"{Path(trainer.args.output_dir).name} {trainer.state.global_step + 1}"],
    )
    original = evaluate.kept_part

    def kept_part(folder: Path, name: str, measure: Callable[[], Any], say: Callable[[str], object]) -> Any:
        def noted() -> Any:
            note(did="measured", what=name)
            return measure()

        return original(folder, name, noted, say)

    evaluate.kept_part = kept_part


def stored(layout: Any, arrays: Any) -> str:
    """A shard's checksum, as the notes of its store have it."""
    from factory.distill.target_store import _checksum

    return _checksum({name: arrays[name].astype(dtype) for name, (dtype, _) in layout.items()}, slice(None))


def watch(root: Path, events: Counter[str], moment: Moment | None, note: Callable[..., None]) -> None:
    """Counts events in ``root`` by stage, and ends this process at the given one."""
    main = threading.get_ident()

    def end() -> None:
        assert moment is not None
        note(killed_in=stage_of(sys._current_frames()[main]) or "between")
        os.kill(os.getpid(), moment.signal)

    def later(seconds: float) -> None:
        time.sleep(seconds)
        end()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or threading.get_ident() != main:
            return
        path = arguments[0]
        if isinstance(path, int) or (os.path.isabs(os.fsdecode(path)) and not os.fsdecode(path).startswith(str(root))):
            return
        stage = stage_of(sys._getframe())
        if stage is None:
            return
        events[stage] += 1
        if moment is not None and (stage, events[stage]) == (moment.stage, moment.count):
            threading.Thread(target=later, args=(moment.delay,), daemon=True).start() if moment.delay else end()

    sys.addaudithook(hook)


def stage_of(frame: FrameType | None) -> str | None:
    """``stage_of(sys._getframe())``: of the outermost function that has one."""
    found = None
    while frame is not None:
        if frame.f_code.co_name in STAGES and "factory" in frame.f_code.co_filename:
            found = STAGES[frame.f_code.co_name]
        frame = frame.f_back
    return found
