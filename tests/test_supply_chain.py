"""Licences, vulnerabilities and the SBOM: what is found is said and fails, what cannot be asked is one line."""

from __future__ import annotations

import json
import runpy
import subprocess
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "supply_chain.py"))
Package, license_of, report = SCRIPT["Package"], SCRIPT["license_of"], SCRIPT["report"]


class Installed(Distribution):
    """A package of which only its METADATA is known."""

    def __init__(self, metadata: str) -> None:
        self.text = metadata

    def read_text(self, filename: str) -> str | None:
        return self.text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("metadata", "found", "allowed"),
    [
        ("License-Expression: Apache-2.0 OR BSD-3-Clause", "Apache-2.0 OR BSD-3-Clause", True),
        ("License-Expression: MPL-2.0 AND (Apache-2.0 OR MIT)", "MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("License-Expression: MIT AND GPL-3.0-only", "MIT AND GPL-3.0-only", False),
        ("License-Expression: GPL-3.0-only OR MIT", "GPL-3.0-only OR MIT", True),
        ("License: MPL-2.0 AND MIT", "MPL-2.0 AND MIT", True),
        ("License: Apache 2.0\nClassifier: License :: OSI Approved :: Apache Software License", "Apache-2.0", True),
        ("License: The MIT License (MIT) Copyright IN NO EVENT ... TORT OR OTHERWISE", "MIT", True),
        (
            "Classifier: License :: OSI Approved :: GNU Affero General Public License v3",
            "GNU Affero General Public License v3",
            False,
        ),
        ("License: ask us", "ask us", False),
        ("Summary: without one", "none", False),
    ],
)
def test_a_licence_is_allowed_by_what_the_package_says_of_itself(metadata: str, found: str, allowed: bool) -> None:
    license = license_of(Installed(f"Metadata-Version: 2.4\nName: a\nVersion: 1\n{metadata}\n"))
    assert license == found
    assert Package("a", "1", license).is_allowed == allowed


def test_every_package_that_an_installation_runs_has_an_allowed_licence_and_is_in_the_sbom() -> None:
    packages = SCRIPT["run_time_packages"]({canonicalize_name(one.metadata["Name"]): one for one in distributions()})
    assert {"torch", "fastapi", "pypdf", "pyyaml"} <= {package.name for package in packages}
    assert not {"pytest", "hypothesis", "mypy"} & {package.name for package in packages}
    assert [package.name for package in packages if not package.is_allowed] == []
    assert {package.name for package in packages} >= set(SCRIPT["ACCEPTED"]), "an accepted licence that nobody needs"
    bom = json.loads(SCRIPT["sbom"](packages))
    assert (bom["bomFormat"], bom["specVersion"], bom["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "1.6",
        "student-factory",
    )
    assert len(bom["components"]) == len(packages) - 1
    assert all(one["purl"].startswith("pkg:pypi/") and one["licenses"] for one in bom["components"])
    [own] = [one for one in bom["dependencies"] if one["ref"].startswith("student-factory@")]
    assert any(ref.startswith("torch@") for ref in own["dependsOn"])


def test_a_known_vulnerability_is_named_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    bug = {"id": "PYSEC-1", "fix_versions": ["2"], "aliases": [], "description": ""}
    assert report([{"name": "a", "version": "1", "vulns": [bug]}, {"name": "b", "version": "1", "vulns": []}]) == 1
    said = capsys.readouterr().out
    assert "error: a 1 has PYSEC-1, fixed in 2; raise it" in said and "1 known vulnerabilities in 2 of 2" in said


def test_an_index_that_knows_nothing_is_not_taken_for_one_that_found_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([{"name": "a", "skip_reason": "not found"}]) == 0
    assert capsys.readouterr().out == "pip-audit skipped: the package index has nothing to say of the 1 pinned versions\n"


@pytest.mark.parametrize("answer", ["offline", "slow"])
def test_without_an_index_the_audit_is_skipped_with_one_line(
    answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **more: Any) -> Any:
        if answer == "slow":
            raise subprocess.TimeoutExpired(command, 90)
        return subprocess.CompletedProcess(command, 1, "", "ERROR\nConnectionError: no route to the index\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert SCRIPT["audit"]() == 0
    said = capsys.readouterr().out
    assert said.startswith("pip-audit skipped: ") and said.count("\n") == 1
