"""JSON schemas: those that are taken are held by a real engine; the others are 400 with the place and the reason."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

from factory.export.gguf import write_base_gguf
from factory.models.llama_server import LlamaServer
from factory.serve.json_schema import MAX_BYTES, MAX_DEPTH, MAX_OPEN, MAX_SCHEMAS, engine_schema
from factory.serve.limits import APIError


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def linked(**more: Any) -> dict[str, Any]:
    """A list whose nodes hold the next one, or null."""
    node = an_object(value={"enum": [1, 2]}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})
    return {"$defs": {"node": node} | more, "$ref": "#/$defs/node"}


def tree(*, deep: int) -> dict[str, Any]:
    return {"type": "array", "items": tree(deep=deep - 1)} if deep > 1 else {"type": "null"}


def doubling(count: int) -> dict[str, Any]:
    """Definitions that are either of two of the next one: 2 ** count alternatives."""
    each = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(count)}
    return {"$defs": each | {f"d{count}": {}}, "$ref": "#/$defs/d0"}


HELD: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "several types": {"type": ["string", "null"], "maxLength": 3},
    "enum": {"enum": ["é \" \\ \n", 1.5, None, {"a": [1]}]},
    "const": {"type": "string", "const": "x"},
    "a range": {"type": "integer", "minimum": -12, "maximum": -3},
    "an open range": {"type": "integer", "exclusiveMinimum": 17, "exclusiveMaximum": 1018},
    "at least": {"type": "integer", "minimum": 250},
    "at most": {"type": "integer", "maximum": -7},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 5},
    "a pattern": {"type": "string", "pattern": r"^(\d{2}|[a-c]+)-\w?$"},
    "punctuation": {"type": "string", "pattern": r"^[.,:;!?@#$%&*+=/'<>(){}|~ -]{9} _,:;!@#%&=/'<>~`-\.\[\](\{\}|\*\+\?\^\$)$"},
    "a date": {"type": "string", "format": "date"},
    "a uuid": {"type": "string", "format": "uuid"},
    "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "no items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 0},
    "a tuple": {"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}]},
    "an object": an_object(a={"type": "boolean"}, **{"an \"odd\" näme": {"type": "null"}}),
    "optional": {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]},
    "a map": {"type": "object", "properties": {"ab": {"const": 1}}, "additionalProperties": {"type": "boolean"}},
    "alternatives": {"anyOf": [{"const": 1}, an_object(a={"const": 2})]},
    "recursive": linked(),
    "names alike": {
        "$defs": {"a": an_object(b={"const": 1}), "a-b": {"const": 2}, "a_b": {"const": 3}},
        **an_object(x={"$ref": "#/$defs/a"}, y={"$ref": "#/$defs/a-b"}, z={"$ref": "#/$defs/a_b"}),
    },
    "annotations": {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "a", "description": "b", "type": "null"
    },
}  # fmt: skip

REFUSED: dict[str, tuple[Any, str]] = {
    "no schema": (True, "schema: is true"),
    "dropped: multipleOf": ({"type": "integer", "multipleOf": 5}, "schema: multipleOf would be ignored"),
    "dropped: a number's range": (an_object(a={"type": "number", "minimum": 1}), "schema.properties.a: minimum would be"),
    "dropped: uniqueItems": ({"type": "array", "uniqueItems": True}, "uniqueItems would be ignored"),
    "dropped: not": ({"not": {"type": "string"}}, "not without a type"),
    "dropped: oneOf": ({"oneOf": [{"const": 1}]}, "oneOf without a type"),
    "dropped: allOf": ({"type": "object", "allOf": [{}]}, "allOf would be ignored"),
    "dropped: beside anyOf": ({"anyOf": [{}], "type": "string"}, "type would be ignored"),
    "dropped: beside $ref": (linked() | {"type": "string"}, "type would be ignored"),
    "dropped: beside enum": ({"enum": ["a"], "minLength": 3}, "minLength would be ignored"),
    "dropped: a type's own": ({"type": "string", "minimum": 3}, "minimum would be ignored"),
    "dropped: without a type": ({"minLength": 3}, "minLength without a type"),
    "dropped: required": ({"type": "object", "required": ["a"]}, "must name properties that are listed"),
    "dropped: minItems": ({"type": "array", "minItems": 2}, "minItems needs items"),
    "dropped: beside prefixItems": ({"type": "array", "prefixItems": [{}], "items": {}}, "prefixItems is the whole array"),
    "dropped: two bounds": ({"type": "integer", "minimum": 1, "exclusiveMinimum": 2}, "exclude each other"),
    "dropped: length": ({"type": "string", "pattern": "^a$", "maxLength": 3}, "exclude each other"),
    "a type": (an_object(a={"type": "text"}), 'schema.properties.a: type is "text"; it must be one or several of null'),
    "a type twice": ({"type": ["array", "array"]}, "type is"),
    "a format": ({"type": "string", "format": "email"}, 'format is "email"; engines hold date'),
    "a pattern": ({"type": "string", "pattern": "^.$"}, "pattern has '.' at character 2"),
    "an enum's type": ({"type": "string", "enum": ["a", 1]}, "enum has 1, which is not of type string"),
    "an empty enum": ({"enum": []}, "at least one entry"),
    "a boolean schema": ({"type": "array", "items": False}, "schema.items: is false"),
    "a fraction": ({"type": "integer", "minimum": 2.5}, "minimum is 2.5; it must be an integer"),
    "a huge bound": ({"type": "integer", "maximum": 10**15}, "at most 15 digits"),
    "an empty range": ({"type": "integer", "minimum": 5, "maximum": 1}, "no integer is between"),
    "crossed lengths": ({"type": "string", "minLength": 5, "maxLength": 1}, "minLength is greater than maxLength"),
    "an unknown definition": ({"$ref": "#/$defs/a"}, r"\$ref '#/\$defs/a' is not one of the schema's own definitions: none"),
    "another file": ({"$ref": "https://example.org/a.json"}, "own definitions"),
    "nothing but itself": ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "nothing but itself"),
    "an empty name": (an_object(**{"": {}}), "needs a name"),
    "odd names": ({"type": "object", "properties": {"a-b": {}}, "additionalProperties": True}, "letters, digits and _"),
    "infinity": ({"const": float("inf")}, "JSON cannot hold"),
    "half a character": ({"const": "\ud800"}, "JSON cannot hold"),
    "bytes": ({"const": "a" * MAX_BYTES}, "bytes; at most 32,768"),
    "depth": (tree(deep=MAX_DEPTH + 1), "nested too deep"),
    "schemas": ({"type": "array", "prefixItems": [{}] * MAX_SCHEMAS}, "301 schemas in it; at most 300"),
    "an enum's length": ({"enum": list(range(MAX_OPEN + 1))}, "more than 200 alternatives"),
    "a count": ({"type": "string", "maxLength": 1001}, "between 0 and 1000"),
    "counts in all": (an_object(**{f"p{n}": {"type": "string", "maxLength": 1000} for n in range(6)}), "add up to 6,000"),
    "choices": ({"type": "string", "pattern": "^(a?){1500}$"}, "1500 choices"),
    "alternatives in alternatives": ({"anyOf": [{"type": "array", "items": {"enum": list(range(50))}}] * 5}, "more than 200"),
    "alternatives by reference": (doubling(60), "more than 200 alternatives"),
    "alternatives that double at every level": (
        {"$defs": {"e": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/e"}}] * 2}}, "$ref": "#/$defs/e"},
        "refers to itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "message"), REFUSED.values(), ids=REFUSED)
def test_what_an_engine_cannot_hold_is_400_with_its_place(schema: Any, message: str) -> None:
    start = time.process_time()
    with pytest.raises(APIError, match=message) as error:
        engine_schema(schema)
    assert (error.value.status, error.value.code, error.value.param) == (400, "invalid_json_schema", "response_format")
    assert len(error.value.message) < 500
    assert time.process_time() - start < 1


def test_nothing_reaches_the_engine_that_is_no_constraint() -> None:
    schema = {
        "title": "Ann Smith",
        "description": "of Ann Smith",
        "$defs": {"AnnSmith": {"type": "null"}},
        "$ref": "#/$defs/AnnSmith",
    }
    assert "Smith" not in json.dumps(engine_schema(schema))


KEYS = st.sampled_from(["type", "anyOf", "items", "properties", "$ref", "$defs", "enum", "a"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["object", "array", "#/$defs/a"])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@given(JSON)
def test_any_json_is_taken_or_400(schema: Any) -> None:
    try:
        taken = engine_schema(schema)
    except APIError as error:
        assert error.status == 400
    else:
        assert isinstance(taken, dict)


# --------------------------------------------------------------------------------------------------------- with an engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """A random model, which says anything that it is not kept from."""
    path = tmp_path_factory.mktemp("schemas") / "tiny.gguf"
    write_base_gguf(tiny.llama(), tiny.tokenizer(), path, "f16", name="tiny", license="apache-2.0")
    with LlamaServer(path, context=512, threads=1) as server:
        yield server


def answers(engine: LlamaServer, schema: dict[str, Any], count: int) -> Iterator[str]:
    """Those that ended by themselves."""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 120, "temperature": 1.5, "response_format": form}
    for seed in range(count):
        answer = httpx.post(f"{engine.url}/v1/chat/completions", headers=engine.headers, json=body | {"seed": seed}, timeout=30)
        if "peg-native" in answer.text:  # bytes that are no UTF-8, which only a random model strings together
            continue
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            yield choice["message"]["content"]


@pytest.mark.parametrize("schema", HELD.values(), ids=HELD)
def test_an_engine_holds_what_is_taken(engine: LlamaServer, schema: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    found = list(answers(engine, engine_schema(schema), 8))
    assert found
    for text in found:
        assert jsonschema_rs.is_valid(schema, json.loads(text), validate_formats=True), text
    assert not capfd.readouterr().err  # where the engine would say what it drops


def test_the_worst_that_is_taken_is_answered_soon(engine: LlamaServer) -> None:
    worst = {
        "enum": {"enum": [f"the same long beginning of every value {n}" for n in range(MAX_OPEN)]},
        "optional": {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(MAX_OPEN - 1)}},
        "pattern": {"anyOf": [{"type": "string", "pattern": "^(a?){40}a{20}$"}] * 4},
        "counts": an_object(**{f"p{n}": {"type": "string", "maxLength": 1000} for n in range(5)}),
    }
    for name, schema in worst.items():
        start = time.process_time()
        list(answers(engine, engine_schema(schema), 1))
        assert time.process_time() - start < 5, name
