"""Chat templates in family files: mistakes are found before any model is there, and what decides a prompt is in every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.workplace import Refused, Workplace

from factory.bounded import Bounded, Limits
from factory.config import chat_template
from factory.config.chat_template import MAX_TEMPLATE, PINNED, read_template, render_template, template_variables
from factory.config.schema import TeacherSpec

PLAIN = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"


def teacher(template: str | None = PLAIN, **settings: Any) -> TeacherSpec:
    return TeacherSpec(model="path:m", license="MIT", chat_template=template, chat_template_kwargs=settings)


def test_the_variables_of_a_template_are_those_that_it_does_not_set_itself() -> None:
    text = "{% set a = b %}{% for m in messages %}{{ m + a }}{% generation %}{{ c }}{% endgeneration %}{% break %}{% endfor %}"
    assert template_variables(text) == {"b", "c", "messages"}


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set ns = namespace(t='a' * 99) %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}"
HOSTILE = {
    "loops": (NESTED, "it takes more than 1 seconds"),
    "loops on a condition": ("{% if messages | length > 1 %}" + NESTED + "{% endif %}", "it takes more than 1 seconds"),
    "a power": ("{{ 9 ** (9 ** 9) }}", "it takes more than 1 seconds"),
    "a long text": ("{{ 'a' * 10 ** 10 }}", "it takes more than 256 MB of memory"),
    "a doubled text": (DOUBLED, "it takes more than 256 MB of memory"),
    "a padded text": ("{{ 'a'.ljust(9000000) }}", "it holds more than 1 MB of text"),
    "calls of itself": ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "it is nested too deep"),
    "brackets": ("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "it is nested too deep"),
    "blocks": ("{% if true %}" * 3000, "it is nested too deep"),
    "Python": ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
    "files": ("{% include '/etc/passwd' %}", "no loader for this environment specified"),
    "an error of Python's": ("{{ 1 / 0 }}", "division by zero"),
    "no Jinja": ("a\n{{ b", "line 2 of the chat template is not valid Jinja: "),
    "a refusal": ("{{ raise_exception('no\nsystem turn') }}", "no system turn"),
    "size": ("a" * (MAX_TEMPLATE + 1), "a chat template has at most 200,000 characters, this one 200,001"),
}


@pytest.fixture(scope="module")
def small() -> Bounded:
    return Bounded(read_template, Limits(seconds=1, memory=1 << 28, output=1 << 20))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_in_one_line(name: str, small: Bounded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_process", lambda: small)
    monkeypatch.setattr(chat_template, "_AT_LIMIT", type(chat_template._AT_LIMIT)())
    template, why = HOSTILE[name]
    for _ in range(2):  # one that ended at a limit is not tried again
        with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
            render_template(template, {"messages": ["a", "b"]})
        assert str(caught.value).startswith(why)
    assert (template in chat_template._AT_LIMIT) == why.startswith(("it takes", "it holds"))
    assert render_template("{{ messages[0] }}", {"messages": ["a"]}) == "a"


@pytest.mark.parametrize("text", ["{{ 'a' * 10 ** 10 }}", "{{ 10 ** 10 ** 10 }}", "{{ " + "(" * 9000, "{% if a %}" * 3000])
def test_a_hostile_template_s_variables_cost_no_more(text: str, small: Bounded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_process", lambda: small)
    try:
        assert template_variables(text) == frozenset()
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"chat_template": "{% for m in messages %}\n{{ m"}, "teacher: line 2 of the chat template is not valid Jinja: "),
        (
            {"chat_template": "{{ messages }}", "chat_template_kwargs": {"enable_thinking": False}},
            "teacher: chat_template does not read enable_thinking, which chat_template_kwargs sets",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": ["no"]}},
            "chat_template_kwargs: must be variables of the template, each with true, false, a number or text (found ['no'])",
        ),
    ],
)
def test_a_mistake_is_found_by_validate(workplace: Workplace, written: dict[str, Any], expected: str) -> None:
    family = workplace.family | {"teacher": workplace.family["teacher"] | written}
    workplace.write("default.family.yaml", yaml.safe_dump(family))
    result = workplace.run("validate")
    assert result.exit_code == 1 and expected in result.stderr


def test_a_plain_template_of_the_yaml_s_own_has_the_key_that_it_always_had() -> None:
    assert teacher().template_parts == [PLAIN]


@pytest.mark.parametrize("template", [None, "{{ strftime_now('%Y') }}", "{{ enable_thinking }}", "{{ date_string }}"])
def test_what_is_set_in_a_template_from_outside_is_part_of_every_key(template: str | None) -> None:
    assert teacher(template).template_parts == [template, {}, PINNED]
    assert teacher(None, enable_thinking=True).template_parts == [None, {"enable_thinking": True}, PINNED]


def test_settings_of_a_template_make_other_data_and_another_base(with_models: Workplace) -> None:
    from factory.pipeline.base import settings_key
    from factory.pipeline.dataset import dataset_key

    def keys(**more: Any) -> tuple[str, str]:
        family = with_models.family | {"teacher": with_models.family["teacher"] | more}
        with_models.write("default.family.yaml", yaml.safe_dump(family))
        context = with_models.context()
        return dataset_key(context, "ab", context.specs.domain("plants")), settings_key(context, "ab", "mini")

    plain, other = keys(), keys(chat_template_kwargs={"enable_thinking": True})
    assert plain == keys() and set(plain).isdisjoint(other)


def test_a_template_that_cannot_be_used_is_refused_by_plan_with_one_that_can(with_models: Workplace, refused: Refused) -> None:
    family = with_models.family | {"teacher": with_models.family["teacher"] | {"chat_template": "{{ messages[0]['content'] }}"}}
    with_models.write("default.family.yaml", yaml.safe_dump(family))
    line = refused(with_models.run("plan", "plants"))
    assert line.startswith("error: the chat template of path:./teacher cannot be used: it does not write messages ")
    works = yaml.safe_load(line.partition("would work: ")[2])
    family["teacher"] |= works
    with_models.write("default.family.yaml", yaml.safe_dump(family))
    assert with_models.run("plan", "plants").exit_code == 0


def test_what_was_settled_in_a_template_is_a_row_of_the_plan(with_models: Workplace) -> None:
    own = (Path(with_models.domains) / "teacher" / "chat_template.jinja").read_text(encoding="utf-8")
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + own
    family = with_models.family | {"teacher": with_models.family["teacher"] | {"chat_template": refuses}}
    with_models.write("default.family.yaml", yaml.safe_dump(family))
    rows = with_models.run("plan", "plants", "--json").stdout
    assert rows.count("chat template: it takes no system turn: a context's goes into the first user turn") == 1
