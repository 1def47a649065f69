"""The scripts run as the commands that they are; their benchmarks measure something on a tiny factory."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
