"""Blind review by experts: a CSV file of answers A and B, and the votes that come back.

    review = hand_out(registry, version, path, questions, own, other, against="teacher ...", seed=7)  # factory review --out
    result = read_back(registry, version, path)                                                       # factory review --in

The file has the review's id, the questions and the answers. Whose answer is whose is recorded in the registry, where the
expert does not see it. No torch.
"""

from __future__ import annotations

import csv
import io
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.cache import replace_file, storage_errors
from factory.data.records import describe_columns, read_records, text_of
from factory.errors import DataError, RegistryError
from factory.registry.registry import Registry
from factory.registry.versions import Version, load_version

if TYPE_CHECKING:
    from factory.registry.manifest import MetricValue

COLUMNS = ("id", "question", "answer_a", "answer_b", "vote", "comment")
VOTES = ("a", "b", "tie")
FORMULA = ("=", "+", "-", "@")  # a spreadsheet evaluates a cell that starts so, and shows a Markdown list as an error


@dataclass(frozen=True)
class Vote:
    """One judged row of the file."""

    id: str  # "<review>-<number of the question>"
    vote: str  # one of VOTES
    comment: str

    @property
    def review(self) -> str:
        return self.id.rpartition("-")[0]


@dataclass(frozen=True)
class Tally:
    """The result of a review; ``share`` is (wins + ties / 2) / n with its 95 % bootstrap interval."""

    n: int
    wins: int
    losses: int
    ties: int
    share: MetricValue
    comments: int


# ----------------------------------------------------------------------------------------------------------- questions


def load_questions(path: Path, count: int | None = None) -> list[str]:
    """``load_questions(Path("mine.jsonl"), 20)``: the first ``count`` of a file of any kind that a ``file`` source may have.

    Raises: DataError for a missing, unreadable or empty file, another extension, or a row without a question.
    """
    from factory.data.layouts import read_questions  # imported here: it loads pydantic

    found = [question.prompt for _, question in read_questions(path)]
    if not found:
        raise DataError(f"{path} has no questions")
    return found[:count]


def sample_questions(version: Version, count: int | None = None) -> list[str]:
    """``sample_questions(version, 20)``: the held-out prompts in its manifest.

    Raises: DataError where there are none, as in a base.
    """
    samples = version.manifest.evaluation.samples if version.manifest.kind == "student" else ()
    if not samples:
        raise DataError(f"{version.reference} has no held-out samples: give your own questions with --questions FILE")
    return [sample.prompt for sample in samples][:count]


# ------------------------------------------------------------------------------------------------------------ hand out


def own_columns(count: int, seed: int) -> list[str]:
    """``own_columns(4, seed=7)`` → ["b", "a", "a", "b"]: which column has the version's answer; a and b equally often."""
    rng = random.Random(seed)
    columns = ["a", "b"] * (count // 2) + [rng.choice("ab")] * (count % 2)
    rng.shuffle(columns)
    return columns


def blind_rows(
    review: str, questions: Sequence[str], own: Sequence[str], other: Sequence[str], columns: Sequence[str]
) -> list[dict[str, str]]:
    """``blind_rows("3f9a", questions, own, other, own_columns(len(questions), seed=7))``: a dict of COLUMNS per question."""
    rows = []
    for number, (question, mine, theirs, column) in enumerate(zip(questions, own, other, columns, strict=True), start=1):
        a, b = (mine, theirs) if column == "a" else (theirs, mine)
        texts = {"question": _cell(question), "answer_a": _cell(a), "answer_b": _cell(b)}
        rows.append({"id": f"{review}-{number}", **texts, "vote": "", "comment": ""})
    return rows


def _cell(text: str) -> str:
    """A spreadsheet takes it for text, whatever it starts with."""
    text = text.strip()
    return f"'{text}" if text.startswith(FORMULA) else text


def check_free(path: Path) -> None:
    """``check_free(Path("blind.csv"))`` before minutes of answering.

    Raises: DataError where the file exists, or there is no folder for it.
    """
    if path.exists():
        raise DataError(f"{path} exists and may contain votes: give another name to --out")
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}: there is no folder {path.parent}; create it first")


def hand_out(
    registry: Registry,
    version: Version,
    path: Path,
    questions: Sequence[str],
    own: Sequence[str],
    other: Sequence[str],
    *,
    against: str,
    seed: int | None = None,
) -> str:
    """``hand_out(registry, version, path, questions, own, other, against="teacher ...")`` writes the file → the review's id.

    Without a seed the order is random. The order becomes a record of the version first, so no file is without it.

    Raises:
        DataError: where the file exists, or there is no folder for it.
        StorageError: where the disk refuses the file or the record.
    """
    check_free(path)
    seed = secrets.randbits(32) if seed is None else seed
    review = f"r{secrets.token_hex(4)}"  # r, because a spreadsheet takes 1234567e-1 for a number
    columns = own_columns(len(questions), seed)
    rows = blind_rows(review, questions, own, other, columns)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    registry.record(version, "review_key", {"review": review, "against": against, "seed": seed, "order": columns})
    with storage_errors(f"cannot write {path}"):
        check_free(path)  # again: a file put there meanwhile would be replaced
        replace_file(path, text.getvalue().encode("utf-8-sig"))  # -sig, so that Excel reads it as UTF-8
    return review


# ----------------------------------------------------------------------------------------------------------- read back


def read_votes(path: Path) -> list[Vote]:
    """``read_votes(Path("blind.csv"))``: one per row, votes in either case; also as a spreadsheet saves it, with semicolons.

    Raises: DataError, with the row's number, for a vote other than a, b or tie, or an id that is missing or repeated.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; `factory review NAME --out {path}` writes it")
    votes: dict[str, Vote] = {}
    for record in read_records(path):
        for column in ("id", "vote"):
            if column not in record.fields:
                raise DataError(f"{path} has no column {column}; it has: {describe_columns(record.fields)}")
        vote = Vote(text_of(record, "id"), text_of(record, "vote").lower(), text_of(record, "comment"))
        place = f"{path}: {record.place}"
        if not vote.review:
            raise DataError(f"{place} has the id {vote.id!r}, which belongs to no review; leave that column as it was")
        if vote.id in votes:
            raise DataError(f"{place} repeats the id {vote.id}")
        if vote.vote not in VOTES:
            raise DataError(f"{place} ({vote.id}) has the vote {vote.vote!r}; write a, b or tie")
        votes[vote.id] = vote
    if not votes:
        raise DataError(f"{path} has no votes")
    return list(votes.values())


def tally(votes: Sequence[Vote], columns: Sequence[str]) -> Tally:
    """``tally(read_votes(path), key["order"]).share.value``; ``columns`` are those of ``own_columns``, by the ids' numbers."""
    import numpy as np

    from factory.evaluation.stats import BootstrapConfig, mean

    scores = [_score(vote.vote, columns[int(vote.id.rpartition("-")[2]) - 1]) for vote in votes]
    wins, losses, ties = (scores.count(score) for score in (1.0, 0.0, 0.5))
    comments = sum(bool(vote.comment) for vote in votes)
    return Tally(len(scores), wins, losses, ties, mean(np.array(scores), BootstrapConfig()), comments)


def _score(vote: str, own: str) -> float:
    return 0.5 if vote == "tie" else float(vote == own)


def read_back(registry: Registry, version: Version, path: Path) -> dict[str, Any]:
    """``read_back(registry, version, path)["share"]``: counts the votes; the result becomes a record of the version.

    Raises:
        DataError: for a file that cannot be read, belongs to another review, or lacks a vote.
        RegistryError: for a review of another version, or one that was already read.
    """
    votes = read_votes(path)
    review = votes[0].review
    key = _key(registry, version, review)
    expected = [f"{review}-{number}" for number in range(1, len(key["order"]) + 1)]
    there = {vote.id for vote in votes}
    if strange := sorted(there - set(expected)):
        raise DataError(f"{path}: {strange[0]} is not a question of review {review}, which has {len(expected)}")
    if missing := [id for id in expected if id not in there]:
        raise DataError(f"{path}: {len(missing)} of {len(expected)} votes are missing, the first is {missing[0]}")
    if any(record["kind"] == "review" and record.get("review") == review for record in version.records):
        raise RegistryError(
            f"review {review} of {version.reference} was already read; `factory show --all-metrics` has its result"
        )
    result = {"review": review, "against": key["against"], **asdict(tally(votes, key["order"]))}
    registry.record(version, "review", result)
    return result


def result_line(version: Version, result: Mapping[str, Any]) -> str:
    """``result_line(version, read_back(registry, version, path))``: the result in one line."""
    share = result["share"]
    return (
        f"{version.reference} against {result['against']}, blind: {result['wins']} wins, {result['losses']} losses, "
        f"{result['ties']} ties of {result['n']}; share {share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}], "
        f"{result['comments']} comments"
    )


def _key(registry: Registry, version: Version, review: str) -> Mapping[str, Any]:
    """The record that says which answers are the version's own."""
    keys = _keys(version)
    if review in keys:
        return keys[review]
    for one in registry.versions(name=version.name):  # a bare name may mean another version by now
        if review in _keys(load_version(registry.root, one.kind, one.name, one.number)):
            raise RegistryError(f"review {review} belongs to {one.reference}, not to {version.reference}: name that version")
    raise RegistryError(f"{version.reference} has no review {review}; its reviews: {', '.join(keys) or 'none'}")


def _keys(version: Version) -> dict[str, Mapping[str, Any]]:
    return {str(record.get("review")): record for record in version.records if record["kind"] == "review_key"}
