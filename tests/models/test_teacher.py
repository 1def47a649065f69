"""The teacher's writing: nothing is asked twice, the context decides what is known, a stop costs one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

import factory.models.teacher as module
from factory.config.schema import TeacherContext, TeacherPromptSource, Turn
from factory.data.dataset import Completion
from factory.data.sources import Example
from factory.models.chat import NO_CONTEXT, prompt_ids, split_prefix, stop_tokens
from factory.models.device import compute_dtype
from factory.models.generation import sample
from factory.models.teacher import Teacher, append_completions, read_completions


def example(id: str, prompt: str, completion: str = "") -> Example:
    return Example(id, prompt, completion, "s", "CC0-1.0", "", ())


EXAMPLES = [example("s/0", "what is asthma"), example("s/1", "how is it treated"), example("s/2", "what is asthma")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call of ``sample`` was given."""
    counts: list[int] = []

    def counting(model: Any, prompts: Any, **kwargs: Any) -> Any:
        counts.append(len(prompts))
        return sample(model, prompts, **kwargs)

    monkeypatch.setattr(module, "sample", counting)
    return counts


def complete(teacher: Teacher, folder: Path, examples: list[Example] = EXAMPLES, **over: Any) -> dict[str, Completion]:
    context = over.pop("context", tiny.CONTEXT)
    return teacher.complete(
        examples, context, folder=folder, **({"max_new_tokens": 6, "repetition_penalty": 1.0, "seed": 0} | over)
    )


def test_completions_are_the_greedy_answers_to_context_and_prompt(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    written = complete(teacher, tmp_path, max_new_tokens=12)
    assert written.keys() == {"s/0", "s/1", "s/2"}
    assert written["s/0"] == written["s/2"]
    stop = stop_tokens(teacher.tokenizer)
    for one in EXAMPLES:
        ids = prompt_ids(teacher.tokenizer, one.prompt, tiny.CONTEXT)
        [answer] = sample(teacher.model, [ids], max_new_tokens=12, stop=stop)
        text = teacher.tokenizer.decode(answer, skip_special_tokens=True)
        assert written[one.id] == Completion(text.strip(), answer[-1] in stop)


def test_a_prompt_is_asked_once_and_never_again(tmp_path: Path, asked: list[int]) -> None:
    teacher = tiny.teacher()
    first = complete(teacher, tmp_path)
    assert asked == [2]  # two of three prompts are the same
    assert complete(teacher, tmp_path) == first
    more = complete(teacher, tmp_path, [*EXAMPLES, example("t/0", "be brief")])
    assert asked == [2, 1]
    assert more["s/1"] == first["s/1"]


def test_a_question_after_other_words_is_another_question(tmp_path: Path, asked: list[int]) -> None:
    teacher, said = (
        tiny.teacher(),
        TeacherContext(system="be long", examples=(Turn(prompt="what is light", completion="sugar"),)),
    )
    later = replace(example("c/1", "how is it treated"), history=said)
    examples = [*EXAMPLES, later]
    written = complete(teacher, tmp_path, examples, max_new_tokens=12)
    assert asked == [3]
    ids = prompt_ids(teacher.tokenizer, later.prompt, tiny.CONTEXT.then(said))
    [answer] = sample(teacher.model, [ids], max_new_tokens=12, stop=stop_tokens(teacher.tokenizer))
    assert written["c/1"].text == teacher.tokenizer.decode(answer, skip_special_tokens=True).strip() != written["s/1"].text
    asked.clear()
    assert complete(teacher, tmp_path, examples, max_new_tokens=12) == written and not asked


def test_a_completion_of_its_own_is_not_asked_for(tmp_path: Path, asked: list[int]) -> None:
    assert complete(tiny.teacher(), tmp_path, [example("s/0", "what is asthma", "a cough")]) == {}
    assert asked == []


def test_a_stop_between_two_writes_loses_only_what_was_not_written(
    tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    examples = [example(f"s/{i}", f"{word} {i}") for i, word in enumerate(tiny.WORDS[:5])]
    teacher = tiny.teacher()
    done: list[int] = []

    def stop_after_two(count: int) -> None:
        done.append(count)
        if sum(done) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(teacher, tmp_path, examples, progress=stop_after_two)
    asked.clear()
    resumed: list[int] = []
    whole = complete(teacher, tmp_path, examples, progress=resumed.append)
    assert asked == [2, 1]
    assert sum(resumed) == 5
    assert resumed[0] == 2
    assert whole == complete(teacher, tmp_path / "at once", examples)


def test_a_last_line_that_was_cut_is_written_again_in_the_same_batch_and_no_other(
    tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    teacher, examples = tiny.teacher(), [example(f"s/{i}", f"{word} {i}") for i, word in enumerate(tiny.WORDS[:5])]
    whole = complete(teacher, tmp_path, examples)
    [path] = tmp_path.glob("*.jsonl")
    first, second, third = path.read_bytes().splitlines(keepends=True)
    for kept, batches in (
        (first + second + third[:-1], [1]),
        (first + second + third[:4], [1]),
        (first + second[:-9], [2, 1]),
        (first[: first.index(b"]") + 1], [2, 2, 1]),  # the first of its two answers is whole
    ):
        path.write_bytes(kept)
        asked.clear()
        assert complete(teacher, tmp_path, examples) == whole
        assert asked == batches
        assert path.read_bytes() == first + second + third


def test_a_cut_inside_a_character_is_no_error(tmp_path: Path) -> None:
    path, said = tmp_path / "c.jsonl", list[str]()
    append_completions(path, {"a": Completion("b", True)})
    row = path.read_bytes()
    append_completions(path, {"é": Completion("", True)})
    path.write_bytes(path.read_bytes()[: path.read_bytes().index("é".encode()) + 1])
    assert read_completions(path, said.append) == {"a": Completion("b", True)}
    assert said == [f"{path}: some answers were damaged or cut off: their prompts are asked again"]
    assert path.read_bytes() == row


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r", "\r\n", "\n"])
def test_a_line_separator_inside_a_text_is_no_end_of_a_row(tmp_path: Path, asked: list[int], separator: str) -> None:
    teacher = tiny.teacher()
    prompts = [example("s/0", f"one{separator}two"), example("s/1", "a longer prompt than that")]
    first = complete(teacher, tmp_path, prompts)
    assert complete(teacher, tmp_path, prompts) == first
    assert asked == [2]


def test_what_decides_a_completion_decides_where_it_is_kept(tmp_path: Path, asked: list[int]) -> None:
    teacher = tiny.teacher()
    other = Teacher.of(teacher.model, teacher.tokenizer, "another revision")
    template = Teacher.of(teacher.model, tiny.tokenizer(tiny.CHATML.replace("end|>\n'", "end|>'")), "tiny")
    complete(teacher, tmp_path)
    complete(teacher, tmp_path, context=NO_CONTEXT)
    complete(teacher, tmp_path, context=TeacherContext(system="be long"))
    complete(teacher, tmp_path, max_new_tokens=7)
    complete(other, tmp_path)
    complete(template, tmp_path)
    assert asked == [2] * 6
    assert len(list(tmp_path.glob("*.jsonl"))) == 6


def test_prompts_go_on_from_their_opening_and_are_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny.teacher()
    source = TeacherPromptSource(kind="teacher_prompts", id="p", license="x", count=40, opening="what is")
    starts: list[str] = []

    def recording(model: Any, prompts: Any, **kwargs: Any) -> Any:
        starts.extend(teacher.tokenizer.decode(ids) for ids in prompts)
        return [[*ids[:3], 2] if sum(ids) % 3 else ids for ids in sample(model, prompts, **kwargs)]

    monkeypatch.setattr(module, "sample", recording)
    written = teacher.write_prompts(source, seed=1)
    assert starts == ["<|im_start|>user\nwhat is"] * 40
    assert written
    assert len(written) < 40
    assert all(text.startswith("what is") for text in written)
    assert len(set(written)) > 5
    assert written == teacher.write_prompts(source, seed=1) != teacher.write_prompts(source, seed=2)


def test_a_prompt_without_opening_begins_where_the_user_s_words_do(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny.teacher()
    monkeypatch.setattr(
        module,
        "sample",
        lambda model, prompts, **kwargs: [
            [*teacher.tokenizer(teacher.tokenizer.decode(ids))["input_ids"], 2] for ids in prompts
        ],
    )
    source = TeacherPromptSource(kind="teacher_prompts", id="p", license="x", count=1)
    assert teacher.write_prompts(source, seed=0) == ["user"]


def test_a_written_prompt_ends_where_the_template_ends_a_user_s_turn() -> None:
    """Not where it ends an answer: the two differ in the Gemma family's template."""
    newline = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'Q' + m['content'] + '\n' }}"
        "{% else %}{{ 'A' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}{{ 'A' if add_generation_prompt }}"
    )
    teacher = Teacher.of(tiny.llama(), tiny.tokenizer(newline), "tiny")
    source = TeacherPromptSource(kind="teacher_prompts", id="p", license="x", count=60, temperature=3.0)
    written = teacher.write_prompts(source, seed=0)
    assert written
    assert not any("\n" in text for text in written)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6))
def test_prefix_and_rest_are_the_sequences_and_no_rest_is_empty(sequences: list[list[int]]) -> None:
    prefix, rest = split_prefix(sequences)
    assert [[*prefix, *ids] for ids in rest] == sequences
    assert all(rest)
    longer = {tuple(ids[: len(prefix) + 1]) for ids in sequences}
    assert len(longer) > 1 or min(map(len, sequences)) == len(prefix) + 1  # as long as it can be


def test_a_released_teacher_is_loaded_again_when_it_is_asked() -> None:
    loaded: list[Any] = []

    def load() -> Any:
        loaded.append(tiny.llama())
        return loaded[-1]

    known = tiny.teacher()
    teacher = replace(known, load_model=load)
    assert teacher.parameters == sum(p.numel() for p in known.model.parameters()) and not loaded
    assert teacher.model is teacher.model and len(loaded) == 1
    teacher.release()
    teacher.release()
    assert teacher.model is loaded[1] and len(loaded) == 2


def test_a_teacher_loads_in_what_the_device_multiplies_with_its_tokenizer(tmp_path: Path) -> None:
    from factory.models.references import ResolvedModel

    tiny.llama().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    resolved = ResolvedModel(folder=tmp_path, reference="path:x", sha256="a" * 64, license="x", revision="b")
    teacher = Teacher.load(resolved, tiny.CPU)
    assert teacher.model.dtype == compute_dtype(tiny.CPU)
    assert teacher.revision == "a" * 64
    assert prompt_ids(teacher.tokenizer, "what") == prompt_ids(tiny.tokenizer(), "what")
