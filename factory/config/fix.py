"""Renames what older YAML files call otherwise: ``factory validate --fix``. Comments and layout stay."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from factory.cache import replace_file, storage_errors
from factory.config.yaml_text import yaml_files

RENAMED_DOMAIN_KEYS = {"pairs": "bias_pairs", "acceptance": "golden_set"}
RENAMED_FAMILY_KEYS = {"cascade": "path"}
RENAMED_ENDINGS = {
    ".pairs.yaml": ".bias_pairs.yaml",
    ".pairs.jsonl": ".bias_pairs.jsonl",
    ".acceptance.jsonl": ".golden_set.jsonl",
}
PATH = re.compile(r"[\w./-]+\.(?:yaml|jsonl)\b")


def renamed_keys(path: Path) -> dict[str, str]:
    """``renamed_keys(Path("law.yaml"))``: old key → new key, for the kind of file that the name stands for."""
    if path.name.endswith(".pool.yaml"):
        return {}
    return RENAMED_FAMILY_KEYS if path.name.endswith(".family.yaml") else RENAMED_DOMAIN_KEYS


def fix_folder(root: Path) -> list[str]:
    """``fix_folder(Path("domains"))`` rewrites the files that need it, and returns a line for each line it changed.

    Raises: StorageError for a file that cannot be read or written.
    """
    changes: list[str] = []
    for path in yaml_files(root):
        with storage_errors(f"cannot fix {path}"):
            old = path.read_bytes().decode("utf-8", "surrogateescape")
            new = fix_text(old, renamed_keys(path), lambda file: (root / file).is_file())
            if new != old:
                replace_file(path, new.encode("utf-8", "surrogateescape"))
        lines = zip(old.splitlines(), new.splitlines(), strict=True)
        changes += [f"{path}:{n}: {a.strip()} → {b.strip()}" for n, (a, b) in enumerate(lines, start=1) if a != b]
    return changes


def fix_text(text: str, keys: Mapping[str, str], exists: Callable[[str], bool]) -> str:
    """``fix_text("acceptance: audit/law.acceptance.jsonl\\n", RENAMED_DOMAIN_KEYS, exists)``: the text in the new words.

    A top-level key in ``keys`` is renamed unless the new one is there too; an old path is renamed if only the new file exists.
    """
    return "".join(_fix_line(line, keys, exists, text) for line in text.splitlines(keepends=True))


def _fix_line(line: str, keys: Mapping[str, str], exists: Callable[[str], bool], text: str) -> str:
    if line.lstrip().startswith("#"):
        return line
    key = re.match(r"(\w+)(?=\s*:)", line)
    if key and key[1] in keys and not re.search(rf"^{keys[key[1]]}\s*:", text, re.MULTILINE):
        line = keys[key[1]] + line[key.end() :]
    line = re.sub(r"^path:(\s*)none\b", r"path:\1direct", line)
    return PATH.sub(lambda found: _fix_path(found[0], exists), line)


def _fix_path(path: str, exists: Callable[[str], bool]) -> str:
    new = re.sub(r"^((?:\./)?)audit/", r"\1evals/", path)
    for old_ending, ending in RENAMED_ENDINGS.items():
        if new.endswith(old_ending):
            new = new.removesuffix(old_ending) + ending
    return new if new != path and exists(new) and not exists(path) else path
