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
import yaml
from support import tiny
from support.workplace import Workplace

SCRIPTS = Path(__file__).parents[1] / "scripts"
EVERY = sorted([*SCRIPTS.glob("*.py"), *SCRIPTS.glob("bench/*.py")])
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("bench/seconds.py", "plants-mini")``: in this process, its folder on the path as Python puts it; what it prints."""

    def run_script(name: str, *arguments: object) -> str:
        monkeypatch.syspath_prepend((SCRIPTS / name).parent)
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


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
        pairs = [{"prompt": prompt, "response": answer} for prompt, answer in zip(own[::2], own[1::2], strict=False)]
        write_rows(data / f"{file}.jsonl", pairs[: 30 if place == 2 else 90])
    excerpts = [{"prompt": f"Excerpt:\nparty {n}\n\nQuestion?", "response": ""} for n in range(40)]
    write_rows(data / "legal/cuad_clauses.jsonl", excerpts)
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


def test_real_questions_share_no_topic_question_or_answer_between_training_and_test(run: Run, tmp_path: Path) -> None:
    answer = "an answer of more words than a mere label has, number"
    rows = [
        {
            "id": str(n),
            "prompt": f"Question {n % 390}?",
            "response": f"{answer} {n % 380}",
            "kind": "a",
            "qtype": "a",
            "category": "a",
        }
        for n in range(400)
    ]
    rows = [row | {topic: f"topic {n // 8}" for topic in ("focus", "module", "contract")} for n, row in enumerate(rows)]
    options = {"prompt": "Which?\nA. red\nB. blue\nC. green", "response": "B. blue"}
    rows += [rows[0] | options | {"id": f"o{n}", topic: f"own {n}"} for n, topic in enumerate(("focus", "module", "contract"))]
    for file in runpy.run_path(str(SCRIPTS / "bench/references.py"))["FILES"].values():
        write_rows(tmp_path / "data" / file.file, rows)
    run("bench/references.py", tmp_path / "data", tmp_path / "my")
    train, test = (read_rows(tmp_path / "my" / f"medquad{kind}.jsonl") for kind in ("", ".test"))
    assert len(test) == 200 and train
    for field in ("focus", "prompt", "response"):
        assert not {row[field] for row in train if row["response"] != "B. blue"} & {row[field] for row in test}
    tasks = read_rows(tmp_path / "my/evals/medquad.task.jsonl")
    own = {row["prompt"]: {other["response"] for other in test if other["prompt"] == row["prompt"]} for row in test}
    for task in tasks:
        assert task["choices"][task["answer"]] in own[task["question"]]
        assert len(set(task["choices"])) == len(task["choices"])


def test_real_questions_need_their_files(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("bench/references.py", tmp_path, tmp_path / "my")
    assert not ended.value.code and not (tmp_path / "my").exists()
    assert "lacks healthcare/medquad.jsonl" in capsys.readouterr().out


def test_students_stand_beside_their_teacher_at_equal_bytes(built: Workplace, run: Run, tmp_path: Path) -> None:
    folders = ["--domains", built.domains, "--registry", built.root / "registry"]
    run("bench/equal_bytes.py", "plants-mini@1", *folders, "--save", tmp_path / "rows.json", "--plot", tmp_path / "rows.svg")
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert {row["quantization"] for row in rows} == {"q4_1", "q5_1", "q8_0"}
    teacher = {row["quantization"]: row for row in rows if row["name"] == "teacher, with its context"}
    assert teacher["q4_1"]["bytes"] < teacher["q5_1"]["bytes"] < teacher["q8_0"]["bytes"]
    assert teacher["q8_0"]["metrics"]["kl_whole_teacher"]["value"] < teacher["q4_1"]["metrics"]["kl_whole_teacher"]["value"]
    assert "<svg" in (tmp_path / "rows.svg").read_text(encoding="utf-8")


def test_a_storm_loses_and_crosses_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of what the benchmark does for ten minutes, on tiny students."""
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    run("bench/load.py", "--minutes", 1 / 6, "--save", tmp_path / "saved.json")
    report = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert report["wrong"] == []
    assert set(report["answers"]) <= {"200", "429"} and report["answers"]["200"] > 10
    assert set(report["nonsense"]) <= {"400", "404", "413", "422", "429", "ClientOSError"}
    assert report["left"] and sum(report["nonsense"].values())
    assert report["latency"]["after"][0] < 10 * report["latency"]["before"][0] + 0.5


def test_a_teacher_is_compared_with_itself_behind_an_api(with_models: Workplace, run: Run, tmp_path: Path) -> None:
    saved_to = tmp_path / "saved.json"
    few = ["--examples", 40, "--steps", 4, "--domains", with_models.domains]
    run("bench/api_teacher.py", "plants", *few, "--save", saved_to)
    found = json.loads(saved_to.read_text())
    assert found["kl"].keys() == {"here", "api", "texts"} and found["behind_here"].keys() == {"api", "texts"}
    assert found["account"]["requests"] > 0 == found["account"]["uncounted"]
    counted = found["account"]["prompt_tokens"] + found["account"]["completion_tokens"]
    assert counted == found["account"]["server_tokens"]


def test_neighbouring_subjects_are_told_apart_by_questions_that_no_template_has(
    built: Workplace, run: Run, tmp_path: Path
) -> None:
    found = json.loads(run("bench/subjects.py", "--domains", built.domains, "--json", tmp_path / "found.json"))
    assert json.loads((tmp_path / "found.json").read_text()) == found
    assert found["n"] == sum(map(sum, found["confusion"])) == 120 and len(found["names"]) == 13
    assert found["macro_f1"]["low"] <= found["macro_f1"]["value"] <= found["macro_f1"]["high"]
    subjects = yaml.safe_load((SCRIPTS / "bench" / "subjects.yaml").read_text(encoding="utf-8"))
    asked = [question for content in subjects.values() for question in content["asked"]]
    assert len(set(asked)) == 120 and {len(content["asked"]) for content in subjects.values()} == {10}


ARCHITECTURES = json.loads((SCRIPTS.parent / "docs" / "results" / "architectures.json").read_text(encoding="utf-8"))


def working(report: dict[str, Any]) -> dict[str, list[str]]:
    """By architecture, the cells that work."""
    return {one["name"]: [key for key, cell in one["cells"].items() if cell["works"]] for one in report["architectures"]}


def test_the_table_of_architectures_is_whole_and_each_no_has_its_reason() -> None:
    assert len(ARCHITECTURES["architectures"]) >= 11 and len(ARCHITECTURES["columns"]) >= 15
    for one in ARCHITECTURES["architectures"]:
        assert list(one["cells"]) == ARCHITECTURES["columns"]
        assert all(len(cell["found"]) > 10 for cell in one["cells"].values() if not cell["works"])
    cells = sum(map(len, working(ARCHITECTURES).values()))
    assert cells >= 0.95 * len(ARCHITECTURES["architectures"]) * len(ARCHITECTURES["columns"])


@pytest.mark.parametrize(
    "names",
    [["SmolLM3"], pytest.param(None, marks=[pytest.mark.slow, pytest.mark.big])],
    ids=["one", "all that can be fetched"],
)
def test_the_committed_table_is_what_the_script_finds(names: list[str] | None, run: Run, tmp_path: Path) -> None:
    run("architectures.py", tmp_path / "found.json", *(["--only", *names] if names else []))
    found = working(json.loads((tmp_path / "found.json").read_text(encoding="utf-8")))
    expected = working(ARCHITECTURES)
    assert len(found) >= (len(names) if names else 5)  # the others need npm
    assert found == {name: expected[name] for name in found}
