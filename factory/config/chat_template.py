"""Chat templates: Jinja that somebody else wrote, read and rendered in a process that ends at its limits. No torch here.

template_variables(text)                                          # {"messages", "enable_thinking"}
render_template(text, {"messages": turns, "eos_token": "</s>"})   # the prompt

Jinja's sandbox keeps a template from files and from Python, not from loops or from a gigabyte of text.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from functools import lru_cache
from threading import Lock
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from factory.bounded import Bounded, BoundedError, Limits

TEMPLATE_DATE = date(2024, 7, 26)  # for every template that writes today's: a prompt is the same on all days. Llama 3's own
THINKING = "enable_thinking"
# Variables that transformers leaves undefined, and llama.cpp sets to today's date and to true. Students learn answers.
PINNED = {"date_string": TEMPLATE_DATE.strftime("%d %b %Y"), THINKING: False}

MAX_TEMPLATE = 200_000  # characters; the longest of trl's have 20,000
LIMITS = Limits(seconds=5, memory=1 << 30, output=1 << 26)
REMEMBERED = 64  # templates that ended at a limit


@lru_cache(maxsize=16)
def template_variables(template: str) -> frozenset[str]:
    """``template_variables("{% if enable_thinking %}...")`` → {"enable_thinking"}: what may be set from outside.

    Raises: ValueError for a template that is not valid Jinja.
    """
    return frozenset(_ask("variables", template, {}))


def render_template(template: str, variables: Mapping[str, Any]) -> str:
    """``render_template(text, {"messages": turns, "add_generation_prompt": True})``: as transformers renders it.

    Raises: ValueError with the template's own reason, and for one that takes too long or writes too much; such a template is
        not tried again.
    """
    [text] = _ask("text", template, variables)
    return text


# -------------------------------------------------------------------------------------------------- beside the process

_ONE = Lock()  # process is enough: a prompt takes less than a millisecond
_AT_LIMIT: OrderedDict[str, str] = OrderedDict()  # template → why; a server would otherwise wait for it at each request


def _ask(what: str, template: str, variables: Mapping[str, Any]) -> list[str]:
    if len(template) > MAX_TEMPLATE:
        raise ValueError(f"a chat template has at most {MAX_TEMPLATE:,} characters, this one {len(template):,}")
    if template in _AT_LIMIT:
        raise ValueError(_AT_LIMIT[template])
    try:
        with _ONE:
            return list(_process().ask(what, template, dict(variables)))
    except BoundedError as error:
        if error.at_limit:
            _AT_LIMIT[template] = str(error)
            while len(_AT_LIMIT) > REMEMBERED:
                _AT_LIMIT.popitem(last=False)
        raise ValueError(str(error)) from None


@lru_cache(maxsize=1)
def _process() -> Bounded:
    return Bounded(read_template, LIMITS)


# ------------------------------------------------------------------------------------------------------ in the process


def read_template(what: str, template: str, variables: Mapping[str, Any]) -> Iterator[str]:
    """``list(read_template("text", template, variables))``: in the process, its text or its ``variables``.

    Raises: ValueError, in one line.
    """
    try:
        if what == "variables":
            yield from sorted(find_undeclared_variables(_environment().parse(template)))
            return
        text = _compiled(template).render(**variables)
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno} of the chat template is not valid Jinja: {error.message}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    yield text


class _Generation(Extension):
    """transformers' own tag around what an assistant said, which it also writes."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without jinja2's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    return environment


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    given = {"raise_exception": _raise_exception, "strftime_now": lambda form: datetime.now().strftime(form)}  # transformers'
    return _environment().from_string(template, globals=given)
