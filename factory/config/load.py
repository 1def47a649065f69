"""Reads ``domains/*.yaml`` and files of methods, and reports every mistake of every file with its line. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from factory.config.experiment import ExperimentSpec
from factory.config.mistakes import line_of, mistakes_of
from factory.config.schema import (
    DEFAULT_PROFILE,
    SECTIONS,
    DistillConfig,
    DocumentSource,
    DomainSpec,
    FamilySpec,
    PoolSpec,
    Specs,
    Strict,
)
from factory.errors import SpecError

EVALUATION_FILES = ("bias_pairs", "tasks", "golden_set", "refusals", "injections", "jailbreaks")  # a path or several


@dataclass(frozen=True)
class SpecFile:
    """A YAML file that fits its schema, with the node that knows its lines."""

    path: Path
    node: yaml.Node
    spec: Any  # of the type that the file's name stands for

    def mistake(self, location: Sequence[str | int], message: str) -> str:
        """``file.mistake(["sizes", "mini"], "…")``: ``domains/x.family.yaml:12: sizes.mini: …``"""
        return f"{self.path}:{line_of(self.node, location)}: {'.'.join(map(str, location))}: {message}"


def load_specs(root: Path) -> Specs:
    """``load_specs(Path("domains"))``: the families, domains and pools of a folder.

    Raises: SpecError with the mistakes of all files, one a line: file:line, field, what is wrong, what is allowed.
    """
    paths = sorted(root.glob("*.yaml"))
    if not paths:
        raise SpecError(f"no *.yaml in {root.resolve()}; name another folder with --domains, or run from one that has domains/")
    files, mistakes = [], []
    for path in paths:
        file, wrong = _read(path)
        mistakes += wrong
        files += [file] if file else []
    if not mistakes:  # of a folder that was read completely
        mistakes += _missing_pools(files)
    mistakes += [*_shared_sizes(files), *_shared_ids(files), *_unseen_contexts(files)]
    mistakes += [*_missing_files(root, files), *_misfits(files)]
    if mistakes:
        raise SpecError("\n".join(mistakes))
    families, domains, pools = (
        {file.spec.name: file.spec for file in _of(files, kind)} for kind in (FamilySpec, DomainSpec, PoolSpec)
    )
    return Specs(root=root, families=families, domains=domains, pools=pools)


def load_methods(path: Path, settings: DistillConfig) -> ExperimentSpec:
    """``load_methods(Path("methods.yaml"), context.settings(domain).distill)``: the methods that an experiment compares.

    Raises: SpecError with every mistake and its line; ``settings`` are what the methods start from.
    """
    file, mistakes = _read_as(ExperimentSpec, path)
    if file is not None:
        mistakes = list(_wrong_methods(file, settings))
    if file is None or mistakes:
        raise SpecError("\n".join(mistakes))
    spec: ExperimentSpec = file.spec
    return spec


def _wrong_methods(file: SpecFile, settings: DistillConfig) -> Iterator[str]:
    """Methods whose overrides do not fit."""
    for number, method in enumerate(file.spec.methods):
        try:
            method.config(settings)
        except ValidationError as error:
            yield from mistakes_of(error, file.path, file.node, ExperimentSpec, ("methods", number, "distill"))


def _read(path: Path) -> tuple[SpecFile | None, list[str]]:
    """One file of the kind that its name says, or its mistakes."""
    kind, stem = _kind_and_stem(path)
    file, mistakes = _read_as(kind, path)
    if file is None:
        return None, mistakes
    if file.spec.name != stem:
        return None, [file.mistake(["name"], f"must be {stem!r}, as the file is called (found {file.spec.name!r})")]
    wrong = _wrong_overrides(file) if kind is FamilySpec else []
    return (None if wrong else file), wrong


def _read_as(kind: type[Strict], path: Path) -> tuple[SpecFile | None, list[str]]:
    """One file, or its mistakes."""
    try:
        node, content = _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return None, [f"{path}: cannot be read: {error}"]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        return None, [f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}"]
    if node is None or not isinstance(content, dict):
        return None, [f"{path}:1: must be keys and values (found {'nothing' if content is None else type(content).__name__})"]
    try:
        return SpecFile(path, node, kind.model_validate(content)), []
    except ValidationError as error:
        return None, mistakes_of(error, path, node, kind)


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """The YAML's node, which knows the lines, and its content."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _kind_and_stem(path: Path) -> tuple[type[Strict], str]:
    kinds: dict[str, type[Strict]] = {".family": FamilySpec, ".pool": PoolSpec}
    kind = kinds.get(Path(path.stem).suffix)
    return (kind, Path(path.stem).stem) if kind else (DomainSpec, path.stem)


def _of(files: Iterable[SpecFile], kind: type[Strict]) -> list[SpecFile]:
    return [file for file in files if isinstance(file.spec, kind)]


def _wrong_overrides(file: SpecFile) -> list[str]:
    """A family's profiles and sizes whose overrides do not fit."""
    mistakes: list[str] = []
    for size in (name for name, one in file.spec.sizes.items() if one.heal):
        for profile in (DEFAULT_PROFILE, *file.spec.profiles):
            try:
                file.spec.of_size(size).section("heal", profile)
            except ValidationError as error:
                mistakes += mistakes_of(error, file.path, file.node, FamilySpec, ("sizes", size, "heal"))
                break  # mostly the same in every profile
    for profile in file.spec.profiles:
        for section in SECTIONS:
            try:
                file.spec.section(section, profile)
            except ValidationError as error:
                mistakes += mistakes_of(error, file.path, file.node, FamilySpec, ("profiles", profile, section))
    return mistakes


def _misfits(files: Sequence[SpecFile]) -> Iterator[str]:
    """Domains whose overrides do not fit a family, or one of its profiles."""
    for family in (file.spec for file in _of(files, FamilySpec)):
        for domain in _of(files, DomainSpec):
            first: dict[str, str] = {}  # mistake -> the first profile that shows it
            for profile in (DEFAULT_PROFILE, *family.profiles):
                for mistake in _misfits_of(family, profile, domain):
                    first.setdefault(mistake, "" if profile == DEFAULT_PROFILE else f", profile {profile}")
            yield from (f"{mistake} (with family {family.name}{where})" for mistake, where in first.items())


def _misfits_of(family: FamilySpec, profile: str, domain: SpecFile) -> Iterator[str]:
    for section in SECTIONS:
        try:
            family.section(section, profile, domain.spec)
        except ValidationError as error:
            yield from mistakes_of(error, domain.path, domain.node, DomainSpec, (section,))


def _missing_files(root: Path, files: Iterable[SpecFile]) -> Iterator[str]:
    """Evaluation files that are named and do not exist. A task without ``.yaml`` is one of the harness's own."""
    for file in files:
        for key in EVALUATION_FILES:
            named = getattr(file.spec, key, None) or ()
            for path in (named,) if isinstance(named, str) else named:
                if (key != "tasks" or path.endswith(".yaml")) and not (root / path).is_file():
                    yield file.mistake([key], f"no file {root / path}; paths are relative to {root}")


def _missing_pools(files: Sequence[SpecFile]) -> Iterator[str]:
    pools = [file.spec.name for file in _of(files, PoolSpec)]
    for file in _of(files, FamilySpec):
        if file.spec.general not in pools:
            yield file.mistake(["general"], f"no {file.spec.general}.pool.yaml; pools here: {', '.join(pools) or 'none'}")


def _shared_sizes(files: Sequence[SpecFile]) -> Iterator[str]:
    """A size names its family, so no two families have the same."""
    owners: dict[str, str] = {}
    for file in _of(files, FamilySpec):
        for size in file.spec.sizes:
            if size in owners:
                yield file.mistake(["sizes", size], f"family {owners[size]} has this size, too; rename one")
            owners.setdefault(size, file.spec.name)


def _shared_ids(files: Sequence[SpecFile]) -> Iterator[str]:
    """An id names a row's source, and with it the context that the teacher is shown."""
    pools = {source.id: file.spec.name for file in _of(files, FamilySpec) for source in file.spec.pool}
    for file in _of(files, DomainSpec):
        ids = [source.id for source in file.spec.sources]
        for id in sorted({id for id in ids if ids.count(id) > 1}):
            yield file.mistake(["sources"], f"two sources have the id {id!r}; rename one")
        for number, id in enumerate(ids):
            if id in pools:
                yield file.mistake(
                    ["sources", number, "id"], f"a source in the pool of family {pools[id]} has this id; rename one"
                )


def _unseen_contexts(files: Iterable[SpecFile]) -> Iterator[str]:
    """Contexts of sources that no teacher would be shown."""
    for file in files:
        key = "pool" if isinstance(file.spec, FamilySpec) else "sources"
        for number, source in enumerate(getattr(file.spec, key)):
            if source.teacher_context is None:
                continue
            where: list[str | int] = [key, number, "teacher_context"]
            if isinstance(file.spec, PoolSpec):
                yield file.mistake(where, "the teacher answers a pool's prompts without a context; remove it")
            elif isinstance(file.spec, FamilySpec):
                yield file.mistake(where, "the teacher is shown the context of the domain that a text is sent to; remove it")
            elif isinstance(source, DocumentSource):
                yield file.mistake(where, "documents have no prompts that a context could precede; remove it")
