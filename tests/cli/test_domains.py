"""``factory new``, ``validate``, ``data`` and ``route`` on a tiny factory."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.workplace import PLANTS, THINGS, Refused, Workplace, domain
from typer.testing import CliRunner

from factory.cache import home
from factory.cli import app
from factory.models.teacher import Teacher

# --------------------------------------------------------------------------------------------------------- new, validate

GERMAN = "Welche Bäume wachsen in diesem Garten am schnellsten?"


def test_new_writes_a_domain_that_can_be_planned_as_it_is(with_models: Workplace) -> None:
    result = with_models.run("new", "home-brewing")
    assert result.exit_code == 0
    assert "factory build home-brewing" in result.stdout
    assert yaml.safe_load((with_models.domains / "home-brewing.yaml").read_text())["name"] == "home-brewing"
    assert with_models.run("validate").exit_code == 0
    assert "student home-brewing-mini" in with_models.run("plan", "home-brewing").stdout


def test_new_prints_the_path_as_json(workplace: Workplace) -> None:
    content = json.loads(workplace.run("new", "veterinary", "--json").stdout)
    assert content == {"path": str(workplace.domains / "veterinary.yaml")}


def test_validate_counts_what_it_checked(workplace: Workplace) -> None:
    assert "files 4, domains 2, families 1, pools 1" in workplace.run("validate").stdout
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


def test_an_unknown_key_is_named_with_file_line_and_the_likely_one(workplace: Workplace, refused: Refused) -> None:
    workplace.write("plants.yaml", domain("plants", "oak elm ash") | {"distil": {}})
    line = refused(workplace.run("validate"))
    assert line.startswith(f"error: {workplace.domains / 'plants.yaml'}:")
    assert "did you mean distill?" in line


def test_mistakes_are_printed_as_json_too(workplace: Workplace) -> None:
    workplace.write("plants.yaml", domain("plants", "oak elm ash") | {"distil": {}, "gates": {"klx": {"at_most": 1}}})
    (workplace.domains / "vet.yml").touch()
    result = workplace.run("validate", "--json")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 2
    report = json.loads(result.stdout)
    assert report["valid"] is False
    assert report["mistakes"] == [
        {
            "file": str(workplace.domains / "plants.yaml"),
            "line": 25,
            "key": "distil",
            "message": "unknown key; did you mean distill?",
        },
        {
            "file": str(workplace.domains / "vet.yml"),
            "line": None,
            "key": "",
            "message": "files here end in .yaml; rename it to vet.yaml",
        },
    ]
    (workplace.domains / "vet.yml").unlink()
    workplace.write("plants.yaml", domain("plants", "oak elm ash") | {"gates": {"klx": {"at_most": 1}}})
    [mistake] = json.loads(workplace.run("validate", "--json").stdout)["mistakes"]
    assert (mistake["key"], mistake["message"]) == ("gates.klx", "no such metric; did you mean kl?")


def test_a_folder_without_anything_to_build_is_said_as_json_too(workplace: Workplace) -> None:
    for name in ("plants.yaml", "stars.yaml"):
        (workplace.domains / name).unlink()
    [mistake] = json.loads(workplace.run("validate", "--json").stdout)["mistakes"]
    assert mistake["file"] == str(workplace.domains) and "has no domains, so nothing can be built" in mistake["message"]


def test_every_mistake_of_every_file_has_its_own_line(workplace: Workplace) -> None:
    workplace.write("plants.yaml", domain("plants", "oak elm ash") | {"distil": {}})
    workplace.write("stars.yaml", domain("planets", "mars"))
    result = workplace.run("validate")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 2


def test_fix_renames_old_keys_and_says_which(workplace: Workplace) -> None:
    (workplace.domains / "check.jsonl").write_text('{"prompt": "What is it?", "contains": ["it"]}\n')
    workplace.write("plants.yaml", domain("plants", "oak elm ash") | {"acceptance": "check.jsonl"})
    assert "golden_set" in workplace.run("validate").stderr
    result = workplace.run("validate", "--fix")
    assert result.exit_code == 0 and "golden_set: check.jsonl" in result.stderr


# ----------------------------------------------------------------------------------------------------------- data, route


def test_data_previews_counts_reasons_sources_and_rows(built: Workplace) -> None:
    content = json.loads(built.run("data", "plants", "--json").stdout)
    assert content["counts"]["train"] == 24
    assert content["dropped"]["held_out_combination"] > 0
    assert content["own_answers"] == 0
    [source] = content["sources"]
    assert (source["id"], source["license"]) == ("plants-questions", "apache-2.0")
    assert len(content["samples"]) == 5
    [targets] = content["soft_targets"]
    assert targets["bytes"] > 0 and targets["teacher_seconds"] > 0
    assert "24 train examples" in content["too_small"]
    assert content["other_languages"]["unknown"] == {} and content["other_languages"]["texts"] >= 24


def test_data_prints_the_preview_as_a_table(built: Workplace) -> None:
    text = built.run("data", "plants").stdout
    assert "0 of sources, " in text and "combinations of held-out templates or values" in " ".join(text.split())
    words = (
        "kept",
        "dropped",
        "other languages",
        "plants-questions",
        "refusals kept",
        "router disagrees",
        "soft targets",
        "too small",
    )
    assert all(word in text for word in words)


def test_data_names_a_missing_source_file(with_models: Workplace, refused: Refused) -> None:
    source = {"id": "f", "kind": "file", "license": "mit", "path": "./nowhere.jsonl"}
    with_models.write("plants.yaml", domain("plants", "oak") | {"sources": [source]})
    assert "nowhere.jsonl" in refused(with_models.run("data", "plants"))


def test_the_data_of_a_domain_need_no_other_file_but_those_of_families_and_pools(built: Workplace, refused: Refused) -> None:
    stars = built.domains / "stars.yaml"
    before = stars.read_text()
    stars.write_text("name: [")
    result = built.run("data", "plants", "--json")
    assert json.loads(result.stdout)["domain"] == "plants"
    assert result.stderr.splitlines() == [f"warning: {stars}: left out for mistakes, which `factory validate` lists"]
    assert "stars.yaml:1: not valid YAML" in refused(built.run("data", "stars"))
    assert "stars.yaml:1: not valid YAML" in refused(built.run("plan", "plants"))  # a base is made of every public domain
    stars.write_text(before)


def book(sentences: int) -> str:
    """Running text in words that the tiny tokenizer knows; no two sentences are alike."""
    choose = random.Random(0)
    return " ".join(f"{' '.join(choose.sample(THINGS, 8))} ." for _ in range(sentences))


def test_a_single_long_document_becomes_a_data_set_and_it_is_said_how_it_was_split(with_models: Workplace) -> None:
    (with_models.root / "handbook").mkdir()
    (with_models.root / "handbook" / "leave.txt").write_text(book(80))
    source = {"id": "handbook", "kind": "documents", "license": "mit", "path": "../handbook", "chunk_tokens": 16}
    with_models.write("plants.yaml", domain("plants", "oak") | {"sources": [source]})
    result = with_models.run("data", "plants", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert all(count >= 2 for count in content["counts"].values()) and content["counts"]["train"] >= 20
    assert content["dropped"]["next_to_held_out"] > 0
    shown = with_models.run("data", "plants", "--seed", "1")
    said = "handbook: 1 document, fewer than 4, so no whole one is held out: validation and test are some of "
    assert [line for line in shown.stderr.splitlines() if line.startswith(said)], shown.stderr


def test_a_dry_run_reads_and_splits_as_a_data_set_does_and_asks_and_keeps_nothing(
    with_models: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the teacher was asked")

    [questions] = domain("plants", PLANTS)["sources"]
    (with_models.root / "rows.jsonl").write_text('{"t": "what is", "b": "the use of wren ?", "a": "the early signs ."}\n')
    rows = {"id": "rows", "kind": "file", "license": "mit", "path": "../*.jsonl", "prompt": "{t} {b}", "completion": "a"}
    magpie = {"id": "magpie", "kind": "teacher_prompts", "license": "mit", "count": 5}
    with_models.write("plants.yaml", domain("plants", PLANTS) | {"sources": [questions, rows, magpie]})
    monkeypatch.setattr(Teacher, "complete", ask)
    monkeypatch.setattr(Teacher, "write_prompts", ask)
    before = {path for path in home().rglob("*") if path.parent.name == "data"}
    shown = with_models.run("data", "plants", "--dry-run")
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.stdout.split())
    assert "plants, as it would be: nothing was asked or kept" in text and "1 of sources, " in text
    assert "magpie: the teacher writes its prompts" in text and "rows: 1 examples, mit" in text
    assert {path for path in home().rglob("*") if path.parent.name == "data"} == before
    dry = json.loads(with_models.run("data", "plants", "--dry-run", "--json").stdout)
    assert dry["dry_run"] and dry["counts"]["train"] == 24 and dry["left_out"] == ["magpie"]


def test_route_names_a_domain_with_score_and_threshold(built: Workplace) -> None:
    result = json.loads(built.run("route", "what is the use of oak ?", "--json").stdout)
    assert set(result) == {"domain", "score", "threshold", "scores", "router"}
    assert result["domain"] == "plants"
    shown = built.run("route", "what is the use of oak ?")
    assert shown.stdout.startswith("plants   score 0.") and "warning" not in shown.stderr


def test_route_says_a_language_that_encoder_and_teacher_do_not_know(built: Workplace) -> None:
    shown = built.run("route", GERMAN)
    assert shown.stdout.count("\n") == 1
    assert shown.stderr.endswith(
        "warning: the text seems to be in de, which the encoder (en) and the teacher (en) do not know\n"
    )
    result = json.loads(built.run("route", GERMAN, "--json").stdout)
    assert (result["language"], result["unknown_to"]) == ("de", ["encoder", "teacher"])
