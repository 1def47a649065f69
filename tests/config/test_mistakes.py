"""Mistakes in plain English: what is wrong, what was found, in one short line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.specs import domain, family, mistakes, said


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"law": domain(acceptance="law.jsonl")}, "law.yaml: acceptance: `acceptance` is now `golden_set`"),
        ({"law": domain(pairs=["law.yaml"])}, "law.yaml: pairs: `pairs` is now `bias_pairs`"),
        ({"small_family": family(cascade="auto")}, "small.family.yaml: cascade: `cascade` is now `path`"),
    ],
)
def test_an_old_key_names_the_new_one_and_the_command_that_renames_it(tmp_path: Path, files: Any, expected: str) -> None:
    [mistake] = mistakes(tmp_path, **files)
    assert said(tmp_path, mistake) == f"{expected}; `factory validate --fix` renames it"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": "x"}, "seed: must be a whole number (found 'x')"),
        ({"seed": 1.5}, "seed: must be a whole number (found 1.5)"),
        ({"heal": {"steps": 1, "learning_rate": "fast"}}, "heal.learning_rate: must be a number (found 'fast')"),
        ({"heal": {"steps": 1, "learning_rate": float("inf")}}, "heal.learning_rate: must be a finite number (found inf)"),
        ({"heal": {"steps": 1, "learning_rate": "1e400"}}, "heal.learning_rate: must be a finite number (found '1e400')"),
        ({"heal": {"steps": float("nan"), "learning_rate": 1}}, "heal.steps: must be a finite number (found nan)"),
        ({"heal": {"steps": "9" * 5000, "learning_rate": 1}}, "heal.steps: must be a whole number of fewer digits"),
        ({"gates": {"kl": {"at_most": float("inf")}}}, "gates.kl.at_most: must be a finite number"),
        ({"seed": -1}, "seed: must be at least 0 (found -1)"),
        ({"seed": 2**32}, "seed: must be less than 4.29497e+09 (found 4294967296)"),
        ({"heal": 3}, "heal: must be keys and values (found 3)"),
        ({"pool": "texts"}, "pool: must be a list (found 'texts')"),
        ({"description": 3}, "description: must be text; put it in quotes (found 3)"),
        ({"description": True}, "description: must be text; put it in quotes (found true: also an unquoted yes or on)"),
        ({"description": None}, "description: must be text; put it in quotes (found null: also an empty value)"),
        ({"sizes": {"Mini": {"layers": 2}, "mini": {"layers": 2}}}, "sizes.Mini: must be lower-case letters"),
        ({"gates": {"kl": {"at_most": 1, "of": "mean"}}}, "gates.kl.of: must be 'value', 'low' or 'high' (found 'mean')"),
        ({"encoder": {"model": "gpt2", "license": "mit"}}, "encoder.model: must be hub:org/name@revision, pypi:"),
        ({"encoder": {"model": "path:x", "license": "mit", "sha256": "1"}}, "encoder.sha256: must be 64 hexadecimal digits"),
        (
            {"encoder": {"model": "path:x", "license": "mit", "parts": {"x>=1": "1" * 64}}},
            "encoder.parts.x>=1: must be package==version, without a URL or an option",
        ),
    ],
)
def test_mistakes_are_said_in_plain_english(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(**changes))
    assert said(tmp_path, mistake).startswith(f"small.family.yaml: {expected}")


def test_a_profile_s_override_is_finite_too(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(profiles={"demo": {"distill": {"beta": float("nan")}}}))
    assert said(tmp_path, mistake) == "small.family.yaml: profiles.demo.distill.beta: must be a finite number (found nan)"


@pytest.mark.parametrize(
    "wrong",
    ["x" * 100_000, list(range(50_000)), {str(n): [[n] * 9] * 9 for n in range(500)}],
    ids=["text", "list", "mapping"],
)
def test_a_wrong_value_is_shown_in_a_short_line(tmp_path: Path, wrong: Any) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(seed=wrong))
    assert mistake.startswith("small.family.yaml:") and ": seed: must be a whole number (found " in mistake
    assert len(mistake) < 300


def test_a_key_as_long_as_the_file_is_shown_in_a_short_line_without_control_characters(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, law=domain(**{"\x1b[31m\n" + "x" * 100_000: 1}))
    assert len(mistake) < 600 and r": \x1b[31m\nxxx" in mistake


def test_a_key_of_several_types_has_one_message(tmp_path: Path) -> None:
    [path] = mistakes(tmp_path, small_family=family(path="always"))
    assert "path: must be 'auto', 'direct', 'stepwise' or 'assistant' (found 'always')" in path
    [fallback] = mistakes(tmp_path, small_family=family(serve={"fallback": "No One"}))
    assert "serve.fallback: must be teacher, refuse or the name of a student" in fallback
