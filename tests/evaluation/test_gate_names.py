"""Gates that name no metric are found in the YAML, before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.specs import domain, family, load, said

from factory.config.load import read_folder
from factory.errors import SpecError
from factory.evaluation.gate_names import check_gates, require_metrics
from factory.evaluation.metrics import METRICS

SHIPPED = Path(__file__).parents[2] / "domains"
KNOWN = [*METRICS, "task_sciq_accuracy", "bias_age_gap_change", "golden_set_passed_teacher"]


def wrong(folder: Path) -> list[str]:
    found = check_gates(read_folder(folder)).mistakes
    return [said(folder, str(mistake).replace(f"{folder}/", "")) for mistake in found]


def test_a_gate_of_a_family_or_a_domain_that_names_no_metric_is_a_mistake(tmp_path: Path) -> None:
    gates = {"top1_agrement": {"at_least": 0.5}, "kl": {"at_most": 1}}
    load(tmp_path, small_family=family(gates=gates), law=domain(gates={"helpfulness": None, "kl": None}))
    assert wrong(tmp_path) == [
        "law.yaml: gates.helpfulness: no such metric; docs/evaluation.md lists them",
        "small.family.yaml: gates.top1_agrement: no such metric; did you mean top1_agreement?",
    ]


def test_every_metric_and_every_pattern_may_be_a_gate(tmp_path: Path) -> None:
    load(tmp_path, small_family=family(gates={name: {"at_most": 1} for name in KNOWN}))
    assert wrong(tmp_path) == [] and check_gates(read_folder(SHIPPED)).mistakes == ()
    require_metrics(KNOWN)


def test_without_a_file_the_gate_alone_is_named() -> None:
    with pytest.raises(SpecError, match=r"^gate 'klx': no such metric; did you mean kl\?$"):
        require_metrics(["kl", "klx"])
