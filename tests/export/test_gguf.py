"""GGUF files: llama.cpp predicts and tokenizes as transformers does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support import tiny
from support.awkward import varied_texts, within_what_is_known
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from factory.config.load import load_specs
from factory.config.quantization import QUANTIZATIONS
from factory.errors import ExportError, ModelResolutionError
from factory.export.gguf import load_gguf_weights, write_adapter_gguf, write_base_gguf
from factory.export.gguf_tokenizer import LLAMA3, QWEN2, TEKKEN, differences
from factory.models.llama_server import LlamaServer
from factory.models.pruning import prune_layers
from factory.models.references import resolve
from factory.models.vocabulary import count_tokens, kept_tokens, missing_tokens, trim_embeddings, trim_tokenizer

IDS = random.Random(0).choices(range(3, 360), k=60)  # longer than Gemma's window of 8
METADATA = {"name": "tiny@1", "license": "apache-2.0"}
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] + '\n\n' }}{% endfor %}"  # Gemma's, from its family file


def gemma(*kept: int) -> PreTrainedModel:
    """A Gemma with windows in the first two of every three layers, pruned to ``kept``; its norms are not trivial."""
    model: Any = tiny.gemma(layers=7)
    torch.manual_seed(5)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.data.normal_(0, 0.3)
    prune_layers(model, list(kept))
    return model


MODELS = {
    "llama": tiny.llama,
    "llama, narrower": tiny.narrow,
    "gemma": lambda: gemma(0, 1, 2, 3, 4, 5, 6),
    "gemma pruned: sliding, full, full, sliding": lambda: gemma(0, 2, 5, 6),
    "gemma pruned: full only": lambda: gemma(2, 5),
    "gemma pruned: sliding only": lambda: gemma(0, 6),
}


def transformers_log_probs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([IDS])).logits[0].float().log_softmax(-1))


def llamacpp_log_probs(base: Path, *adapters: Path) -> np.ndarray:
    with LlamaServer(base, adapters=adapters, context=512, threads=1) as server:
        return server.log_probs([IDS], 0 if adapters else None)[0]


def kl(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(T,) nats."""
    return np.asarray((np.exp(reference) * (reference - other)).sum(-1))


# ---------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", list(MODELS))
def test_llamacpp_predicts_what_transformers_predicts(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "base.gguf", "f16", **METADATA)
    expected, found = transformers_log_probs(model), llamacpp_log_probs(tmp_path / "base.gguf")
    # llama.cpp has 16-bit weights, activations, keys and values, and these random weights are large.
    assert kl(expected, found).max() < 5e-4
    assert np.abs(expected - found).max() < 0.1


def test_a_pruned_gemma_keeps_the_windows_of_its_layers(tmp_path: Path) -> None:
    model: Any = gemma(0, 2, 5, 6)
    assert model.config.layer_types == ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "base.gguf", "f16", **METADATA)
    found = llamacpp_log_probs(tmp_path / "base.gguf")
    other: Any = gemma(0, 1, 2, 3)
    other.load_state_dict(model.state_dict())  # the same weights with another window pattern
    assert kl(transformers_log_probs(other), found).max() > 0.01
    assert kl(transformers_log_probs(model), found).max() < 5e-4


def test_a_pruned_gemma_keeps_its_windows_beyond_512_tokens(tmp_path: Path) -> None:
    ids, last = random.Random(1).choices(range(3, 360), k=700), 690
    model: Any = gemma(0, 2, 5, 6)
    for part in (model.config, *(layer.self_attn for layer in model.model.layers if layer.self_attn.sliding_window)):
        part.sliding_window = 512
    model.config.max_position_embeddings = 1024
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "base.gguf", "f16", **METADATA)
    with torch.no_grad():
        expected = np.asarray(model(torch.tensor([ids])).logits[0, last:].float().log_softmax(-1))
        model.config.layer_types = ["full_attention"] * 4
        without = np.asarray(model(torch.tensor([ids])).logits[0, last:].float().log_softmax(-1))
    with LlamaServer(tmp_path / "base.gguf", context=1024, threads=1) as server:
        found = server.log_probs([ids], starts=[last])[0]
    assert kl(expected, found).max() < 5e-4
    assert kl(expected, without).max() > 0.01  # the window matters there


def test_fewer_bits_give_smaller_files_and_larger_kl(tmp_path: Path) -> None:
    model: Any = tiny.llama(width=64)
    expected, sizes, divergences = transformers_log_probs(model), [], []
    for quantization in ("f16", "q8_0", "q4"):
        path = tmp_path / f"{quantization}.gguf"
        write_base_gguf(model, tiny.tokenizer(), path, quantization, **METADATA)
        sizes.append(path.stat().st_size)
        divergences.append(float(kl(expected, llamacpp_log_probs(path)).mean()))
    assert sizes == sorted(sizes, reverse=True)
    assert divergences == sorted(divergences)
    assert divergences[1] < 0.02 and divergences[2] < 1


@pytest.mark.parametrize("quantization", ["f16", "q8_0", "q4"])
@pytest.mark.parametrize("name", ["llama", "llama, narrower", "gemma pruned: sliding, full, full, sliding"])
def test_dequantized_weights_predict_what_llamacpp_predicts(name: str, quantization: str, tmp_path: Path) -> None:
    model, path = MODELS[name](), tmp_path / "base.gguf"
    before = transformers_log_probs(model)
    write_base_gguf(model, tiny.tokenizer(), path, quantization, **METADATA)
    load_gguf_weights(model, path)
    found = transformers_log_probs(model)
    quantized = llamacpp_log_probs(path)
    assert kl(found, quantized).mean() < 0.02
    if quantization == "q4":  # what is left of the distance is llama.cpp's 8-bit activations
        assert kl(found, quantized).mean() < min(0.01, kl(before, found).mean())


def test_weights_on_the_grid_of_q4_1_lose_nothing(tmp_path: Path) -> None:
    """A teacher that came as Q4_1 is measured as it came."""
    model: Any = tiny.llama()
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "first.gguf", "q4_1", **METADATA)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    load_gguf_weights(model, tmp_path / "first.gguf")
    once = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "second.gguf", "q4_1", **METADATA)
    load_gguf_weights(model, tmp_path / "second.gguf")
    again = model.model.layers[0].mlp.up_proj.weight
    assert (again - once).abs().max() < 0.01 * (once - before).abs().max()
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "q8.gguf", "q8_0", **METADATA)
    assert (tmp_path / "first.gguf").stat().st_size < (tmp_path / "q8.gguf").stat().st_size


def test_f16_weights_come_back_as_they_were(tmp_path: Path) -> None:
    model: Any = gemma(0, 2, 5, 6)
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "base.gguf", "f16", **METADATA)
    other: Any = gemma(0, 2, 5, 6)
    for weight in other.parameters():
        nn.init.zeros_(weight)
    load_gguf_weights(other, tmp_path / "base.gguf")
    for name, weight in other.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_q4_has_four_bits_in_gate_and_up_only(tmp_path: Path) -> None:
    write_base_gguf(tiny.llama(), tiny.tokenizer(), tmp_path / "base.gguf", "q4", **METADATA)
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "base.gguf").tensors}
    assert kinds["blk.0.ffn_gate.weight"] == kinds["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q4_0
    assert kinds["blk.0.attn_output.weight"] == kinds["blk.0.attn_q.weight"] == GGMLQuantizationType.Q5_0
    assert kinds["blk.0.ffn_down.weight"] == kinds["blk.0.attn_v.weight"] == GGMLQuantizationType.Q8_0
    assert kinds["token_embd.weight"] == GGMLQuantizationType.Q8_0


def test_q4_of_gemma_3_has_five_bits_in_gate_and_up(tmp_path: Path) -> None:
    """Four cost a pruned one more than the bound of the parity check (docs/export.md)."""
    write_base_gguf(tiny.gemma(), tiny.tokenizer(), tmp_path / "base.gguf", "q4", **METADATA)
    reader = GGUFReader(tmp_path / "base.gguf")
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert kinds["blk.0.ffn_gate.weight"] == kinds["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q5_0
    assert kinds["blk.0.ffn_down.weight"] == GGMLQuantizationType.Q8_0
    assert reader.fields["general.file_type"].contents() == LlamaFileType.MOSTLY_Q5_0
    write_base_gguf(tiny.gemma(), tiny.tokenizer(), tmp_path / "grid.gguf", "q4_0", **METADATA)
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "grid.gguf").tensors}
    assert kinds["blk.0.ffn_gate.weight"] == GGMLQuantizationType.Q4_0  # a grid is what it says


def test_matrices_without_whole_blocks_stay_f16(tmp_path: Path) -> None:
    model: Any = tiny.llama(width=40)  # the heads together are 32 wide, the hidden state 40
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "base.gguf", "q4", **METADATA)
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "base.gguf").tensors}
    assert kinds["blk.0.attn_output.weight"] == GGMLQuantizationType.Q5_0
    assert kinds["blk.0.ffn_gate.weight"] == GGMLQuantizationType.F16
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == GGMLQuantizationType.F16
    assert kinds["blk.0.attn_norm.weight"] == GGMLQuantizationType.F32
    assert kl(transformers_log_probs(model), llamacpp_log_probs(tmp_path / "base.gguf")).mean() < 1


def test_an_untied_head_is_written_and_a_tied_one_is_not(tmp_path: Path) -> None:
    tied: Any = tiny.llama()
    tied.config.tie_word_embeddings = False
    untied = type(tied)(tied.config).eval()
    write_base_gguf(untied, tiny.tokenizer(), tmp_path / "untied.gguf", "f16", **METADATA)
    assert kl(transformers_log_probs(untied), llamacpp_log_probs(tmp_path / "untied.gguf")).max() < 5e-4
    write_base_gguf(tiny.llama(), tiny.tokenizer(), tmp_path / "tied.gguf", "f16", **METADATA)
    assert "output.weight" not in {tensor.name for tensor in GGUFReader(tmp_path / "tied.gguf").tensors}


@pytest.mark.parametrize("name", ["llama", "gemma pruned: sliding, full, full, sliding"])
def test_a_base_with_an_adapter_predicts_what_peft_predicts(name: str, tmp_path: Path) -> None:
    model: Any = MODELS[name]()
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "base.gguf", "f16", **METADATA)
    before = transformers_log_probs(model)
    student = with_adapter(model, tmp_path / "adapter")
    write_adapter_gguf(tmp_path / "adapter", model.config, tmp_path / "adapter.gguf")
    expected = transformers_log_probs(student)
    assert kl(expected, before).mean() > 0.1
    assert kl(expected, llamacpp_log_probs(tmp_path / "base.gguf", tmp_path / "adapter.gguf")).max() < 5e-4


def with_adapter(model: Any, folder: Path, **settings: Any) -> Any:
    """A peft model whose adapter changes its predictions, saved in ``folder``."""
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    student: Any = get_peft_model(model, config)
    torch.manual_seed(3)
    for name, weight in student.named_parameters():
        if ".lora_B." in name:
            weight.data.normal_(0, 0.1)
    student.save_pretrained(folder)
    return student.eval()


# -------------------------------------------------------------------------------------------------------- tokenizers


def trimmed(tokenizer: PreTrainedTokenizerFast, size: int) -> PreTrainedTokenizerFast:
    return trim_tokenizer(tokenizer, kept_tokens(tokenizer, tiny.sentences(20), size))


def grown(tokenizer: PreTrainedTokenizerFast, size: int) -> PreTrainedTokenizerFast:
    """Trimmed, and then given what more texts use: its ids are in another order than its merges."""
    kept = kept_tokens(tokenizer, tiny.sentences(2), size)
    return trim_tokenizer(tokenizer, [*kept, *missing_tokens(tokenizer, kept, count_tokens(tokenizer, tiny.sentences(20)), 99)])


TOKENIZERS = {
    "byte-level": tiny.tokenizer,
    "byte-level, split digits": tiny.digits_apart,
    "byte-level, trimmed": lambda: trimmed(tiny.tokenizer(), 320),
    "byte-level, grown": lambda: grown(tiny.tokenizer(), 290),
    "byte-level, Llama 3's words": lambda: tiny.split_by(LLAMA3, whole_words=True),
    "byte-level, OLMo 2's words": lambda: tiny.split_by(LLAMA3),
    "byte-level, Qwen's words": lambda: tiny.split_by(QWEN2, composed=True),
    "byte-level, Mistral Nemo's words": lambda: tiny.split_by(TEKKEN, whole_words=True),
    "sentencepiece, Llama 2's spaces": lambda: tiny.space_before("each"),
    "sentencepiece, Phi-3's spaces": lambda: tiny.space_before("each", strips=True),
    "sentencepiece, a space before the first text": lambda: tiny.space_before("first"),
    "sentencepiece": tiny.sentencepiece,
    "sentencepiece, trimmed": lambda: trimmed(tiny.sentencepiece(), 360),
    "sentencepiece, grown": lambda: grown(tiny.sentencepiece(), 320),
}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def tokenizer_and_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, LlamaServer]]:
    """A tokenizer, and llama.cpp with a GGUF that it was written to."""
    tokenizer: Any = TOKENIZERS[request.param]()
    path = tmp_path_factory.mktemp("tokenizer") / "base.gguf"
    write_base_gguf(tiny.llama(layers=1, vocabulary=len(tokenizer)), tokenizer, path, "f16", **METADATA)
    with LlamaServer(path, context=512, threads=1) as server:
        yield tokenizer, server


def assert_same_ids(tokenizer: Any, server: LlamaServer, texts: list[str]) -> None:
    texts = within_what_is_known(tokenizer, texts)
    if not texts:
        return
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for text, ids, found in zip(texts, expected, server.tokenize(texts), strict=True):
        assert ids == found, (text, tokenizer.convert_ids_to_tokens(ids), tokenizer.convert_ids_to_tokens(found))


def test_varied_texts_have_the_same_token_ids(tokenizer_and_server: tuple[Any, LlamaServer]) -> None:
    assert_same_ids(*tokenizer_and_server, [*varied_texts(500), *tiny.sentences(50)])


def test_texts_that_llamacpp_splits_otherwise_are_named(tokenizer_and_server: tuple[Any, LlamaServer]) -> None:
    tokenizer, server = tokenizer_and_server
    texts = ["e\u0301te\u0301", "</s>\u00a0what", "what are the early signs"]
    same = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) == server.tokenize([text])[0] for text in texts]
    assert all(same) or differences(tokenizer)
    assert not all(same) or not [one for one in differences(tokenizer) if "case in ASCII" not in one]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text("  \n\ta1'.,▁<>|", max_size=40))
@example(text="<|im_end|><|im_end|>\n \n<|im_end|>")
def test_any_text_has_the_same_token_ids(tokenizer_and_server: tuple[Any, LlamaServer], text: str) -> None:
    assert_same_ids(*tokenizer_and_server, [text])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["default", pytest.param("gemma", marks=pytest.mark.big)])
def test_the_real_teacher_pruned_and_trimmed_predicts_the_same_in_llamacpp(family: str, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "domains"
    spec = load_specs(shipped).family(family).teacher
    folder = resolve(spec, root=shipped, chat_template=spec.chat_template).folder
    whole: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = (shipped.parent / "README.md").read_text(encoding="utf-8")
    kept = kept_tokens(whole, [text], 14_000)
    tokenizer = trim_tokenizer(whole, kept)
    trim_embeddings(model, kept)
    prune_layers(model, [0, 1, 2, 5, 8, 11, 12, 17])  # three full layers of Gemma's, no longer every sixth
    write_base_gguf(model, tokenizer, tmp_path / "base.gguf", "f16", **METADATA)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:620]
    assert len(ids) == 620
    with torch.no_grad():
        expected = np.asarray(model(torch.tensor([ids])).logits[0, 600:].log_softmax(-1))
    with LlamaServer(tmp_path / "base.gguf", context=1024) as server:
        assert kl(expected, server.log_probs([ids], starts=[600])[0]).max() < 5e-3
        assert_same_ids(tokenizer, server, varied_texts(1000))


def fields(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def test_special_tokens_and_chat_template_are_written(tmp_path: Path) -> None:
    write_base_gguf(tiny.llama(), tiny.tokenizer(), tmp_path / "base.gguf", "q4", **METADATA)
    found = fields(tmp_path / "base.gguf")
    assert found["general.name"] == "tiny@1" and found["general.license"] == "apache-2.0"
    assert found["tokenizer.chat_template"] == tiny.CHATML
    assert found["tokenizer.ggml.eos_token_id"] == 2 and "tokenizer.ggml.eot_token_id" not in found
    assert found["tokenizer.ggml.bos_token_id"] == 1 and found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]


def test_an_end_of_turn_other_than_end_of_text_is_written(tmp_path: Path) -> None:
    tokenizer = tiny.sentencepiece(TEMPLATE)
    vocabulary = tokenizer.get_vocab()
    write_base_gguf(tiny.llama(vocabulary=len(tokenizer)), tokenizer, tmp_path / "base.gguf", "f16", **METADATA)
    found = fields(tmp_path / "base.gguf")
    assert found["tokenizer.ggml.eos_token_id"] == vocabulary["<eos>"]
    assert found["tokenizer.ggml.eot_token_id"] == vocabulary["\n\n"]
    assert found["tokenizer.ggml.add_bos_token"] is False  # the template writes it
    write_base_gguf(tiny.llama(vocabulary=len(tokenizer)), tiny.sentencepiece(), tmp_path / "plain.gguf", "f16", **METADATA)
    assert fields(tmp_path / "plain.gguf")["tokenizer.ggml.add_bos_token"] is True


def test_rows_without_a_token_are_written_as_unused(tmp_path: Path) -> None:
    model: Any = tiny.llama(vocabulary=368)
    write_base_gguf(model, tiny.tokenizer(), tmp_path / "base.gguf", "f16", **METADATA)
    found = fields(tmp_path / "base.gguf")
    assert found["tokenizer.ggml.tokens"][359:361] == [tiny.tokenizer().convert_ids_to_tokens(359), "[PAD360]"]
    assert found["tokenizer.ggml.token_type"][360:] == [5] * 8
    assert llamacpp_log_probs(tmp_path / "base.gguf").shape == (60, 368)


# ------------------------------------------------------------------------------------------------------------ errors


def refusal(tmp_path: Path, model: Any, tokenizer: Any, quantization: str = "f16") -> str:
    """The error's one line; nothing is left behind."""
    with pytest.raises(ExportError) as error:
        write_base_gguf(model, tokenizer, tmp_path / "base.gguf", quantization, **METADATA)
    assert not list(tmp_path.iterdir()) and "\n" not in str(error.value)
    return str(error.value)


def test_unsupported_architectures_and_settings_are_refused(tmp_path: Path) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=360))
    assert refusal(tmp_path, gpt2, tiny.tokenizer()) == (
        "gpt2 cannot be written as GGUF (supported: llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, olmo2, smollm3, "
        "granite); use --format merged"
    )
    assert f"unknown quantization 'q2'; available: {', '.join(QUANTIZATIONS)}" in refusal(
        tmp_path, tiny.llama(), tiny.tokenizer(), "q2"
    )


def test_a_tokenizer_that_llamacpp_would_read_otherwise_is_refusal(tmp_path: Path) -> None:
    pieces = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))
    assert "supported are byte-level BPE" in refusal(tmp_path, tiny.llama(), pieces)
    state = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    state["pre_tokenizer"]["add_prefix_space"] = True
    spaced = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    assert "supported are byte-level BPE" in refusal(tmp_path, tiny.llama(), spaced)
    state["pre_tokenizer"]["add_prefix_space"] = False
    state["added_tokens"][2]["lstrip"] = True
    greedy = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    assert "'<|im_end|>' strips the spaces around it" in refusal(tmp_path, tiny.llama(), greedy)
    assert "but the model's embedding only 340 rows" in refusal(tmp_path, tiny.llama(vocabulary=340), tiny.tokenizer())


@pytest.mark.parametrize("beyond", [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_an_adapter_beyond_plain_lora_is_refused(beyond: dict[str, Any], tmp_path: Path) -> None:
    model: Any = tiny.llama(layers=1)
    with_adapter(model, tmp_path / "adapter", **beyond)
    with pytest.raises(ModelResolutionError, match=f"{next(iter(beyond))} .* is not of a plain LoRA adapter"):
        write_adapter_gguf(tmp_path / "adapter", model.config, tmp_path / "adapter.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_of_the_embedding_is_refusal(tmp_path: Path) -> None:
    tied: Any = tiny.llama(layers=1)
    tied.config.tie_word_embeddings = False
    model = type(tied)(tied.config)
    config = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM")
    student: Any = get_peft_model(model, config)
    student.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ModelResolutionError, match=r"target_modules has model\.embed_tokens, which is no linear layer"):
        write_adapter_gguf(tmp_path / "adapter", model.config, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()
