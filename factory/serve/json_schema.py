"""Which JSON schemas ``response_format`` may ask for: what an engine holds in full, and can hold without stalling.

engine_schema({"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]})

llama.cpp makes a grammar of a schema. It drops what it cannot express, such as ``multipleOf`` or ``minLength`` beside
``pattern``, and every alternative that is open costs it time at every token. So only what it keeps is let through, which is
about what OpenAI's structured outputs take; where it accepts less than the schema does, the answer still fits (docs/log.md,
"schemas").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NoReturn

from factory.serve.limits import APIError
from factory.serve.patterns import engine_pattern

JsonObject = dict[str, Any]

MAX_BYTES = 32_768
MAX_DEPTH = 16  # schemas within one another
MAX_SCHEMAS = 300  # in all
MAX_COUNT = 1000  # minLength, maxLength, minItems, maxItems
MAX_COUNTS = 5000  # all of them together, with the sizes of patterns
MAX_OPEN = 200  # alternatives that may be open at once: values of enums, of anyOf, optional properties
MAX_INTEGER = 10**15 - 1  # the grammar's integers have up to 16 digits

ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
DEFINITIONS = ("$defs", "definitions")
FORMATS = ("date", "time", "date-time", "uuid")
KEYWORDS = {
    "null": (),
    "boolean": (),
    "number": (),
    "integer": ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}
TYPE_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
PLAIN_NAME = re.compile(r"\w+", re.ASCII)


def engine_schema(schema: object) -> JsonObject:
    """``engine_schema({"type": "string", "title": "Name"})`` → {"type": "string"}: the same constraints and nothing else.

    Definitions get names of their own, since the engine confuses some.

    Raises: APIError 400 for what an engine would drop, or what exceeds a limit, with its place.
    """
    _check_size(schema)
    root = dict(_object(schema, "schema"))
    root.pop("$schema", None)
    given = {f"#/{key}/{name}": one for key in DEFINITIONS for name, one in _object(root.pop(key, {}), key).items()}
    names = {reference: f"definition{number}" for number, reference in enumerate(given)}
    definitions = {names[reference]: _converted(one, reference[2:], names) for reference, one in given.items()}
    converted = _converted(root, "schema", names)
    _check_totals(converted, definitions)
    _check_recursion(converted, definitions)
    return converted | ({"$defs": definitions} if definitions else {})


# ------------------------------------------------------------------------------------------------------- one schema at a time


def _converted(schema: object, place: str, names: Mapping[str, str], depth: int = 1) -> JsonObject:
    """One schema and those within it, without annotations. Raises: APIError 400."""
    if depth > MAX_DEPTH:
        _refuse(place, f"is nested too deep; at most {MAX_DEPTH} levels are taken")
    given = {key: value for key, value in _object(schema, place).items() if key not in ANNOTATIONS}

    def inner(value: object, *path: str | int) -> JsonObject:
        return _converted(value, ".".join(map(str, (place, *path))), names, depth + 1)

    if "$ref" in given:
        return _reference(given, place, names)
    if "anyOf" in given:
        _only(given, place, ("anyOf",))
        return {"anyOf": [inner(one, "anyOf", index) for index, one in enumerate(_list(given, "anyOf", place))]}
    if "const" in given or "enum" in given:
        return _values(given, place)
    return _typed(given, place, inner) if given else {}


def _reference(given: JsonObject, place: str, names: Mapping[str, str]) -> JsonObject:
    _only(given, place, ("$ref",))
    reference = given["$ref"]
    if not isinstance(reference, str) or reference not in names:
        known = ", ".join(names) or "none"
        _refuse(place, f"$ref {reference!r} is not one of the schema's own definitions: {known}")
    return {"$ref": f"#/$defs/{names[reference]}"}


def _values(given: JsonObject, place: str) -> JsonObject:
    """``const`` and ``enum``; a type beside them is checked here, since the engine ignores it."""
    key = "const" if "const" in given else "enum"
    _only(given, place, (key, "type"))
    values = [given["const"]] if key == "const" else _list(given, "enum", place)
    types = _types_of(given, place) if "type" in given else ()
    for value in values:
        if types and not _is_of(value, types):
            _refuse(place, f"{key} has {json.dumps(value)[:50]}, which is not of type {' or '.join(types)}")
    return {key: given[key]}


def _typed(given: JsonObject, place: str, inner: Callable[..., JsonObject]) -> JsonObject:
    if "type" not in given:
        _refuse(place, f"{next(iter(given))} without a type; engines hold type, enum, const, anyOf and $ref")
    types = _types_of(given, place)
    allowed = [keyword for one in types for keyword in KEYWORDS[one]]
    _only(given, place, ("type", *allowed))
    result: JsonObject = {"type": given["type"]}
    if "integer" in types:
        result |= _integer(given, place)
    if "string" in types:
        result |= _string(given, place)
    if "array" in types:
        result |= _array(given, place, inner)
    if "object" in types:
        result |= _properties(given, place, inner)
    return result


def _types_of(given: JsonObject, place: str) -> tuple[str, ...]:
    types = given.get("type")
    found = tuple(types) if isinstance(types, list) else (types,)
    if not found or not all(isinstance(one, str) and one in KEYWORDS for one in found) or len(set(found)) < len(found):
        _refuse(place, f"type is {json.dumps(types)[:50]}; it must be one or several of {', '.join(KEYWORDS)}")
    return found


def _is_of(value: object, types: tuple[str, ...]) -> bool:
    found = "null" if value is None else TYPE_NAMES[type(value)]
    return found in types or (found == "integer" and "number" in types)


def _integer(given: JsonObject, place: str) -> JsonObject:
    found = {key: given[key] for key in KEYWORDS["integer"] if key in given}
    for key, value in found.items():
        if type(value) is not int or abs(value) > MAX_INTEGER:
            _refuse(place, f"{key} is {json.dumps(value)[:50]}; it must be an integer of at most 15 digits")
    for pair in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if set(pair) <= set(found):
            _refuse(place, f"{pair[0]} and {pair[1]} exclude each other here; keep the narrower one")
    least = found.get("minimum", found.get("exclusiveMinimum", -MAX_INTEGER - 2) + 1)
    most = found.get("maximum", found.get("exclusiveMaximum", MAX_INTEGER + 2) - 1)
    if least > most:
        _refuse(place, "no integer is between its minimum and its maximum")
    return found


def _string(given: JsonObject, place: str) -> JsonObject:
    counts = _counts(given, place, "minLength", "maxLength")
    found = [key for key in ("pattern", "format") if key in given] + (["minLength"] if counts else [])
    if len(found) > 1:
        _refuse(place, "pattern, format and a length exclude each other here; write the length into the pattern")
    if "format" in given and given["format"] not in FORMATS:
        _refuse(place, f"format is {json.dumps(given['format'])[:50]}; engines hold {', '.join(FORMATS)}")
    if "pattern" in given:
        try:
            return {"pattern": engine_pattern(_text(given["pattern"], place)).text}
        except ValueError as error:
            _refuse(place, f"pattern {error}")
    return {"format": given["format"]} if "format" in given else counts


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        _refuse(place, f"pattern is {json.dumps(value)[:50]}; it must be a string")
    return value


def _array(given: JsonObject, place: str, inner: Callable[..., JsonObject]) -> JsonObject:
    counts = _counts(given, place, "minItems", "maxItems")
    if "prefixItems" in given:
        if counts or "items" in given:
            _refuse(place, "prefixItems is the whole array here; leave out items, minItems and maxItems")
        items = _list(given, "prefixItems", place)
        return {"prefixItems": [inner(one, "prefixItems", index) for index, one in enumerate(items)]}
    if "items" in given:
        return counts | {"items": inner(given["items"], "items")}
    if counts:
        _refuse(place, f"{next(iter(counts))} needs items; {{}} is any object")
    return {}


def _properties(given: JsonObject, place: str, inner: Callable[..., JsonObject]) -> JsonObject:
    properties = _object(given.get("properties", {}), f"{place}.properties")
    required, more = given.get("required", []), given.get("additionalProperties", False)
    if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
        _refuse(place, f"required is {json.dumps(required)[:50]}; it must name properties that are listed")
    for name in properties:
        if not name or (more is not False and not PLAIN_NAME.fullmatch(name)):
            _refuse(place, f"property {name[:50]!r} needs a name; beside additionalProperties of letters, digits and _ alone")
    result: JsonObject = {"properties": {name: inner(one, "properties", name) for name, one in properties.items()}}
    result["required"] = required
    if not isinstance(more, bool):
        more = inner(more, "additionalProperties")
    if not properties and "additionalProperties" not in given:
        return {}  # any object
    return result | {"additionalProperties": more}


def _counts(given: JsonObject, place: str, least: str, most: str) -> JsonObject:
    found = {key: given[key] for key in (least, most) if key in given}
    for key, value in found.items():
        if type(value) is not int or not 0 <= value <= MAX_COUNT:
            _refuse(place, f"{key} is {json.dumps(value)[:50]}; it must be an integer between 0 and {MAX_COUNT}")
    if found.get(least, 0) > found.get(most, MAX_COUNT):
        _refuse(place, f"{least} is greater than {most}")
    return found


# ------------------------------------------------------------------------------------------------------ all of them together


def _check_size(schema: object) -> None:
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except RecursionError:
        _refuse("schema", f"is nested too deep; at most {MAX_DEPTH} levels are taken")
    except ValueError:  # an infinity, or half a surrogate pair
        _refuse("schema", "has a value that JSON cannot hold")
    if size > MAX_BYTES:
        _refuse("schema", f"has {size:,} bytes; at most {MAX_BYTES:,} are taken")


def _check_totals(root: JsonObject, definitions: Mapping[str, JsonObject]) -> None:
    every = [schema for top in (root, *definitions.values()) for schema in _schemas(top)]
    if len(every) > MAX_SCHEMAS:
        _refuse("schema", f"has {len(every)} schemas in it; at most {MAX_SCHEMAS} are taken")
    counts = sum(map(_repetitions, every))
    if counts > MAX_COUNTS:
        _refuse("schema", f"has lengths, items and patterns that add up to {counts:,}; at most {MAX_COUNTS:,} are taken")
    known: dict[str, int] = {}
    if max(_open(top, definitions, known) for top in (root, *definitions.values())) > MAX_OPEN:
        _refuse("schema", f"has more than {MAX_OPEN} alternatives at one place; shorten an enum or anyOf")


def _children(schema: JsonObject) -> Iterator[JsonObject]:
    yield from schema.get("anyOf", ())
    yield from schema.get("prefixItems", ())
    yield from schema.get("properties", {}).values()
    yield from (schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict))


def _schemas(schema: JsonObject) -> Iterator[JsonObject]:
    yield schema
    for child in _children(schema):
        yield from _schemas(child)


def _repetitions(schema: JsonObject) -> int:
    """How many rules the grammar writes out for repetitions."""
    counts: list[int] = [max(schema.get(f"min{what}", 0), schema.get(f"max{what}", 0)) for what in ("Length", "Items")]
    return sum(counts) + (engine_pattern(schema["pattern"]).size if "pattern" in schema else 0)


def _open(schema: JsonObject, definitions: Mapping[str, JsonObject], known: dict[str, int]) -> int:
    """How many alternatives the grammar follows at once where most are open; a definition within itself adds none."""
    if "$ref" in schema:
        name = _target(schema)
        if name not in known:
            known[name] = 0
            known[name] = _open(definitions[name], definitions, known)
        return known[name]
    inner = [_open(child, definitions, known) for child in _children(schema)]
    if "anyOf" in schema:
        return sum(inner)
    optional = len(schema.get("properties", ())) - len(schema.get("required", ()))
    choices = engine_pattern(schema["pattern"]).choices if "pattern" in schema else 0
    return max(1 + optional + choices, len(schema.get("enum", ())), *inner, 0)


def _check_recursion(root: JsonObject, definitions: Mapping[str, JsonObject]) -> None:
    """In a recursive schema objects among alternatives would double what is open at every level, and so would arrays."""
    uses = {name: {_target(one) for one in _schemas(top) if "$ref" in one} for name, top in definitions.items()}
    try:
        TopologicalSorter(uses).prepare()
        return
    except CycleError:
        pass
    for top in (root, *definitions.values()):
        for schema in _schemas(top):
            types = _first_types(schema, definitions, ())
            if types.count("object") > 1 or types.count("array") > 1:
                _refuse("schema", "refers to itself and has anyOf of several objects or arrays; make them differ in type")


def _first_types(schema: JsonObject, definitions: Mapping[str, JsonObject], seen: tuple[str, ...]) -> list[str]:
    """The types that a value may begin as, one for each alternative."""
    if "$ref" in schema:
        name = _target(schema)
        if name in seen:
            _refuse("schema", "has a definition that is nothing but itself; put an object or array between")
        return _first_types(definitions[name], definitions, (*seen, name))
    if "anyOf" in schema:
        return [one for alternative in schema["anyOf"] for one in _first_types(alternative, definitions, seen)]
    if "enum" in schema or "const" in schema:
        return []  # as many as there are values, and no more at deeper levels
    types = schema.get("type", list(KEYWORDS))
    return [types] if isinstance(types, str) else list(types)


def _target(schema: JsonObject) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


# ----------------------------------------------------------------------------------------------------------------- messages


def _object(value: object, place: str) -> JsonObject:
    if not isinstance(value, dict):
        _refuse(place, f"is {json.dumps(value)[:50]}; it must be an object, as in {{}} for any")
    return value


def _list(given: JsonObject, key: str, place: str) -> list[Any]:
    value = given[key]
    if not isinstance(value, list) or not value:
        _refuse(place, f"{key} is {json.dumps(value)[:50]}; it must be a list with at least one entry")
    return value


def _only(given: JsonObject, place: str, allowed: tuple[str, ...]) -> None:
    for key in given:
        if key not in allowed:
            _refuse(place, f"{key[:50]} would be ignored by an engine here; it holds {', '.join(allowed)}")


def _refuse(place: str, problem: str) -> NoReturn:
    message = f"response_format: {place[-200:]}: {problem}"
    raise APIError(400, message, code="invalid_json_schema", param="response_format")
