"""Which files of a folder are read, and what a command does that needs some of them alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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


def test_a_domain_is_needed_with_its_task_files_and_a_folder_with_something_in_it(tmp_path: Path) -> None:
    folder, left_out = read_folder(tmp_path).without_unneeded(["law"])
    assert len(folder.mistakes) == 1 and left_out == []
    load(tmp_path)
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "quiz.yaml").write_text("task: [")
    (tmp_path / "law.yaml").write_text(yaml.safe_dump(domain(tasks=["evals/quiz.yaml"])))
    folder, left_out = read_folder(tmp_path).without_unneeded(["law"])
    assert len(folder.mistakes) == 1 and left_out == []


PIECES = st.sampled_from(
    ["name", "sizes", "templates", "kind", "{", "}", "[", "]", ":", ": ", ", ", "- ", "\n", "\n  ", "&a ", "*a", "<<: *a",
     "!!int ", "1", "-1", ".inf", "1e400", "99999999999999999999", "null", "true", "''", "{x}", "'{ x }'", "\x1b", "é", "../x",
     "null: 1"]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["small.family.yaml", "law.yaml", "general.pool.yaml"]))
def test_a_file_with_anything_changed_is_read_or_has_mistakes_of_one_short_line_each(
    tmp_path: Path, data: st.DataObject, name: str
) -> None:
    load(tmp_path)
    text = (tmp_path / name).read_text()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(PIECES) + text[start + data.draw(st.integers(0, 12)) :]
    (tmp_path / name).write_text(text)
    try:
        load_specs(tmp_path)
    except SpecError as error:
        lines = str(error).splitlines()
        assert all(line.startswith(f"{tmp_path}/") and line.isprintable() and len(line) < 800 for line in lines)


def test_an_empty_folder_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r": no \*\.yaml here; name another folder with --domains"):
        load_specs(tmp_path)
