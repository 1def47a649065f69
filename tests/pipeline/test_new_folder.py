"""``factory new NAME --from DATA``: files as people have them become students in two commands; refusals write nothing."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.documents import a_docx, a_pdf
from support.teacher import ANSWERS, answer
from support.workplace import BIRDS, PLANTS, STARS, Workplace
from typer.testing import CliRunner

from factory.cli import app
from factory.config import SHIPPED
from factory.config.load import load_specs
from factory.config.sources import DocumentSource, FileSource
from factory.pipeline import new_folder

PROMPTS = [f"what is the {what} of {thing} ?" for thing in f"{PLANTS} {STARS} {BIRDS}".split() for what in ANSWERS]


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, list(arguments))


@pytest.fixture
def place(with_models: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """The current folder; the shipped default family is a tiny one, with a teacher and an encoder on this disk."""
    models = {
        "teacher": with_models.family["teacher"] | {"model": f"path:{with_models.domains}/teacher"},
        "encoder": with_models.family["encoder"] | {"model": f"path:{with_models.domains}/encoder"},
    }
    with_models.write("default.family.yaml", with_models.family | models)
    monkeypatch.setattr(new_folder, "SHIPPED", with_models.domains)
    monkeypatch.chdir(with_models.root)
    return with_models


def share_gpt(folder: Path) -> Path:
    """Chats of three turns in one pretty-printed file."""

    def chat(prompts: list[str]) -> dict[str, Any]:
        said = [turn for one in prompts for turn in (("human", one), ("gpt", answer(one)))]
        return {"id": prompts[0], "conversations": [{"from": who, "value": text} for who, text in said]}

    path = folder / "chats.json"
    path.write_text(json.dumps([chat(PROMPTS[start : start + 3]) for start in range(0, len(PROMPTS) - 2, 3)], indent=2))
    return path


def latin_1(folder: Path) -> Path:
    """A spreadsheet's export of a German office."""
    rows = [f"{number};{prompt};{answer(prompt)};Größe {number % 7}" for number, prompt in enumerate(PROMPTS[:200])]
    path = folder / "Anfragen Büro.csv"
    path.write_bytes("\r\n".join(["Nr;Question;Answer;Größe", *rows, ""]).encode("latin-1"))
    return path


def pdf_and_docx(folder: Path) -> Path:
    folder = folder / "Handbook 2026"
    folder.mkdir()
    sentences = [
        f"{ANSWERS[what].removesuffix(' .')} of the {thing}." for what in ANSWERS for thing in f"{PLANTS} {STARS}".split()
    ]
    for number in range(4):
        random.Random(number).shuffle(sentences)
        (folder / f"part {number}.pdf").write_bytes(a_pdf(*(" ".join(sentences[page::9]) for page in range(9))))
        (folder / f"part {number}.docx").write_bytes(a_docx(*(" ".join(sentences[page::7]) for page in range(7))))
    (folder / "logo.png").write_bytes(b"no document")
    return folder


@pytest.mark.parametrize(("made", "license"), [(share_gpt, None), (latin_1, "CC-BY-4.0"), (pdf_and_docx, "CC0-1.0")])
def test_data_as_people_have_it_becomes_a_student_in_two_commands(
    made: Callable[[Path], Path], license: str | None, place: Workplace
) -> None:
    data = made(place.root)
    before = {path: path.read_bytes() for path in [data, *data.glob("*")] if path.is_file()}
    written = run("new", "office", "--from", str(data), *(["--license", license] if license else []))
    assert written.exit_code == 0, (written.output, written.exception)
    assert "student office-mini" in written.stdout
    assert written.stdout.endswith("then:\n  factory build office --domains office\n")
    built = run(*written.stdout.splitlines()[-1].split()[1:], "--force")  # a tiny teacher knows nothing of documents
    assert built.exit_code == 0, (built.output, built.exception)
    [card] = (place.root / "registry").glob("**/office-mini/**/README.md")
    assert (license or "not stated") in card.read_text()
    assert {path: path.read_bytes() for path in before} == before


def test_the_columns_limits_and_reading_of_a_file_are_in_the_yaml(place: Workplace) -> None:
    run("new", "office", "--from", str(latin_1(place.root)))
    text = (place.root / "office" / "office.yaml").read_text()
    assert "# 200 of 200 rows as Question + Answer; other columns: Nr, Größe" in text
    assert "# Anfragen Büro.csv is CSV separated by ';', cp1252\n" in text
    specs = load_specs(place.root / "office")
    [source] = specs.domain("office").sources
    assert source.model_dump(include={"prompt", "completion", "path", "license"}) == {
        "prompt": "Question",
        "completion": "Answer",
        "path": "../Anfragen Büro.csv",
        "license": "not stated",
    }
    assert specs.domain("office").distill == {"ground_truth": 1}
    assert (specs.family("office").data.max_prompt_tokens, specs.family("office").data.max_completion_tokens) == (192, 32)


def test_a_folder_gives_a_source_for_each_file_and_one_for_its_documents(place: Workplace) -> None:
    folder = pdf_and_docx(place.root)
    share_gpt(folder), latin_1(folder)
    (folder / "more").mkdir()
    latin_1(folder / "more")
    assert run("new", "office", "--from", str(folder), "--domains", "mine/office").exit_code == 0
    sources = {source.id: source.kind for source in load_specs(place.root / "mine" / "office").domain("office").sources}
    assert sources == {
        "office-anfragen-buro": "file",
        "office-chats": "file",
        "office-anfragen-buro-2": "file",
        "office-handbook-2026": "documents",
    }


def test_a_teacher_is_described_with_sizes_of_its_own_and_a_path_from_the_new_folder(place: Workplace) -> None:
    (place.domains / "teacher").rename(place.root / "model")
    result = run("new", "office", "--from", str(latin_1(place.root)), "--teacher", "path:model")
    assert result.exit_code == 0, (result.output, result.exception)
    family = load_specs(place.root / "office").family("office")
    assert (family.teacher.model, family.teacher.license) == ("path:../model", "not stated")
    assert {name: (size.layers, size.vocabulary) for name, size in family.sizes.items()} == {
        "medium": (None, 360),
        "small": (3, 360),  # of 4
    }


def test_a_number_of_bytes_is_the_only_size(place: Workplace) -> None:
    assert run("new", "office", "--from", str(latin_1(place.root)), "--max-bytes", "60MB").exit_code == 0
    family = load_specs(place.root / "office").family("office")
    assert {name: size.max_bytes for name, size in family.sizes.items()} == {family.default_size: 60_000_000}


def test_columns_that_are_not_recognised_can_be_named(place: Workplace) -> None:
    data = place.root / "a.csv"
    data.write_text("Frage,Antwort\n" + "".join(f"{prompt},{answer(prompt)}\n" for prompt in PROMPTS[:50]))
    result = run("new", "office", "--from", str(data), "--prompt", "Frage", "--completion", "Antwort")
    assert result.exit_code == 0, result.output
    [source] = load_specs(place.root / "office").domain("office").sources
    assert source.model_dump(include={"prompt", "completion"}) == {"prompt": "Frage", "completion": "Antwort"}


def test_a_template_of_columns_and_a_single_document_are_written_as_they_were_given(place: Workplace) -> None:
    data = place.root / "a.csv"
    data.write_text("Titel,Frage\n" + "".join(f"{number},{prompt}\n" for number, prompt in enumerate(PROMPTS[:50])))
    assert run("new", "office", "--from", str(place.root / "*.csv"), "--prompt", "{Titel}\n{Frage}").exit_code == 0
    [source] = load_specs(place.root / "office").domain("office").sources
    assert isinstance(source, FileSource) and (source.path, source.prompt) == ("../a.csv", "{Titel}\n{Frage}")
    (place.root / "book.txt").write_text(" ".join(PROMPTS * 3))
    result = run("new", "shelf", "--from", str(place.root / "book.txt"))
    assert result.exit_code == 0, result.output
    [book] = load_specs(place.root / "shelf").domain("shelf").sources
    assert isinstance(book, DocumentSource) and book.path == "../book.txt"


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("Frage,Antwort\na,b\n", [], "a.csv is a prompt; name it .*columns there: Frage, Antwort"),
        ("question,answer\na,b\n", [], "a.csv has 1 different examples; a student needs at least 20 to train on"),
        ("question,answer\n", [], "a.csv has no rows"),
        (None, [], "no file .*a.csv; in "),
        ("question\na\n", ["--prompt", "{question"], r"--prompt {question: a column stands in single braces"),
        ("question\na\n", ["--max-bytes", "many"], "--max-bytes many: expected 600MB"),
        ("question\na\n", ["--teacher", "gpt-4"], "--teacher gpt-4: neither a shipped family .*default.* nor hub:"),
        ("question\na\n", ["--domains", "domains"], "domains exists; name a new folder"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    content: str | None, options: list[str], words: str, place: Workplace
) -> None:
    if content is not None:
        (place.root / "a.csv").write_text(content)
    before = sorted(place.root.iterdir())
    folder = ["--domains", "elsewhere"] if "--domains" not in options else []
    result = run("new", "office", "--from", "a.csv", *folder, *options)
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert re.search(f"error: .*{words}", result.stderr) and "Traceback" not in result.output, result.stderr
    assert sorted(place.root.iterdir()) == before


def test_options_about_data_need_data(place: Workplace) -> None:
    result = run("new", "office", "--max-bytes", "60MB")
    assert result.exit_code != 0 and "name them with --from" in result.stderr


def test_every_shipped_family_can_be_described_anew() -> None:
    from factory.config.new_files import FoundLimits, family_text
    from factory.config.schema import FamilySpec

    for path in SHIPPED.glob("*.family.yaml"):
        text = family_text(path.read_text(), "a-b", None, FoundLimits({"max_completion_tokens": 304}, "why"), "60MB")
        spec = FamilySpec.model_validate(yaml.safe_load(text))
        before = FamilySpec.model_validate(yaml.safe_load(path.read_text()))
        same = {"teacher", "encoder", "gates", "distill", "heal", "evaluate", "profiles"}
        assert spec.model_dump(include=same) == before.model_dump(include=same)
        assert (spec.name, list(spec.sizes), spec.data.max_completion_tokens) == ("a-b", ["fitted"], 304)
        assert max(map(len, text.splitlines())) <= 140
