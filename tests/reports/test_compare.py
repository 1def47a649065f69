"""Who is the best of a row, who is tied, and which rows are shown first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.manifests import COMMON, TEACHER, base, evaluation, metric, rendered, student

from factory.errors import RegistryError
from factory.registry.versions import Version
from factory.reports.compare import BEST, TIED, compare_json, compare_table

SUMS = ("tokens", "kl", "agree", "top5", "correct", "teacher_correct", "nll", "teacher_nll", "sure", "sure_agree", "trimmed")


def plain(name: str, kl: float | None = 0.4, width: float = 0.02, **metrics: Any) -> Version:
    """Measured on examples of its own, so that only intervals can decide."""
    found = {"kl": metric(kl, width=width), "top1_agreement": metric(0.76)} | metrics
    own = {"key": name, "cluster": ["a", "b"]} | {key: [1.0, 2.0] for key in SUMS}
    return student(name, evaluation=evaluation(metrics=found, per_example=own))


def measured(name: str, kl: list[float], key: str = "k1", metrics: Any = None, **sums: list[float]) -> Version:
    """Ten tokens per example; all intervals overlap, so that only pairs can tell versions apart."""
    own = {"key": key, "cluster": [str(i) for i in range(len(kl))]} | dict.fromkeys(SUMS, [10.0] * len(kl)) | {"kl": kl} | sums
    found = {"kl": metric(sum(kl) / (10 * len(kl)), width=9.0)} | (metrics or {})
    return student(name, evaluation=evaluation(metrics=found, per_example=own))


def sized(name: str, parameters: int, **metrics: Any) -> Version:
    version = plain(name, **metrics)
    sizes = evaluation()["sizes"]
    sizes["student"] = {"parameters": parameters, "bytes": 1}
    content = version.manifest.model_dump() | {"evaluation": version.manifest.evaluation.model_dump() | {"sizes": sizes}}
    return student(name, **{"evaluation": content["evaluation"]})


def compared(*versions: Version) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in compare_json(versions)["rows"]}


def line_of(written: str, label: str) -> str:
    return next(line for line in written.splitlines() if line.startswith(label))


# --------------------------------------------------------------------------------------------------------- what is shown


def test_the_table_begins_with_a_dozen_rows_that_matter() -> None:
    more = {"entropy_gap": metric(0.1), "golden_set_passed": metric(0.9), "task_pubmedqa_accuracy": metric(0.5)}
    versions = [plain("a-small", **more), plain("b-small", **more)]
    labels = [line.partition("  ")[0] for line in rendered(compare_table(versions)).splitlines()[1:-1]]
    assert labels[:9] == [
        "verdict",
        "KL(teacher ‖ student), nats/token",
        "top-1 agreement with the teacher",
        "golden set passed",
        "accuracy on pubmedqa",
        "parameters",
        "size on disk",
        "tokens/s, one stream",
        "base",
    ]
    assert "entropy" not in rendered(compare_table(versions))
    assert "entropy minus the teacher's" in rendered(compare_table(versions, all_metrics=True))
    assert "entropy_gap" in compared(*versions)  # JSON has all


def test_a_long_warning_is_cut() -> None:
    version = student(warnings=["the data set is small: " + "more templates " * 20, "another"])
    assert len(line_of(rendered(compare_table([version])), "warning")) < 130


def test_bases_are_compared_by_size() -> None:
    written = rendered(compare_table([base("a-base"), base("b-base", parameters=70_000_000)]))
    assert "unchecked" in written
    assert "70.0 M " + BEST in written


# --------------------------------------------------------------------------------------------------------------- ranking


def test_the_best_of_each_row_is_starred() -> None:
    versions = [plain("a-small", 0.4), plain("b-small", 0.3)]
    rows = compared(*versions)
    assert (rows["kl"]["best"], rows["kl"]["tied"]) == (["b-small@1"], [])
    line = line_of(rendered(compare_table(versions)), "KL(")
    assert line.count(BEST) == 1
    assert "0.300 [0.280, 0.320] " + BEST in line


def test_metrics_for_reference_have_no_winner() -> None:
    versions = [plain("a-small", teacher_perplexity=metric(4.0)), plain("b-small", teacher_perplexity=metric(3.0))]
    assert compared(*versions)["teacher_perplexity"]["best"] == []


def test_versions_whose_intervals_overlap_are_tied_and_nobody_is_starred() -> None:
    versions = [plain("a-small", 0.4, 0.08), plain("b-small", 0.3, 0.08), plain("c-small", 0.9)]
    row = compared(*versions)["kl"]
    assert (row["best"], row["tied"], row["paired"]) == ([], ["a-small@1", "b-small@1"], False)
    written = rendered(compare_table(versions))
    line = line_of(written, "KL(")
    assert line.count(TIED) == 2 and BEST not in line
    assert "their 95 % intervals overlap" in " ".join(written.split())


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
    assert "paired difference contains 0" in " ".join(rendered(compare_table(versions)).split())


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
        measured(name, [1.0] * 4, metrics={row: metric(value, width=9.0)}, **{above: [one + add for one in sums]}, **extra)
        for name, value, add in (("a-small", 0.5 + 0.1 * better, better), ("b-small", 0.5, 0))
    ]
    decided = compared(*versions)[row]
    assert (decided["best"], decided["tied"], decided["paired"]) == (["a-small@1"], [], True)


def test_accuracy_retained_is_of_what_the_teacher_gets_right() -> None:
    correct, retained = [3.0, 5.0, 4.0, 6.0], "accuracy_retained"
    versions = [
        measured(
            name, [1.0] * 4, metrics={"accuracy_retained": metric(18 / sum(of), width=0.5)}, correct=correct, teacher_correct=of
        )
        for name, of in (("a-small", [8.0, 8.0, 9.0, 8.0]), ("b-small", [7.0, 7.0, 8.0, 7.0]))
    ]
    assert compared(*versions)[retained]["best"] == ["b-small@1"]


@pytest.mark.parametrize("other", [measured("b-small", [1.0, 2.0, 3.0], key="k2"), plain("b-small", 0.1, 9.0)])
def test_without_the_same_examples_intervals_decide(other: Version) -> None:
    row = compared(measured("a-small", [4.0, 5.0, 6.0]), other)["kl"]
    assert (row["best"], row["tied"], row["paired"]) == ([], ["a-small@1", "b-small@1"], False)


def test_a_base_beside_them_does_not_spoil_the_pair() -> None:
    row = compared(measured("a-small", [4.0, 5.0, 6.0]), base(), measured("b-small", [1.0, 2.0, 3.0]))["kl"]
    assert (row["best"], row["paired"]) == (["b-small@1"], True)


def test_one_example_decides_nothing() -> None:
    assert compared(measured("a-small", [4.0]), measured("b-small", [1.0]))["kl"]["tied"] == ["a-small@1", "b-small@1"]


def test_a_metric_that_could_not_be_measured_neither_wins_nor_ties() -> None:
    row = compared(plain("a-small", None), plain("b-small", 0.3))["kl"]
    assert (row["best"], row["tied"]) == ([], [])
    assert row["values"]["a-small@1"] == {"value": None, "low": None, "high": None, "n": 5120}  # JSON has no NaN


def test_sizes_have_winners_and_no_tie() -> None:
    row = compared(sized("a-small", 80), sized("b-small", 80), sized("c-small", 90))["parameters"]
    assert (row["best"], row["tied"], row["paired"]) == (["a-small@1", "b-small@1"], [], False)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_the_winners_are_the_smallest_unless_all_are_equal(parameters: list[int]) -> None:
    versions = [sized(f"s{number}-small", value) for number, value in enumerate(parameters)]
    smallest = [one.reference for one, value in zip(versions, parameters, strict=True) if value == min(parameters)]
    assert compared(*versions)["parameters"]["best"] == (smallest if len(smallest) < len(versions) else [])


# --------------------------------------------------------------------------------------------------------------- columns


def test_the_teacher_is_taken_from_the_first_student_and_never_wins() -> None:
    more = {"student_perplexity": metric(4.2), "teacher_perplexity": metric(3.9)}
    more |= {"golden_set_passed": metric(0.5), "golden_set_passed_teacher": metric(0.95)}
    versions = [plain("a-small", **more), plain("b-small", 0.3, **more)]
    content = compare_json(versions, teacher=True)
    rows = {row["key"]: row for row in content["rows"]}
    assert content["columns"] == ["a-small@1", "b-small@1", "teacher"]
    assert rows["student_perplexity"]["values"]["teacher"]["value"] == 3.9
    assert rows["golden_set_passed"]["values"]["teacher"]["value"] == 0.95
    assert rows["parameters"]["values"]["teacher"] == {"value": 134_515_008, "low": None, "high": None, "n": None}
    assert rows["bytes"]["best"] == []
    assert rows["kl"]["values"]["teacher"] is None
    assert "28.0" in rendered(compare_table(versions, teacher=True))


def test_students_of_two_teachers_have_a_column_for_each() -> None:
    other = TEACHER | {"sha256": "b"}
    sizes = evaluation()["sizes"] | {"teacher": {"parameters": 268_098_176, "bytes": 1}}
    versions = [student("a-small"), student("c-small"), student("b-mini", teacher=other, evaluation=evaluation(sizes=sizes))]
    content = compare_json(versions, teacher=True)
    assert content["columns"][3:] == ["teacher of a-small@1", "teacher of b-mini@1"]
    values = next(row for row in content["rows"] if row["key"] == "parameters")["values"]
    assert values["teacher of b-mini@1"]["value"] == 268_098_176


def test_different_test_sets_are_said() -> None:
    other = student("b-small", dataset=COMMON["dataset"] | {"fingerprint": "f1"})
    assert "compare only roughly" in " ".join(rendered(compare_table([student("a-small"), other])).split())
    assert "compare only" not in rendered(compare_table([student("a-small"), student("b-small")]))


def test_compare_without_versions_is_an_error() -> None:
    with pytest.raises(RegistryError, match="at least one"):
        compare_json([])
