"""Prompts and completions as token ids, alike for teacher and student; only the teacher sees a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from factory.config.schema import TeacherContext, TeacherContexts
from factory.errors import ModelResolutionError

NO_CONTEXT = TeacherContext()
NO_CONTEXTS = TeacherContexts()  # of rows that the teacher sees as its student does


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
    return _ids(tokenizer, _render(tokenizer, messages(prompt, context), add_generation_prompt=True))


def completion_ids(tokenizer: PreTrainedTokenizerBase, completion: str, *, ends: bool = True) -> list[int]:
    """``completion_ids(tokenizer, "Gout is ...")``: ids of the answer and, if it ``ends``, of the end of the turn."""
    return [*_ids(tokenizer, completion), *([end_of_turn(tokenizer)] if ends else [])]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """``end_of_turn(tokenizer)``: the chat template's token after an answer (``<|im_end|>``, a newline, ...)."""
    answer = "An answer."
    turns = [*messages("A question?"), {"role": "assistant", "content": answer}]
    opened = _render(tokenizer, messages("A question?"), add_generation_prompt=True) + answer
    return _token_after(tokenizer, opened, _render(tokenizer, turns, add_generation_prompt=False), "an answer")


def end_of_prompt(tokenizer: PreTrainedTokenizerBase) -> int:
    """``end_of_prompt(tokenizer)``: the chat template's token after the user's words."""
    question = "A question?"
    whole = _render(tokenizer, messages(question), add_generation_prompt=True)
    return _token_after(tokenizer, whole.partition(question)[0] + question, whole, "a user's turn")


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """``stop_tokens(tokenizer)``: the tokens that end an answer: the template's, and the tokenizer's end of text."""
    eos = tokenizer.eos_token_id
    return sorted({end_of_turn(tokenizer), *([eos] if isinstance(eos, int) else [])})


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """``start_token(tokenizer)``: the first token of a document: begin of text, else end of text."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ModelResolutionError("the tokenizer has neither a bos nor an eos token, so a chunk of a document has no start token")


def _token_after(tokenizer: PreTrainedTokenizerBase, opened: str, whole: str, what: str) -> int:
    """The first token of ``whole`` after the tokens of ``opened``."""
    begun, ids = _ids(tokenizer, opened), _ids(tokenizer, whole)
    shared = len(shared_prefix([begun, ids]))
    if shared != len(begun) or len(ids) == shared:
        raise ModelResolutionError(
            f"the chat template does not end {what} with a token of its own; write one after "
            "message['content'] in the family's teacher.chat_template"
        )
    return int(ids[shared])


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise ModelResolutionError("the teacher has no chat template; set teacher.chat_template in the family file")
    text: Any = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    return str(text)


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
