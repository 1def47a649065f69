"""Reads YAML that anybody may have written: within limits, no key twice, no tag but YAML's own, every mistake with its line.

document = read_yaml(Path("domains/legal.yaml"))
document.content["name"]

Depth and size are counted on the parser's events, before anything recursive looks at the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import Reader

from factory.errors import printable

MAX_BYTES = 4_000_000
MAX_DEPTH = 32
MAX_NODES = 100_000  # keys, values and items; an alias counts as all that it stands for
MAX_NUMBER = 100  # characters: reading 1:1:1:... takes quadratic time, and no int of Python's has more than 4,300 digits
MAX_SHOWN = 100  # characters of a key, of a value and of a tag in a message
INT64 = range(-(2**63), 2**63)

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML is built with libyaml almost everywhere: ten times as fast
TAG = "tag:yaml.org,2002:"
TEXT, MERGE = TAG + "str", TAG + "merge"
SCALARS = {TAG + kind for kind in ("str", "int", "float", "bool", "null")}
AS_TEXT = {TAG + kind for kind in ("timestamp", "value", "merge")}  # 2024-05-01, = and <<: nothing here is a date


@dataclass(frozen=True)
class YamlDocument:
    """What a file says, and the node that knows the lines; both are None for an empty file."""

    node: yaml.Node | None
    content: Any


class YamlTextError(ValueError):
    """``str(error)`` → "domains/legal.yaml:7: personal_data: this key is in line 6, too; remove one of them"

    ``reason`` quotes nothing of the file, so that it may be shown for a file of secrets; ``key`` and ``detail`` do.
    """

    def __init__(
        self, line: int | None, reason: str, key: tuple[str | int, ...] = (), detail: str = "", path: Path | None = None
    ) -> None:
        self.line, self.reason, self.detail, self.path = line, reason, detail, path
        self.key = ".".join(map(str, key))[:MAX_SHOWN]

    @property
    def message(self) -> str:
        """What is wrong, and the value."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason

    def __str__(self) -> str:
        where = f"{self.path or 'YAML'}" + (f":{self.line}" if self.line else "")
        return printable(": ".join(filter(None, [where, self.key, self.message])))


def read_yaml(path: Path) -> YamlDocument:
    """``read_yaml(Path("domains/legal.yaml")).content``. Raises: YamlTextError, also where the file cannot be read."""
    try:
        with path.open("rb") as file:
            return parse_yaml(file.read(MAX_BYTES + 1))
    except YamlTextError as error:
        error.path = path
        raise
    except (OSError, ValueError) as error:  # open() raises the second for a name with a NUL
        raise YamlTextError(None, f"cannot be read: {getattr(error, 'strerror', error)}", path=path) from None


def read_mapping(path: Path) -> YamlDocument:
    """``read_mapping(Path("domains/legal.yaml")).content["name"]``. Raises: YamlTextError, also for any other YAML."""
    document = read_yaml(path)
    if not isinstance(document.content, dict):
        found = "nothing" if document.content is None else type(document.content).__name__
        raise YamlTextError(1, f"must be keys and values (found {found})", path=path)
    return document


def parse_yaml(data: bytes) -> YamlDocument:
    """``parse_yaml(b"a: [1, x]").content == {"a": [1, "x"]}``. Raises: YamlTextError."""
    text = _decode(data)
    try:
        _check_limits(yaml.parse(text, Loader=LOADER))
        loader = LOADER(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return YamlDocument(None, None)
            _check_node(loader, node, (), set())
            return YamlDocument(node, loader.construct_document(node))
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, text) from None


def _not_yaml(error: yaml.MarkedYAMLError, text: str) -> YamlTextError:
    """At the line where the parser gave up, which may be far below the bracket that is open."""
    detail, last = error.problem or "", text.count("\n") + (not text.endswith("\n"))
    if error.context and error.context_mark:
        detail += f" {error.context} from line {error.context_mark.line + 1}"
    mark = error.problem_mark or error.context_mark
    return YamlTextError(min(mark.line + 1, last) if mark else None, "not valid YAML", detail=detail)


def _decode(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise YamlTextError(None, f"has more than {MAX_BYTES:,} bytes; move data into files of their own (`kind: file`)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise YamlTextError(line, f"cannot be read: byte 0x{data[error.start]:02x} is not UTF-8; save it as UTF-8") from None
    if control := Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, control.start()) + 1
        raise YamlTextError(line, f"has the control character U+{ord(control[0]):04X}; remove it")
    return text


@dataclass
class _Open:
    """A list or mapping whose end has not been read."""

    anchor: str | None
    before: int  # nodes
    levels: int = 1  # its own and those inside it


def _check_limits(events: Iterable[yaml.Event]) -> None:
    """Raises where the text is too deep or too long, every alias counted as all that it stands for."""
    nodes = 0
    named: dict[str, tuple[int, int]] = {}  # anchor → nodes and levels of what has it
    opened: list[_Open] = []
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else None
        levels = 0  # below the innermost list or mapping
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (one.anchor for one in opened):
                raise YamlTextError(line, "an alias stands for what it is part of; write the value out")
            size, levels = named.get(event.anchor or "", (1, 0))  # the parser refuses an unknown one
            nodes += size
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append(_Open(event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor:
                named[event.anchor] = (1, 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = opened.pop()
            levels = ended.levels
            if ended.anchor:
                named[ended.anchor] = (nodes - ended.before, levels)
        if opened:
            opened[-1].levels = max(opened[-1].levels, 1 + levels)
        if len(opened) + levels > MAX_DEPTH:
            raise YamlTextError(line, f"lists and keys are nested more than {MAX_DEPTH} deep")
        if nodes > MAX_NODES:
            raise YamlTextError(line, f"has more than {MAX_NODES:,} keys and values, with those that aliases repeat")


def _check_node(loader: Any, node: yaml.Node, key: tuple[str | int, ...], seen: set[int]) -> None:
    """Raises for a key that is there twice, a tag that is not YAML's own, and a scalar that is not what its tag says.

    An alias is the node that it stands for, and that has been checked. ``key`` is where the node stands.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        return _check_scalar(loader, node, key)
    if node.tag != TAG + ("map" if isinstance(node, yaml.MappingNode) else "seq"):
        raise _refused_tag(node, key)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _check_node(loader, item, (*key, number), seen)
        return
    lines: dict[str, int] = {}
    for name, value in node.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            raise YamlTextError(line, "a key must be text, not a list or keys and values", key)
        if name.value in lines:
            reason = f"this key is in line {lines[name.value]}, too; remove one of them"
            raise YamlTextError(line, reason, (*key, name.value))
        lines[name.value] = line
        if name.tag != MERGE:
            _check_scalar(loader, name, (*key, name.value))
        _check_node(loader, value, (*key, name.value), seen)


def _check_scalar(loader: Any, node: yaml.ScalarNode, key: tuple[str | int, ...]) -> None:
    line = node.start_mark.line + 1
    if node.tag in AS_TEXT:
        node.tag = TEXT
    if node.tag not in SCALARS:
        raise _refused_tag(node, key)
    if node.tag == TEXT:
        return
    kind, short = node.tag.removeprefix(TAG), repr(node.value[:MAX_SHOWN])
    if len(node.value) > MAX_NUMBER:
        raise YamlTextError(line, f"is too long for !!{kind}; put text in quotes", key, short)
    try:
        value = loader.construct_object(node)  # which the loader keeps
    except (ValueError, LookupError):  # of int(), float() and PyYAML's table of truth values
        raise YamlTextError(line, f"is not a valid !!{kind}", key, short) from None
    if isinstance(value, int) and value not in INT64:
        raise YamlTextError(line, "is too large; whole numbers have at most 64 bits", key, short)


def _refused_tag(node: yaml.Node, key: tuple[str | int, ...]) -> YamlTextError:
    tag = node.tag.replace(TAG, "!!")[:MAX_SHOWN]
    return YamlTextError(node.start_mark.line + 1, "this tag does not fit, or is not allowed here; remove it", key, tag)


def yaml_files(folder: Path, suffixes: tuple[str, ...] = (".yaml",)) -> list[Path]:
    """``yaml_files(Path("domains"))``: by name, without hidden files such as the ``._legal.yaml`` of a Mac."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes and not path.name.startswith("."))
