"""``factory validate --fix``: old keys and paths get their new names; comments and layout stay."""

from __future__ import annotations

from pathlib import Path

from support.workplace import Workplace

from factory.config.fix import RENAMED_DOMAIN_KEYS, RENAMED_FAMILY_KEYS, fix_folder, fix_text

OLD = """\
# pairs: this comment stays
name: law
pairs:   [audit/law.pairs.yaml, mine.jsonl]  # two files
tasks:
  - audit/law.task.yaml
acceptance: "audit/law.acceptance.jsonl"

description: the pairs, an acceptance
distill: {steps: 3}
"""
NEW = """\
# pairs: this comment stays
name: law
bias_pairs:   [evals/law.bias_pairs.yaml, mine.jsonl]  # two files
tasks:
  - evals/law.task.yaml
golden_set: "evals/law.golden_set.jsonl"

description: the pairs, an acceptance
distill: {steps: 3}
"""
FILES = {"evals/law.bias_pairs.yaml", "evals/law.task.yaml", "evals/law.golden_set.jsonl"}


def test_keys_and_paths_are_renamed_and_the_rest_stays() -> None:
    assert fix_text(OLD, RENAMED_DOMAIN_KEYS, FILES.__contains__) == NEW
    assert fix_text(NEW, RENAMED_DOMAIN_KEYS, FILES.__contains__) == NEW
    assert fix_text("cascade: auto\r\n", RENAMED_FAMILY_KEYS, FILES.__contains__) == "path: auto\r\n"
    assert fix_text("path: none  # why\n", RENAMED_FAMILY_KEYS, FILES.__contains__) == "path: direct  # why\n"


def test_a_path_whose_old_file_is_still_there_stays() -> None:
    line = "acceptance: audit/law.acceptance.jsonl\n"
    assert fix_text(line, {}, (FILES | {"audit/law.acceptance.jsonl"}).__contains__) == line
    assert fix_text(line, {}, set().__contains__) == line  # and one whose new file is not there yet


def test_an_old_key_beside_the_new_one_stays_to_be_decided() -> None:
    both = "pairs: [a.yaml]\nbias_pairs: [b.yaml]\n"
    assert fix_text(both, RENAMED_DOMAIN_KEYS, FILES.__contains__) == both


def test_a_folder_is_fixed_once_and_every_changed_line_is_returned(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "law.yaml").write_text(OLD)
    (tmp_path / "small.family.yaml").write_text("acceptance: x\ncascade: none\n")
    changes = fix_folder(tmp_path)
    assert changes[-1] == f"{tmp_path}/small.family.yaml:2: cascade: none → path: direct"
    assert [line.split(":")[1] for line in changes] == ["3", "5", "6", "2"]
    assert (tmp_path / "law.yaml").read_text() == NEW
    assert fix_folder(tmp_path) == []


def test_the_command_says_what_it_changed_and_then_validates(workplace: Workplace) -> None:
    path = workplace.root / "domains" / "default.family.yaml"
    path.write_text(path.read_text() + "cascade: none\n")
    assert workplace.run("validate").exit_code == 1
    result = workplace.run("validate", "--fix")
    assert result.exit_code == 0 and "cascade: none → path: direct" in result.stderr and "valid" in result.stdout
    assert workplace.run("validate").exit_code == 0
