"""Folders that others load: what is in them, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from support import exporting, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.errors import ExportError
from factory.export.formats import (
    Registered,
    conversation,
    load_registered,
    write_merged,
    write_peft,
    write_sentence_transformer,
)
from factory.export.parity import Passage, embeddings, model_log_probs
from factory.models.chat import completion_ids, prompt_ids

ARCHITECTURES = ["llama", "gemma"]


def registered(root: Path, architecture: str = "llama") -> Registered:
    registry, version = exporting.student(root, architecture)
    return load_registered(version, registry, tiny.CPU, torch.float32)


def passage(student: Registered) -> Passage:
    question, answer = "what are early signs", "cough and wheeze"
    return Passage(question, answer, prompt_ids(student.tokenizer, question), completion_ids(student.tokenizer, answer))


def test_peft_has_the_adapter_as_registered_and_its_base_beside_it(tmp_path: Path) -> None:
    student, out = registered(tmp_path), tmp_path / "out"
    out.mkdir()
    write_peft(student, out)
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "base"}
    for path in ("adapter_model.safetensors", "base/model.safetensors"):
        source = (student.version if "adapter" in path else student.base).folder / Path(path).name
        assert (out / path).read_bytes() == source.read_bytes()
        assert (out / path).stat().st_mode & 0o200  # the registry's are read-only
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    assert not {"manifest.json", "factory-base.json"} & {path.name for path in (out / "base").iterdir()}


def test_a_base_has_no_adapter(tmp_path: Path) -> None:
    registry, version = exporting.student(tmp_path)
    base = load_registered(registry.resolve("mini-base"), registry, tiny.CPU, torch.float32)
    with pytest.raises(ExportError, match="mini-base@1 is a base without an adapter"):
        write_peft(base, tmp_path)
    assert version.base == base.version.reference == base.base.reference


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_is_one_model_in_bfloat16_with_its_chat_template(tmp_path: Path, architecture: str) -> None:
    student, out = registered(tmp_path, architecture), tmp_path / "out"
    text = [passage(student)]
    before = model_log_probs(student.model, text)[0]
    write_merged(student, out)
    assert next(AutoModelForCausalLM.from_pretrained(out).parameters()).dtype == torch.bfloat16
    after = model_log_probs(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(), text)[0]
    assert np.abs(before - after).max() < 0.5
    assert np.abs(before - model_log_probs(exporting.made(architecture)[0], text)[0]).max() > 1  # the adapter is in it
    assert AutoTokenizer.from_pretrained(out).chat_template == student.tokenizer.chat_template


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sentence_transformers_gives_what_the_relation_term_pools(tmp_path: Path, architecture: str) -> None:
    student, out = registered(tmp_path, architecture), tmp_path / "out"
    text = passage(student)
    ours = embeddings(student.model, [text])[0]
    write_sentence_transformer(student, out)
    encoder = SentenceTransformer(str(out), device="cpu")
    written = conversation(student.tokenizer, text.ids)
    assert list(encoder.tokenizer(written)["input_ids"]) == text.ids
    theirs = encoder.encode(["another text that is longer, so that there is padding", written])[1]
    assert theirs @ ours / np.linalg.norm(theirs) / np.linalg.norm(ours) > 0.999
    assert np.linalg.norm(theirs) == pytest.approx(np.linalg.norm(ours), rel=0.02)  # not scaled to one
    assert not (out / "plain").exists()


def test_a_begin_of_text_that_the_tokenizer_writes_is_not_written_twice() -> None:
    tokenizer = tiny.sentencepiece(exporting.QUESTIONS)
    ids = prompt_ids(tokenizer, "what is it")
    assert ids[0] == tokenizer.bos_token_id
    assert conversation(tokenizer, ids) == "Question:\nwhat is it\nAnswer:\n"
