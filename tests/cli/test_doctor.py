"""``factory doctor`` finds what is there, what is missing and what is damaged, and says how to fix it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.workplace import Workplace

from factory import cache
from factory.cli import doctor
from factory.cli.doctor import CachedModel, Finding, cached_models, can_build, examine
from factory.config.schema import ModelSpec
from factory.models import references, templates
from factory.models.references import resolve


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def findings(place: Workplace, *, verify: bool = False) -> list[Finding]:
    return examine(place.domains, place.root / "registry", verify=verify)


def of(found: list[Finding], what: str) -> Finding:
    return next(finding for finding in found if finding.what == what)


def cache_a_model(place: Workplace) -> Path:
    """A folder in the cache, as a family with a chat template of its own makes one."""
    tiny.llama(layers=1).save_pretrained(place.domains / "teacher")
    tiny.tokenizer().save_pretrained(place.domains / "teacher")
    spec = ModelSpec(model="path:./teacher", license="mit")
    return resolve(spec, root=place.domains, chat_template="{{ messages }}", quiet=True).folder


def test_the_machine_is_described(workplace: Workplace) -> None:
    found = findings(workplace)
    for what in ("python", "cores", "memory", "device", "FACTORY_HOME", "specs"):
        assert of(found, what).state in ("ok", "warning"), of(found, what)


def test_an_empty_registry_and_absent_models_are_missing_with_their_command(workplace: Workplace) -> None:
    found = findings(workplace)
    assert of(found, "registry").fix == "factory build healthcare --profile demo"
    assert of(found, "default: teacher").state == "missing"
    assert of(found, "default: teacher").fix == "factory doctor --fetch default"


def test_a_build_can_start_with_models_that_are_only_missing(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_libraries", lambda: iter(()))
    assert can_build(findings(workplace))


def test_wrong_specs_are_problems_line_by_line(workplace: Workplace) -> None:
    workplace.write("plants.yaml", "name: plants\nsauces: []\n")
    wrong = [finding for finding in findings(workplace) if finding.what == "specs"]
    assert {finding.state for finding in wrong} == {"problem"}
    assert len(wrong) > 1
    assert not can_build(findings(workplace))


def test_a_library_out_of_range_is_a_problem(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda _: ["numpy>=999", "typer>=0.1", "no-such-thing>=2", 'x; extra=="dev"']
    )
    found = findings(workplace)
    assert of(found, "numpy").detail.endswith(">=999 is required")
    assert of(found, "no-such-thing").detail == "not installed, >=2 is required"
    assert of(found, "numpy").fix == doctor.REINSTALL
    assert of(found, "libraries").detail.startswith("typer ")


def test_cached_models_are_listed_and_verified(workplace: Workplace) -> None:
    folder = cache_a_model(workplace)
    assert cached_models() == [CachedModel(folder, complete=True)]
    assert of(findings(workplace), "cached model").state == "ok"
    assert "every byte verified" in of(findings(workplace, verify=True), "cached model").detail


def test_a_changed_byte_is_found_by_verify_alone(workplace: Workplace) -> None:
    weights = cache_a_model(workplace) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # a hard link: the original stays as it is
    weights.write_bytes(content)
    assert of(findings(workplace), "cached model").state == "ok"
    damaged = of(findings(workplace, verify=True), "cached model")
    assert (damaged.state, damaged.fix) == ("problem", f"rm -r {weights.parent}")


def test_a_missing_file_or_unreadable_manifest_is_a_problem(workplace: Workplace) -> None:
    folder = cache_a_model(workplace)
    (folder / "config.json").unlink()
    assert of(findings(workplace), "cached model").state == "problem"
    (folder / references.MANIFEST).write_text("{")
    assert of(findings(workplace), "cached model").state == "problem"


def test_registry_problems_are_reported(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = built.root / "registry" / "students" / "plants-mini" / "1" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert of(findings(built), "registry").state == "ok"
        problems = [finding for finding in findings(built, verify=True) if finding.state == "problem"]
        assert any("plants-mini@1" in problem.detail for problem in problems)
    finally:
        weights.write_bytes(content)


def test_the_command_prints_and_fails_only_for_problems(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_libraries", lambda: iter(()))
    result = workplace.run("doctor", "--json")
    content: dict[str, Any] = json.loads(result.stdout)
    assert (result.exit_code, content["ok"]) == (0, True)
    (workplace.domains / "plants.yaml").write_text("name: plants\n")
    result = workplace.run("doctor")
    assert result.exit_code == 1
    assert "→ factory validate" in " ".join(result.stdout.split())


def test_fetch_gets_a_family_s_models(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for module, name in ((templates, "resolve_teacher"), (references, "resolve")):
        monkeypatch.setattr(module, name, lambda spec, **_: asked.append(spec.model))
    workplace.run("doctor", "--fetch", "default")
    assert asked == ["path:./teacher", "path:./encoder"]


def test_a_damaged_entry_of_the_cache_is_a_warning_since_it_heals_itself(workplace: Workplace) -> None:
    folder = cache.home() / "data" / "plants-0"
    with cache.kept_folder(folder) as new:
        (new / "rows").write_text("1")
    assert of(findings(workplace, verify=True), "cached data").state == "ok"
    (folder / "rows").write_text("2")
    damaged = of(findings(workplace, verify=True), "cached data")
    assert (damaged.state, damaged.detail) == ("warning", f"{folder} was damaged")
