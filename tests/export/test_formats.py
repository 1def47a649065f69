"""Exported folders hold exactly what other libraries load."""

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
from factory.export.formats import conversation_text, write_merged, write_peft, write_sentence_transformer
from factory.export.parity import ParityText, embed, model_log_probs
from factory.inference import LoadedVersion, load_version
from factory.models.chat import completion_ids, prompt_ids
from factory.models.embedding_head import EmbeddingHead

ARCHITECTURES = ["llama", "gemma", "narrow"]


def load_student(root: Path, architecture: str = "llama", head: EmbeddingHead | None = None) -> LoadedVersion:
    registry, version = exporting.publish_student(root, architecture, head=head)
    return load_version(version, registry, tiny.CPU, torch.float32)


def parity_text(student: LoadedVersion) -> ParityText:
    question, answer, tokenizer = "what are early signs", "cough and wheeze", student.base.tokenizer
    return ParityText(question, answer, prompt_ids(tokenizer, question), completion_ids(tokenizer, answer))


def test_peft_has_the_published_adapter_and_its_base(tmp_path: Path) -> None:
    student, out = load_student(tmp_path), tmp_path / "out"
    out.mkdir()
    write_peft(student, out)
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "base"}
    for path in ("adapter_model.safetensors", "base/model.safetensors"):
        source = (student.version if "adapter" in path else student.base_version).folder / Path(path).name
        assert (out / path).read_bytes() == source.read_bytes()
        assert (out / path).stat().st_mode & 0o200  # the registry's are read-only
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    assert not {"manifest.json", "factory-base.json"} & {path.name for path in (out / "base").iterdir()}


def test_a_base_has_no_adapter(tmp_path: Path) -> None:
    registry, _ = exporting.publish_student(tmp_path)
    base = load_version(registry.resolve("mini-base"), registry, tiny.CPU, torch.float32)
    with pytest.raises(ExportError, match="mini-base@1 is a base and has no adapter"):
        write_peft(base, tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_is_one_model_in_bfloat16_with_its_chat_template(tmp_path: Path, architecture: str) -> None:
    student, out = load_student(tmp_path, architecture), tmp_path / "out"
    text = [parity_text(student)]
    before = model_log_probs(student.model, text)[0]
    write_merged(student, out)
    assert next(AutoModelForCausalLM.from_pretrained(out).parameters()).dtype == torch.bfloat16
    after = model_log_probs(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(), text)[0]
    assert np.abs(before - after).max() < 0.5
    base = exporting.model_and_tokenizer(architecture)[0]
    assert np.abs(before - model_log_probs(base, text)[0]).max() > 1  # the adapter matters
    assert AutoTokenizer.from_pretrained(out).chat_template == student.base.tokenizer.chat_template


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sentence_transformers_embeds_as_the_relation_loss_does(tmp_path: Path, architecture: str) -> None:
    student, out = load_student(tmp_path, architecture), tmp_path / "out"
    text = parity_text(student)
    expected = embed(student.model, [text])[0]
    write_sentence_transformer(student, out)
    encoder = SentenceTransformer(str(out), device="cpu")
    conversation = conversation_text(student.base.tokenizer, text.ids)
    assert list(encoder.tokenizer(conversation)["input_ids"]) == text.ids
    found = encoder.encode(["another text that is longer, so that there is padding", conversation])[1]
    assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > 0.999
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(expected), rel=0.02)  # not normalized
    assert not (out / "merged").exists()


def test_sentence_transformers_embeds_by_the_student_s_head(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    head = EmbeddingHead(rng.normal(size=(5, 32)).astype(np.float32), rng.normal(size=5).astype(np.float32))
    student, out = load_student(tmp_path, head=head), tmp_path / "out"
    text = parity_text(student)
    expected = embed(student.model, [text], student.head)[0]
    write_sentence_transformer(student, out)
    encoder = SentenceTransformer(str(out), device="cpu")
    assert [type(module).__name__ for module in encoder] == ["Transformer", "Pooling", "Dense", "Normalize"]
    found = encoder.encode([conversation_text(student.base.tokenizer, text.ids)])[0]
    assert found.shape == (5,) and np.linalg.norm(found) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert np.abs(expected - embed(student.model, [text])[0][:5]).max() > 0.1  # the head matters


def test_begin_of_text_is_not_written_twice() -> None:
    tokenizer = tiny.sentencepiece(exporting.QUESTIONS)
    ids = prompt_ids(tokenizer, "what is it")
    assert ids[0] == tokenizer.bos_token_id
    assert conversation_text(tokenizer, ids) == "Question:\nwhat is it\nAnswer:\n"
