"""The scripts run as the commands that they are; their benchmarks measure something on a tiny factory."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.workplace import Workplace

SCRIPTS = Path(__file__).parents[1] / "scripts"
EVERY = sorted([*SCRIPTS.glob("*.py"), *SCRIPTS.glob("bench/*.py")])
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("bench/seconds.py", "plants-mini")``: in this process; what it prints."""

    def run_script(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / name), *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return capsys.readouterr().out

    return run_script


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_help_explains_the_script(path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(str(path.relative_to(SCRIPTS)), "--help")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def saved(path: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["results"]
    return results


def test_planted_identifiers_are_found(built: Workplace, run: Run, tmp_path: Path) -> None:
    folders = ["--domains", built.domains, "--registry", built.root / "registry"]
    run("bench/planted.py", "plants", "--size", "mini", "--only", "identifiers", *folders, "--save", tmp_path / "saved.json")
    (line,) = saved(tmp_path / "saved.json")
    assert line["found"] and line["control_clean"]
    assert (line["with_it"], line["without_it"]) == ("email 1, phone 1", "none")


def test_a_busy_neighbour_is_measured_by_training_and_by_writing(run: Run) -> None:
    measured = json.loads(run("bench/busy.py", "--one", "--layers", 1, "--steps", 1))
    assert set(measured) == {"training step", "new tokens"} and min(measured.values()) > 0


def test_seconds_show_a_shared_base_once(built: Workplace, run: Run) -> None:
    table = run("bench/seconds.py", "plants-mini@1", "plants-mini@1", "--registry", built.root / "registry")
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| default-mini-base@1", "| plants-mini@1"]


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in rows]
    path.write_text("".join(lines), encoding="utf-8")


def save_bert(folder: Path) -> None:
    """An encoder with layers, which can be rounded."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=360, **shape)).save_pretrained(folder / "bert")
    tiny.tokenizer().save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(32)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)


def test_retrieval_is_measured_of_every_model_and_of_a_head_of_the_source(built: Workplace, run: Run, tmp_path: Path) -> None:
    data, texts = tmp_path / "data", list(dict.fromkeys(tiny.sentences(900)))
    third = len(texts) // 3
    for place, file in enumerate(("healthcare/medquad", "education/openstax_psychology", "legal/openstax_american_government")):
        own = texts[place * third : (place + 1) * third]
        write_rows(data / f"{file}.jsonl", list(zip(own[::2], own[1::2], strict=False))[: 30 if place == 2 else 90])
    write_rows(data / "legal/cuad_clauses.jsonl", [(f"Excerpt:\nparty {n}\n\nQuestion?", "") for n in range(40)])
    shutil.copytree(built.domains, tmp_path / "domains")
    shutil.rmtree(tmp_path / "domains" / "encoder")
    save_bert(tmp_path / "domains" / "encoder")
    folders = ["--domains", tmp_path / "domains", "--registry", built.root / "registry"]
    run("bench/retrieval.py", data, "plants-mini@1", "--fit", 50, "--texts", 40, *folders, "--save", tmp_path / "saved.json")
    report = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert {name: one["questions"] for name, one in report["sources"].items()} == {
        "MedQuAD": 40,
        "psychology": 40,
        "American government": 30,
    }
    assert all(one["texts"] == 40 and one["fitted_on"] == 50 for one in report["sources"].values())
    rows = report["sources"]["American government"]["rows"]
    models = ["encoder", "encoder, q8_0", "teacher", "base", "student"]
    assert list(rows) == [*models, "student with a head of this source"] and list(report["models"]) == models
    assert rows["encoder"]["alignment"]["value"] == pytest.approx(1)
    assert all(row["recall@1"]["value"] <= row["recall@10"]["value"] <= 1 for row in rows.values())
    assert report["models"]["encoder, q8_0"]["bytes"] < 0.4 * report["models"]["encoder"]["bytes"]


def test_retrieval_without_its_texts_says_so(run: Run, tmp_path: Path) -> None:
    line = run("bench/retrieval.py", tmp_path, "plants-mini@1")
    assert line == f"skipped: {tmp_path} lacks 4 of 4 files, the first is healthcare/medquad.jsonl\n"
