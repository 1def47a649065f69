"""Versions as a registry holds them, their files left out, for tests of what is drawn of manifests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from factory.registry.versions import Version


def student(name: str, kl: float | None = 0.4, **more: Any) -> Version:
    metrics = {"kl": {"value": kl, "low": 0.38, "high": 0.44, "n": 5120}, "top1_agreement": 0.76}
    metrics |= {"student_perplexity": 4.2, "teacher_perplexity": 3.9}
    sizes = {"student": {"parameters": 80_000_000}, "teacher": {"parameters": 134_515_008, "bytes": 269_000_000}}
    speed = {"student": {"tokens_per_second": 40.0}, "teacher": {"tokens_per_second": 28.0}}
    samples = [{"prompt": "What is [bold]asthma[/bold]?", "teacher": "A lung\ndisease.", "student": "Lungs."}]
    manifest = {
        "kind": "student",
        "name": name,
        "version": 1,
        "profile": "demo",
        "base": "default-small@1",
        "dataset": {"fingerprint": "f0", "sources": [{"id": "medquad", "license": "cc-by-4.0", "n": 800}]},
        "evaluation": {"metrics": metrics, "sizes": sizes, "speed": speed, "samples": samples},
        "training": {"curve": [{"step": n, "loss": 8.0 - n} for n in range(8)], "config": {"steps": 8}},
        "verdict": {"status": "failed", "reasons": ["KL 2.1 is above 1"]},
        "warnings": ["the data set is thin"],
    }
    return Version("student", name, 1, Path("/registry/students") / name / "1", manifest | more)


def text(renderable: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]
