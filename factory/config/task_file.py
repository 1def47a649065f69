"""A task of lm-evaluation-harness in a file of its own. The harness's own reader would run Python code that a file names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factory.config.yaml_text import YamlTextError, read_mapping


def is_task_file(task: str) -> bool:
    """``is_task_file("evals/legal.task.yaml")``; a task is otherwise one that the harness knows by name."""
    return "/" in task or task.endswith((".yaml", ".yml"))


def read_task(path: Path) -> dict[str, Any]:
    """``read_task(Path("evals/legal.task.yaml"))["task"]``: its keys, over those of the files that it includes.

    ``include`` is a path or a list of them, beside the file. Tags such as the harness's ``!function`` are refused.

    Raises: YamlTextError for a file that cannot be read or has no task, or that is included twice.
    """
    task = _read(path, set())
    if "task" not in task:
        raise YamlTextError(None, "has no `task`, the name of what it measures", path=path)
    return task


def _read(path: Path, seen: set[Path]) -> dict[str, Any]:
    task: dict[str, Any] = read_mapping(path).content
    if path.resolve() in seen:
        raise YamlTextError(None, "is included twice", path=path)
    seen.add(path.resolve())
    included = task.pop("include", [])
    names = [included] if isinstance(included, str) else included
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise YamlTextError(None, "must be a path or a list of paths", ("include",), path=path)
    merged: dict[str, Any] = {}
    for name in names:
        merged |= _read(path.parent / name, seen)
        merged.pop("task_list", None)  # of the included file's own tasks
    return merged | task
