"""Which files of a folder are read, and what a command does that needs some of them alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.specs import FAMILY, domain, family, load, mistakes

from factory.config.load import load_specs, read_folder
from factory.errors import SpecError


def test_hidden_files_are_not_read(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "._law.yaml").write_bytes(b"\0\5\x16\7")  # what a Mac leaves beside a file
    assert list(load_specs(tmp_path).domains) == ["law"]


@pytest.mark.parametrize(
    ("name", "right"), [("vet.yml", "vet.yaml"), ("vet.YAML", "vet.yaml"), ("x.family.yml", "x.family.yaml")]
)
def test_a_file_with_another_ending_is_named_and_not_ignored(tmp_path: Path, name: str, right: str) -> None:
    (tmp_path / name).write_text("name: vet")
    assert mistakes(tmp_path) == [f"{name}: files here end in .yaml; rename it to {right}"]


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "vet.yaml").mkdir()
    assert mistakes(tmp_path) == ["vet.yaml: is not a file; rename or remove it"]


def test_a_domain_that_is_not_needed_is_left_out_with_its_mistakes_and_nothing_else_is(tmp_path: Path) -> None:
    load(tmp_path, tax=domain(name="tax"))
    (tmp_path / "law.yaml").write_text("name: [")
    (tmp_path / "tax.yaml").write_text(yaml.safe_dump(domain(name="tax", bias_pairs=["none.yaml"])))
    (tmp_path / "small.family.yaml").write_text(yaml.safe_dump(family(seed="x")))
    folder = read_folder(tmp_path)
    assert {mistake.file.name for mistake in folder.mistakes} == {"law.yaml", "tax.yaml", "small.family.yaml"}
    needed, left_out = folder.without_unneeded(["tax"])
    assert [path.name for path in left_out] == ["law.yaml"]
    assert {mistake.file.name for mistake in needed.mistakes} == {"tax.yaml", "small.family.yaml"}
    (tmp_path / "small.family.yaml").write_text(yaml.safe_dump(FAMILY))
    needed, left_out = read_folder(tmp_path).without_unneeded([])
    assert [path.name for path in left_out] == ["law.yaml", "tax.yaml"] and needed.specs().domains == {}


def test_an_empty_folder_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r": no \*\.yaml here; name another folder with --domains"):
        load_specs(tmp_path)
