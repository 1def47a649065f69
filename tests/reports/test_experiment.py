"""The table and the CSV of an experiment, from the JSON that it wrote."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from factory.reports.experiment import csv_text, format_p, format_rate, markdown_table


def metric(value: float | None, clusters: int = 24) -> dict[str, Any]:
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    return {"value": value, "low": low, "high": high, "n": 900, "clusters": clusters}


def compared(value: float, difference: float | None = None, p: float | None = None) -> dict[str, Any]:
    beside = None if difference is None else metric(difference)
    return {"value": metric(value), "seeds": [value, None], "difference": beside, "p": p, "p_holm": p}


def method(name: str, kl: dict[str, Any], *, at_edge: bool = False) -> dict[str, Any]:
    runs = [{"seed": seed, "minutes": 2.0 + seed, "teacher_tokens": 1000, "steps": 10 + seed} for seed in (0, 1)]
    return {
        "name": name,
        "learning_rate": 0.0005,
        "at_edge": at_edge,
        "runs": runs,
        "metrics": {"kl": kl, "top1_agreement": compared(0.7)},
    }


CONTENT: dict[str, Any] = {
    "domain": "plants",
    "size": "mini",
    "profile": "demo",
    "base": "default-mini-base@1",
    "seeds": [0, 1],
    "minutes": 30.0,
    "teacher_tokens": 1000,
    "learning_rates": [0.0005, 0.001],
    "examples": {"validation": 20, "test": 40},
    "untrained": {"kl": metric(0.9), "top1_agreement": metric(0.5)},
    "methods": [
        method("forward KL", compared(0.5)),
        method("SFT", compared(0.6, 0.1, 0.0004), at_edge=True),
    ],
    "digests": {"data": "d" * 64, "base": "b" * 64},
    "git_commits": ["abc", "def"],
    "environment": {"processor": "a processor", "threads": 2, "libraries": {"torch": "2.13.0"}},
}


def test_the_table_has_a_row_per_method_beside_the_first() -> None:
    headings, _, base, first, second, *_ = [line.strip("| ").split(" | ") for line in markdown_table(CONTENT).splitlines()]
    assert len(headings) == len(base) == len(first) == len(second)
    rows = {name: dict(zip(headings, row, strict=True)) for name, row in (("base", base), ("KL", first), ("SFT", second))}
    paired = "KL minus that of forward KL (paired)"
    assert rows["base"]["KL(teacher ‖ student), nats/token"] == "0.900 [0.800, 1.000]" and rows["base"][paired] == "-"
    assert rows["KL"][paired] == rows["KL"]["p (Holm)"] == "-"
    assert rows["SFT"][paired] == "0.100 [0.000, 0.200]" and rows["SFT"]["p (Holm)"] == "< 0.001"
    assert rows["SFT"]["learning rate"] == "5e-4 (edge)" and rows["SFT"]["KL of each seed"] == "0.600, -"
    assert (rows["SFT"]["minutes"], rows["SFT"]["teacher tokens"], rows["SFT"]["steps"]) == ("2.5", "1,000", "10")
    assert rows["SFT"]["top-1 agreement with the teacher"] == "70.0 % [60.0 %, 80.0 %]"


def test_the_caption_says_what_all_methods_had_in_common() -> None:
    caption = markdown_table(CONTENT).splitlines()[-1]
    for said in ("30 min or 1,000 teacher tokens", "5e-4, 1e-3", "40 examples in 24 clusters", "seeds 0, 1", "1 comparison"):
        assert said in caption


def test_the_csv_has_a_line_per_method_and_metric_with_digests_and_machine() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(CONTENT))))
    assert [(line["method"], line["metric"]) for line in lines] == [
        (name, metric) for name in ("forward KL", "SFT") for metric in ("kl", "top1_agreement")
    ]
    sft = lines[2]
    assert (float(sft["value"]), float(sft["difference_value"]), float(sft["p_holm"])) == (0.6, 0.1, 0.0004)
    assert lines[0]["difference_value"] == lines[0]["p"] == ""
    assert sft["clusters"] == "24" and sft["seeds"] == "0.6" and sft["mean_minutes"] == "2.5"
    assert (sft["data_digest"], sft["git_commits"], sft["torch"], sft["threads"]) == ("d" * 64, "abc def", "2.13.0", "2")


@pytest.mark.parametrize(("rate", "text"), [(5e-4, "5e-4"), (1e-3, "1e-3"), (2.5e-5, "2.5e-5")])
def test_a_learning_rate_is_written_as_people_write_it(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(("p", "text"), [(None, "-"), (0.0123, "0.012"), (0.00099, "< 0.001"), (1.0, "1.000")])
def test_p_values_have_three_digits(p: float | None, text: str) -> None:
    assert format_p(p) == text
