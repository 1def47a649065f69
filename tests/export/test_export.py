"""Every format of both architectures passes its parity check; a refused export leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import exporting, modelfiles, tiny
from typer.testing import CliRunner

from factory.cli import app
from factory.config.quantization import QUANTIZATIONS, Quantization
from factory.errors import ExportError, RegistryError
from factory.export import export, parity
from factory.export.export import BOUNDS, Format, Part, export_version
from factory.inference import load_version
from factory.models.chat import prompt_ids
from factory.registry.registry import Registry
from factory.registry.versions import Version

Published = tuple[Registry, Version]
QUESTION = "what are early signs"

# Loads each moved folder without this package and prints the next token's log-probabilities.
LOAD_WITHOUT_FACTORY = """
import sys
sys.modules["factory"] = None  # importing it would fail
import json, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

question, *folders = sys.argv[1:]
for folder in folders:
    base = f"{folder}/base" if "peft" in folder else folder
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if "peft" in folder:
        model = PeftModel.from_pretrained(model, folder)
    turn = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        print(json.dumps(model.eval()(**ids).logits[0, -1].log_softmax(-1).tolist()))
"""


@pytest.fixture(scope="module", params=["llama", "gemma", "narrow"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return exporting.publish_student(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return exporting.publish_student(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 360 tokens in the vocabulary, each general text has hundreds of tokens."""
    monkeypatch.setattr(parity, "GENERAL_TEXTS", (("what is light", "it is sugar"),))
    monkeypatch.setattr(parity, "LONG_TEXT", ("how " * 300, "that is long"))


def loosen_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """These random weights are larger than trained ones and lose more by rounding."""
    for name in (*QUANTIZATIONS, "merged", "sentence-transformers"):
        monkeypatch.setitem(BOUNDS, name, 1.0)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"registry"}


# ------------------------------------------------------------------------------------------------------------- formats


def test_peft_predicts_exactly_what_the_published_student_does(published: Published, tmp_path: Path) -> None:
    registry, version = published
    found = export_version(version, registry, "peft", tmp_path / "out", device="cpu")
    assert found.kl == pytest.approx(0, abs=1e-6) and found.top1_agreement == 1.0 and found.within
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == vars(found)
    assert names_in(tmp_path) == {"out"}


def test_a_process_without_this_package_loads_moved_exports(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loosen_bounds(monkeypatch)
    registry, version = published
    formats: tuple[Format, ...] = ("peft", "merged")
    (tmp_path / "moved").mkdir()
    for format in formats:
        export_version(version, registry, format, tmp_path / "out", device="cpu")
        (tmp_path / "out").rename(tmp_path / "moved" / format)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_FACTORY, QUESTION, *(str(tmp_path / "moved" / format) for format in formats)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    student = load_version(version, registry, tiny.CPU, torch.float32)
    with torch.no_grad():
        ids = torch.tensor([prompt_ids(student.base.tokenizer, QUESTION)])
        expected = student.model(input_ids=ids).logits[0, -1].log_softmax(-1).numpy()
    peft, merged = (np.array(json.loads(line)) for line in done.stdout.splitlines()[-2:])
    np.testing.assert_allclose(peft, expected, atol=1e-4)
    np.testing.assert_allclose(merged, expected, atol=0.5)


@pytest.mark.parametrize(("quantization", "bound"), [("f16", 1e-3), ("q8_0", 0.02), ("q4", 0.9)], ids=["f16", "q8_0", "q4"])
def test_gguf_is_within_the_bound_of_its_quantization(
    published: Published, tmp_path: Path, quantization: Quantization, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loosen_bounds(monkeypatch)
    registry, version = published
    found = export_version(version, registry, "gguf", tmp_path / "out", quantization=quantization, device="cpu")
    assert found.kl is not None and found.kl < bound
    assert found.texts == 4 and found.quantization == quantization and "xllamacpp" in found.libraries
    assert names_in(tmp_path / "out") == {
        f"plants-mini-{quantization}.gguf",
        "NOTICE",
        "README.md",
        "answering.json",
        "parity.json",
    }


@pytest.mark.parametrize(
    ("grid", "part", "expected"),
    [
        (None, "base", "q8_0"),
        ("q4_1", "base", "q4_1"),
        ("q4_1", "adapter", "q4_1"),
        ("q4_1", "merged", "q8_0"),  # merged weights are off the grid
    ],
)
def test_what_was_rounded_before_training_is_exported_on_its_grid(
    grid: Any, part: Part, expected: Quantization, tmp_path: Path
) -> None:
    registry, version = exporting.publish_student(tmp_path, grid=grid)
    found = export_version(version, registry, "gguf", tmp_path / "out", part=part, device="cpu")
    assert found.quantization == expected
    assert found.kl is not None and found.kl < 2e-2  # random weights as they are lose 0.3 by q4_1


def test_an_adapter_alone_is_checked_on_a_base_that_is_removed(published: Published, tmp_path: Path) -> None:
    registry, version = published
    found = export_version(version, registry, "gguf", tmp_path / "out", quantization="f16", part="adapter", device="cpu")
    assert found.kl is not None and found.kl < 1e-3 and found.part == "adapter"
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["plants-mini-adapter.gguf"]


def test_a_base_alone_is_compared_with_the_published_base(llama: Published, tmp_path: Path) -> None:
    registry, version = llama
    found = export_version(version, registry, "gguf", tmp_path / "out", quantization="f16", part="base", device="cpu")
    assert found.reference == "mini-base@1" and found.kl is not None and found.kl < 1e-3
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["mini-base-f16.gguf"]


def test_ollama_gets_a_modelfile_for_its_gguf(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loosen_bounds(monkeypatch)
    registry, version = published
    export_version(version, registry, "ollama", tmp_path / "out", device="cpu")
    commands = dict(modelfiles.parse((tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")))
    assert (tmp_path / "out" / commands["FROM"]).is_file()
    assert commands["SYSTEM"] == "No advice."
    assert commands["LICENSE"] == (tmp_path / "out" / "NOTICE").read_text(encoding="utf-8")


def test_sentence_transformers_is_compared_by_its_embeddings(published: Published, tmp_path: Path) -> None:
    registry, version = published
    found = export_version(version, registry, "sentence-transformers", tmp_path / "out", device="cpu")
    assert found.kl is None and found.cosine_distance is not None and found.cosine_distance < 1e-3


@pytest.mark.parametrize("format", ["merged", "sentence-transformers"])
def test_a_base_can_be_exported(llama: Published, tmp_path: Path, format: Format) -> None:
    registry, _ = llama
    found = export_version(registry.resolve("mini-base"), registry, format, tmp_path / "out", device="cpu")
    assert found.reference == "mini-base@1" and found.within


# -------------------------------------------------------------------------------------------------------------- report


def test_the_report_identifies_the_version_and_has_every_measurement(llama: Published, tmp_path: Path) -> None:
    registry, version = llama
    found = export_version(version, registry, "peft", tmp_path / "out", device="cpu")
    assert (found.reference, found.manifest_sha256) == ("plants-mini@1", version.manifest.manifest_sha256)
    assert found.tokens > found.texts == 4
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    metadata = {"parity.json", "NOTICE", "README.md", "answering.json"}
    assert found.bytes == sum(path.stat().st_size for path in files if path.name not in metadata)
    assert min(found.tokens_per_second.values()) > 0 and set(found.tokens_per_second) == {"exported", "registered"}
    assert found.libraries["torch"] == torch.__version__


def test_card_and_notice_accompany_the_model(llama: Published, tmp_path: Path) -> None:
    registry, version = llama
    found = export_version(version, registry, "merged", tmp_path / "out", device="cpu")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card
    assert card.index("## This export") < card.index("## How to load it")
    assert re.search(rf"nats/token \| {found.kl:.3g}", card)
    assert "cc-by-4.0" in (tmp_path / "out" / "NOTICE").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- refused


def test_a_failed_parity_check_leaves_nothing(llama: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOUNDS, "merged", 1e-12)
    with pytest.raises(ExportError, match=r"parity check failed: KL \S+ > 1e-12 nats/token \(plants-mini@1 as merged; "):
        export_version(*llama[::-1], "merged", tmp_path / "out", device="cpu")
    assert names_in(tmp_path) == set()


def test_a_kl_of_nan_fails_the_check(llama: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "compare_log_probs", lambda *_: parity.ParityMetrics(1, 1, float("nan"), 0.0, 1.0))
    with pytest.raises(ExportError, match="KL nan"):
        export_version(*llama[::-1], "merged", tmp_path / "out", device="cpu")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_existing_target_is_refused_and_left_alone(llama: Published, tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "out").write_text("mine")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ExportError, match="exists and is not an empty folder"):
        export_version(*llama[::-1], "peft", tmp_path / "out", device="cpu")
    assert names_in(tmp_path) == {"out"}


def test_the_target_may_be_an_empty_folder_or_missing(llama: Published, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_version(*llama[::-1], "peft", tmp_path / "out", device="cpu")
    export_version(*llama[::-1], "peft", tmp_path / "deep" / "er", device="cpu")
    assert (tmp_path / "out" / "parity.json").is_file() and (tmp_path / "deep" / "er" / "parity.json").is_file()


@pytest.mark.parametrize(
    ("name", "format", "part", "message"),
    [
        ("plants-mini", "onnx", "merged", "unknown format 'onnx'; available: peft, merged, gguf"),
        ("plants-mini", "merged", "adapter", "--part adapter needs --format gguf, not merged"),
        ("mini-base", "peft", "merged", "mini-base@1 is a base and has no adapter"),
        ("mini-base", "gguf", "adapter", "mini-base@1 is a base and has no adapter"),
    ],
)
def test_unsuitable_arguments_are_refused_before_loading(
    llama: Published, tmp_path: Path, name: str, format: Any, part: Any, message: str
) -> None:
    registry, _ = llama
    with pytest.raises(ExportError, match=re.escape(message)):
        export_version(registry.resolve(name), registry, format, tmp_path / "out", part=part)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("whose", ["students/plants-mini/1/adapter_model.safetensors", "bases/mini-base/1/model.safetensors"])
def test_a_damaged_version_or_base_is_refused(llama: Published, tmp_path: Path, whose: str) -> None:
    root = tmp_path / "registry"
    shutil.copytree(llama[0].root, root)
    damaged = root / whose
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    registry = Registry(root)
    with pytest.raises(RegistryError, match=f"is damaged: {damaged.name} was changed: .*; restore .* or build it again"):
        export_version(registry.resolve("plants-mini"), registry, "peft", tmp_path / "out", device="cpu")
    assert names_in(tmp_path) == set()


# ------------------------------------------------------------------------------------------------------------- command


def run(llama: Published, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["export", *arguments, "--registry", str(llama[0].root), "--device", "cpu"])


def test_the_command_prints_the_report(llama: Published, tmp_path: Path) -> None:
    done = run(llama, "plants-mini", "--format", "peft", "--to", str(tmp_path / "out"), "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "parity.json").read_text())
    text = run(llama, "plants-mini", "--format", "peft", "--to", str(tmp_path / "other"))
    assert text.stdout.startswith(f"wrote {tmp_path / 'other'}: plants-mini@1 as peft: KL ")


def test_the_teacher_cannot_be_exported(llama: Published, tmp_path: Path) -> None:
    done = run(llama, "teacher", "--format", "merged", "--to", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "error: the teacher is not in the registry" in done.stderr


def test_a_failed_check_is_a_one_line_error(llama: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOUNDS, "merged", 1e-12)
    done = run(llama, "plants-mini", "--format", "merged", "--to", str(tmp_path / "out"))
    assert done.exit_code == 1 and names_in(tmp_path) == set()
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] and "Traceback" not in done.output
