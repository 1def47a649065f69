"""``factory plan``, ``build``, ``list``, ``show``, ``compare`` and ``promote`` on a tiny factory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import tiny
from support.manifests import base_manifest, student_manifest
from support.workplace import Refused, Workplace, domain

from factory.registry.registry import Registry


def published(place: Workplace) -> list[str]:
    return [version.reference for version in Registry(place.root / "registry").versions()]


# ----------------------------------------------------------------------------------------------------------- plan, build


def test_plan_prints_every_step_and_the_total(with_models: Workplace) -> None:
    result = with_models.run("plan", "plants")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any(line.startswith("on disk") and "teacher" in line for line in lines)
    assert any(line.startswith("to do") and "student plants-mini" in line and "about" in line for line in lines)
    assert "in all" in lines[-1]
    assert published(with_models) == []


def test_plan_has_the_seconds_as_json(with_models: Workplace) -> None:
    content = json.loads(with_models.run("plan", "plants", "--json").stdout)
    assert content["seconds"] == pytest.approx(sum(step["seconds"] for step in content["steps"]))
    assert {step["state"] for step in content["steps"]} == {"on disk", "to do", "needs"}


def test_build_says_first_what_it_will_do_and_then_each_stage(built: Workplace) -> None:
    result = built.run("build", "stars", "--profile", "demo")
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    total = next(number for number, line in enumerate(lines) if line.startswith("about ") and line.endswith(" in all"))
    todo = next(number for number, line in enumerate(lines) if line.startswith("to do: student stars-mini (about "))
    stage = next(number for number, line in enumerate(lines) if line.startswith("stars: distill: 1 of 1 in "))
    done = next(number for number, line in enumerate(lines) if line.startswith("published stars-mini@1 in "))
    assert todo < total < stage < done
    assert not any(line.startswith("on disk") for line in lines)


def test_build_ends_with_the_main_metrics(built: Workplace) -> None:
    result = built.run("build", "plants", "--profile", "demo")
    text = result.stdout
    assert "plants-mini@" in text and "teacher" in text
    assert 5 < len(text.splitlines()) < 20


def test_build_prints_nothing_but_json_with_json(built: Workplace) -> None:
    result = built.run("build", "plants", "--profile", "demo", "--json")
    assert json.loads(result.stdout)[0]["domain"] == "plants"
    assert result.stderr == ""


def test_build_uses_the_base_that_is_named(built: Workplace, refused: Refused) -> None:
    result = built.run("build", "plants", "--base", "default-mini-base@1")
    assert "using default-mini-base@1 as --base asks" in result.stderr
    assert built.run("build", "plants", "--base", "plants-mini@1").exit_code == 2


def test_build_refuses_a_source_without_examples(with_models: Workplace, refused: Refused) -> None:
    source = {"id": "f", "kind": "file", "license": "mit", "path": "./none.jsonl"}
    with_models.write("plants.yaml", domain("plants", "oak") | {"sources": [source]})
    with_models.write("none.jsonl", "")
    assert "source 'f' (file) is empty" in refused(with_models.run("build", "plants"))
    assert published(with_models) == []


def test_build_refuses_a_data_set_that_is_too_small(with_models: Workplace, refused: Refused) -> None:
    with_models.write("plants.yaml", domain("plants", "oak elm"))
    line = refused(with_models.run("build", "plants"))
    assert "'plants' has" in line and "add templates" in line
    assert published(with_models) == []


def test_build_refuses_a_wrong_sha256(with_models: Workplace, refused: Refused) -> None:
    with_models.family["teacher"]["sha256"] = "0" * 64
    with_models.write_all()
    line = refused(with_models.run("build", "plants"))
    assert "sha256" in line and "0" * 64 in line
    assert published(with_models) == []


def test_build_refuses_a_base_with_another_vocabulary(with_models: Workplace, refused: Refused) -> None:
    other = tiny.tokenizer()
    other.add_tokens(["onemore"])
    model = tiny.llama(layers=2)
    model.resize_token_embeddings(len(other))
    model.save_pretrained(with_models.domains / "other")
    other.save_pretrained(with_models.domains / "other")
    with_models.family["sizes"]["mini"] = {"base": {"model": "path:./other", "license": "mit"}}
    with_models.write_all()
    assert "different vocabularies" in refused(with_models.run("build", "plants"))
    assert published(with_models) == []


# --------------------------------------------------------------------------------------------------- list, show, compare


def test_list_shows_student_and_base(built: Workplace) -> None:
    assert "plants-mini@1" in built.run("list").stdout
    rows = json.loads(built.run("list", "--json").stdout)
    assert {"plants-mini@1", "default-mini-base@1"} <= {row["reference"] for row in rows}


def test_list_source_finds_what_was_trained_on_it(built: Workplace) -> None:
    rows = json.loads(built.run("list", "--source", "stars-questions", "--json").stdout)
    assert {"plants-mini@1", "default-mini-base@1"} <= {row["reference"] for row in rows}  # through the base
    assert "nothing in" in built.run("list", "--source", "no-such-source").stdout


def test_list_of_an_empty_registry_says_what_fills_it(workplace: Workplace) -> None:
    result = workplace.run("list")
    assert result.exit_code == 0
    assert "factory build" in result.stdout


def test_show_prints_the_main_rows_and_all_metrics_on_request(built: Workplace) -> None:
    short, long = built.run("show", "plants-mini@1").stdout, built.run("show", "plants-mini@1", "--all-metrics").stdout
    assert len(short.splitlines()) < len(long.splitlines())
    assert "plants-questions" in long


def test_show_gives_the_manifest_as_json(built: Workplace) -> None:
    shown = json.loads(built.run("show", "plants-mini@1", "--json").stdout)
    assert shown["base"] == "default-mini-base@1"
    assert shown["evaluation"]["metrics"]["kl"]["n"] > 0


def test_compare_has_a_column_for_the_teacher_when_it_is_named(built: Workplace) -> None:
    assert json.loads(built.run("compare", "plants-mini@1", "--json").stdout)["columns"] == ["plants-mini@1"]
    both = built.run("compare", "plants-mini@1", "teacher", "default-mini-base@1", "--json")
    assert json.loads(both.stdout)["columns"] == ["plants-mini@1", "default-mini-base@1", "teacher"]
    assert "teacher" in built.run("compare", "plants-mini@1", "teacher").stdout


def test_compare_prints_more_rows_with_all_metrics(built: Workplace) -> None:
    few, all_of_them = built.run("compare", "plants-mini@1"), built.run("compare", "plants-mini@1", "--all-metrics")
    assert len(few.stdout.splitlines()) < len(all_of_them.stdout.splitlines())


def test_compare_writes_a_report_with_the_lineage(built: Workplace) -> None:
    page = built.root / "report.html"
    result = built.run("compare", "plants-mini@1", "--html", str(page))
    assert result.exit_code == 0 and f"wrote {page}" in result.stderr
    text = page.read_text(encoding="utf-8")
    assert "default-mini-base@1" in text and "<script" not in text


def test_a_matrix_of_the_teacher_alone_is_refused(built: Workplace, refused: Refused) -> None:
    assert "two or more students" in refused(built.run("compare", "teacher", "--matrix"))


def test_a_matrix_has_a_row_for_every_domain(built: Workplace) -> None:
    [stars] = json.loads(built.run("build", "stars", "--json").stdout)
    refs = ["plants-mini@1", f"stars-mini@{stars['version']}"]
    content = json.loads(built.run("compare", *refs, "--matrix", "--json").stdout)
    assert set(content) == {"plants", "stars"}
    assert "base" in content["plants"]["kl"] and isinstance(content["plants"]["own_is_best"], bool)
    assert "is its own adapter best?" in built.run("compare", *refs, "--matrix").stdout


# --------------------------------------------------------------------------------------------------------------- promote


GATE = {"metric": "kl", "of": "high", "bound": "at_most", "threshold": 0.8, "found": 0.9, "status": "failed"}
FAILED = {"status": "failed", "reasons": ["the upper end of kl is 0.9, at most 0.8 passes"], "gates": [GATE]}


def publish(place: Workplace, verdict: dict[str, Any]) -> str:
    """A student with that verdict, and its base; nobody built them."""
    registry = Registry(place.root / "registry")
    for manifest in (base_manifest(), student_manifest("ferns-mini", verdict=verdict)):
        with registry.stage(manifest.name) as folder:
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
            version = registry.publish(manifest, folder)
    return version.reference


def test_promote_moves_the_alias_that_a_bare_name_means(built: Workplace) -> None:
    publish(built, {"status": "passed"})
    assert built.run("promote", "ferns-mini@1").stdout == "ferns-mini@champion is now ferns-mini@1\n"
    answer = built.run("promote", "ferns-mini@1", "tried", "--json")
    assert json.loads(answer.stdout) == {"reference": "ferns-mini@1", "alias": "ferns-mini@tried"}


def test_promote_refuses_a_version_that_failed_its_gates_with_exit_code_3(workplace: Workplace) -> None:
    publish(workplace, FAILED)
    result = workplace.run("promote", "ferns-mini@1")
    assert result.exit_code == 3
    [line] = result.stderr.splitlines()
    assert "ferns-mini@1 failed its gates" in line and "0.9" in line and "0.8" in line
    assert Registry(workplace.root / "registry").aliases("ferns-mini") == {}


def test_an_override_is_recorded_and_says_what_the_bare_name_means(workplace: Workplace) -> None:
    publish(workplace, FAILED)
    result = workplace.run("promote", "ferns-mini@1", "--override", "the garden asked for it")
    assert result.exit_code == 0
    assert result.stdout.endswith("is now ferns-mini@1 despite its gates; ferns-mini alone means no version\n")
    publish(workplace, {"status": "passed"})
    result = workplace.run("promote", "ferns-mini@1", "--override", "the garden asked again")
    assert result.stdout.endswith("ferns-mini alone means ferns-mini@2\n")
    answer = json.loads(workplace.run("promote", "ferns-mini@1", "tried", "--override", "a third time", "--json").stdout)
    assert answer == {"reference": "ferns-mini@1", "alias": "ferns-mini@tried", "bare_name": "ferns-mini@2"}
    shown = workplace.run("show", "ferns-mini@champion", "--all-metrics").stdout
    assert all(words in shown for words in ("the garden asked for it", "the garden asked again", "a third time"))


def test_an_override_without_reason_or_failure_is_refused(workplace: Workplace, refused: Refused) -> None:
    publish(workplace, FAILED)
    publish(workplace, {"status": "passed"})
    assert "empty" in refused(workplace.run("promote", "ferns-mini@1", "--override", " "))
    assert "ferns-mini@2" in refused(workplace.run("promote", "ferns-mini@2", "--override", "to be sure"))
    assert Registry(workplace.root / "registry").aliases("ferns-mini") == {}
