"""Tasks of the harness in files of their own: what they include, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.config.task_file import is_task_file, read_task
from factory.config.yaml_text import YamlTextError


@pytest.mark.parametrize("task", ["evals/quiz.task.yaml", "quiz.yml", "quiz.yaml", "evals/quiz"])
def test_a_path_is_a_file(task: str) -> None:
    assert is_task_file(task)


@pytest.mark.parametrize("task", ["gsm8k", "mmlu_high-school", "arc.challenge"])
def test_a_name_is_the_harness_s(task: str) -> None:
    assert not is_task_file(task)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "quiz.yaml"


def test_a_task_has_its_own_keys_over_those_that_it_includes(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        quiz="include: [first.yaml, second.yaml]\ntask: quiz\na: 1",
        first="include: deep.yaml\na: 2\nb: 2\nc: 2\ntask_list: [x]",
        second="b: 3",
        deep="c: 4\nd: 4",
    )
    assert read_task(path) == {"task": "quiz", "a": 1, "b": 3, "c": 2, "d": 4}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"quiz": "task: quiz\ntask: other"}, "quiz.yaml:2: task: this key is in line 1, too"),
        (
            {"quiz": "task: quiz\nprocess_docs: !function utils.f"},
            "quiz.yaml:2: process_docs: this tag does not fit",
        ),
        ({"quiz": "dataset_path: json"}, "quiz.yaml: has no `task`"),
        ({"quiz": "- task"}, "quiz.yaml:1: must be keys and values (found list)"),
        ({"quiz": "task: a\ninclude: none.yaml"}, "none.yaml: cannot be read: No such file"),
        ({"quiz": 'task: a\ninclude: "b\\0"'}, r"b\x00: cannot be read: embedded null byte"),
        ({"quiz": "task: a\ninclude: 3"}, "quiz.yaml: include: must be a path or a list of paths"),
        ({"quiz": "task: a\ninclude: quiz.yaml"}, "quiz.yaml: is included twice"),
        ({"quiz": "task: a\ninclude: [b.yaml, b.yaml]", "b": "c: 1"}, "b.yaml: is included twice"),
        ({"quiz": "task: a\ninclude: b.yaml", "b": "c: 1\nc: 2"}, "b.yaml:2: c: this key is in line 1, too"),
    ],
)
def test_what_is_wrong_is_said_with_the_file_that_it_is_in(tmp_path: Path, files: dict[str, str], said: str) -> None:
    with pytest.raises(YamlTextError) as caught:
        read_task(write(tmp_path, **files))
    assert str(caught.value).startswith(f"{tmp_path}/{said}")
