from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.versions import student, text

from factory.errors import RegistryError
from factory.registry.versions import Version
from factory.reports.compare import BEST, TIED, compare_json, compare_table, paired_interval


def measured(name: str, kl: list[float], key: str | None = "k1", **sums: list[float]) -> Version:
    """Ten tokens an example; all intervals overlap, so that only pairs can tell versions apart."""
    version = student(name, sum(kl) / (10 * len(kl)) if kl else 0.4)
    version.manifest["evaluation"]["metrics"]["kl"] |= {"low": 0.0, "high": 9.0}
    version.manifest["evaluation"]["per_example"] = {"key": key, "tokens": [10.0] * len(kl), "kl": kl, **sums}
    return version


def compared(*versions: Version) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in compare_json(versions)["rows"]}


def test_versions_without_figures_are_compared_by_their_verdicts_alone() -> None:
    bare = Version("base", "default-small", 1, Path("/b"), {})
    assert "verdict" in text(compare_table([bare]))
    assert "unchecked" in text(compare_table([bare]))


def test_compare_marks_the_best_of_each_row() -> None:
    versions = [student("a-small", 0.4), student("b-small", 0.3)]
    versions[1].manifest["evaluation"]["metrics"]["kl"] |= {"low": 0.28, "high": 0.32}
    rows = compared(*versions)
    assert rows["kl"]["best"] == ["b-small@1"]
    assert rows["kl"]["tied"] == []
    assert rows["top1_agreement"]["best"] == []  # equal
    assert rows["teacher_perplexity"]["best"] == []  # nobody wins it
    line = next(line for line in text(compare_table(versions)).splitlines() if line.startswith("KL("))
    assert line.count(BEST) == 1
    assert "0.300 [0.280, 0.320] " + BEST in line
    assert TIED not in text(compare_table(versions))


def test_versions_whose_intervals_overlap_are_tied_and_nobody_is_starred() -> None:
    versions = [student("a-small", 0.4), student("b-small", 0.3), student("c-small", 0.9)]
    versions[2].manifest["evaluation"]["metrics"]["kl"] |= {"low": 0.8, "high": 1.0}
    row = compared(*versions)["kl"]
    assert (row["best"], row["tied"], row["paired"]) == ([], ["a-small@1", "b-small@1"], False)
    written = text(compare_table(versions))
    line = next(line for line in written.splitlines() if line.startswith("KL("))
    assert line.count(TIED) == 2 and BEST not in line
    assert "their 95 % intervals overlap" in written and "paired" not in written.replace("steps, paired", "")


def test_one_interval_that_holds_the_others_value_is_a_tie() -> None:
    versions = [student("a-small", 0.43), student("b-small", 0.43)]
    versions[1].manifest["evaluation"]["metrics"]["kl"] = 0.39
    assert compared(*versions)["kl"]["tied"] == ["a-small@1", "b-small@1"]
    versions[1].manifest["evaluation"]["metrics"]["kl"] = 0.1
    assert compared(*versions)["kl"]["best"] == ["b-small@1"]


def test_accuracy_retained_is_of_what_the_teacher_gets_right() -> None:
    correct = [3.0, 5.0, 4.0, 6.0]
    versions = [
        measured("a-small", [1.0] * 4, correct=correct, teacher_correct=[8.0, 8.0, 9.0, 8.0]),
        measured("b-small", [1.0] * 4, correct=correct, teacher_correct=[7.0, 7.0, 8.0, 7.0]),
    ]
    for version, value in zip(versions, (18 / 33, 18 / 29), strict=True):
        version.manifest["evaluation"]["metrics"]["accuracy_retained"] = {"value": value, "low": 0.0, "high": 1.0}
    assert compared(*versions)["accuracy_retained"]["best"] == ["b-small@1"]


def test_a_small_difference_on_every_example_is_no_tie_though_intervals_overlap() -> None:
    kl = [1.0, 9.0, 3.0, 4.0, 7.0, 2.0]
    row = compared(measured("a-small", kl), measured("b-small", [value - 0.1 for value in kl]))["kl"]
    assert (row["best"], row["tied"], row["paired"]) == (["b-small@1"], [], True)


def test_a_difference_of_single_examples_is_a_tie() -> None:
    kl = [1.0, 9.0, 3.0, 4.0, 7.0, 2.0]
    mixed = [value + change for value, change in zip(kl, (2, -2, 2, -2, 2, -2.1), strict=True)]
    versions = [measured("a-small", kl), measured("b-small", mixed), measured("c-small", [value + 5 for value in kl])]
    row = compared(*versions)["kl"]
    assert (row["best"], row["tied"], row["paired"]) == ([], ["a-small@1", "b-small@1"], True)
    assert "paired difference holds 0" in " ".join(text(compare_table(versions)).split())


@pytest.mark.parametrize(
    ("row", "above", "below", "better"),
    [
        ("top1_agreement", "agree", "tokens", 1),
        ("top5_overlap", "top5", "tokens", 1),
        ("accuracy_retained", "correct", "teacher_correct", 1),
        ("student_perplexity", "nll", "tokens", -1),
    ],
)
def test_each_paired_row_is_decided_by_its_own_sums(row: str, above: str, below: str, better: int) -> None:
    sums, extra = [3.0, 5.0, 4.0, 6.0], {} if below == "tokens" else {below: [8.0, 8.0, 9.0, 8.0]}
    versions = [
        measured("a-small", [1.0] * 4, **{above: [value + better for value in sums]}, **extra),
        measured("b-small", [1.0] * 4, **{above: sums}, **extra),
    ]
    for version, value in zip(versions, (0.5 + 0.1 * better, 0.5), strict=True):
        version.manifest["evaluation"]["metrics"][row] = {"value": value, "low": 0.0, "high": 9.0, "n": 40}
    decided = compared(*versions)[row]
    assert (decided["best"], decided["tied"], decided["paired"]) == (["a-small@1"], [], True)


@pytest.mark.parametrize(
    "other",
    [
        measured("b-small", [1.0, 2.0, 3.0], key="k2"),
        measured("b-small", [1.0, 2.0, 3.0], key=None),
        measured("b-small", [1.0, 2.0]),
        measured("b-small", [1.0, 2.0, 3.0], tokens=[10.0, None, 10.0]),  # type: ignore[list-item]
        measured("b-small", [1.0, 2.0, 3.0], tokens=[]),
        student("b-small", 0.1),
    ],
    ids=["other examples", "no key", "fewer", "a gap", "no tokens", "nothing kept"],
)
def test_without_the_same_examples_intervals_decide(other: Version) -> None:
    row = compared(measured("a-small", [4.0, 5.0, 6.0]), other)["kl"]
    assert (row["best"], row["tied"], row["paired"]) == ([], ["a-small@1", "b-small@1"], False)


def test_a_version_that_lacks_the_figure_does_not_spoil_the_pair() -> None:
    bare = Version("base", "c-small", 1, Path("/c"), {})
    row = compared(measured("a-small", [4.0, 5.0, 6.0]), bare, measured("b-small", [1.0, 2.0, 3.0]))["kl"]
    assert (row["best"], row["paired"]) == (["b-small@1"], True)


def test_one_example_decides_nothing() -> None:
    assert compared(measured("a-small", [4.0]), measured("b-small", [1.0]))["kl"]["tied"] == ["a-small@1", "b-small@1"]


def test_a_figure_that_is_no_number_neither_wins_nor_ties() -> None:
    versions = [student("a-small", float("nan")), student("b-small", 0.3), student("c-small", None)]
    row = compared(*versions)["kl"]
    assert (row["best"], row["tied"]) == ([], [])


def test_sizes_have_a_winner_and_no_tie() -> None:
    versions = [student("a-small"), student("b-small"), student("c-small")]
    versions[2].manifest["evaluation"]["sizes"]["student"] = {"parameters": 90_000_000}
    row = compared(*versions)["parameters"]
    assert (row["best"], row["tied"], row["paired"]) == (["a-small@1", "b-small@1"], [], False)


def test_the_paired_interval_of_a_constant_difference_is_that_difference() -> None:
    tokens = [10.0, 20.0, 30.0, 40.0]
    ours = [4.0 + 0.5 * n for n in tokens]
    theirs = [4.0] * 4
    assert paired_interval((ours, tokens), (theirs, tokens)) == pytest.approx((0.5, 0.5))
    assert paired_interval((ours, tokens), (ours, tokens)) == (0.0, 0.0)


def test_the_paired_interval_of_two_examples_spans_both() -> None:
    """Per token 0.1 and 0.3 are drawn twice, once each, or mixed: 2.5 % and 97.5 % of that are the two themselves."""
    assert paired_interval(([2.0, 4.0], [10.0, 10.0]), ([1.0, 1.0], [10.0, 10.0])) == pytest.approx((0.1, 0.3))


def test_the_paired_interval_is_that_of_the_measured_figures() -> None:
    import numpy as np

    from factory.evaluation.stats import BootstrapConfig, paired_difference

    rng = np.random.default_rng(0)
    tokens, a = rng.integers(20, 80, 150).astype(float), rng.gamma(2, 10, 150)
    b = a + rng.normal(0.3, 3, 150)
    ours = paired_interval((a.tolist(), tokens.tolist()), (b.tolist(), tokens.tolist()), resamples=4000)
    figure = paired_difference(a, b, tokens, BootstrapConfig(4000))
    assert ours == pytest.approx((figure.low, figure.high), abs=0.05 * (figure.high - figure.low))


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 2, st.integers(1, 90)), min_size=2, max_size=12))
@settings(max_examples=25, deadline=None)
def test_the_paired_interval_turns_round_with_its_sides(examples: list[tuple[float, float, int]]) -> None:
    a, b, tokens = (list(map(float, column)) for column in zip(*examples, strict=True))
    low, high = paired_interval((a, tokens), (b, tokens), resamples=200)
    assert low <= high
    assert paired_interval((b, tokens), (a, tokens), resamples=200) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("sums", [([], []), ([1.0], [2.0]), ([1.0, 2.0], [0.0, 0.0]), ([float("nan")] * 3, [1.0] * 3)])
def test_the_paired_interval_of_too_little_is_no_number(sums: tuple[list[float], list[float]]) -> None:
    assert all(value != value for value in paired_interval(sums, sums))


def test_the_higher_agreement_and_the_lower_size_win() -> None:
    a, b = student("a-small"), student("b-small")
    b.manifest["evaluation"]["metrics"]["top1_agreement"] = 0.8
    b.manifest["evaluation"]["sizes"]["student"] = {"parameters": 90_000_000}
    rows = {row["key"]: row for row in compare_json([a, b])["rows"]}
    assert rows["top1_agreement"]["best"] == ["b-small@1"]
    assert rows["parameters"]["best"] == ["a-small@1"]


def test_the_teacher_is_taken_from_the_first_student_and_never_wins() -> None:
    versions = [student("a-small"), student("b-small", 0.3)]
    content = compare_json(versions, teacher=True)
    rows = {row["key"]: row for row in content["rows"]}
    assert content["columns"] == ["a-small@1", "b-small@1", "teacher"]
    assert rows["student_perplexity"]["values"]["teacher"]["value"] == 3.9
    assert rows["parameters"]["values"]["teacher"]["value"] == 134_515_008
    assert rows["bytes"]["best"] == []
    assert rows["kl"]["values"]["teacher"] is None
    assert "28.0" in text(compare_table(versions, teacher=True))


def test_students_of_two_teachers_have_a_column_for_each() -> None:
    other = {"evaluation": {"sizes": {"teacher": {"parameters": 268_098_176}}}, "teacher": {"sha256": "b"}}
    versions = [
        student("a-small", teacher={"sha256": "a"}),
        student("c-small", teacher={"sha256": "a"}),
        student("b-mini", **other),
    ]
    content = compare_json(versions, teacher=True)
    assert content["columns"][3:] == ["teacher of a-small@1", "teacher of b-mini@1"]
    values = next(row for row in content["rows"] if row["key"] == "parameters")["values"]
    assert values["teacher of b-mini@1"]["value"] == 268_098_176


def test_compare_warns_when_the_test_sets_differ() -> None:
    other = student("b-small", dataset={"fingerprint": "f1"})
    assert "compare only roughly" in " ".join(text(compare_table([student("a-small"), other])).split())
    assert "compare only" not in text(compare_table([student("a-small"), student("b-small")]))


def test_compare_without_versions_is_an_error() -> None:
    with pytest.raises(RegistryError, match="at least one"):
        compare_json([])
