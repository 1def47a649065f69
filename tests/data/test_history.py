"""What was said before a prompt."""

from __future__ import annotations

from factory.config.sources import TeacherContext, Turn
from factory.data.history import NOTHING, asked_alone, conversation_of, history_of

HISTORY = TeacherContext(system="Be brief.", examples=(Turn(prompt="What is gout?", completion="A kind of arthritis."),))
LATER = {"prompt": "Is it inherited?", "completion": "In part.", "history": HISTORY.model_dump()}
FIRST = {"prompt": "What is gout?", "completion": "A kind of arthritis.", "history": NOTHING.model_dump()}
OLD = {"prompt": "What is gout?", "completion": "A kind of arthritis."}  # of an older release
CHUNK = {"prompt": "", "completion": "Gout is a kind of arthritis.", "history": NOTHING.model_dump()}


def test_a_row_has_what_was_said_before_it() -> None:
    assert history_of(LATER) == HISTORY
    assert history_of(FIRST) == history_of(OLD) == NOTHING


def test_a_conversation_is_read_as_one_text_without_its_system_prompt() -> None:
    assert conversation_of(LATER) == "What is gout?\nA kind of arthritis.\nIs it inherited?"
    assert conversation_of(FIRST) == "What is gout?"
    assert conversation_of(CHUNK) == "Gout is a kind of arthritis."


def test_only_a_row_before_which_nothing_was_said_is_asked_alone() -> None:
    told = OLD | {"history": {"system": "Be brief.", "examples": []}}
    assert asked_alone([LATER, FIRST, OLD, told]) == [FIRST, OLD]


def test_a_context_comes_before_what_was_said_and_two_system_prompts_become_one() -> None:
    context = TeacherContext(system="You are a nurse.", examples=(Turn(prompt="Hello?", completion="Hello."),))
    both = context.then(HISTORY)
    assert both.system == "You are a nurse.\n\nBe brief."
    assert both.examples == (*context.examples, *HISTORY.examples)
    assert context.then(NOTHING) == context and NOTHING.then(HISTORY) == HISTORY
