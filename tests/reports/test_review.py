"""Blind review: the file tells nobody whose answer is whose, and the votes come back as shares computed by hand."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.manifests import base_manifest, evaluation, publish, student_manifest
from support.workplace import Refused, Workplace

from factory.config.schema import DistillConfig
from factory.errors import DataError, FactoryError, RegistryError, StorageError
from factory.models.base import attach_adapter, save_base
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.review import (
    COLUMNS,
    Vote,
    blind_rows,
    hand_out,
    load_questions,
    own_columns,
    read_back,
    read_votes,
    result_line,
    sample_questions,
    tally,
)

QUESTIONS = ["What is asthma?", "What is a fever, in short?", 'What does "benign" mean?', "Is tea healthy?"]
OWN = [f"own answer {n}" for n in range(4)]
OTHER = [f"another answer {n},\nin two lines" for n in range(4)]
TEACHER = "teacher path:./teacher"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def handed_out(registry: Registry, version: Version, path: Path, seed: int | None = 7) -> str:
    return hand_out(registry, version, path, QUESTIONS, OWN, OTHER, against=TEACHER, seed=seed)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, votes: list[str], comments: list[str] | None = None, separator: str = ",") -> None:
    """As an expert's spreadsheet saves it."""
    rows = rows_of(path)
    for row, vote, comment in zip(rows, votes, comments or [""] * len(rows), strict=True):
        row |= {"vote": vote, "comment": comment}
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def votes_for(registry: Registry, outcome: str) -> list[str]:
    """``votes_for(registry, "wlt")``: what to vote in the last review so that the version wins, loses, ties."""
    order = registry.resolve("healthcare-small").records[-1]["order"]
    other = {"a": "b", "b": "a"}
    return [{"w": own, "l": other[own], "t": "tie"}[one] for one, own in zip(outcome, order, strict=True)]


# ------------------------------------------------------------------------------------------------------------ hand out


@given(st.integers(0, 60), st.integers(0, 2**32))
def test_each_place_holds_half_of_the_own_answers(count: int, seed: int) -> None:
    columns = own_columns(count, seed)
    assert len(columns) == count
    assert abs(columns.count("a") - columns.count("b")) == count % 2
    assert own_columns(count, seed) == columns


def test_the_order_depends_on_the_seed_and_is_no_pattern() -> None:
    drawn = {tuple(own_columns(8, seed)) for seed in range(300)}
    assert len(drawn) > 60  # of the 70 with four of each
    assert {columns[0] for columns in drawn} == {columns[-1] for columns in drawn} == {"a", "b"}
    assert {own_columns(1, seed)[0] for seed in range(20)} == {"a", "b"}


def test_a_row_has_both_answers_where_the_order_says() -> None:
    first, second = blind_rows("3f9a", QUESTIONS[:2], OWN[:2], OTHER[:2], ["a", "b"])
    assert (first["id"], first["answer_a"], first["answer_b"]) == ("3f9a-1", OWN[0], OTHER[0])
    assert (second["id"], second["answer_a"], second["answer_b"]) == ("3f9a-2", OTHER[1], OWN[1])
    assert (tuple(first), first["vote"], first["comment"]) == (COLUMNS, "", "")


def test_no_answer_is_a_formula_to_a_spreadsheet() -> None:
    (row,) = blind_rows("3f9a", ["=1+1"], ["- rest\n- tea"], [" @home"], ["a"])
    assert (row["question"], row["answer_a"], row["answer_b"]) == ("'=1+1", "'- rest\n- tea", "'@home")


def test_the_file_says_nothing_of_the_candidates(registry: Registry, tmp_path: Path) -> None:
    version = publish(registry)
    review = handed_out(registry, version, tmp_path / "blind.csv")
    text = (tmp_path / "blind.csv").read_text(encoding="utf-8-sig")
    assert not [word for word in ("healthcare", "student", "teacher", "path:", "seed", version.reference) if word in text]
    rows = rows_of(tmp_path / "blind.csv")
    assert [row["id"] for row in rows] == [f"{review}-{number}" for number in (1, 2, 3, 4)]
    assert [row["question"] for row in rows] == QUESTIONS
    order = own_columns(4, 7)
    assert [row[f"answer_{own}"] for row, own in zip(rows, order, strict=True)] == OWN
    assert {row["vote"] + row["comment"] for row in rows} == {""}
    (key,) = registry.resolve("healthcare-small").records
    assert (key["kind"], key["review"], key["against"], key["order"]) == ("review_key", review, TEACHER, order)


def test_one_seed_gives_one_order_and_none_gives_another_each_time(registry: Registry, tmp_path: Path) -> None:
    version = publish(registry)
    ids = [handed_out(registry, version, tmp_path / f"{n}.csv") for n in range(2)]
    first, second = (registry.resolve("healthcare-small").records[n] for n in (0, 1))
    assert first["order"] == second["order"]
    assert len({*ids}) == 2
    for n in range(2, 6):
        handed_out(registry, version, tmp_path / f"{n}.csv", seed=None)
    seeds = [record["seed"] for record in registry.resolve("healthcare-small").records[2:]]
    assert len({*seeds}) == 4


def test_a_file_that_is_there_is_never_overwritten(registry: Registry, tmp_path: Path) -> None:
    version = publish(registry)
    (tmp_path / "blind.csv").write_text("votes of a day")
    with pytest.raises(DataError, match=r"blind\.csv exists and may contain votes"):
        handed_out(registry, version, tmp_path / "blind.csv")
    assert (tmp_path / "blind.csv").read_text() == "votes of a day"
    with pytest.raises(DataError, match="there is no folder"):
        handed_out(registry, version, tmp_path / "nowhere" / "blind.csv")
    assert registry.resolve("healthcare-small").records == ()


def test_a_key_that_cannot_be_kept_leaves_no_file(registry: Registry, tmp_path: Path) -> None:
    version = publish(registry)
    shutil.rmtree(version.folder)
    with pytest.raises(StorageError, match="cannot record a review_key"):
        handed_out(registry, version, tmp_path / "blind.csv")
    assert not (tmp_path / "blind.csv").exists()


# ----------------------------------------------------------------------------------------------------------- questions


def test_questions_come_from_jsonl_or_csv_under_either_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "one"}\n\n{"prompt": " two ", "completion": "x"}\n')
    (tmp_path / "b.csv").write_text('prompt,completion\n"one, two",x\nthree,y\n')
    assert load_questions(tmp_path / "a.jsonl") == ["one", "two"]
    assert load_questions(tmp_path / "b.csv") == ["one, two", "three"]
    assert load_questions(tmp_path / "b.csv", 1) == ["one, two"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("q.txt", "one", r"must end in \.jsonl, .*\.csv"),
        ("q.jsonl", "", "has no questions"),
        ("q.jsonl", "{", "cannot read .*line 1 is not valid JSON"),
        ("q.jsonl", '{"question": "one"}\n{"ask": "two"}', r"line 2 has no question; its columns: ask"),
        ("q.csv", "question\n\nx\ny,z\n", "cannot read .*row 4 has 2 cells, its header 1"),
        ("q.csv", None, "no file"),
    ],
)
def test_a_bad_file_of_questions_is_one_line(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        load_questions(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_held_out_samples_are_the_questions_where_no_file_is_given(registry: Registry) -> None:
    samples = [{"prompt": prompt, "teacher": "x", "student": "y"} for prompt in ("one", "two")]
    version = publish(registry, evaluation=evaluation(samples=samples))
    assert sample_questions(version) == ["one", "two"]
    assert sample_questions(version, 1) == ["one"]
    with pytest.raises(DataError, match=r"default-small-base@1 has no held-out samples.*--questions"):
        sample_questions(registry.resolve("default-small-base"))


# ----------------------------------------------------------------------------------------------------------- read back


def test_shares_are_wins_and_half_of_the_ties() -> None:
    votes = [Vote("3f9a-1", "a", ""), Vote("3f9a-2", "a", "odd"), Vote("3f9a-3", "tie", ""), Vote("3f9a-4", "b", "")]
    found = tally(votes, ["a", "b", "a", "b"])  # win, loss, tie, win
    assert (found.n, found.wins, found.losses, found.ties, found.comments) == (4, 2, 1, 1, 1)
    assert found.share.value == 0.625  # (2 + 0.5) / 4
    assert found.share.n == 4
    assert 0 <= found.share.low < 0.625 < found.share.high <= 1
    assert tally(votes[::-1], ["a", "b", "a", "b"]).wins == 2  # ids count, not rows


def test_one_vote_has_a_share() -> None:
    found = tally([Vote("3f9a-1", "b", "")], ["a"])
    assert (found.losses, found.share.value, found.share.low, found.share.high) == (1, 0.0, 0.0, 0.0)


def test_the_interval_is_as_wide_as_the_binomial_s() -> None:
    votes = [Vote(f"3f9a-{n + 1}", "a" if n % 2 else "b", "") for n in range(100)]
    share = tally(votes, ["a"] * 100).share
    assert share.value == 0.5
    assert share.low == pytest.approx(0.402, abs=0.02)  # 0.5 - 1.96 * sqrt(0.25 / 100)
    assert share.high == pytest.approx(0.598, abs=0.02)


@pytest.mark.parametrize("separator", [",", ";"])
def test_votes_become_a_record_of_the_version(registry: Registry, tmp_path: Path, separator: str) -> None:
    version, path = publish(registry), tmp_path / "blind.csv"
    review = handed_out(registry, version, path)
    fill(path, [vote.upper() for vote in votes_for(registry, "wwlt")], ["", "too long; vague", "", ""], separator)
    result = read_back(registry, registry.resolve("healthcare-small"), path)
    key, record = registry.resolve("healthcare-small").records
    assert {name: value for name, value in record.items() if name not in ("kind", "at")} == result
    assert (record["kind"], record["review"], record["against"]) == ("review", review, key["against"])
    assert [result[name] for name in ("n", "wins", "losses", "ties", "comments")] == [4, 2, 1, 1, 1]
    assert result["share"]["value"] == 0.625
    assert "2 wins, 1 losses, 1 ties of 4; share 0.625 [" in result_line(version, result)
    assert registry.verify(registry.resolve("healthcare-small")) == []


def test_a_review_is_read_once(registry: Registry, tmp_path: Path) -> None:
    version, path = publish(registry), tmp_path / "blind.csv"
    handed_out(registry, version, path)
    fill(path, votes_for(registry, "wwww"))
    read_back(registry, registry.resolve("healthcare-small"), path)
    with pytest.raises(RegistryError, match="was already read"):
        read_back(registry, registry.resolve("healthcare-small"), path)
    assert [r["kind"] for r in registry.resolve("healthcare-small").records] == ["review_key", "review"]


def test_a_review_of_another_version_is_named(registry: Registry, tmp_path: Path) -> None:
    first, path = publish(registry), tmp_path / "blind.csv"
    review = handed_out(registry, first, path)
    fill(path, votes_for(registry, "wwww"))
    second = publish(registry)
    with pytest.raises(RegistryError, match=f"review {review} belongs to healthcare-small@1, not to healthcare-small@2"):
        read_back(registry, second, path)
    path.write_text(path.read_text(encoding="utf-8-sig").replace(review, "0000"), encoding="utf-8")
    with pytest.raises(RegistryError, match=f"healthcare-small@1 has no review 0000; its reviews: {review}"):
        read_back(registry, registry.resolve("healthcare-small@1"), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-1], "1 of 4 votes are missing, the first is ID-4"),
        (lambda rows: [*rows[:2], rows[2] | {"vote": ""}, rows[3]], r"row 4 \(ID-3\) has the vote ''; write a, b or tie"),
        (lambda rows: [rows[0] | {"vote": "A "}, rows[1] | {"vote": "c"}, *rows[2:]], r"row 3 \(ID-2\) has the vote 'c'"),
        (lambda rows: [*rows, rows[0]], "row 6 repeats the id ID-1"),
        (
            lambda rows: [*rows[1:], rows[0] | {"id": rows[0]["id"][:-1] + "9"}],
            "ID-9 is not a question of review ID",
        ),
        (lambda rows: [*rows[1:], rows[0] | {"id": rows[0]["id"][:-1] + "01"}], "ID-01 is not a question of review ID"),
        (lambda rows: [*rows, rows[0] | {"id": "other-1"}], "other-1 is not a question of review ID"),
        (lambda rows: [rows[0] | {"id": "1"}, *rows[1:]], "row 2 has the id '1', which belongs to no review"),
        (lambda rows: [], "has no votes"),
        (lambda rows: [dict.fromkeys(COLUMNS, "")], "has no votes"),
    ],
)
def test_what_is_wrong_with_the_votes_is_one_line_with_its_row(
    registry: Registry, tmp_path: Path, change: Any, words: str
) -> None:
    version, path = publish(registry), tmp_path / "blind.csv"
    review = handed_out(registry, version, path)
    fill(path, ["a", "b", "tie", "a"])
    rows = change(rows_of(path))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(FactoryError, match=words.replace("ID", review)) as caught:
        read_back(registry, registry.resolve("healthcare-small"), path)
    assert "\n" not in str(caught.value)
    assert len(registry.resolve("healthcare-small").records) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"there is no file .*factory review NAME --out"),
        (b"", "has no votes"),
        (b"id,question\nx-1,why\n", "no column vote; it has: id, question"),
        (b'id,vote\nx-1,"a\nx-2,b\n', "cannot read .*the row that starts on line 2 is not valid CSV"),
    ],
)
def test_a_file_that_is_no_review_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "blind.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_votes(path)
    assert "\n" not in str(caught.value)


def test_a_comment_may_be_long_and_in_a_spreadsheet_s_encoding(tmp_path: Path) -> None:
    long = "trop long, à mon avis; " * 9_000
    (tmp_path / "blind.csv").write_bytes(f'id;vote;comment\nx-1;b;"{long}"\n'.encode("cp1252"))
    assert read_votes(tmp_path / "blind.csv") == [Vote("x-1", "b", long.strip())]


def test_empty_lines_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "blind.csv"
    path.write_text("id,vote,expert\nx-1, Tie ,me\n,,\nx-2,b,me\n")
    assert read_votes(path) == [Vote("x-1", "tie", ""), Vote("x-2", "b", "")]


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def published(with_models: Workplace) -> Workplace:
    """A teacher, a base and a student of random weights: whoever answers, without a build."""
    registry, made = Registry(with_models.root / "registry"), tiny.base(layers=2)
    with registry.stage("default-mini-base") as folder:
        save_base(made, folder)
        registry.publish(base_manifest("default-mini-base"), folder)
    prompts = [f"what is the {what} of oak ?" for what in ("age", "use", "colour", "smell")]
    samples = [{"prompt": prompt, "teacher": "x", "student": "y"} for prompt in prompts]
    with registry.stage("plants-mini") as folder:
        config = DistillConfig(steps=1, learning_rate=1e-3, rank=2)
        attach_adapter(made, config).save_pretrained(folder, selected_adapters=["default"])
        content = {"base": "default-mini-base@1", "evaluation": evaluation(samples=samples)}
        registry.publish(student_manifest("plants-mini", **content), folder)
    return with_models


def test_a_review_from_the_questions_to_the_share(published: Workplace) -> None:
    path = published.root / "blind.csv"
    result = published.run("review", "plants-mini@1", "--out", str(path), "--count", "3", "--seed", "3")
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"wrote 3 questions to {path}" in result.stdout
    assert "plants-mini@1 against teacher path:./teacher" in result.stdout
    assert "plants-mini" not in path.read_text(encoding="utf-8-sig")
    registry = Registry(published.root / "registry")
    version = registry.resolve("plants-mini@1")
    order, rows = version.records[-1]["order"], rows_of(path)
    assert [row["question"] for row in rows] == [sample.prompt for sample in version.manifest.evaluation.samples[:3]]
    asked = json.loads(published.run("ask", "plants-mini@1", rows[0]["question"], "--json").stdout)
    assert rows[0][f"answer_{order[0]}"].lstrip("'") == asked["answer"].strip()
    fill(path, [order[0], "tie", "tie"])
    counted = json.loads(published.run("review", "plants-mini@1", "--in", str(path), "--json").stdout)
    assert (counted["wins"], counted["losses"], counted["ties"]) == (1, 0, 2)
    assert counted["share"]["value"] == pytest.approx(2 / 3)
    shown = published.run("show", "plants-mini@1", "--all-metrics").stdout
    assert "wins 1" in shown
    assert "; ".join(order) not in shown


def test_two_versions_can_be_reviewed_with_questions_of_one_s_own(published: Workplace) -> None:
    (published.root / "mine.csv").write_text("question\nwhat is the age of oak ?\n")
    arguments = ["--out", str(published.root / "two.csv"), "--questions", str(published.root / "mine.csv"), "--json"]
    result = published.run("review", "plants-mini@1", "default-mini-base@1", *arguments)
    said = json.loads(result.stdout)
    assert (said["questions"], said["reference"], said["against"]) == (1, "plants-mini@1", "default-mini-base@1")
    assert result.stderr == ""


def test_a_review_that_cannot_be_is_one_line(published: Workplace, refused: Refused) -> None:
    blind = str(published.root / "new.csv")
    assert "has no held-out samples" in refused(published.run("review", "default-mini-base", "--out", blind))
    assert "no file no.csv" in refused(published.run("review", "plants-mini", "--out", blind, "--questions", "no.csv"))
    assert "there is no file" in refused(published.run("review", "plants-mini", "--in", blind))
    assert "no student" in refused(published.run("review", "nobody", "--in", blind))
    taken = str(published.root / "taken.csv")
    Path(taken).write_text("")
    assert "exists and may contain votes" in refused(
        published.run("review", "plants-mini", "--out", str(published.root / "taken.csv"))
    )
    assert not Path(blind).exists()


@pytest.mark.parametrize("arguments", [[], ["--in", "x.csv", "--out", "y.csv"], ["--out", "x.csv", "--count", "0"]])
def test_a_misused_review_is_exit_code_2(workplace: Workplace, arguments: list[str]) -> None:
    assert workplace.run("review", "plants-mini", *arguments).exit_code == 2
