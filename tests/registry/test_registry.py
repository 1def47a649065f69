from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.manifests import COMMON, evaluation, metric, publish

from factory import cache
from factory.errors import GateError, RegistryError, StorageError
from factory.registry.registry import Registry

GATES = [
    {"metric": "kl", "of": "high", "bound": "at_most", "threshold": 0.8, "found": 0.8001, "status": "failed"},
    {"metric": "top1_agreement", "of": "value", "bound": "at_least", "threshold": 0.6, "found": 0.7, "status": "passed"},
    {"metric": "canary_exposure", "of": "value", "bound": "at_most", "threshold": 2, "found": None, "status": "failed"},
]
FAILED: dict[str, Any] = {
    "status": "failed",
    "reasons": [
        "KL(teacher ‖ student), nats/token: 0.8001 > 0.8 (upper end of the interval)",
        "exposure of planted secrets, bits: not measured, the gate needs at most 2",
    ],
    "gates": GATES,
}


def test_aliases_move_and_show_in_the_list(registry: Registry) -> None:
    publish(registry)
    publish(registry, verdict={"status": "passed", "champion": "healthcare-small@1"})
    registry.promote("healthcare-small@1", "champion")
    registry.promote("healthcare-small@2", "champion")
    registry.promote("healthcare-small@2", "tried")
    assert registry.aliases("healthcare-small") == {"champion": 2, "tried": 2}
    assert [s.aliases for s in registry.versions("student")] == [(), ("champion", "tried")]
    assert registry.aliases("unknown") == {}


def test_concurrent_promotions_are_all_kept(registry: Registry) -> None:
    publish(registry)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: registry.promote("healthcare-small@1", f"alias-{n}"), range(16)))
    assert len(registry.aliases("healthcare-small")) == 16


def test_a_failed_or_damaged_version_is_not_promoted(registry: Registry) -> None:
    version = publish(registry, verdict=FAILED)
    with pytest.raises(RegistryError, match=r"failed its gates, champion was not moved: KL.* 0\.8001 > 0\.8"):
        registry.promote(version.reference)
    registry.promote(version.reference, override="the clinic asked for it")
    file = version.folder / "adapter_model.safetensors"
    file.chmod(0o644)
    file.write_bytes(b"WEIGHTS")  # the same length
    with pytest.raises(RegistryError, match="is damaged"):
        registry.promote(version.reference, override="the clinic asked for it")
    assert len(registry.resolve(version.reference).records) == 1  # what is refused is not recorded


def test_the_refusal_names_each_failed_gate(registry: Registry) -> None:
    version = publish(registry, verdict=FAILED)
    with pytest.raises(GateError) as caught:
        registry.promote(version.reference)
    assert "; ".join(FAILED["reasons"]) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.exit_code, RegistryError.exit_code) == (3, 1)
    assert registry.aliases("healthcare-small") == {}


def test_an_override_is_recorded_with_its_reason_for_ever(registry: Registry) -> None:
    version = publish(registry, verdict=FAILED)
    promoted = registry.promote(version.reference, "tried", override="  the clinic\nasked for it ")
    (record,) = promoted.records
    assert record["at"].endswith("Z")
    assert {key: value for key, value in record.items() if key != "at"} == {
        "kind": "override",
        "alias": "tried",
        "reason": "the clinic\nasked for it",
        "gates": FAILED["reasons"],
    }
    registry.promote(publish(registry).reference, "tried")  # the alias moves on, the record stays
    again = Registry(registry.root).resolve(version.reference)
    assert again.records == promoted.records
    assert registry.verify(again) == registry.problems() == []


def test_only_a_failure_can_be_overridden_and_only_with_a_reason(registry: Registry) -> None:
    publish(registry)
    publish(registry, verdict=FAILED)
    with pytest.raises(RegistryError, match="nothing to override: the verdict of healthcare-small@1 is passed"):
        registry.promote("healthcare-small@1", override="to be sure")
    for reason in ("", " \n"):
        with pytest.raises(RegistryError, match="the reason to override the gates of healthcare-small@2 is empty"):
            registry.promote("healthcare-small@2", override=reason)
    assert registry.aliases("healthcare-small") == {}
    assert list(registry.root.rglob("records.jsonl")) == []


def test_a_student_replaces_only_the_champion_that_it_was_compared_with(registry: Registry) -> None:
    publish(registry)
    registry.promote("healthcare-small@1")
    registry.promote("healthcare-small@1")  # as it is
    publish(registry)
    with pytest.raises(GateError, match=r"was not compared with a champion, and the champion is healthcare-small@1: build it"):
        registry.promote("healthcare-small@2")
    registry.promote("healthcare-small@2", "tried")  # only the champion has to be beaten
    publish(registry, verdict={"status": "passed", "champion": "healthcare-small@1"})
    registry.promote("healthcare-small@3")
    publish(registry, verdict={"status": "passed", "champion": "healthcare-small@1"})
    with pytest.raises(GateError, match="compared with healthcare-small@1, and the champion is healthcare-small@3"):
        registry.promote("healthcare-small@4")
    registry.promote("healthcare-small@4", override="the numbers of 3 are known")
    assert registry.aliases("healthcare-small")["champion"] == 4


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ({"status": "unchecked"}, "has no gates, champion was not moved: no gate was checked"),
        ({"status": "undecidable", "reasons": ["8 items"]}, "gates that its evaluation could not decide, .*: 8 items; --override"),
    ],
)
def test_what_was_not_decided_is_not_promoted(registry: Registry, verdict: dict[str, Any], words: str) -> None:
    version = publish(registry, verdict=verdict)
    with pytest.raises(GateError, match=words):
        registry.promote(version.reference)
    registry.promote(version.reference, override="a demonstration")


def test_a_bare_name_never_means_a_version_that_failed(registry: Registry) -> None:
    publish(registry, verdict=FAILED)
    registry.promote("healthcare-small@1", override="the clinic asked for it")
    assert registry.resolve("healthcare-small@champion").number == 1
    with pytest.raises(RegistryError, match="no valid version: 1 failed its gates"):
        registry.resolve("healthcare-small")
    publish(registry, verdict={"status": "passed", "champion": "healthcare-small@1"})
    publish(registry)
    assert registry.resolve("healthcare-small").number == 3
    registry.promote("healthcare-small@2")
    assert registry.resolve("healthcare-small").number == 2


def test_no_alias_moves_where_its_reason_cannot_be_written(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(registry, verdict=FAILED)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="no space left"):
        patched.setattr("factory.registry.records.os.fsync", full)
        registry.promote(version.reference, override="the clinic asked for it")
    assert registry.aliases("healthcare-small") == {}


def test_an_alias_of_a_deleted_version_is_an_error(registry: Registry) -> None:
    publish(registry)
    gone = publish(registry)
    registry.promote(gone.reference)
    shutil.rmtree(gone.folder)
    with pytest.raises(RegistryError, match="healthcare-small@champion: healthcare-small has no version 2"):
        registry.resolve("healthcare-small")
    assert registry.problems() == ["healthcare-small@champion points at 2, which is gone"]


def test_verify_names_what_is_missing_changed_or_added(registry: Registry) -> None:
    version = publish(registry)
    weights = version.folder / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"WEIGHTS")
    (version.folder / "tokenizer" / "tokenizer.json").unlink()
    (version.folder / "extra.txt").write_text("extra")
    assert registry.verify(version) == [
        "adapter_model.safetensors was changed: its sha256 differs from the manifest's",
        "tokenizer/tokenizer.json is missing",
        "extra.txt is not in the manifest",
    ]


@pytest.mark.parametrize(
    ("error", "said"), [(FileNotFoundError(2, "gone"), "is missing"), (OSError(5, "Input/output error"), "cannot be read")]
)
def test_verify_names_a_file_that_goes_or_fails_while_it_is_read(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    version, read = publish(registry), cache.sha256

    def reading(path: Path) -> str:
        if path.name == "adapter_model.safetensors":
            raise error
        return read(path)

    monkeypatch.setattr("factory.registry.registry.sha256", reading)
    (found,) = registry.verify(version)
    assert found.startswith(f"adapter_model.safetensors {said}")


def test_an_edited_manifest_is_noticed_before_it_is_used(registry: Registry) -> None:
    version = publish(registry, evaluation=evaluation(metrics={"kl": metric(2.0)}))
    path = version.folder / "manifest.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"value": 2.0', '"value": 0.1'))
    with pytest.raises(RegistryError, match=r"its manifest\.json was changed after publishing"):
        registry.resolve(version.reference)
    assert registry.verify(version) == ["manifest.json was changed after publishing"]


def test_trained_on_includes_students_of_a_base_that_saw_the_source(registry: Registry) -> None:
    dataset = COMMON["dataset"] | {"sources": [{"id": "medquad", "license": "cc-by-4.0", "n": 10}]}
    publish(registry, "default-small", "base", dataset=dataset)
    publish(registry, "default-small", "base")
    publish(registry, "a-small", base="default-small@1")
    publish(registry, "b-small", base="default-small")  # the newest: recorded as @2
    publish(registry, "c-small", dataset=dataset)
    assert registry.resolve("b-small").base == "default-small@2"
    found = [s.reference for s in registry.trained_on("medquad")]
    assert found == ["a-small@1", "c-small@1", "default-small@1"]
    assert registry.trained_on("unknown") == []


def test_a_base_that_is_gone_or_replaced_is_a_problem(registry: Registry, tmp_path: Path) -> None:
    base = publish(registry, "default-small", "base")
    student = publish(registry, base="default-small@1")
    assert registry.verify(student) == registry.problems() == []
    shutil.rmtree(base.folder)
    assert "its base is gone" in registry.verify(student)[0]
    other = publish(Registry(tmp_path / "other"), "default-small", "base", seed=1)
    shutil.copytree(other.folder, base.folder)
    assert "is not the one that was published" in registry.problems()[0]
    (registry.root / "registry.json").unlink()  # as older releases left it
    assert "is not the one it was trained on" in registry.problems()[0]


def test_importing_the_registry_loads_nothing_heavy() -> None:
    code = "import sys, factory.registry.registry; print([m for m in ('torch','numpy','pydantic','rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_lineage_has_the_bases_that_a_student_and_its_path_name(registry: Registry) -> None:
    """The word "teacher", or a base that is gone, is left out."""
    base = registry.resolve("default-small-base")
    student = publish(registry, path=["teacher", "gone-base@4", base.reference])
    assert registry.lineage([student]) == {base.reference: base}
    assert registry.lineage([]) == {}
