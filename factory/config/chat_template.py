"""What a chat template in a family file says of itself, before any model is there. No torch here."""

from __future__ import annotations

import re
from datetime import date

from jinja2 import TemplateSyntaxError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_DATE = date(2024, 7, 26)  # for every template that writes today's: a prompt is the same on all days. Llama 3's own
THINKING = "enable_thinking"
# Variables that transformers leaves undefined, and llama.cpp sets to today's date and to true. Students learn answers.
PINNED = {"date_string": TEMPLATE_DATE.strftime("%d %b %Y"), THINKING: False}
GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # transformers' own tag


def template_variables(template: str) -> set[str]:
    """``template_variables("{% if enable_thinking %}...")`` → {"enable_thinking"}: what may be set from outside.

    Raises: ValueError for a template that is not valid Jinja.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    try:
        return find_undeclared_variables(environment.parse(GENERATION.sub("", template)))
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno} of the chat template is not valid Jinja: {error.message}") from error
