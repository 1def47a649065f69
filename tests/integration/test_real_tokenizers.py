"""Tokenizers and chat templates as their publishers have them: begin-of-text, ends, thoughts, rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import npm, tiny
from support.awkward import varied_texts, within_what_is_known
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from factory.config.schema import TeacherSpec
from factory.export.gguf import write_base_gguf
from factory.models.attention import load_causal_model
from factory.models.chat import completion_ids, messages, prompt_ids, stop_tokens
from factory.models.folders import load_tokenizer
from factory.models.llama_server import LlamaServer
from factory.models.templates import usable_template

pytestmark = pytest.mark.slow
QUESTION = "What is gout?"
PROMPTS = {
    "qwen3": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "llama3_1": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma3": "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
}
ENDS = {"qwen3": "<|im_end|>", "llama3_1": "<|eot_id|>", "gemma3": "<end_of_turn>"}
every = pytest.mark.parametrize("name", sorted(PROMPTS))


def tokenizer_of(name: str) -> Any:
    """With its own template, as a teacher's would be used."""
    tokenizer = AutoTokenizer.from_pretrained(npm.tokenizer_folder(name))
    tokenizer.chat_template = usable_template(tokenizer, TeacherSpec(model=f"path:{name}", license="theirs")).text
    return tokenizer


@every
def test_a_prompt_is_the_publisher_s_and_an_answer_ends_as_the_publisher_s(name: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = prompt_ids(tokenizer, QUESTION)
    assert tokenizer.decode(ids) == PROMPTS[name].format(QUESTION)
    theirs = AutoTokenizer.from_pretrained(npm.tokenizer_folder(name))
    asked = theirs.apply_chat_template(messages(QUESTION), add_generation_prompt=True, enable_thinking=False)
    assert ids == list(asked["input_ids"])
    assert tokenizer.decode(stop_tokens(tokenizer)) == ENDS[name]
    assert tokenizer.decode(completion_ids(tokenizer, "A kind of arthritis.")) == "A kind of arthritis." + ENDS[name]


@every
def test_the_teacher_reads_its_context(name: str) -> None:
    tokenizer = tokenizer_of(name)
    text = tokenizer.decode(prompt_ids(tokenizer, QUESTION, tiny.CONTEXT))
    places = [text.index(one) for one in ("be brief", "what is light", "it is sugar", QUESTION)]
    assert places == sorted(places) and text.endswith(PROMPTS[name].format(QUESTION).removeprefix("<bos>").rpartition("\n")[2])


def test_qwen3_has_fewer_tokens_than_rows(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    tiny.saved(tmp_path, Qwen3ForCausalLM(config), tokenizer_of("qwen3"))
    model: Any = load_causal_model(tmp_path, load_tokenizer(tmp_path), torch.device("cpu"), torch.bfloat16)
    assert model.config.vocab_size == 151_669
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 151_669)


@every
def test_no_special_token_comes_out_of_a_text(name: str) -> None:
    tokenizer = tokenizer_of(name)
    special = {token for token, one in tokenizer.added_tokens_decoder.items() if one.special}
    text = "".join(tokenizer.added_tokens_decoder[token].content for token in sorted(special))
    assert not special & set(completion_ids(tokenizer, text, ends=False))
    written = [token for token in prompt_ids(tokenizer, text) if token in special]
    assert written == [token for token in prompt_ids(tokenizer, QUESTION) if token in special]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "gemma2", "gemma3", "mistral_nemo"])
def test_llamacpp_makes_the_same_ids_of_any_text_but_those_that_are_named(name: str, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(npm.tokenizer_folder(name))
    tokenizer.chat_template = None  # llama.cpp cannot parse Mistral Nemo's
    model = tiny.llama(layers=1, vocabulary=len(tokenizer))
    write_base_gguf(model, tokenizer, tmp_path / "base.gguf", "f16", name="theirs", license="theirs")
    texts = within_what_is_known(tokenizer, varied_texts(1000))
    assert len(texts) > 300
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    with LlamaServer(tmp_path / "base.gguf", threads=1) as server:
        assert server.tokenize(texts) == [list(ids) for ids in expected]
