"""Prompts and completions as token ids, alike for teacher and student; only the teacher sees a context."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from factory.config.chat_template import render_template
from factory.config.schema import TeacherContext, TeacherContexts
from factory.errors import ModelResolutionError

NO_CONTEXT = TeacherContext()
NO_CONTEXTS = TeacherContexts()  # of rows that the teacher sees as its student does
ANSWERS = "An answer.", "Yes"  # with ends of two kinds, which a tokenizer might join with what follows
NO_END = (
    "the chat template does not end {} with a token of its own; write one after message['content'] in the family's "
    "teacher.chat_template"
)


def messages(prompt: str, context: TeacherContext = NO_CONTEXT) -> list[dict[str, str]]:
    """``messages("What is gout?", context)``: system turn, worked examples, then the user's turn."""
    turns = [{"role": "system", "content": context.system}] if context.system else []
    for example in context.examples:
        turns += [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
    return [*turns, {"role": "user", "content": prompt}]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, context: TeacherContext = NO_CONTEXT) -> list[int]:
    """``prompt_ids(tokenizer, "What is gout?")``: ids up to where the answer begins.

    An empty prompt, before a chunk of a document, is one start token, so that every token of the chunk is predicted.
    """
    if not prompt:
        return [start_token(tokenizer)]
    return _ids(tokenizer, render(tokenizer, messages(prompt, context), prompt=True))


def completion_ids(tokenizer: PreTrainedTokenizerBase, completion: str, *, ends: bool = True) -> list[int]:
    """``completion_ids(tokenizer, "Gout is ...")``: ids of the answer and, if it ``ends``, of the end of the turn."""
    return [*_ids(tokenizer, plain_text(tokenizer, completion)), *([end_of_turn(tokenizer)] if ends else [])]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """``end_of_turn(tokenizer)``: the chat template's token after an answer (``<|im_end|>``, a newline, ...).

    Raises: ModelResolutionError unless the template writes one token after any answer.
    """
    return _end_of_turn(tokenizer, str(tokenizer.chat_template or ""))


@lru_cache(maxsize=16)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    ends = set()
    for answer in ANSWERS:
        whole = render(tokenizer, [*messages("A question?"), {"role": "assistant", "content": answer}], prompt=False)
        ends.add(_token_after(tokenizer, whole.rpartition(answer)[0] + answer, whole, "an answer"))
    if len(ends) > 1:
        raise ModelResolutionError(NO_END.format("an answer"))
    return ends.pop()


def end_of_prompt(tokenizer: PreTrainedTokenizerBase) -> int:
    """``end_of_prompt(tokenizer)``: the chat template's token after the user's words."""
    question = "A question?"
    whole = render(tokenizer, messages(question), prompt=True)
    return _token_after(tokenizer, whole.partition(question)[0] + question, whole, "a user's turn")


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """``stop_tokens(tokenizer)``: the tokens that end an answer: the template's, and the tokenizer's end of text."""
    eos = tokenizer.eos_token_id
    return sorted({end_of_turn(tokenizer), *([eos] if isinstance(eos, int) else [])})


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """``start_token(tokenizer)``: the first token of a document: begin of text, else end of text, else the end of a turn."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return end_of_turn(tokenizer)


def _token_after(tokenizer: PreTrainedTokenizerBase, opened: str, whole: str, what: str) -> int:
    """The first token of ``whole`` after the tokens of ``opened``."""
    begun, ids = _ids(tokenizer, opened), _ids(tokenizer, whole)
    shared = len(shared_prefix([begun, ids]))
    if shared != len(begun) or len(ids) == shared:
        raise ModelResolutionError(NO_END.format(what))
    return int(ids[shared])


def plain_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """``plain_text(tokenizer, "What does <|im_end|> do?")`` → "What does < |im_end|> do?": no special token is in it.

    What people and files say is text: it neither ends a turn nor begins one.
    """
    special = _special_tokens(tokenizer)
    while special is not None and special.search(text):  # a break may make another one
        text = special.sub(lambda token: f"{token[0][0]} {token[0][1:]}", text)
    return text


def plain_turns(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """``plain_turns(tokenizer, messages("What is gout?"))``: the same turns with ``plain_text``."""
    return [turn | {"content": plain_text(tokenizer, turn["content"])} for turn in turns]


@lru_cache(maxsize=16)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    breakable = {token for token in [*added, *tokenizer.all_special_tokens] if len(token) > 1 and not token[0].isspace()}
    return re.compile("|".join(re.escape(token) for token in sorted(breakable, key=len, reverse=True))) if breakable else None


def render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, prompt: bool) -> str:
    """``render(tokenizer, messages("What is gout?"), prompt=True)``: the text; a ``prompt`` ends where an answer begins.

    A special token in a message is text (``plain_text``). Raises: ModelResolutionError as ``render_as_is`` does.
    """
    return render_as_is(tokenizer, plain_turns(tokenizer, turns), prompt=prompt)


def render_as_is(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, prompt: bool) -> str:
    """``render_as_is(tokenizer, turns, prompt=True)``: as ``tokenizer.apply_chat_template``, in bounded time and memory.

    Raises: ModelResolutionError where there is no chat template, or it fails, refuses the turns or is too slow.
    """
    template = tokenizer.chat_template
    if not template or not isinstance(template, str):
        raise ModelResolutionError("the teacher has no chat template; set teacher.chat_template in the family file")
    given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": prompt}
    try:
        return render_template(template, {**tokenizer.special_tokens_map, **given})
    except ValueError as error:
        raise ModelResolutionError(f"the chat template refuses these messages: {error}") from None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def shared_prefix(sequences: Sequence[list[int]]) -> list[int]:
    """``shared_prefix([[1, 2, 3], [1, 2, 4]])``: ``[1, 2]``, the ids that all sequences begin with."""
    shortest, longest = min(sequences), max(sequences)  # what these two share, all share
    for index, token in enumerate(shortest):
        if token != longest[index]:
            return list(shortest[:index])
    return list(shortest)


def split_prefix(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """``split_prefix([[1, 2, 3], [1, 2]]) == ([1], [[2, 3], [2]])``: the shared prefix, and what is left of each sequence.

    At least one token of each sequence is left.
    """
    shared = len(shared_prefix([list(ids) for ids in sequences]))
    shared = min(shared, min(len(ids) for ids in sequences) - 1)
    return list(sequences[0][:shared]), [list(ids[shared:]) for ids in sequences]
