"""Reads ``domains/*.yaml`` and says every mistake of every file with its line. No torch here."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from factory.config.schema import (
    DEFAULT_PROFILE,
    SECTIONS,
    SOURCE_KINDS,
    DomainSpec,
    FamilySpec,
    PoolSpec,
    Profile,
    Specs,
    Strict,
)
from factory.errors import SpecError


def load_specs(root: Path) -> Specs:
    """``load_specs(Path("domains"))``: families, domains and pools of a folder.

    Raises: SpecError with the mistakes of all files, one a line: file:line, field, what is wrong, what exists.
    """
    paths = sorted(root.glob("*.yaml"))
    if not paths:
        raise SpecError(
            f"no *.yaml in {root.resolve()}; name the folder with --domains, or run from a folder that has domains/"
        )
    mistakes: list[str] = []
    found: dict[type[Strict], dict[str, Any]] = {FamilySpec: {}, DomainSpec: {}, PoolSpec: {}}
    files: dict[str, tuple[Path, yaml.Node]] = {}
    for path in paths:
        kind = _kind(path)
        spec, node, wrong = _read(path, kind)
        mistakes += wrong
        if spec is not None:
            found[kind][spec.name] = spec
        if kind is DomainSpec and spec is not None and node is not None:
            files[spec.name] = path, node
    families, domains, pools = found[FamilySpec], found[DomainSpec], found[PoolSpec]
    mistakes += _across(families, domains, pools, sound=not mistakes)
    mistakes += [one for domain in domains.values() for one in _missing(root, domain)]
    mistakes += [one for family in families.values() for name in files for one in _misfits(family, domains[name], *files[name])]
    if mistakes:
        raise SpecError("\n".join(mistakes))
    return Specs(root=root, families=families, domains=domains, pools=pools)


def _missing(root: Path, domain: DomainSpec) -> list[str]:
    """Files that a domain names and that are not there; a task without a path is one of the harness's own."""
    named = [("bias_pairs", path) for path in domain.bias_pairs] + [
        ("tasks", task) for task in domain.tasks if task.endswith(".yaml")
    ]
    named += [("golden_set", domain.golden_set)] if domain.golden_set else []
    return [
        f"{domain.name}.yaml: {key}: no file {root / path}; paths are relative to {root}"
        for key, path in named
        if not (root / path).is_file()
    ]


def _kind(path: Path) -> type[Strict]:
    kinds: dict[str, type[Strict]] = {".family": FamilySpec, ".pool": PoolSpec}
    return kinds.get(Path(path.stem).suffix, DomainSpec)


def _read(path: Path, kind: type[Strict]) -> tuple[Any, yaml.Node | None, list[str]]:
    """The spec of one file and its YAML node, or its mistakes."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        return None, None, [f"{path}: cannot be read: {error}"]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        return None, None, [f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}"]
    if not isinstance(content, dict):
        return None, None, [f"{path}:1: expected keys and values, found {type(content).__name__}"]
    try:
        spec: Any = kind.model_validate(content)
    except ValidationError as error:
        return None, root, _mistakes(path, root, kind, error)
    stem = path.name.removesuffix(".yaml").removesuffix(".family").removesuffix(".pool")
    if spec.name != stem:
        return None, root, [f"{path}:1: name: {spec.name!r} should be {stem!r}, as the file is called"]
    wrong: list[str] = []
    for profile in spec.profiles if isinstance(spec, FamilySpec) else ():
        for section in SECTIONS:
            try:
                spec.section(section, profile)
            except ValidationError as error:
                wrong += _mistakes(path, root, kind, error, ("profiles", profile, section))
    return (None if wrong else spec), root, wrong


def _misfits(family: FamilySpec, domain: DomainSpec, path: Path, node: yaml.Node) -> list[str]:
    """A domain's overrides that do not fit a family, or one of its profiles."""
    found: dict[str, str] = {}  # mistake -> where it first shows
    for profile in (DEFAULT_PROFILE, *family.profiles):
        for section in SECTIONS:
            try:
                family.section(section, profile, domain)
            except ValidationError as error:
                for mistake in _mistakes(path, node, DomainSpec, error, (section,)):
                    found.setdefault(mistake, "" if profile == DEFAULT_PROFILE else f", profile {profile}")
    return [f"{mistake} (with family {family.name}{where})" for mistake, where in found.items()]


def _mistakes(
    path: Path, root: yaml.Node | None, kind: type[Strict], error: ValidationError, inside: tuple[str, ...] = ()
) -> list[str]:
    """One line a mistake; that a list is too short is none where its items are wrong, which pydantic leaves out of it."""
    details: list[Any] = [{**detail, "loc": (*inside, *detail["loc"])} for detail in error.errors()]
    return [
        _mistake(path, root, kind, detail)
        for detail in details
        if detail["type"] != "too_short"
        or not any(other["loc"][: len(detail["loc"])] == detail["loc"] for other in details if other is not detail)
    ]


def _mistake(path: Path, root: yaml.Node | None, kind: type[Strict], detail: Any) -> str:
    """``domains/x.yaml:12: distill.lambda: unknown key; did you mean lmbda?``"""
    loc = detail["loc"]  # after a source's number comes its kind, which is no key
    location = [part for i, part in enumerate(loc) if not (i and isinstance(loc[i - 1], int) and part in SOURCE_KINDS)]
    line = _line(root, location)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = sorted(_fields_beside(kind, detail["loc"]))
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        message = f"unknown key; did you mean {close[0]}?" if close else f"unknown key; keys here: {', '.join(known)}"
    elif detail["type"] != "missing":
        value = repr(detail["input"])
        message += f" (found {value if len(value) < 60 else value[:57] + '...'})"
    return f"{path}:{line}: {'.'.join(map(str, location)) or kind.__name__}: {message}"


def _line(node: yaml.Node | None, location: list[Any]) -> int:
    """The line of the deepest part of a location that is in the file."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _fields_beside(kind: type[Strict], location: tuple[Any, ...]) -> set[str]:
    """The keys that the model around an unknown key does have."""
    model: Any = kind
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        if part in SOURCE_KINDS:
            model = SOURCE_KINDS[part]
        elif part in SECTIONS and model in (Profile, DomainSpec):
            model = SECTIONS[part]
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = next(iter(_models_in(model.model_fields[part].annotation)), model)
    return set(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _across(
    families: Mapping[str, FamilySpec], domains: Mapping[str, DomainSpec], pools: Mapping[str, PoolSpec], *, sound: bool
) -> list[str]:
    """Mistakes that no file shows alone."""
    mistakes: list[str] = []
    sizes: dict[str, str] = {}
    for family in families.values():
        for size in family.sizes:
            if size in sizes:
                mistakes.append(f"{family.name}.family.yaml: sizes.{size}: family {sizes[size]} has this size; rename one")
            sizes.setdefault(size, family.name)
        if sound and family.general not in pools:
            known = ", ".join(pools) or "none"
            mistakes.append(f"{family.name}.family.yaml: general: no {family.general}.pool.yaml; pools here: {known}")
    for domain in domains.values():
        ids = [source.id for source in domain.sources]
        for double in sorted({one for one in ids if ids.count(one) > 1}):
            mistakes.append(f"{domain.name}.yaml: sources: the id {double!r} is used twice; every source has its own")
    return list(dict.fromkeys(mistakes))
