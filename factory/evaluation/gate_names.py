"""Gates that name no metric, found before anything is built: they would fail every student, or be skipped. No torch.

folder = check_gates(read_folder(Path("domains")))
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator

from factory.config.load import SpecFolder
from factory.config.mistakes import Mistake, SpecFile
from factory.errors import SpecError
from factory.evaluation.metrics import METRICS, PATTERNS


def check_gates(folder: SpecFolder) -> SpecFolder:
    """``check_gates(read_folder(root)).mistakes``: with those in the names of gates."""
    return folder.with_mistakes(mistake for file in folder.files for mistake in _wrong_gates(file))


def require_metrics(gates: Iterable[str]) -> None:
    """``require_metrics(domain.gates)``, where no file is at hand. Raises: SpecError for the first that is not a metric."""
    for name in gates:
        if why := _unknown(name):
            raise SpecError(f"gate {name!r}: {why}")


def _wrong_gates(file: SpecFile) -> Iterator[Mistake]:
    for name in getattr(file.spec, "gates", {}):
        if why := _unknown(name):
            yield file.mistake(["gates", name], why)


def _unknown(name: str) -> str | None:
    if name in METRICS or any(re.fullmatch(pattern, name) for pattern, _ in PATTERNS):
        return None
    close = difflib.get_close_matches(name, METRICS, n=1)
    return "no such metric; " + (f"did you mean {close[0]}?" if close else "docs/evaluation.md lists them")
