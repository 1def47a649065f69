"""Mistakes in YAML files, one line each: file:line: field: what is wrong, what was found, what is allowed."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from factory.config.endpoints import TEACHERS
from factory.config.experiment import MethodSpec
from factory.config.fix import renamed_keys
from factory.config.models import MODEL, REQUIREMENT, SHA256
from factory.config.names import NAME
from factory.config.schema import SECTIONS, SOURCE_KINDS, DomainSpec, Profile, SizeSpec, Strict
from factory.errors import printable

PATTERNS = {
    NAME: "must be lower-case letters, digits and single hyphens, starting with a letter",
    MODEL: "must be hub:org/name@revision, pypi:package==version/file or path:folder",
    REQUIREMENT: "must be package==version, without a URL or an option",
    SHA256: "must be 64 hexadecimal digits",
}
MAX_LINE = 500  # characters of a mistake

SHORT = reprlib.Repr()  # of a wrong value, which may be as large as the file
SHORT.maxlevel, SHORT.maxdict, SHORT.maxlist, SHORT.maxstring = 2, 3, 3, 60


@dataclass(frozen=True)
class Mistake:
    """``str(mistake)`` → "domains/legal.yaml:12: distill.lambda: unknown key; did you mean lmbda?" """

    file: Path
    line: int | None  # None where it is about the whole file
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}" + (f":{self.line}" if self.line else "")
        line = printable(": ".join(filter(None, [where, self.key, self.message])))
        return line if len(line) <= MAX_LINE else line[:MAX_LINE] + " ..."

    def json(self) -> dict[str, Any]:
        """``mistake.json()``: plain values."""
        return {"file": str(self.file), "line": self.line, "key": self.key, "message": self.message}


@dataclass(frozen=True)
class SpecFile:
    """A YAML file that fits its schema, with the node that knows its lines."""

    path: Path
    node: yaml.Node | None
    spec: Any  # of the type that the file's name stands for

    def mistake(self, location: Sequence[str | int], message: str) -> Mistake:
        """``file.mistake(["sizes", "mini"], "…")``: "domains/x.family.yaml:12: sizes.mini: …" """
        return Mistake(self.path, line_of(self.node, location), _dotted(location), message)


def _dotted(location: Sequence[str | int]) -> str:
    return ".".join(map(str, location))


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


MESSAGES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "missing; this key is required",
    "union_tag_not_found": lambda _: f"needs kind: one of {', '.join(SOURCE_KINDS)}",
    "union_tag_invalid": lambda _: f"unknown kind; use one of {', '.join(SOURCE_KINDS)}",
    "string_pattern_mismatch": lambda context: PATTERNS[context["pattern"]],
    "string_too_long": lambda context: f"must have at most {context['max_length']} characters",
    "string_type": lambda _: "must be text; put it in quotes",
    "too_short": lambda context: "must have at least " + _entries(context["min_length"]),
    "greater_than": lambda context: f"must be more than {context['gt']:g}",
    "greater_than_equal": lambda context: f"must be at least {context['ge']:g}",
    "less_than": lambda context: f"must be less than {context['lt']:g}",
    "less_than_equal": lambda context: f"must be at most {context['le']:g}",
    "multiple_of": lambda context: f"must be a multiple of {context['multiple_of']:g}",
    "int_type": lambda _: "must be a whole number",
    "int_parsing": lambda _: "must be a whole number",
    "int_parsing_size": lambda _: "must be a whole number of fewer digits",
    "finite_number": lambda _: "must be a finite number",
    "int_from_float": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number",
    "float_parsing": lambda _: "must be a number",
    "bool_type": lambda _: "must be true or false",
    "bool_parsing": lambda _: "must be true or false",
    "tuple_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be keys and values",
    "model_type": lambda _: "must be keys and values",
    "model_attributes_type": lambda _: "must be keys and values",
    "literal_error": lambda context: f"must be {context['expected']}",
}


def mistakes_of(
    error: ValidationError, path: Path, root: yaml.Node | None, kind: type[Strict], inside: Sequence[str | int] = ()
) -> list[Mistake]:
    """``mistakes_of(error, path, node, DomainSpec)``: each once. ``inside``: where in the file the model stands.

    pydantic leaves wrong items out of a list, so "too short" is dropped where an item of the list is wrong.
    """
    details: list[dict[str, Any]] = [{**detail, "loc": (*inside, *detail["loc"])} for detail in error.errors()]
    found = [
        _mistake(path, root, kind, detail)
        for detail in details
        if detail["type"] != "too_short"
        or not any(other["loc"][: len(detail["loc"])] == detail["loc"] for other in details if other is not detail)
    ]
    return list(dict.fromkeys(found))  # a union has an error for each of its types


def _mistake(path: Path, root: yaml.Node | None, kind: type[Strict], detail: Mapping[str, Any]) -> Mistake:
    location, model, expects = _locate(kind, detail["loc"])
    message = expects or _message(detail)
    if detail["type"] == "extra_forbidden":
        message = _unknown_key(str(location[-1]), model, path if len(location) == 1 else None)
    elif detail["type"] != "missing":
        message += f" (found {_in_yaml(detail['input'])})"
    return Mistake(path, line_of(root, location), _dotted(location) or kind.__name__, message)


def _in_yaml(value: Any) -> str:
    """As YAML knows it, which takes some words for another kind of value."""
    if isinstance(value, bool):
        return "true: also an unquoted yes or on" if value else "false: also an unquoted no or off"
    return "null: also an empty value" if value is None else SHORT.repr(value)


def _message(detail: Mapping[str, Any]) -> str:
    known = MESSAGES.get(detail["type"])
    return known(detail.get("ctx", {})) if known else str(detail["msg"]).removeprefix("Value error, ")


def _unknown_key(key: str, model: type[BaseModel], path: Path | None) -> str:
    """``path``: of the file, for a key at its top level, which may be an old one."""
    new = renamed_keys(path).get(key) if path else None
    if new:
        return f"`{key}` is now `{new}`; `factory validate --fix` renames it"
    close = difflib.get_close_matches(key, model.model_fields, n=1)
    return (
        f"unknown key; did you mean {close[0]}?"
        if close
        else f"unknown key; keys here: {', '.join(sorted(model.model_fields))}"
    )


def _locate(kind: type[Strict], loc: Sequence[str | int]) -> tuple[list[str | int], type[BaseModel], str | None]:
    """The keys of pydantic's location without its tags, the model around the last one, and what its field expects.

    pydantic puts tags among the keys: a source's kind after its number, and a teacher's after `teacher`.
    """
    location: list[str | int] = []
    model: type[BaseModel] = kind
    inner: type[BaseModel] = kind  # of the value at the location so far
    for before, part in zip((None, *loc), loc, strict=False):
        if isinstance(before, int) and part in SOURCE_KINDS:
            inner = SOURCE_KINDS[str(part)]
            continue
        if part in TEACHERS:
            inner = TEACHERS[str(part)]
            continue
        if part == "[key]":  # the error is about the key itself
            continue
        location.append(part)
        if isinstance(part, int):
            continue
        model = inner
        if part in SECTIONS and model in (Profile, DomainSpec, MethodSpec, SizeSpec):
            inner = SECTIONS[part]
        elif field := model.model_fields.get(part):
            extra = field.json_schema_extra
            if isinstance(extra, dict) and "expects" in extra:
                return location, model, f"must be {extra['expects']}"
            inner = next(_models_in(field.annotation), inner)
    return location, model, None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def line_of(node: yaml.Node | None, location: Sequence[str | int]) -> int:
    """``line_of(node, ["sizes", "mini"])``: the line of the deepest part of a location that is in the file."""
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
