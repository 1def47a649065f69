"""One student of the real teacher, from YAML to answer, at the smallest budget: commands in processes of their own.

What takes minutes is marked big: the shipped evaluation files, and formats that differ from tested ones in little.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.cache import home

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).parents[2] / "domains"
FIT = {"batch": 8, "feature": 0.1, "relation": 0.0}
PROFILE = {
    "data": {"max_examples": 40},
    "heal": {"steps": 2, "lmbda": 0.0, **FIT},
    "distill": {"steps": 2, "lmbda": 1.0, "max_new_tokens": 16, **FIT},
    "evaluate": {"examples": 6, "general": 6, "bootstrap": 100},
}
QUESTION = "How do plants make sugar from light?"

# What someone without this package does: peft and transformers alone, offline, folders somewhere else.
PLAIN_PEFT = """
import sys
sys.modules["factory"] = None  # importing it would fail
import json, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, question = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter).eval()
turn = [{"role": "user", "content": question}]
ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
with torch.no_grad():
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    changed = model(**ids).logits[0, -1]
    with model.disable_adapter():
        plain = model(**ids).logits[0, -1]
prompt = ids["input_ids"].shape[1]
print(json.dumps({"text": tokenizer.decode(out[0, prompt:]), "moved": (changed - plain).abs().max().item()}))
"""

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped family with a tiny profile, one of its domains, and a cache that shares only the models."""
    root = tmp_path_factory.mktemp("e2e")
    (root / "domains").mkdir()
    shutil.copy(SHIPPED / "general.pool.yaml", root / "domains")
    domain = yaml.safe_load((SHIPPED / "education.yaml").read_text(encoding="utf-8"))
    asked = {"bias_pairs", "tasks", "golden_set", "refusals"}
    (root / "domains" / "education.yaml").write_text(yaml.safe_dump({k: v for k, v in domain.items() if k not in asked}))
    family = yaml.safe_load((SHIPPED / "default.family.yaml").read_text(encoding="utf-8"))
    family["profiles"]["least"] = PROFILE
    family["gates"] = {"kl": {"at_most": 0}}  # so that it fails, however good it is
    family["router"] = {"max_per_domain": 200}
    del family["injections"], family["jailbreaks"]
    (root / "domains" / "default.family.yaml").write_text(yaml.safe_dump(family, sort_keys=False))
    models = home() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (root / "home").mkdir()
    (root / "home" / "models").symlink_to(models)
    return root


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    """``run("list", "--json")``: what the command wrote to stdout, as JSON where it was asked for."""

    def call(*arguments: str, fails: int = 0) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", "from factory.cli import app; app()", *arguments],
            cwd=place,
            env={**os.environ, "FACTORY_HOME": str(place / "home"), "PYTHONPATH": str(SHIPPED.parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == fails, done.stderr
        if fails:
            return done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    return call


@pytest.fixture(scope="module")
def student(run: Run) -> dict[str, Any]:
    built: dict[str, Any] = run("build", "education", "--profile", "least", "--json")[0]
    return built


def test_the_manifest_tells_where_the_student_comes_from(student: dict[str, Any]) -> None:
    assert student["reference"] == "education-medium@1"
    assert student["base"] == "default-medium-base@1"
    assert student["profile"] == "least"
    assert student["teacher"]["parameters"] > 130e6
    assert student["dataset"]["counts"]["train"] >= 20
    taught = student["dataset"]["counts"]["train"]  # all of it, since nothing healed the base
    assert student["training"]["examples"] == taught + round(0.1 * taught)  # and a tenth of general prompts beside it
    assert {source["license"] for source in student["dataset"]["sources"]} == {"Apache-2.0"}
    assert len(student["router"]) == 12


def test_the_student_is_small_and_measured(student: dict[str, Any]) -> None:
    sizes = student["evaluation"]["sizes"]
    assert sizes["student"]["base_parameters"] == sizes["teacher"]["parameters"] - (49_152 - 36_000) * 576
    metrics = student["evaluation"]["metrics"]
    for name in ("kl", "top1_agreement", "top5_overlap", "student_perplexity"):
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
        assert metrics[name]["n"] > 0
    assert metrics["relation_alignment"]["value"] is None  # of at most six examples: too few, which JSON says as null
    assert set(student["evaluation"]["speed"]) == {"teacher", "student"}


def test_it_is_judged_by_its_gates(student: dict[str, Any]) -> None:
    metrics, verdict = student["evaluation"]["metrics"], student["verdict"]
    assert metrics["teacher_ahead_of_base"]["low"] > 0 and metrics["teacher_ahead_of_chance"]["low"] > 0
    assert verdict["status"] == "failed" and [gate["status"] for gate in verdict["gates"]] == ["failed"]
    assert student["energy"]["stages_wh"]["distill"] > 0


def test_it_is_not_promoted_and_its_name_alone_means_nothing(student: dict[str, Any], run: Run) -> None:
    assert "KL(teacher ‖ student), nats/token: " in run("promote", "education-medium@1", fails=3)
    assert "failed its gates" in run("show", "education-medium", fails=1)


def test_it_is_listed_shown_and_compared(student: dict[str, Any], run: Run) -> None:
    assert {row["reference"] for row in run("list", "--json")} == {"education-medium@1", "default-medium-base@1"}
    assert "education-medium@1" in run("show", "education-medium@1")
    assert run("compare", "education-medium@1", "teacher", "--json")["columns"] == ["education-medium@1", "teacher"]


def test_it_answers(student: dict[str, Any], run: Run) -> None:
    answer = run("ask", "education-medium@1", QUESTION, "--json")
    assert answer["reference"] == "education-medium@1"
    assert isinstance(answer["answer"], str)  # after two steps it may be empty


def test_its_next_tokens_are_explained(student: dict[str, Any], run: Run) -> None:
    found = run("explain", "education-medium@1", "The movie was surprisingly", "--json")
    assert found["kl"] > 0
    assert 0.5 < found["kept_mass"] <= 1
    assert len(found["teacher"]) == len(found["student"]) == 10


def test_texts_are_routed(student: dict[str, Any], run: Run) -> None:
    assert run("route", "Explain photosynthesis to a ten-year-old.", "--json")["domain"] == "education"
    assert run("route", "Book me a table for two at eight tonight.", "--json")["domain"] is None


def test_a_second_build_makes_nothing_twice(student: dict[str, Any], run: Run) -> None:
    plan = run("plan", "education", "--profile", "least", "--json")["steps"]
    assert {step["what"] for step in plan if step["state"] not in ("on disk", "needs")} == {
        "student education-medium",
        "evaluation of education-medium",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(arguments, marks=marks, id="-".join(arguments))
        for arguments, marks in (
            (["peft"], ()),
            (["gguf", "--quantization", "q8_0"], ()),
            (["gguf", "--part", "adapter"], pytest.mark.big),  # more than a minute
            (["merged"], pytest.mark.big),
            (["gguf", "--quantization", "f16"], pytest.mark.big),
            (["gguf", "--quantization", "q4"], pytest.mark.big),
            (["gguf", "--part", "base"], pytest.mark.big),
            (["ollama"], pytest.mark.big),
            (["sentence-transformers"], pytest.mark.big),
        )
    ],
)
def test_every_export_is_what_is_registered(student: dict[str, Any], run: Run, tmp_path: Path, arguments: list[str]) -> None:
    found = run("export", "education-medium@1", "--format", *arguments, "--to", str(tmp_path / "out"), "--json")
    assert found["within"] and found["tokens"] > 250  # a base has no samples, only the texts that are ours
    assert json.loads((tmp_path / "out" / "parity.json").read_text(encoding="utf-8")) == found


def test_peft_alone_loads_it_after_both_folders_were_moved(student: dict[str, Any], place: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "somewhere" / "base", tmp_path / "elsewhere" / "adapter"
    shutil.copytree(place / "registry" / "bases" / "default-medium-base" / "1", base)
    shutil.copytree(place / "registry" / "students" / "education-medium" / "1", adapter)
    (place / "registry").rename(place / "moved-away")
    try:
        done = subprocess.run(
            [sys.executable, "-c", PLAIN_PEFT, str(base), str(adapter), QUESTION],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
    finally:
        (place / "moved-away").rename(place / "registry")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["text"]
    assert answer["moved"] > 0


@pytest.mark.big
def test_the_shipped_evaluation_files_are_asked(student: dict[str, Any], place: Path, run: Run) -> None:
    shutil.copytree(SHIPPED / "evals", place / "domains" / "evals")
    shutil.copy(SHIPPED / "education.yaml", place / "domains")
    [again] = run("build", "education", "--profile", "least", "--json")
    metrics = again["evaluation"]["metrics"]
    assert again["base"] == student["base"]
    assert metrics["task_factory_education_accuracy_teacher"]["n"] == 200
    assert metrics["task_factory_education_accuracy_teacher"]["low"] > 0.25  # better than guessing
    assert metrics["bias_preference_change"]["n"] >= 500 and metrics["golden_set_passed"]["n"] == 120
    assert metrics["refused_change"]["n"] == metrics["over_refused_change"]["n"] == 90
