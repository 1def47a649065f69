"""Reads ``domains/*.yaml`` and files of methods, and reports every mistake of every file with its line. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from factory.config.checks import check_files, of_kind
from factory.config.experiment import ExperimentSpec
from factory.config.mistakes import Mistake, SpecFile, mistakes_of
from factory.config.schema import DEFAULT_PROFILE, SECTIONS, DistillConfig, DomainSpec, FamilySpec, PoolSpec, Specs, Strict
from factory.config.yaml_text import YamlTextError, read_mapping, yaml_files
from factory.errors import SpecError

SUFFIXES = (".yaml", ".yml")  # the second to name a file that would otherwise be ignored


@dataclass(frozen=True)
class SpecFolder:
    """A folder that has been read: the files that fit their schema, and what is wrong with these and with the others."""

    root: Path
    files: tuple[SpecFile, ...]
    mistakes: tuple[Mistake, ...]

    def specs(self) -> Specs:
        """``folder.specs()``. Raises: SpecError with the mistakes of all files, one a line."""
        if self.mistakes:
            raise SpecError(*self.mistakes)
        families, domains, pools = (
            {file.spec.name: file.spec for file in of_kind(self.files, kind)} for kind in (FamilySpec, DomainSpec, PoolSpec)
        )
        return Specs(root=self.root, families=families, domains=domains, pools=pools)

    def with_mistakes(self, mistakes: Iterable[Mistake]) -> SpecFolder:
        """``folder.with_mistakes([Mistake(folder.root, None, "", "has no domains")])``: these, too."""
        return replace(self, mistakes=(*self.mistakes, *mistakes))

    def without_unneeded(self, domains: Collection[str]) -> tuple[SpecFolder, list[Path]]:
        """``folder.without_unneeded(["legal"])``: without the other domains' files that have mistakes, and these files."""
        wrong = sorted({mistake.file for mistake in self.mistakes if mistake.file.parent == self.root})
        left_out = [path for path in wrong if _kind_and_stem(path)[0] is DomainSpec and _kind_and_stem(path)[1] not in domains]
        files = tuple(file for file in self.files if file.path not in left_out)
        mistakes = tuple(mistake for mistake in self.mistakes if mistake.file not in left_out)
        return replace(self, files=files, mistakes=mistakes), left_out


def load_specs(root: Path) -> Specs:
    """``load_specs(Path("domains"))``: the families, domains and pools of a folder.

    Raises: SpecError with the mistakes of all files, one a line: file:line, field, what is wrong, what is allowed.
    """
    return read_folder(root).specs()


def read_folder(root: Path) -> SpecFolder:
    """``read_folder(Path("domains")).mistakes``: every file, whatever is wrong with others. Hidden files are skipped."""
    paths = yaml_files(root, SUFFIXES)
    if not paths:
        advice = "name another folder with --domains, or run from one that has domains/"
        return SpecFolder(root, (), (Mistake(root.resolve(), None, "", f"no *.yaml here; {advice}"),))
    files, mistakes = [], []
    for path in paths:
        file, wrong = _read(path)
        mistakes += wrong
        files += [file] if file else []
    pools = [name for kind, name in map(_kind_and_stem, paths) if kind is PoolSpec]
    return SpecFolder(root, tuple(files), (*mistakes, *check_files(root, files, pools)))


def load_methods(path: Path, settings: DistillConfig) -> ExperimentSpec:
    """``load_methods(Path("methods.yaml"), context.settings(domain).distill)``: the methods that an experiment compares.

    Raises: SpecError with every mistake and its line; ``settings`` are what the methods start from.
    """
    file, mistakes = _read_as(ExperimentSpec, path)
    if file is not None:
        mistakes = list(_wrong_methods(file, settings))
    if file is None or mistakes:
        raise SpecError(*mistakes)
    spec: ExperimentSpec = file.spec
    return spec


def _wrong_methods(file: SpecFile, settings: DistillConfig) -> Iterator[Mistake]:
    """Methods whose overrides do not fit."""
    for number, method in enumerate(file.spec.methods):
        try:
            method.config(settings)
        except ValidationError as error:
            yield from mistakes_of(error, file.path, file.node, ExperimentSpec, ("methods", number, "distill"))


def _read(path: Path) -> tuple[SpecFile | None, list[Mistake]]:
    """One file of the kind that its name says, or its mistakes."""
    if path.suffix != ".yaml":
        return None, [Mistake(path, None, "", f"files here end in .yaml; rename it to {path.stem}.yaml")]
    if not path.is_file():
        return None, [Mistake(path, None, "", "is not a file; rename or remove it")]
    kind, stem = _kind_and_stem(path)
    file, mistakes = _read_as(kind, path)
    if file is None:
        return None, mistakes
    if file.spec.name != stem:
        return None, [file.mistake(["name"], f"must be {stem!r}, as the file is called (found {file.spec.name!r})")]
    wrong = _wrong_overrides(file) if kind is FamilySpec else []
    return (None if wrong else file), wrong


def _read_as(kind: type[Strict], path: Path) -> tuple[SpecFile | None, list[Mistake]]:
    """One file, or its mistakes."""
    try:
        document = read_mapping(path)
    except YamlTextError as error:
        return None, [Mistake(path, error.line, error.key, error.message)]
    try:
        return SpecFile(path, document.node, kind.model_validate(document.content)), []
    except ValidationError as error:
        return None, mistakes_of(error, path, document.node, kind)


def _kind_and_stem(path: Path) -> tuple[type[Strict], str]:
    kinds: dict[str, type[Strict]] = {".family": FamilySpec, ".pool": PoolSpec}
    kind = kinds.get(Path(path.stem).suffix)
    return (kind, Path(path.stem).stem) if kind else (DomainSpec, path.stem)


def _wrong_overrides(file: SpecFile) -> list[Mistake]:
    """A family's profiles and sizes whose overrides do not fit."""
    mistakes: list[Mistake] = []
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
