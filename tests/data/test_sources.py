"""Sources of every kind become examples; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config.schema import (
    DocumentSource,
    FileSource,
    HubSource,
    Source,
    TeacherContext,
    TeacherPromptSource,
    TemplateSource,
    Turn,
)
from factory.data import sources
from factory.data.sources import Example, content_hash, even_shares, load_examples, slot_names
from factory.errors import DataError


def count_words(text: str) -> int:
    return len(text.split())


def load(source: Source, root: Path = Path("."), seed: int = 0, **kwargs: Any) -> list[Example]:
    return load_examples([source], root=root, seed=seed, count_tokens=count_words, **kwargs)


def templates(*texts: str, **fields: Any) -> TemplateSource:
    return TemplateSource(id="made", license="CC0-1.0", kind="templates", templates=texts, **fields)


def rows_file(root: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = root / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def file_source(**fields: Any) -> FileSource:
    return FileSource(**{"id": "rows", "license": "MIT", "kind": "file", "path": "rows.jsonl", **fields})


# templates


def test_templates_give_every_combination_with_its_topic() -> None:
    slots = {"who": ("a", "b"), "whom": ("c",)}
    source = templates("Can {who} ask {whom}, and {who} alone?", "What is it?", slots=slots)
    found = {(e.prompt, e.topic) for e in load(source)}
    assert found == {
        ("Can a ask c, and a alone?", ("a", "c")),
        ("Can b ask c, and b alone?", ("b", "c")),
        ("What is it?", ()),
    }


def test_braces_in_a_value_stay_as_they_are() -> None:
    assert load(templates("What is {x}?", slots={"x": ("{y}",)}))[0].prompt == "What is {y}?"


def test_too_many_combinations_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_COMBINATIONS", 100)
    values = tuple(str(i) for i in range(1000))
    source = templates("{a} {b} {c}?", "{a}?", "Only {d}?", slots={"a": values, "b": values, "c": values, "d": ("x",)})
    examples = load(source)
    counts = [sum(e.template == template for e in examples) for template in source.templates]
    assert counts == [50, 49, 1] or counts == [49, 50, 1]
    assert len({e.prompt for e in examples}) == 100


def test_limit_is_a_seeded_sample_over_templates() -> None:
    source = templates("A {x}?", "B {x}?", slots={"x": tuple(map(str, range(50)))}, limit=10)
    first, again, other = load(source), load(source), load(source, seed=1)
    assert first == again != other
    assert [sum(e.template == t for e in first) for t in source.templates] == [5, 5]


def test_slot_names_come_once_and_in_order() -> None:
    assert slot_names("{b} and {a} and {b}") == ["b", "a"]


@given(st.lists(st.integers(0, 50)), st.integers(0, 300))
def test_even_shares_use_everything_available(sizes: list[int], total: int) -> None:
    shares = even_shares(sizes, total)
    assert sum(shares) == min(total, sum(sizes))
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))
    short = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert not short or max(shares) - min(short) <= 1


# files


def test_jsonl_csv_and_parquet_read_alike(tmp_path: Path) -> None:
    rows = [{"q": "Why, then?", "a": "So.", "n": "x1"}, {"q": "How?", "a": "Thus.", "n": "x2"}]
    rows_file(tmp_path, rows)
    (tmp_path / "rows.csv").write_text('q,a,n\n"Why, then?",So.,x1\nHow?,Thus.,x2\n', encoding="utf-8-sig")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        examples = load(file_source(path=name, prompt="q", completion="a", id_field="n"), tmp_path)
        assert examples[0] == Example("rows/x1", "Why, then?", "So.", "rows", "MIT", "", ())
        assert [e.id for e in examples] == ["rows/x1", "rows/x2"]


def test_completions_teacher_discards_the_source_s_own(tmp_path: Path) -> None:
    rows_file(tmp_path, [{"prompt": "Why?", "a": "So."}])
    assert load(file_source(completion="a"), tmp_path)[0].completion == "So."
    assert load(file_source(completion="a", completions="teacher"), tmp_path)[0].completion == ""


def chat(*said: str, system: str = "") -> dict[str, Any]:
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * len(said), said, strict=False)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


def test_every_answer_of_a_chat_is_an_example_after_all_that_was_said_before(tmp_path: Path) -> None:
    rows_file(tmp_path, [chat("Why?", "So.", "And?", "Yes.", system="Be brief."), chat("How?", "Thus.")])
    first, second, other = load(file_source(), tmp_path)
    history = TeacherContext(system="Be brief.")
    assert first == Example("rows/0#0", "Why?", "So.", "rows", "MIT", "", ("rows/0",), history)
    later = TeacherContext(system="Be brief.", examples=(Turn(prompt="Why?", completion="So."),))
    assert second == Example("rows/0#1", "And?", "Yes.", "rows", "MIT", "", ("rows/0",), later)
    assert other == Example("rows/1", "How?", "Thus.", "rows", "MIT", "", ())
    assert (first.conversation, second.conversation, other.conversation) == ("rows/0", "rows/0", "rows/1")
    assert second.text == "Why?\nSo.\nAnd?"


def test_only_the_last_answer_of_a_chat_is_learnt_where_its_source_says_so(tmp_path: Path) -> None:
    rows_file(tmp_path, [chat("Why?", "So.", "And?", "Yes."), chat("How?", "Thus.")])
    every, last = load(file_source(), tmp_path), load(file_source(turns="last"), tmp_path)
    assert last == every[1:] and len(every) == 3


def test_a_teacher_that_answers_a_chat_sees_what_its_source_says_before_each_turn(tmp_path: Path) -> None:
    rows_file(tmp_path, [chat("Why?", "So.", "And?", "Yes.")])
    written = load(file_source(completions="teacher"), tmp_path)
    assert [one.completion for one in written] == ["", ""]
    assert written[1].history.examples == (Turn(prompt="Why?", completion="So."),)


def test_limit_on_a_file_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    rows_file(tmp_path, [{"prompt": f"Why {i}?"} for i in range(40)])
    ids = [int(e.id.partition("/")[2]) for e in load(file_source(limit=7), tmp_path)]
    assert len(ids) == 7
    assert ids == sorted(ids)


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        (file_source(path="raws.jsonl"), '{"prompt": "x"}', "no file .*raws.jsonl; in .*: rows.jsonl"),
        (file_source(path="rows.txt"), "", r"source 'rows': .*rows\.txt must end in \.jsonl, .*\.xlsx"),
        (file_source(), "", "'rows' .* is empty"),
        (file_source(), '{"prompt": "x"}\n{"prompt": \n', "line 2 is not valid JSON"),
        (file_source(), "[1, 2]\n", "line 1 is a list"),
        (file_source(prompt="question"), '{"prompt": "x", "b": 1}', "no column 'question' .* columns there: prompt, b"),
        (file_source(completion="answer"), '{"prompt": "x"}', "no column 'answer'"),
        (file_source(id_field="n"), '{"prompt": "x", "n": 1}\n{"prompt": "y", "n": 1}', "n '1' is in .* twice"),
        (file_source(id_field="m"), '{"prompt": "x", "n": 1}', "no column 'm' in .*; leave id_field out"),
        (file_source(id_field="n"), '{"prompt": "x", "n": [1]}', "source 'rows': line 1: column 'n' is a list, not text"),
        (file_source(), '{"prompt": "x"}\n{"prompt": ["y"]}', "rows.jsonl: line 2: column 'prompt' is a list, not text"),
        (file_source(), '{"Frage": "x"}', r"no column of .* is a prompt; name it .*; columns there: Frage"),
        (file_source(completions="teacher"), '{"text": "x"}', "running text without prompts for the teacher"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, source: FileSource, content: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        load(source, tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_data_errors(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"not parquet at all")
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "\xc3\xa9"}\n{"prompt": "\xc3\xa9"}\n{"prompt": "\xff"}\n')
    (tmp_path / "rows.csv").write_text("prompt\na,b\n", encoding="utf-8")
    for name in ("rows.parquet", "rows.jsonl", "rows.csv"):
        with pytest.raises(DataError, match="cannot read"):
            load(file_source(path=name), tmp_path)


def test_a_row_without_a_prompt_is_not_a_document(tmp_path: Path) -> None:
    rows_file(tmp_path, [{"prompt": None, "a": "So."}])
    assert load(file_source(completion="a"), tmp_path)[0].text == ""


def test_a_chat_is_a_prompt_and_its_answer_and_never_python_source(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    rows_file(tmp_path, [{"messages": chat}, {"conversations": [{"from": "human", "value": "How?"}]}])
    assert [(e.prompt, e.completion) for e in load(file_source(), tmp_path)] == [("Why?", "So."), ("How?", "")]
    rows_file(tmp_path, [{"prompt": chat[:1], "completion": chat[1:]}])
    assert [(e.prompt, e.completion) for e in load(file_source(), tmp_path)] == [("Why?", "So.")]


def test_running_text_is_cut_into_chunks_that_stay_together(tmp_path: Path) -> None:
    rows_file(tmp_path, [{"text": "One short sentence."}, {"text": "A sentence of six words, repeated. " * 60}])
    first, *others = load(file_source(), tmp_path)
    assert (first.id, first.prompt, first.completion, first.topic) == ("rows/0#0", "", "One short sentence.", ("0",))
    assert {e.topic for e in others} == {("1",)} and len(others) == 3
    assert all(count_words(e.completion) <= 160 for e in others)


def test_what_was_read_and_what_was_not_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("Frage;Antwort;Nr\nWhy?;So.;1\n;So.;2\n")
    heard: list[str] = []
    load(file_source(path="rows.csv", prompt="Frage"), tmp_path, say=heard.append)
    assert heard == [
        f"rows: {tmp_path / 'rows.csv'} is CSV separated by ';'",
        "rows: 1 of 2 rows as Frage; 1 dropped without a prompt (row 3); other columns: Antwort, Nr",
    ]


def test_two_sources_with_one_id_are_refused() -> None:
    source = templates("What?")
    with pytest.raises(DataError, match="'made' is used twice"):
        load_examples([source, source], root=Path("."), seed=0, count_tokens=count_words)


# several files


def two_files(root: Path) -> None:
    (root / "data").mkdir()
    rows_file(root, [{"prompt": "Third?", "id": "c"}], "data/b.jsonl")
    rows_file(root, [{"prompt": "First?", "id": "a"}, {"prompt": "Second?", "id": "b"}], "data/a.jsonl")


def test_every_file_that_a_pattern_matches_is_read_by_name_and_its_rows_are_numbered_in_it(tmp_path: Path) -> None:
    two_files(tmp_path)
    found = load(file_source(path="data/*.jsonl"), tmp_path)
    assert [one.prompt for one in found] == ["First?", "Second?", "Third?"]
    assert [one.id for one in found] == ["rows/a.jsonl/0", "rows/a.jsonl/1", "rows/b.jsonl/0"]
    assert [one.id for one in load(file_source(path="data/*.jsonl", id_field="id"), tmp_path)] == ["rows/a", "rows/b", "rows/c"]


def test_an_id_in_two_files_is_refused_and_so_is_a_file_without_a_named_column(tmp_path: Path) -> None:
    two_files(tmp_path)
    rows_file(tmp_path, [{"prompt": "Again?", "id": "a"}], "data/c.jsonl")
    with pytest.raises(DataError, match=r"id 'a' is in .*c\.jsonl twice"):
        load(file_source(path="data/*.jsonl", id_field="id"), tmp_path)
    rows_file(tmp_path, [{"prompt": "Other?"}], "data/c.jsonl")
    with pytest.raises(DataError, match=r"no column 'id' in .*c\.jsonl; leave id_field out"):
        load(file_source(path="data/*.jsonl", id_field="id"), tmp_path)
    with pytest.raises(DataError, match=r"no column 'name' in .*a\.jsonl; columns there: prompt, id"):
        load(file_source(path="data/*.jsonl", prompt="name"), tmp_path)


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    two_files(tmp_path)
    (tmp_path / "data" / "leave.txt").write_text("You have 30 days.")
    away = tmp_path / "elsewhere"
    assert [one.id for one in load(file_source(path="~/data/b.jsonl"), away)] == ["rows/0"]
    books = DocumentSource(id="books", license="MIT", kind="documents", path="~/data")
    assert [one.completion for one in load(books, away)] == ["You have 30 days."]


def test_a_pattern_that_nothing_matches_is_one_line_with_what_is_there(tmp_path: Path) -> None:
    two_files(tmp_path)
    with pytest.raises(DataError, match=r"source 'rows': no file matches .*data/\*\.csv; in .*data: a\.jsonl, b\.jsonl$"):
        load(file_source(path="data/*.csv"), tmp_path)
    books = DocumentSource(id="books", license="MIT", kind="documents", path="data/*.pdf")
    with pytest.raises(DataError, match=r"no folder or document matches .*data/\*\.pdf; in .*data: a\.jsonl, b\.jsonl$"):
        load(books, tmp_path)


@pytest.mark.parametrize("kind", [FileSource, DocumentSource])
def test_every_file_of_a_pattern_counts_for_the_content_hash(tmp_path: Path, kind: type[FileSource | DocumentSource]) -> None:
    (tmp_path / "data").mkdir()
    named, suffix = ("file", "jsonl") if kind is FileSource else ("documents", "txt")
    source = kind.model_validate({"id": "mine", "license": "MIT", "kind": named, "path": "data/*.*"})
    seen = {content_hash([source], tmp_path)}
    for name, text in (("a", "1"), ("b", "1"), ("a", "2"), ("b", "2")):
        (tmp_path / "data" / f"{name}.{suffix}").write_text(text)
        seen.add(content_hash([source], tmp_path))
    (tmp_path / "data" / f"b.{suffix}").unlink()
    seen.add(content_hash([source], tmp_path))
    assert len(seen) == 6
    (tmp_path / "data" / f".c.{suffix}").touch()
    assert content_hash([source], tmp_path) in seen


def test_a_template_and_a_system_prompt_make_examples_as_columns_do(tmp_path: Path) -> None:
    rows_file(tmp_path, [{"title": "Rain", "body": "Why?", "persona": "Be brief.", "a": "So."}, {"title": "Sun", "a": "So."}])
    first, second = load(file_source(prompt="{title}\n\n{body}", completion="a", system="persona"), tmp_path)
    assert first == Example("rows/0", "Rain\n\nWhy?", "So.", "rows", "MIT", "", (), TeacherContext(system="Be brief."))
    assert second == Example("rows/1", "Sun", "So.", "rows", "MIT", "", ())


# documents


def test_documents_may_be_one_file_or_those_of_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.md", "deep/a.txt"):
        (tmp_path / "texts" / name).write_text(f"About {name}.")
    books = {"id": "books", "license": "MIT", "kind": "documents"}
    said: list[str] = []
    [one] = load(DocumentSource(path="texts/a.txt", **books), tmp_path, say=said.append)
    assert (one.id, one.topic) == ("books/a.txt#0", ("a.txt",))
    assert said == [f"books: {tmp_path}/texts/a.txt: 1 document"]
    found = load(DocumentSource(path="texts/**/*.txt", **books), tmp_path)
    assert [one.topic for one in found] == [("a.txt",), ("deep/a.txt",)]
    assert len(load(DocumentSource(path="texts/**", **books), tmp_path)) == 3  # a folder and what is in it, each once
    (tmp_path / "rows.csv").touch()
    with pytest.raises(DataError, match=r"no text in .*rows\.csv; skipped 1: rows\.csv \(not \.txt, "):
        load(DocumentSource(path="rows.csv", **books), tmp_path)


def documents(**fields: Any) -> DocumentSource:
    return DocumentSource(id="books", license="CC0-1.0", kind="documents", path="texts", chunk_tokens=16, **fields)


def test_documents_are_cut_between_sentences_and_lose_no_word(tmp_path: Path) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    text = "\n\n".join(" ".join(f"Sentence {i} of {p} has seven words." for i in range(3)) for p in range(3))
    (tmp_path / "texts" / "deep" / "a.md").write_text(text, encoding="utf-8")
    (tmp_path / "texts" / "b.txt").write_text("word " * 40, encoding="utf-8")
    (tmp_path / "texts" / "c.png").write_bytes(b"")
    examples = load(documents(), tmp_path)
    assert all(e.prompt == "" and 0 < count_words(e.completion) <= 16 for e in examples)
    assert {e.topic for e in examples} == {("b.txt",), ("deep/a.md",)}
    of_a = [e.completion for e in examples if e.topic == ("deep/a.md",)]
    assert " ".join(of_a).split() == text.split()
    assert all(chunk.endswith(".") for chunk in of_a)
    assert "\n\n" in "".join(of_a)
    assert len({e.id for e in examples}) == len(examples)


def test_missing_or_empty_document_folders_say_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"no folder .*texts; in .*: other"):
        load(documents(), tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").touch()
    with pytest.raises(DataError, match=r"no text in .*texts; skipped 1: a\.png \(not \.txt"):
        load(documents(), tmp_path)
    with pytest.raises(DataError, match="no prompts for the teacher"):
        load(documents(completions="teacher"), tmp_path)


# hub


def hub(**fields: Any) -> HubSource:
    return HubSource(id="far", license="MIT", kind="hub", dataset="org/qa", revision="abc123", prompt="q", **fields)


def test_hub_rows_are_read_at_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def fake(*args: Any, **kwargs: Any) -> datasets.Dataset:
        calls.append((args, kwargs))
        return datasets.Dataset.from_list([{"q": "Why?", "a": "So."}])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert load(hub(name="main", completion="a"))[0] == Example("far/0", "Why?", "So.", "far", "MIT", "", ())
    assert calls == [(("org/qa", "main"), {"split": "train", "revision": "abc123"})]


def test_a_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="cannot load org/qa@abc123, split 'train': no route to host; check"):
        load(hub())


# teacher


def test_the_teacher_s_prompts_are_asked_for_with_the_seed() -> None:
    source = TeacherPromptSource(id="self", license="Apache-2.0", kind="teacher_prompts", count=2)
    asked: list[Any] = []

    def write(source: TeacherPromptSource, seed: int) -> list[str]:
        asked.append((source.count, seed))
        return ["One?", "Two?"]

    assert [e.id for e in load(source, seed=7, write_prompts=write)] == ["self/0", "self/1"]
    assert asked == [(2, 7)]
    with pytest.raises(DataError, match="'self': the teacher is to write its prompts"):
        load(source)
    with pytest.raises(DataError, match=r"'self' .* is empty"):
        load(source, write_prompts=lambda source, seed: [])


def test_a_changed_file_changes_the_content_hash_and_another_file_does_not(tmp_path: Path) -> None:
    source = FileSource(kind="file", id="mine", license="MIT", path="mine.jsonl")
    content_hash([source], tmp_path)  # missing: load_examples says so
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a"}\n')
    before = content_hash([source], tmp_path)
    (tmp_path / "other.jsonl").write_text("{}")
    assert content_hash([source], tmp_path) == before
    (tmp_path / "mine.jsonl").write_text('{"prompt": "b"}\n')
    assert content_hash([source], tmp_path) != before


def test_a_document_that_is_added_or_renamed_changes_the_content_hash(tmp_path: Path) -> None:
    source = DocumentSource(kind="documents", id="papers", license="MIT", path="papers")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.txt").write_text("one")
    before = content_hash([source], tmp_path)
    (tmp_path / "papers" / ".git").mkdir()
    (tmp_path / "papers" / ".git" / "index.txt").touch()
    (tmp_path / "papers" / "b.png").touch()
    assert content_hash([source], tmp_path) == before  # none of them is read
    (tmp_path / "papers" / "a.txt").rename(tmp_path / "papers" / "b.txt")
    assert content_hash([source], tmp_path) != before
