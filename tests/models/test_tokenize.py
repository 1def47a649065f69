"""Rows as token ids for student and teacher, and token ids as text."""

from __future__ import annotations

from support import tiny

from factory.config.schema import TeacherContext, TeacherContexts
from factory.models.chat import end_of_turn, prompt_ids
from factory.models.tokenize import token_text, token_texts, tokenize_examples


def test_only_the_teacher_s_prompt_has_the_context() -> None:
    tokenizer = tiny.tokenizer()
    [row, chunk] = tokenize_examples(
        [{"prompt": "what is light", "completion": "it is sugar"}, {"prompt": "", "completion": "students learn"}],
        tokenizer,
        TeacherContexts(tiny.CONTEXT),
    )
    assert row.prompt == prompt_ids(tokenizer, "what is light")
    assert row.teacher_prompt == prompt_ids(tokenizer, "what is light", tiny.CONTEXT)
    assert tokenizer.decode(row.completion) == "it is sugar<|im_end|>"
    assert chunk.prompt == chunk.teacher_prompt == [tokenizer.bos_token_id]
    assert tokenizer.decode(chunk.completion) == "students learn"


def test_the_teacher_s_prompt_has_the_context_of_the_row_s_source() -> None:
    tokenizer, long = tiny.tokenizer(), TeacherContext(system="be long")
    contexts = TeacherContexts(tiny.CONTEXT, {"letters": long, "bare": TeacherContext()})
    sources = {"letters": long, "bare": TeacherContext(), "others": tiny.CONTEXT, None: tiny.CONTEXT}
    rows = [{"prompt": "what is light", "completion": "it is sugar", "source": source} for source in sources]
    for row, context in zip(tokenize_examples(rows, tokenizer, contexts), sources.values(), strict=True):
        assert row.prompt == prompt_ids(tokenizer, "what is light")
        assert row.teacher_prompt == prompt_ids(tokenizer, "what is light", context)


def test_a_long_completion_is_whole_and_ends() -> None:
    [row] = tokenize_examples([{"prompt": "a", "completion": "light " * 900}], tiny.tokenizer(), TeacherContexts(tiny.CONTEXT))
    assert tiny.tokenizer().decode(row.completion[:-1]) == "light " * 900
    assert row.completion[-1] == end_of_turn(tiny.tokenizer())


def test_a_token_that_is_part_of_a_character_shows_its_vocabulary_entry() -> None:
    tokenizer = tiny.tokenizer()
    first, _ = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert token_text(tokenizer, first) == tokenizer.convert_ids_to_tokens(first)
    [word] = tokenizer("light", add_special_tokens=False)["input_ids"][:1]
    assert token_text(tokenizer, word) == tokenizer.decode([word])


def test_token_texts_join_to_the_decoded_text_and_a_character_belongs_to_its_last_token() -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer("aé light 🌱", add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert "".join(texts) == tokenizer.decode(ids) == "aé light 🌱"
    assert len(texts) == len(ids)
    assert texts[:3] == ("a", "", "é")
