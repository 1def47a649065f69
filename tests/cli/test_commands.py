"""Commands as a user types them, on a tiny factory: what they print, and one clear line for whatever is wrong."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import tiny
from support.workplace import Refused, Workplace, domain
from typer.testing import CliRunner

import factory.distill.target_store
import factory.pipeline.base
from factory.cli.commands import app
from factory.distill.target_store import SoftTargetStore
from factory.pipeline.build import Factory
from factory.registry.registry import Registry


def published(place: Workplace) -> list[str]:
    return [version.reference for version in Registry(place.root / "registry").versions()]


# ------------------------------------------------------------------------------------------------ a published student


def test_list_shows_student_and_base(built: Workplace) -> None:
    assert "plants-mini@1" in built.run("list").stdout
    rows = json.loads(built.run("list", "--json").stdout)
    assert [row["reference"] for row in rows] == ["plants-mini@1", "default-mini-base@1"]


def test_list_source_finds_what_was_trained_on_it(built: Workplace) -> None:
    rows = json.loads(built.run("list", "--source", "stars-questions", "--json").stdout)
    assert [row["reference"] for row in rows] == ["plants-mini@1", "default-mini-base@1"]  # through the base
    assert "nothing in" in built.run("list", "--source", "no-such-source").stdout


def test_list_of_an_empty_registry_says_what_fills_it(workplace: Workplace) -> None:
    result = workplace.run("list")
    assert result.exit_code == 0
    assert "factory build" in result.stdout


def test_show_gives_everything_about_one_version(built: Workplace) -> None:
    assert "plants-questions" in built.run("show", "plants-mini").stdout
    shown = json.loads(built.run("show", "plants-mini@1", "--json").stdout)
    assert shown["base"] == "default-mini-base@1"
    assert shown["evaluation"]["metrics"]["kl"]["n"] > 0


def test_compare_has_a_column_for_the_teacher_when_it_is_named(built: Workplace) -> None:
    assert json.loads(built.run("compare", "plants-mini", "--json").stdout)["columns"] == ["plants-mini@1"]
    both = built.run("compare", "plants-mini", "teacher", "default-mini-base", "--json")
    assert json.loads(both.stdout)["columns"] == ["plants-mini@1", "default-mini-base@1", "teacher"]
    assert "teacher" in built.run("compare", "plants-mini", "teacher").stdout


def test_ask_says_which_version_answered(built: Workplace) -> None:
    result = built.run("ask", "plants-mini", "what is the age of oak ?")
    assert result.exit_code == 0
    assert "plants-mini@1" in result.stderr
    assert "plants-mini@1" not in result.stdout
    assert json.loads(built.run("ask", "plants-mini", "what is it ?", "--json").stdout)["reference"] == "plants-mini@1"


def test_ask_works_for_the_teacher_and_a_base(built: Workplace) -> None:
    assert "teacher path:./teacher" in built.run("ask", "teacher", "what is the age of oak ?").stderr
    assert "default-mini-base@1" in built.run("ask", "default-mini-base", "what is the age of oak ?").stderr


def test_an_empty_question_is_a_usage_error(built: Workplace) -> None:
    result = built.run("ask", "plants-mini", " ")
    assert (result.exit_code, "error: the question is empty" in result.stderr) == (2, True)


def test_explain_prints_both_distributions(built: Workplace) -> None:
    result = built.run("explain", "plants-mini", "what is the")
    assert result.exit_code == 0
    assert "KL(teacher ‖ student)" in result.stdout
    assert len(json.loads(built.run("explain", "plants-mini", "what is the", "--json").stdout)["student"]) == 10


def test_route_names_a_domain_with_score_and_threshold(built: Workplace) -> None:
    result = json.loads(built.run("route", "what is the colour of oak ?", "--json").stdout)
    assert set(result) == {"domain", "score", "threshold", "scores", "router"}
    assert result["domain"] == "plants"
    assert built.run("route", "what is the colour of oak ?").stdout.startswith("plants   score 0.")


def test_data_previews_counts_reasons_sources_and_rows(built: Workplace) -> None:
    content = json.loads(built.run("data", "plants", "--json").stdout)
    assert content["counts"]["train"] == 24
    assert content["dropped"]["held_out_combination"] > 0
    assert content["sources"] == [{"id": "plants-questions", "license": "apache-2.0", "n": 42}]
    assert len(content["samples"]) == 5
    [targets] = content["soft_targets"]
    assert targets["bytes"] > 0 and targets["teacher_seconds"] > 0
    assert "24 train examples" in content["too_small"]
    text = built.run("data", "plants").stdout
    assert all(
        word in text for word in ("kept", "dropped", "plants-questions", "refusals kept", "router disagrees", "soft targets")
    )


def test_build_prints_the_comparison_and_a_line_a_stage(built: Workplace) -> None:
    result = built.run("build", "stars", "--profile", "demo")
    assert result.exit_code == 0
    assert "stars: distill: 1 of 1 in" in result.stderr  # the profile's one step
    assert "published stars-mini@1" in result.stderr
    assert "stars-mini@1" in result.stdout


def test_promote_moves_the_alias_that_a_bare_name_means(built: Workplace) -> None:
    assert built.run("promote", "plants-mini@1").stdout == "plants-mini@champion is now plants-mini@1\n"
    answer = built.run("promote", "plants-mini@1", "tried", "--json")
    assert json.loads(answer.stdout) == {"reference": "plants-mini@1", "alias": "plants-mini@tried"}


def publish(place: Workplace, verdict: Any) -> str:
    registry = Registry(place.root / "registry")
    with registry.stage("ferns-mini") as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        return registry.publish("student", "ferns-mini", folder, {"verdict": verdict}).reference


FAILED_GATE = {"metric": "kl", "of": "high", "bound": "at_most", "threshold": 0.8, "found": 0.9, "passed": False}
FAILED = {"status": "failed", "reasons": [], "gates": [FAILED_GATE]}


def test_promote_refuses_a_version_that_failed_its_gates_with_exit_code_2(workplace: Workplace) -> None:
    publish(workplace, FAILED)
    result = workplace.run("promote", "ferns-mini@1")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ferns-mini@1 failed its gates, so champion stays where it is: ")
    assert "upper end of kl is 0.9, at most 0.8 passes" in line
    assert Registry(workplace.root / "registry").aliases("ferns-mini") == {}


def test_an_override_is_kept_and_says_what_the_bare_name_means(workplace: Workplace) -> None:
    publish(workplace, FAILED)
    result = workplace.run("promote", "ferns-mini@1", "--override", "the garden asked for it")
    assert result.exit_code == 0
    assert result.stdout.startswith("ferns-mini@champion is now ferns-mini@1, against its gates; ferns-mini alone means")
    assert "means nothing: ferns-mini has no sound version" in result.stdout
    publish(workplace, {"status": "passed"})
    result = workplace.run("promote", "ferns-mini@1", "--override", "the garden asked again")
    assert result.stdout.endswith("ferns-mini alone still means ferns-mini@2\n")
    answer = json.loads(workplace.run("promote", "ferns-mini@1", "tried", "--override", "a third time", "--json").stdout)
    assert answer == {"reference": "ferns-mini@1", "alias": "ferns-mini@tried", "bare_name": "ferns-mini@2"}
    shown = " ".join(workplace.run("show", "ferns-mini@champion").stdout.split())
    assert all(words in shown for words in ("the garden asked for it", "asked again", "a third time", "kl is 0.9, at most 0.8"))


def test_an_override_without_reason_or_failure_is_refused(workplace: Workplace, refused: Refused) -> None:
    publish(workplace, FAILED)
    publish(workplace, {"status": "unchecked"})
    assert "is empty" in refused(workplace.run("promote", "ferns-mini@1", "--override", " "))
    line = refused(workplace.run("promote", "ferns-mini@2", "--override", "to be sure"))
    assert "nothing to override: ferns-mini@2 is unchecked" in line
    assert workplace.run("promote", "ferns-mini@1", "--force").exit_code == 2  # no such option any more
    assert Registry(workplace.root / "registry").aliases("ferns-mini") == {}


def test_useful_measures_everyone_on_the_same_real_questions(built: Workplace) -> None:
    rows = [{"prompt": f"what is the use of {tree} ?", "response": "its light is the answer"} for tree in ("oak", "elm", "fir")]
    questions = built.root / "real.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = built.run("useful", "plants-mini@1", "--questions", str(questions), "--against", "default", "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(found) == ["student", "base", "sft", "teacher", "teacher, with its context", "default's teacher"]
    assert {row["bits_per_byte"]["n"] for row in found.values()} == {3 * len("its light is the answer")}
    assert found["teacher"]["bits_per_byte"] == found["default's teacher"]["bits_per_byte"]  # the same model twice
    assert found["student"]["student_below"] is None and found["base"]["student_below"]["n"] > 0
    assert found["student"]["parameters"] < found["teacher"]["parameters"]
    assert "bits per byte" in built.run("useful", "plants-mini@1", "--questions", str(questions)).stdout


def test_compare_writes_one_page_with_the_lineage(built: Workplace) -> None:
    page = built.root / "report.html"
    result = built.run("compare", "plants-mini@1", "--html", str(page))
    assert result.exit_code == 0 and f"wrote {page}" in result.stderr
    text = page.read_text(encoding="utf-8")
    assert "default-mini-base@1" in text and "<script" not in text


def test_nothing_but_json_is_printed_with_json(built: Workplace) -> None:
    result = built.run("build", "plants", "--profile", "demo", "--json")
    assert json.loads(result.stdout)[0]["domain"] == "plants"
    assert result.stderr == ""


# ------------------------------------------------------------------------------------------------------------ bad input


def test_an_unknown_key_is_named_with_file_line_and_the_likely_one(workplace: Workplace, refused: Refused) -> None:
    workplace.write("plants.yaml", domain("plants", "oak elm ash") | {"distil": {}})
    line = refused(workplace.run("validate"))
    assert line.startswith(f"error: {workplace.domains / 'plants.yaml'}:")
    assert "did you mean distill?" in line


def test_every_mistake_of_every_file_has_its_own_line(workplace: Workplace) -> None:
    workplace.write("plants.yaml", domain("plants", "oak elm ash") | {"distil": {}})
    workplace.write("stars.yaml", domain("planets", "mars"))
    result = workplace.run("validate")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 2


def test_a_missing_source_file_is_named(with_models: Workplace, refused: Refused) -> None:
    source = {"id": "f", "kind": "file", "license": "mit", "path": "./nowhere.jsonl"}
    with_models.write("plants.yaml", domain("plants", "oak") | {"sources": [source]})
    assert "nowhere.jsonl" in refused(with_models.run("data", "plants"))


def test_a_data_set_without_examples_is_refused(with_models: Workplace, refused: Refused) -> None:
    source = {"id": "f", "kind": "file", "license": "mit", "path": "./none.jsonl"}
    with_models.write("plants.yaml", domain("plants", "oak") | {"sources": [source]})
    with_models.write("none.jsonl", "")
    assert "source 'f' (file) is empty" in refused(with_models.run("build", "plants"))
    assert published(with_models) == []


def test_a_data_set_too_small_to_train_on_is_refused(with_models: Workplace, refused: Refused) -> None:
    with_models.write("plants.yaml", domain("plants", "oak elm"))
    line = refused(with_models.run("build", "plants"))
    assert "'plants' has" in line
    assert "add templates" in line
    assert published(with_models) == []


@pytest.mark.parametrize("command", ["build", "data"])
def test_an_unknown_domain_is_said_with_those_that_exist(workplace: Workplace, refused: Refused, command: str) -> None:
    assert "did you mean plants?" in refused(workplace.run(command, "plant"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "huge"], "sizes in"),
        (["--family", "llama"], "unknown family 'llama'"),
        (["--profile", "quick"], "it has: default, demo"),
    ],
)
def test_an_unknown_size_family_or_profile_is_one_line(
    workplace: Workplace, refused: Refused, arguments: list[str], words: str
) -> None:
    assert words in refused(workplace.run("build", "plants", *arguments))


def test_a_wrong_sha256_stops_the_build(with_models: Workplace, refused: Refused) -> None:
    with_models.family["teacher"]["sha256"] = "0" * 64
    with_models.write_all()
    line = refused(with_models.run("build", "plants"))
    assert "sha256" in line
    assert "0" * 64 in line
    assert published(with_models) == []


def test_a_base_with_another_vocabulary_is_refused(with_models: Workplace, refused: Refused) -> None:
    other = tiny.tokenizer()
    other.add_tokens(["onemore"])
    tiny.llama(layers=2).save_pretrained(with_models.domains / "other")
    other.save_pretrained(with_models.domains / "other")
    with_models.family["sizes"]["mini"] = {"base": {"model": "path:./other", "license": "mit"}}
    with_models.write_all()
    assert "different vocabularies" in refused(with_models.run("build", "plants"))
    assert published(with_models) == []


@pytest.mark.parametrize(
    ("command", "rest"), [("new", []), ("build", []), ("data", []), ("show", []), ("ask", ["x"]), ("promote", [])]
)
def test_a_name_with_a_path_in_it_is_refused(workplace: Workplace, refused: Refused, command: str, rest: list[str]) -> None:
    before = sorted(workplace.root.rglob("*"))
    assert "../plants" in refused(workplace.run(command, "../plants", *rest))
    assert sorted(workplace.root.rglob("*")) == before


def test_embeddings_are_made_once_and_anew_where_they_are_damaged(
    with_models: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    materials = with_models.factory()
    data = materials.data("plants")
    made = np.array(materials.embeddings(data))
    np.testing.assert_array_equal(made, materials.embed_rows(data.rows["train"]))
    with monkeypatch.context() as patched:
        patched.setattr(Factory, "embed_rows", None)
        np.testing.assert_array_equal(materials.embeddings(data), made)
    (path,) = data.folder.glob("embeddings-*.npy")
    path.write_bytes(path.read_bytes()[:-4])
    np.testing.assert_array_equal(materials.embeddings(data), made)


def test_a_further_size_of_as_many_tokens_asks_the_teacher_for_no_targets(
    with_models: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_models.family["sizes"]["short"] = {"layers": 1, "vocabulary": 340}
    with_models.write_all()
    assert with_models.run("build", "plants").exit_code == 0
    monkeypatch.setattr(factory.distill.target_store, "score", None)
    result = with_models.run("build", "plants", "--size", "short")
    assert result.exit_code == 0, (result.output, result.exception)
    manifest = Registry(with_models.root / "registry").resolve("plants-short").manifest
    assert manifest.soft_targets.saved_seconds == manifest.soft_targets.teacher_seconds > 0


def test_a_full_disk_while_publishing_leaves_nothing_half_made(
    with_models: Workplace, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(base: Any, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "model.safetensors"))

    with monkeypatch.context() as patched:
        patched.setattr(factory.pipeline.base, "save_base", write_half)
        line = refused(with_models.run("build", "plants"))
    assert str(with_models.root / "registry") in line
    assert published(with_models) == []
    assert list((with_models.root / "registry" / ".staging").iterdir()) == []
    assert with_models.run("build", "plants").exit_code == 0  # the same command, with space again


def test_a_full_disk_anywhere_else_is_one_line_with_the_folder(
    with_models: Workplace, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "targets.npz"))

    monkeypatch.setattr(SoftTargetStore, "make", make)
    line = refused(with_models.run("build", "plants"))
    assert str(with_models.root / "home" / "targets") in line
    assert "FACTORY_HOME" in line


def test_ctrl_c_says_that_the_same_command_goes_on(with_models: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Factory, "student", interrupted)
    result = with_models.run("build", "plants")
    assert result.exit_code == 130
    assert "the same command goes on from here" in result.stderr


def test_a_bug_keeps_its_traceback(with_models: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Factory, "student", broken)
    assert isinstance(with_models.run("build", "plants").exception, ZeroDivisionError)


@pytest.mark.parametrize("arguments", [["build"], ["build", "plants", "--all"], ["ask", "plants-mini"], ["nonsense"]])
def test_a_misused_command_is_exit_code_2(workplace: Workplace, arguments: list[str]) -> None:
    assert workplace.run(*arguments).exit_code == 2


# ----------------------------------------------------------------------------------------------------- validate and new


def test_validate_counts_what_it_checked(workplace: Workplace) -> None:
    assert "4 files, 2 domains, 1 families, 1 pools" in workplace.run("validate").stdout
    counts = json.loads(workplace.run("validate", "--json").stdout)
    assert counts == {"valid": True, "files": 4, "domains": 2, "families": 1, "pools": 1}


@pytest.mark.parametrize("missing", ["plants.yaml stars.yaml", "default.family.yaml"])
def test_validate_fails_where_nothing_can_be_built(workplace: Workplace, refused: Refused, missing: str) -> None:
    for name in missing.split():
        (workplace.domains / name).unlink()
    assert "nothing can be built" in refused(workplace.run("validate"))


def test_validate_fails_in_a_folder_without_yaml(tmp_path: Path, refused: Refused) -> None:
    assert "no *.yaml" in refused(CliRunner().invoke(app, ["validate", "--domains", str(tmp_path)]))


def test_the_shipped_domains_are_valid() -> None:
    shipped = Path(__file__).parents[2] / "domains"
    result = CliRunner().invoke(app, ["validate", "--domains", str(shipped)])
    assert result.exit_code == 0, result.stderr


def test_new_writes_a_domain_that_builds_as_it_is(with_models: Workplace) -> None:
    result = with_models.run("new", "home-brewing")
    assert result.exit_code == 0
    assert "factory build home-brewing" in result.stdout
    assert yaml.safe_load((with_models.domains / "home-brewing.yaml").read_text())["name"] == "home-brewing"
    assert with_models.run("validate").exit_code == 0
    assert with_models.run("build", "home-brewing").exit_code == 0
    assert "home-brewing-mini@1" in published(with_models)


def test_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("student-factory ")
