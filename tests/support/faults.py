"""Disks that fill up or become read-only: commands whose n-th system call that writes fails, and what they say and leave.

    with Faults(tmp_path) as faults:
        faults.run(place, "build", "plants", at=17, error=errno.ENOSPC).stderr
        faults.run(place, "build", "plants").calls       # undisturbed: every such call, in order

``faults.c`` is compiled and loaded into one process with LD_PRELOAD; it imports everything once, and forks for each command.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("faults.c")
ALWAYS = 1 << 30  # as often as it is called: a disk that stays full


@dataclass(frozen=True)
class Done:
    """What a command ended with."""

    exit_code: int
    stdout: str
    stderr: str
    traceback: str  # of what the command let through; "" for an exit
    calls: tuple[str, ...]  # that write below the workplace: "write home/data/…"


class Faults:
    """``with Faults(tmp_path) as faults: faults.run(place, "build", "plants", at=17)``"""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "faults.so"

    @staticmethod
    def possible() -> bool:
        """Linux with a C compiler."""
        return sys.platform == "linux" and shutil.which("cc") is not None

    def __enter__(self) -> Faults:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(self.library), str(SOURCE), "-ldl"], check=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(self.library),
            "PYTHONPATH": os.pathsep.join(map(str, (SOURCE.parents[1], SOURCE.parents[2]))),
            "OMP_NUM_THREADS": "1",  # no thread is running when it forks
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
        }
        self.server = subprocess.Popen(
            [sys.executable, "-m", "support.faults", str(self.library)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()
        assert self.server.stdout is not None
        self.server.stdout.close()

    def run(self, root: Path, *command: str, at: int = 0, error: int = 0, times: int = ALWAYS) -> Done:
        """The call number ``at`` that writes below ``root`` fails, and ``times - 1`` after it; 0: none does."""
        assert self.server.stdin is not None and self.server.stdout is not None
        request = {"root": str(root), "command": command, "at": at, "error": error, "times": times}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        return Done(**answer | {"calls": tuple(call.replace(f"{root}/", "") for call in answer["calls"])})


# ------------------------------------------------------------------------------------------------------ in the other process


def serve(library: str) -> None:
    """Reads a request a line, and answers each from a process of its own."""
    shim = ctypes.CDLL(library)
    load_everything()
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.write(writer, json.dumps(asdict(answer(shim, **json.loads(line)))).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as result:
            os.write(answers, result.read() + b"\n")
        os.waitpid(child, 0)


def load_everything() -> None:
    from factory import energy
    from factory.cli import answers, domains, machine, research, serving, students  # noqa: F401
    from factory.cli.terminal import load_libraries
    from factory.models import device

    load_libraries(shown=False)
    import codecarbon  # noqa: F401

    import factory.export.export
    import factory.pipeline.build
    import factory.pipeline.preview
    import factory.serve.engines  # noqa: F401

    energy.MIN_SECONDS = 0.0  # of an action whose energy is measured: its figures are compared with nothing
    device._multiplies_bfloat16 = lambda where: False  # as in all tests


def answer(shim: Any, root: str, command: list[str], at: int, error: int, times: int) -> Done:
    from support.workplace import Workplace

    log = os.memfd_create("calls")
    for name in ("home", "tmp"):
        Path(root, name).mkdir(exist_ok=True)
    os.environ |= {"FACTORY_HOME": f"{root}/home", "TMPDIR": f"{root}/tmp"}
    shim.faults_arm(root.encode(), ctypes.c_long(at), error, ctypes.c_long(times), log)
    result = Workplace(Path(root)).run(command[0], *command[1:])
    shim.faults_arm(b"", ctypes.c_long(0), 0, ctypes.c_long(0), -1)
    unforeseen = result.exception is not None and not isinstance(result.exception, SystemExit)
    shown = "".join(traceback.format_exception(*result.exc_info)) if unforeseen else ""
    os.lseek(log, 0, os.SEEK_SET)
    with os.fdopen(log, errors="replace") as calls:
        return Done(result.exit_code, result.stdout, result.stderr, shown, tuple(calls.read().splitlines()))


if __name__ == "__main__":
    serve(sys.argv[1])
