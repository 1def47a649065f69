"""An experiment on a tiny family: equal budgets, rates chosen on validation alone, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.workplace import Workplace

import factory.pipeline.experiment as experiment_module
import factory.pipeline.experiment_run as run_module
from factory.config.experiment import ExperimentSpec
from factory.config.load import load_methods
from factory.errors import DataError, SpecError
from factory.pipeline.experiment import ExperimentReport, prepare, run_experiment
from factory.reports.experiment import csv_text, markdown_table

METHODS: dict[str, Any] = {
    "minutes": 60,
    "teacher_tokens": 60,
    "learning_rates": [1e-3],
    "methods": [{"name": "forward KL"}, {"name": "SFT", "targets": "hard"}],
}


def methods(place: Workplace, **over: Any) -> ExperimentSpec:
    path = place.root / "methods.yaml"
    path.write_text(yaml.safe_dump(METHODS | over, sort_keys=False), encoding="utf-8")
    context = place.context()
    return load_methods(path, context.settings(context.specs.domain("plants")).distill)


def run(place: Workplace, spec: ExperimentSpec, seeds: int = 2, **more: Any) -> ExperimentReport:
    return run_experiment(replace(place.context(), **more), "plants", "mini", spec, seeds=seeds)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers that were made."""
    made: list[Any] = []
    original: Callable[..., Any] = run_module._trainer

    def remember(*arguments: Any) -> Any:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(run_module, "_trainer", remember)
    return made


def test_two_methods_and_two_seeds_are_compared_on_one_base_and_resumed_half_way(built: Workplace, trained: list[Any]) -> None:
    said: list[str] = []
    spec = methods(built)

    def stop_half_way(line: str) -> None:
        said.append(line)
        if line.startswith("2 of 4 runs done"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(built, spec, say=stop_half_way)
    assert len(trained) == 2
    report = run(built, spec, say=said.append)
    assert len(trained) == 4  # two of them before the stop
    assert [line.partition(":")[0] for line in said[2:]] == [f"{done} of 4 runs done" for done in (1, 2, 3, 4)]
    assert said[2:4] == said[:2]

    first, second = report.methods
    assert report.base == "default-mini-base@1" and report.seeds == (0, 1)
    assert [one["seed"] for one in second.runs] == [0, 1]
    assert first.metrics["kl"].difference is None and second.metrics["kl"].difference is not None
    kl = [sum(one.metrics["kl"].seeds) / 2 for one in (first, second)]
    assert first.metrics["kl"].value.value == pytest.approx(kl[0])
    assert second.metrics["kl"].difference.value == pytest.approx(kl[1] - kl[0])
    assert second.metrics["kl"].p_holm == second.metrics["kl"].p  # of a single comparison
    assert set(report.untrained) == {"kl", "top1_agreement", "sure_agreement", "bits_per_byte"}
    assert first.settings == {"trainer": "factory", "targets": "soft", "teacher_context": True, "distill": {}}
    assert first.teacher_seconds > 0 and second.teacher_seconds == 0

    again = run(built, spec)
    assert len(trained) == 4 and again.content == report.content


def test_the_budget_is_the_same_for_all_and_no_run_exceeds_it_by_more_than_a_step(built: Workplace, trained: list[Any]) -> None:
    kinds = [
        {"name": "forward KL"},
        {"name": "on-policy", "distill": {"lmbda": 1, "beta": 1, "max_new_tokens": 6}},
        {"name": "samples", "targets": "hard", "distill": {"seq_kd": True, "max_new_tokens": 6}},
        {"name": "no context", "teacher_context": False},
        {"name": "trl", "trainer": "trl_gkd", "teacher_context": False},
    ]
    spec = methods(built, methods=kinds, teacher_tokens=50)
    report = run(built, spec, seeds=1)
    training_set = experiment_module.method_training_set(
        prepare(built.context(), "plants", "mini", spec, None), spec.methods[0]
    )
    step = 4 * max(6, *(len(example.completion) for example in training_set.examples))  # tokens at most
    for method, trainer in zip(report.methods, trained, strict=True):
        (one,) = method.runs
        assert one["teacher_tokens"] == trainer.teacher_tokens and 50 <= one["teacher_tokens"] < 50 + step
        assert one["steps"] == trainer.state.global_step > 0 and 0 < one["minutes"] < 60
    assert {trainer.args.learning_rate for trainer in trained} == {1e-3}
    assert {trainer.args.per_device_train_batch_size for trainer in trained} == {4}


def test_the_rate_is_chosen_on_validation_where_the_test_split_would_choose_another(
    built: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = run_module._fidelity_sums
    validation_kl = iter([0.1, 0.9, 0.1, 0.9])  # which likes the low rate

    def rigged(bench: Any, model: Any, split: str) -> Any:
        sums = original(bench, model, split)
        return replace(sums, kl=sums.tokens * next(validation_kl)) if split == "validation" else sums

    monkeypatch.setattr(run_module, "_fidelity_sums", rigged)
    spec = methods(built, learning_rates=[1e-4, 1e-2], teacher_tokens=61)
    report = run(built, spec, seeds=1)
    assert [method.learning_rate for method in report.methods] == [1e-4, 1e-4]
    assert all(method.validation_kl == {"0.0001": pytest.approx(0.1), "0.01": pytest.approx(0.9)} for method in report.methods)
    assert all(method.at_edge for method in report.methods)

    bench = prepare(built.context(), "plants", "mini", spec, None)
    for method in spec.methods:
        tried = experiment_module.train_method(bench, method, [0], lambda *_: None).tried
        assert {rate: len(list(one.folder.glob("test-*"))) for rate, one in tried.items()} == {1e-4: 1, 1e-2: 0}
        kl = {rate: run_module.held_out_scores(bench, one).metrics["kl"].value for rate, one in tried.items()}
        assert kl[1e-2] < kl[1e-4]  # the test split would have chosen the high rate


def test_results_that_could_not_be_written_are_refused_before_anything_is_trained(built: Workplace) -> None:
    methods(built)
    result = built.run("experiment", str(built.root / "methods.yaml"), "--domain", "plants", "--out", "nowhere/results.json")
    assert result.exit_code != 0 and "'--out': there is no folder nowhere" in result.stderr


def test_what_is_written_has_digests_and_the_machine_and_is_rendered_from_the_file(built: Workplace) -> None:
    methods(built)
    out = built.root / "results.json"
    result = built.run("experiment", str(built.root / "methods.yaml"), "--domain", "plants", "--seeds", "2", "--out", str(out))
    assert result.exit_code == 0, (result.output, result.exception)
    content = json.loads(out.read_text(encoding="utf-8"))
    assert len(content["digests"]["data"]) == 64 and set(content["digests"]) == {"data", "base", "teacher", "methods"}
    assert content["environment"]["libraries"]["torch"] and content["environment"]["threads"] >= 1
    assert content["environment"]["processor"] and content["git_commits"]
    assert out.with_suffix(".csv").read_text(encoding="utf-8") == csv_text(content)
    headings, line, *rows = markdown_table(content).splitlines()
    assert headings.startswith("| method | learning rate |") and set(line) <= set("|- ")
    assert [row.split(" | ")[0] for row in rows[:3]] == ["| base, untrained", "| forward KL", "| SFT"]
    assert "SFT" in result.stdout and "wrote" in result.stderr


def test_an_unknown_loss_and_a_pinned_base_that_is_not_there_are_refused_before_anything_is_trained(
    built: Workplace, trained: list[Any]
) -> None:
    with pytest.raises(SpecError, match="unknown loss 'hinge'"):
        run(built, methods(built, methods=[{"name": "a"}, {"name": "b", "distill": {"loss": "hinge"}}]))
    with pytest.raises(Exception, match="default-mini-base"):
        run_experiment(built.context(), "plants", "mini", methods(built), seeds=1, base="default-mini-base@9")
    assert trained == []


def test_without_a_validation_split_no_rate_can_be_chosen(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    original = experiment_module.make_dataset

    def without_validation(*arguments: Any) -> Any:
        data = original(*arguments)
        data.rows["validation"] = data.rows["validation"].select([])
        return data

    monkeypatch.setattr(experiment_module, "make_dataset", without_validation)
    with pytest.raises(DataError, match="plants has no validation split to choose learning rates on"):
        run(built, methods(built))


def test_a_change_of_the_loss_s_code_trains_anew(built: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = methods(built)
    bench = prepare(built.context(), "plants", "mini", spec, None)
    method = spec.methods[0]
    training_set, config = experiment_module.method_training_set(bench, method), method.config(bench.settings)
    before = run_module.run_key(bench, method, training_set, config, 0)
    assert before == run_module.run_key(bench, method, training_set, config, 0)
    monkeypatch.setattr(run_module.inspect, "getsource", lambda loss: "another")
    assert run_module.run_key(bench, method, training_set, config, 0) != before
