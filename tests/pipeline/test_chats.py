"""A student of chats: every turn is learnt, and asked of it as it was learnt."""

from __future__ import annotations

import json

from support.teacher import ANSWERS
from support.workplace import PLANTS, WHAT, Workplace, domain

from factory.data.history import history_of
from factory.models.chat import render
from factory.models.folders import load_tokenizer
from factory.models.tokenize import tokenize_examples
from factory.pipeline.build import build_student
from factory.pipeline.dataset import published_rows
from factory.registry.registry import Registry


def chats(things: str) -> str:
    """ShareGPT: of each thing three questions with their answers, after a system prompt."""
    lines = []
    for number, thing in enumerate(things.split()):
        turns = [{"from": "system", "value": "be brief"}]
        for word in (WHAT[(number + step) % len(WHAT)] for step in range(3)):
            turns += [{"from": "human", "value": f"what is the {word} of {thing} ?"}, {"from": "gpt", "value": ANSWERS[word]}]
        lines.append(json.dumps({"conversations": turns}))
    return "\n".join(lines)


def test_every_turn_of_chats_is_learnt_measured_and_served_alike(with_models: Workplace) -> None:
    (with_models.domains / "plants.jsonl").write_text(chats(" ".join(f"{one} {one}s" for one in PLANTS.split())))
    source = {"id": "talk", "kind": "file", "license": "MIT", "path": "plants.jsonl"}
    limits = {"data": {"max_examples": 60, "max_prompt_tokens": 400}}
    with_models.write("plants.yaml", domain("plants", PLANTS) | {"sources": [source], **limits})
    student = build_student(with_models.context(force=True), "plants", "mini")

    metrics, rows = student.manifest.evaluation.metrics, published_rows(student.manifest)["train"]
    assert metrics["kl_first_turns"].n > 0 and metrics["kl_later_turns"].n > 0
    assert {len(history_of(row).examples) for row in rows} == {0, 1, 2}
    assert all(row["own_completion"] and history_of(row).system == "be brief" for row in rows)

    base = Registry(with_models.root / "registry").resolve(student.base)
    tokenizer = load_tokenizer(base.folder)
    contexts = with_models.context().specs.domain("plants").contexts
    for row, example in zip(rows, tokenize_examples(rows, tokenizer, contexts), strict=True):
        history = history_of(row)
        messages = [{"role": "system", "content": history.system}]
        for turn in history.examples:
            messages += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": turn.completion}]
        text = render(tokenizer, [*messages, {"role": "user", "content": row["prompt"]}], prompt=True)  # as a server is asked
        assert example.prompt == list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_data_set_of_chats_says_what_it_made_of_them(with_models: Workplace) -> None:
    (with_models.domains / "plants.jsonl").write_text(chats(PLANTS))
    source = {"id": "talk", "kind": "file", "license": "MIT", "path": "plants.jsonl", "turns": "last"}
    with_models.write("plants.yaml", domain("plants", PLANTS) | {"sources": [source]})
    result = with_models.run("data", "plants")
    assert "talk: 12 of 12 rows as ShareGPT conversations; chats of several turns have 36 answers" in result.stderr
    assert result.exit_code == 1 and "data set 'plants' has" in result.stderr  # 12 chats are too few
