"""How to cite the project: the fields that the format asks for, and the version that is installed."""

from __future__ import annotations

import tomllib

import yaml
from support.markdown import ROOT

import factory

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_has_what_the_format_requires() -> None:
    """https://citation-file-format.github.io, version 1.2.0."""
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    assert CITATION["cff-version"] == "1.2.0" and CITATION["authors"] == [{"name": "The student factory authors"}]


def test_the_citation_names_this_version_and_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (CITATION["version"], CITATION["license"]) == (factory.__version__, project["license"])
