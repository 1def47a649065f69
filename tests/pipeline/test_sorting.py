"""A heap of texts, sorted into domains by the router."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.workplace import Workplace, domain

from factory.config.load import load_specs
from factory.pipeline.context import resolve_models
from factory.pipeline.sorting import sort_pool

HEAP: list[dict[str, Any]] = [
    {"prompt": "what is the price of oak ?"},
    {"prompt": "What is the price of  OAK ?"},
    {"prompt": "what is the cause of ivy ?", "completion": "the early signs of asthma ."},
    {"prompt": "what is the age of vega ?"},
    {"prompt": "shoe cup pen hat bag fork lamp sofa"},
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "what is the smell of moss ?"},
            {"role": "assistant", "content": "what a doctor may answer ."},
            {"role": "user", "content": "what is the name of fern ?"},
            {"role": "assistant", "content": "students learn to be brief ."},
        ]
    },
    {"text": "what is the weight of sirius ?"},
]


def heap(folder: Path) -> Path:
    path = folder / "heap.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in HEAP))
    return path


def run(place: Workplace, out: Path | None) -> dict[str, Any]:
    context = place.context()
    return sort_pool(context, resolve_models(context.family, context.specs.root, context.device), heap(place.root), out)


def test_every_text_goes_to_its_domain_or_to_none_as_it_came(built: Workplace, tmp_path: Path) -> None:
    found = run(built, tmp_path / "sorted")
    assert (found["texts"], found["duplicates"], found["other_languages"]["unknown"]) == (6, 1, {})
    assert {part["domain"]: part["texts"] for part in found["domains"]} == {"plants": 3, "stars": 2, None: 1}
    plants, _, none = found["domains"]
    assert all(one["nearest"] == "plants" and one["score"] > found["threshold"] for one in plants["samples"])
    assert [one["score"] for one in plants["samples"]] == sorted((one["score"] for one in plants["samples"]), reverse=True)
    assert none["samples"][0]["score"] < found["threshold"]

    written = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in (tmp_path / "sorted").iterdir()
    }
    rows = [row for part in written.values() for row in part]
    assert all(0 <= row.pop("score") <= 1 and row.pop("domain") for row in rows)
    assert {len(part) for part in written.values()} == {1, 2, 3} and len(rows) == 6
    assert all(row in HEAP for row in rows)  # word for word


def test_a_sorted_file_is_a_source_of_its_domain(built: Workplace, tmp_path: Path) -> None:
    run(built, tmp_path / "sorted")
    source = {"id": "heap", "kind": "file", "license": "MIT", "path": str(tmp_path / "sorted" / "plants.jsonl")}
    built.write("birds.yaml", domain("birds", "robin") | {"sources": [source]})
    context = built.context()
    from factory.pipeline.dataset import load_domain_examples

    models = resolve_models(context.family, context.specs.root, context.device)
    examples = load_domain_examples(context, models, load_specs(built.domains).domain("birds").sources)
    assert sorted(one.prompt.split()[-2] for one in examples) == ["fern", "ivy", "moss", "oak"]
    (built.domains / "birds.yaml").unlink()


def test_the_command_prints_counts_and_samples(built: Workplace, tmp_path: Path) -> None:
    shown = built.run("data", "--pool", str(heap(tmp_path)))
    assert shown.exit_code == 0, shown.output
    assert "3 texts (50%)" in shown.stdout and "none is below a score of" in shown.stdout
    content = json.loads(built.run("data", "--pool", str(heap(tmp_path)), "--json").stdout)
    assert content["texts"] == 6


def test_a_heap_may_be_a_pattern_or_a_folder_of_rows_and_documents(
    built: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "heap").mkdir()
    for number, row in enumerate(HEAP):
        (tmp_path / "heap" / f"{number}.jsonl").write_text(json.dumps(row))
    assert json.loads(built.run("data", "--pool", "~/heap/*.jsonl", "--json").stdout)["texts"] == 6
    (tmp_path / "heap" / "note.txt").write_text("what is the name of deneb ?")
    assert json.loads(built.run("data", "--pool", str(tmp_path / "heap"), "--json").stdout)["texts"] == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pool", "nowhere.jsonl"], "no file nowhere.jsonl; in "),
        (["--pool", "nowhere/*.jsonl"], "no file matches nowhere/*.jsonl; in "),
        (["--pool", "HEAP", "--out", "DOMAINS"], "exists: name a folder that does not"),
        ([], "give a domain, or --pool PATH"),
        (["plants", "--pool", "HEAP"], "give a domain, or --pool PATH"),
        (["--pool", "HEAP", "--dry-run"], "give a domain, or --pool PATH"),
        (["plants", "--out", "sorted"], "give a domain, or --pool PATH"),
    ],
)
def test_what_cannot_be_sorted_is_one_line(built: Workplace, tmp_path: Path, arguments: list[str], said: str) -> None:
    places = {"HEAP": str(heap(tmp_path)), "DOMAINS": str(built.domains)}
    result = built.run("data", *(places.get(one, one) for one in arguments))
    assert result.exit_code in (1, 2) and said in " ".join(result.stderr.replace("│", " ").split())
    assert not Path("sorted").exists()
