"""A student beside its rivals on a tiny family: who is there, what is left out, and what is trained only once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.workplace import PLANTS, Workplace, domain

from factory.config.schema import TeacherSpec
from factory.errors import DataError, ExportError, RegistryError
from factory.pipeline import fine_tuning
from factory.pipeline.benchmark import BenchmarkConfig, BenchmarkReport, llamacpp_speed, run_benchmark
from factory.pipeline.dataset import published_rows

ANSWERS = ("its light is the answer", "it is treated in the home of students", "a doctor may see short signs of damage")
QUESTIONS = [{"question": f"how is {thing} treated ?", "reference": ANSWERS[i % 3]} for i, thing in enumerate("abcdef")]
REFERENCES = [
    {"prompt": f"why is {thing} {what} ?", "response": f"the {what} of {thing} is a question for the doctor"}
    for thing in ("oak", "elm", "fir", "yew", "ivy")
    for what in ("sign", "light", "damage", "sugar")
]
ALONE = ["student", "base", "sft", "teacher"]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def benchmark(place: Workplace, rows: Sequence[dict[str, Any]] = QUESTIONS, **config: Any) -> BenchmarkReport:
    context = place.context()
    questions = write_rows(place.root / "questions.jsonl", rows)
    return run_benchmark(context, context.registry.resolve("plants-mini@1"), questions, BenchmarkConfig(**config))


@pytest.fixture(scope="module")
def report(built: Workplace) -> BenchmarkReport:
    """Every rival, in one quantization, with a fine-tuned download."""
    references = write_rows(built.root / "references.jsonl", REFERENCES)
    return benchmark(built, references=references, minutes=5.0, quantizations=("q8_0", "q4"))


def test_every_rival_is_there_as_it_is_and_quantized(report: BenchmarkReport) -> None:
    names = [*ALONE, "download, fine-tuned"]
    assert [(row.name, row.format) for row in report.rows] == [(n, k) for n in names for k in ("bf16", "q8_0", "q4")]
    assert {row.bits_per_byte.n for row in report.rows} == {2 * sum(map(len, ANSWERS))}
    assert {row.bits_per_byte.clusters for row in report.rows} == {report.clusters} == {3}  # three answers
    assert report.download == "path:./teacher"
    assert all(row.tokens_per_second and row.tokens_per_second > 0 for row in report.rows)


def test_quantized_rows_have_fewer_bytes_and_nearly_the_same_bits(report: BenchmarkReport) -> None:
    for whole, q8, q4 in zip(report.rows[::3], report.rows[1::3], report.rows[2::3], strict=True):
        assert q4.bytes < q8.bytes < whole.bytes
        assert q8.bits_per_byte.value == pytest.approx(whole.bits_per_byte.value, rel=0.05)
        assert q8.bits_per_byte.value != whole.bits_per_byte.value


def test_the_fine_tuned_download_is_better_on_held_out_references(report: BenchmarkReport) -> None:
    tuned = report.fine_tuning
    assert tuned is not None
    assert [one.learning_rate for one in tuned.attempts] == list(fine_tuning.RATES)
    assert tuned.best.held_out.value == min(one.held_out.value for one in tuned.attempts) < tuned.before.value
    assert tuned.references == 18 and tuned.before.n == tuned.best.held_out.n > 0
    assert all(3 * 18 // 4 <= one.steps <= 3 * 5 for one in tuned.attempts)  # three passes, four references at a time


def test_a_second_call_trains_nothing_and_asks_nothing_that_was_learnt(
    built: Workplace, report: BenchmarkReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest: Any = built.context().registry.resolve("plants-mini@1").manifest
    learnt = published_rows(manifest)["train"][0]
    seen = [{"prompt": learnt["prompt"].upper(), "reference": "another answer"}, REFERENCES[0]]
    monkeypatch.setattr(fine_tuning, "train_within", None)
    again = benchmark(built, [*QUESTIONS, *seen], references=built.root / "references.jsonl", minutes=5.0)
    assert again.fine_tuning == report.fine_tuning
    assert (len(again.questions.rows), again.questions.seen) == (len(QUESTIONS), 2)
    assert again.notes[0] == "6 questions in 3 clusters; left out: 2 seen in training"
    bits = {row.name: row.bits_per_byte for row in report.rows if row.format == "bf16"}
    assert {row.name: row.bits_per_byte for row in again.rows} == bits
    with pytest.raises(DataError, match=r"no question of .*questions.jsonl is left: 2 are in training rows"):
        benchmark(built, seen, references=built.root / "references.jsonl", minutes=5.0)


def test_without_references_the_download_is_not_fine_tuned_and_the_report_says_so(built: Workplace) -> None:
    found = benchmark(built, download=built.context().specs.family("default").teacher)
    assert [row.name for row in found.rows] == ALONE
    assert found.fine_tuning is None
    assert "path:./teacher was not fine-tuned: 0 references, at least 8 are needed; --references FILE" in found.notes[1]


def test_a_context_a_download_and_exact_answers_are_measured(built: Workplace) -> None:
    shutil.copytree(built.domains / "teacher", built.domains / "other")
    shown: dict[str, Any] = {"teacher_context": {"system": "light turns into sugar"}}
    learnt = published_rows(built.context().registry.resolve("plants-mini@1").manifest)["train"][0]
    golden = [("how many moons has ash ?", "1"), (learnt["prompt"], "no"), ("why ?", "the|a|of|to|is")]
    write_rows(built.domains / "plants.golden_set.jsonl", [{"question": asked, "exact": key} for asked, key in golden])
    shown |= {"golden_set": "plants.golden_set.jsonl"}
    built.write("plants.yaml", domain("plants", PLANTS) | shown)
    try:
        other = TeacherSpec(model="path:./other", license="mit")
        found = benchmark(built, download=other, quantizations=("q8_0",), others=[built.context().specs.family("default")])
    finally:
        built.write("plants.yaml", domain("plants", PLANTS))
    rows = {(row.name, row.format): row for row in found.rows}
    names = ["teacher", "teacher, with its context", "default's teacher", "download"]
    assert [name for name, kind in rows if kind == "q8_0"] == ["student", "base", "sft", *names]
    assert rows["download", "bf16"].bits_per_byte == rows["teacher", "bf16"].bits_per_byte
    assert rows["teacher, with its context", "bf16"].bits_per_byte != rows["teacher", "bf16"].bits_per_byte
    assert rows["teacher, with its context", "q8_0"].bytes == rows["teacher", "q8_0"].bytes
    assert all(row.tokens_per_second for row in found.rows)
    assert {row.tasks["golden set, exact"].n for row in found.rows} == {2}  # the third was learnt


def test_what_cannot_be_quantized_is_measured_as_it_is_and_said(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ExportError("qwen9 cannot be written as GGUF")

    monkeypatch.setattr("factory.pipeline.benchmark.write_base_gguf", refuse)
    found = benchmark(built, quantizations=("q4",))
    assert [(row.name, row.format) for row in found.rows] == [(name, "bf16") for name in ALONE]
    assert found.notes[-4:] == tuple(f"{name}: not quantized, since qwen9 cannot be written as GGUF" for name in ALONE)


def test_without_llamacpp_quantized_rows_have_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert llamacpp_speed(Path("no.gguf"), [[1, 2]]) is None


def test_the_rows_of_training_must_be_on_disk(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(built.root / "elsewhere"))
    with pytest.raises(DataError, match=r"plants-mini@1 was trained on .* are not in .*elsewhere; .*`factory data plants"):
        benchmark(built)


def test_a_base_is_refused(built: Workplace) -> None:
    context = built.context()
    base = context.registry.resolve("default-mini-base")
    with pytest.raises(RegistryError, match="default-mini-base@1 is a base; a benchmark needs a student"):
        run_benchmark(context, base, built.root / "questions.jsonl", BenchmarkConfig())
