"""What an application is given beside the weights: the reference function says what the registry's confidence says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from factory.evaluation.confidence import Confidence, TokenSignal, fit_confidence, token_signal
from factory.export import reference
from factory.export.answering import exported_confidence, write_answering

APPLICATION = """
import json, sys
sys.path.insert(0, ".")
from confidence import confidence
print(confidence(json.load(open("answering.json"))["confidence"], [(-0.1, [-0.1, -3])]))
"""
LOG_PROBS = st.floats(-12, -0.001)
TOKENS = st.lists(st.tuples(LOG_PROBS, st.lists(LOG_PROBS, min_size=1, max_size=7)), min_size=1, max_size=30)


def fitted() -> Confidence:
    rng = np.random.default_rng(0)
    right = rng.random(120) < 0.7
    tokens = [
        [TokenSignal(float(n), float(np.exp(-n)), float(n)) for n in rng.gamma(2, 0.1 if one else 0.3, 9)] for one in right
    ]
    found = fit_confidence(tokens, right.tolist(), [str(i) for i in range(120)], 0.2)
    assert found is not None
    return found


CONFIDENCE = fitted()


@given(TOKENS)
@settings(max_examples=100)
def test_the_reference_function_says_what_the_registry_s_confidence_says(tokens: list[tuple[float, list[float]]]) -> None:
    about = json.loads(json.dumps(exported_confidence(CONFIDENCE)))
    signals = [token_signal(log_prob, top) for log_prob, top in tokens]
    assert reference.confidence(about, tokens) == pytest.approx(CONFIDENCE.of_answer(signals), abs=1e-9)
    assert reference.confidence(about, tokens, "beginning") == pytest.approx(CONFIDENCE.of_beginning(signals), abs=1e-9)


def test_thresholds_are_the_registry_s_and_the_answers_stay_there() -> None:
    about = exported_confidence(CONFIDENCE)
    assert about["thresholds"]["0.95"]["whole"] == CONFIDENCE.threshold(0.95, beginning=False)
    assert about["thresholds"]["0.9"]["beginning"] == CONFIDENCE.threshold(0.9, beginning=True)
    assert "held_out" not in json.dumps(about)


def version(folder: Path, manifest: Any) -> Any:
    return SimpleNamespace(folder=folder, manifest=manifest)


@pytest.mark.parametrize("sure", [True, False])
def test_the_files_work_without_this_package(tmp_path: Path, sure: bool, built: Any) -> None:
    manifest = built.context().registry.resolve("plants-mini@1").manifest.model_copy(update={"notice": "No advice."})
    source, out = tmp_path / "version", tmp_path / "out"
    source.mkdir(), out.mkdir()
    if sure:
        CONFIDENCE.save(source)
    write_answering(version(source, manifest), tiny.tokenizer(), out)
    about = json.loads((out / "answering.json").read_text())
    assert (about["notice"], about["stop"]) == ("No advice.", ["<|im_end|>"])
    assert about["max_tokens"] == manifest.max_completion_tokens
    assert (about["confidence"] is not None) == (out / "confidence.py").exists() == sure
    if sure:
        run = subprocess.run([sys.executable, "-I", "-c", APPLICATION], cwd=out, capture_output=True)
        assert float(run.stdout) == pytest.approx(CONFIDENCE.of_answer([token_signal(-0.1, [-0.1, -3])])), run.stderr


def test_a_base_answers_nothing(tmp_path: Path, built: Any) -> None:
    base = built.context().registry.resolve("default-mini-base@1")
    write_answering(base, tiny.tokenizer(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_reference_function_is_short_and_imports_nothing_of_ours() -> None:
    source = Path(str(reference.__file__)).read_text()
    assert len(source.splitlines()) <= 60 and "factory" not in source
