"""A tiny build's manifest, card and page, byte for byte, so that a change of any of them is a decision.

Measured numbers become 0.5, and what differs by machine or day becomes a word. After a change that is meant:
``UPDATE_GOLDEN=1 pytest tests/integration/test_golden.py``, then read the diff.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.workplace import Workplace

from factory.registry.manifest import parse_manifest, to_dict
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.card import model_card
from factory.reports.html import render

GOLDEN = Path(__file__).parent / "golden"
MEASURED = {
    "evaluation",
    "curve",
    "gradient_shares",
    "healing",
    "vocabulary",
    "seconds",
    "energy",
    "soft_targets",
    "found",
    "probes",
}
VOLATILE = {
    "sha256",
    "manifest_sha256",
    "base_sha256",
    "teacher_sha256",
    "revision",
    "git_commit",
    "libraries",
    "method",
    "version",
}
WRITTEN = {"student", "teacher", "student_tokens", "teacher_tokens"}  # of a sample


def steady(value: Any, key: str = "", *, measured: bool = False) -> Any:
    """The same on every machine and every day."""
    measured = measured or key in MEASURED
    if key == "created" and value:
        return "2026-01-01T00:00:00+00:00"
    if key in VOLATILE and not isinstance(value, int):
        return f"<{key}>"
    if isinstance(value, dict):
        if "prompt" in value and "student_tokens" in value:
            return {name: [["answer", True]] if name.endswith("_tokens") else "answer" if name in WRITTEN else one
                    for name, one in value.items()}  # fmt: skip
        return {name: steady(one, name, measured=measured) for name, one in value.items()}
    if isinstance(value, list):
        return [steady(one, key, measured=measured) for one in value]
    if isinstance(value, float) and measured:
        return 0.5
    if key in ("bytes", "adapter_bytes"):  # a folder's manifest is longer or shorter by its figures' digits
        return 1
    if key in ("warnings", "reasons", "reason"):
        return re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", str(value))
    return value


@pytest.fixture(scope="module")
def versions(built: Workplace) -> dict[str, Version]:
    registry = Registry(built.root / "registry")
    found = {"student": registry.resolve("plants-mini@1"), "base": registry.resolve("default-mini-base@1")}
    for kind, one in found.items():
        content = steady(to_dict(one.manifest))
        files = {path: {"sha256": "<sha256>", "bytes": 1} for path in sorted(content["files"])}
        manifest = parse_manifest(content | {"files": files, "libraries": {"torch": "<version>"}})
        found[kind] = Version(one.kind, one.name, one.number, Path("/registry"), manifest)
    return found


def check(name: str, content: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(content, encoding="utf-8")
    assert content == path.read_text(encoding="utf-8"), f"{name} changed; see this file's first lines"


@pytest.mark.parametrize("kind", ["student", "base"])
def test_the_manifest_is_what_it_was(versions: dict[str, Version], kind: str) -> None:
    check(f"{kind}.manifest.json", json.dumps(to_dict(versions[kind].manifest), indent=1, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("kind", ["student", "base"])
def test_the_card_is_what_it_was(versions: dict[str, Version], kind: str) -> None:
    check(f"{kind}.card.md", model_card(versions[kind].manifest))


def test_the_page_is_what_it_was(versions: dict[str, Version]) -> None:
    student, base = versions["student"], versions["base"]
    check("page.html", render([student], {base.reference: base}) + "\n")
