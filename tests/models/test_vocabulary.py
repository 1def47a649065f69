"""Trimming a vocabulary: nothing is lost, kept text is cut as before, and the model follows the tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from factory.errors import TrainingError
from factory.models.vocabulary import kept_tokens, trim_embeddings, trim_tokenizer, vocabulary_growth

TEXT = (
    "the early signs of asthma are cough wheeze and shortness breath a landlord may keep deposit for damage to rented "
    "home students learn that photosynthesis turns light into sugar def f(x): return x + 1 naïve café Größe 東京 "
    "привет in 2024 they paid 1234 dollars and 50 cents"
)
WORDS = TEXT.split()
TEMPLATE = (
    "{% for m in messages %}{{ '<start>' + m['role'] + '\n' + m['content'] + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>assistant\n' }}{% endif %}"
)
PIECES = [
    *WORDS, " ", "  ", "\n\n", "\t", "1. ", "3.14", "0" * 7, "é", "e\u0301", "ß", "漢字", "🙂", "👩‍👩‍👧", "🇩🇪",
    "\u200b", "\x00", "\ufffd", "<start>", "<end>", "<unused3>", "<0x0A>", "▁", "if (a >= b) { return; }", "#$%^&*",
    "ACGT" * 3,
]  # fmt: skip


def corpus(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(3, 25))) for _ in range(count)]


def varied_strings(count: int) -> list[str]:
    rng = random.Random(7)
    glued = ["".join(rng.choices(PIECES, k=rng.randrange(1, 20))) for _ in range(count // 2)]
    alphabets = ["abc XYZ", "0123456789.,-", "\n\r\t  ", "éüñ漢字かなابتдж", "😀👩‍👧🏽🇩🇪", "(){}[]<>=+*/;:'\"\\_"]
    drawn = ["".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randrange(60))) for _ in range(count // 2)]
    return ["", *glued, *drawn][:count]


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    names = {"bos_token": "<bos>", "eos_token": "<end>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer.add_tokens([AddedToken("ACGT", normalized=False)])  # not special, and not in the model's vocabulary
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=TEMPLATE, padding_side="left", model_max_length=512, **names
    )


def byte_level() -> PreTrainedTokenizerFast:
    """The GPT-2 and SmolLM2 kind, trained here."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<bos>", "<pad>", "<start>", "<end>", *(f"<unused{i}>" for i in range(5))]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(0, 400), trainer)
    return wrapped(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """The SentencePiece and Gemma kind: every way to make a token is a merge, ranked by the token's place."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(corpus(0, 400), trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learned = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    special = ["<pad>", "<end>", "<bos>", "<unk>", "<start>", *(f"<unused{i}>" for i in range(5))]
    extra = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁▁", "▁▁▁", "\n"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*special, *extra, *learned]))}
    merges = [
        (token[:cut], token[cut:])
        for token in vocabulary
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    bos = vocabulary["<bos>"]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return wrapped(tokenizer)


KINDS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}
SIZES = {"byte-level": 420, "byte-fallback": 480}
both = pytest.mark.parametrize("kind", list(KINDS))


def trimmed_pair(kind: str) -> tuple[PreTrainedTokenizerFast, list[int], PreTrainedTokenizerFast]:
    original = KINDS[kind]
    kept = kept_tokens(original, corpus(1, 5), SIZES[kind])
    return original, kept, trim_tokenizer(original, kept)


PAIRS = {kind: trimmed_pair(kind) for kind in KINDS}


def assert_lossless(kind: str, text: str) -> bool:
    """Whether the text's tokens were all kept, so that the cut was compared."""
    original, kept, trimmed = PAIRS[kind]
    before, after = original(text)["input_ids"], trimmed(text)["input_ids"]
    assert trimmed.decode(after) == original.decode(before)
    all_kept = set(before) <= set(kept)
    if all_kept:
        assert [kept[new] for new in after] == before
    return all_kept


@both
def test_a_thousand_varied_strings_come_back_and_kept_text_is_cut_as_before(kind: str) -> None:
    compared = [assert_lossless(kind, text) for text in varied_strings(1000) + corpus(1, 5)]
    assert 20 < sum(compared) < 1000  # both cases were met


@both
@settings(max_examples=150)
@given(text=st.text(max_size=40))
def test_any_text_comes_back(kind: str, text: str) -> None:
    assert_lossless(kind, text)


@both
def test_kept_tokens_are_sorted_closed_and_fill_the_size(kind: str) -> None:
    original, kept, trimmed = PAIRS[kind]
    assert kept == sorted(set(kept))
    assert len(kept) == len(trimmed) == SIZES[kind]
    vocabulary = original.get_vocab()
    names = {token_id: token for token, token_id in vocabulary.items()}
    merged = {tuple(merge) for merge in json.loads(trimmed.backend_tokenizer.to_str())["model"]["merges"]}
    expected = {
        (first, second)
        for first, second in map(tuple, json.loads(original.backend_tokenizer.to_str())["model"]["merges"])
        if {vocabulary[first], vocabulary[second], vocabulary[first + second]} <= set(kept)
    }
    assert merged == expected
    made = {first + second for first, second in merged}
    added = set(original.get_added_vocab())
    assert all(len(names[i]) == 1 or names[i] in made | added or names[i].startswith("<0x") for i in kept)


def test_byte_level_keeps_all_bytes_and_both_parts_of_every_merge() -> None:
    original, kept, _ = PAIRS["byte-level"]
    vocabulary = original.get_vocab()
    assert {vocabulary[byte] for byte in pre_tokenizers.ByteLevel.alphabet()} <= set(kept)
    for first, second in json.loads(original.backend_tokenizer.to_str())["model"]["merges"]:
        if vocabulary[first + second] in kept:
            assert vocabulary[first] in kept
            assert vocabulary[second] in kept


def test_byte_fallback_keeps_the_steps_that_the_original_takes() -> None:
    # "abc" can be made as a+bc or ab+c; "bc" comes first, so the original goes by a+bc and never by "ab".
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "c", "bc", "ab", "abc"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.add_special_tokens(["<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    kept = kept_tokens(tokenizer, ["abc"], len(tokens) - 1)
    assert {tokens[i] for i in range(len(tokens))} - {tokens[i] for i in kept} == {"ab"}
    assert trim_tokenizer(tokenizer, kept).tokenize("abcab") == ["abc", "a", "b"]


@both
def test_frequent_tokens_come_first_then_the_most_general_merges(kind: str) -> None:
    original = KINDS[kind]
    least = _least(original)
    few = kept_tokens(original, ["asthma " * 50 + "Größe"], least + 8)
    tokens = set(original("asthma asthma")["input_ids"])
    assert tokens <= set(few)
    general = kept_tokens(original, [], least + 20)
    merges = json.loads(original.backend_tokenizer.to_str())["model"]["merges"]
    assert original.convert_tokens_to_ids("".join(merges[0])) in general


def _least(tokenizer: PreTrainedTokenizerFast) -> int:
    with pytest.raises(TrainingError) as error:
        kept_tokens(tokenizer, [], 1)
    return int(str(error.value).split("use at least ")[1])


@both
def test_a_size_as_large_as_the_vocabulary_keeps_all_but_placeholders(kind: str) -> None:
    original = KINDS[kind]
    kept = kept_tokens(original, corpus(0, 50), len(original))
    lost = {token for token, i in original.get_vocab().items() if i not in set(kept)}
    assert {token for token in lost if token.startswith("<unused")} == {f"<unused{i}>" for i in range(5)}
    assert vocabulary_growth(original, trim_tokenizer(original, kept), corpus(2, 50)) == 0


@both
def test_a_placeholder_that_a_text_has_is_kept(kind: str) -> None:
    original = KINDS[kind]
    kept = kept_tokens(original, ["say <unused3>"], SIZES[kind])
    names = set(original.convert_ids_to_tokens(kept))
    assert "<unused3>" in names
    assert "<unused2>" not in names


@both
def test_growth_is_the_share_of_further_tokens(kind: str) -> None:
    original, _, trimmed = PAIRS[kind]
    texts = corpus(3, 30)
    before = sum(len(original(text, add_special_tokens=False)["input_ids"]) for text in texts)
    after = sum(len(trimmed(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert vocabulary_growth(original, trimmed, iter(texts)) == pytest.approx(after / before - 1)
    assert after > before
    assert vocabulary_growth(original, trimmed, []) == 0.0


@both
def test_special_tokens_chat_template_and_settings_stay(kind: str) -> None:
    original, kept, trimmed = PAIRS[kind]
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(trimmed, name) == getattr(original, name)
        assert kept[getattr(trimmed, f"{name}_id")] == getattr(original, f"{name}_id")
    for name in ("chat_template", "padding_side", "model_max_length", "clean_up_tokenization_spaces"):
        assert getattr(trimmed, name) == getattr(original, name)
    turns = [{"role": "user", "content": "asthma"}]
    old = original.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    new = trimmed.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert [kept[i] for i in new] == old  # what the template writes is always kept
    assert trimmed.decode(new, skip_special_tokens=True) == original.decode(old, skip_special_tokens=True)
    assert trimmed.tokenize("ACGTACGT") == ["ACGT", "ACGT"]
    flags = {token.content: token.special for token in trimmed.added_tokens_decoder.values()}
    assert flags["<start>"]
    assert not flags["ACGT"]


@both
def test_a_saved_tokenizer_is_the_same_when_loaded_beside_a_model(kind: str, tmp_path: Path) -> None:
    _, _, trimmed = PAIRS[kind]
    trimmed.save_pretrained(tmp_path)
    make = {"byte-level": llama, "byte-fallback": gemma}[kind]
    make(len(trimmed)).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in varied_strings(100):
        assert loaded(text)["input_ids"] == trimmed(text)["input_ids"]
    assert loaded.chat_template == trimmed.chat_template
    assert loaded.eos_token_id == trimmed.eos_token_id


@both
def test_too_small_a_size_is_an_error_that_names_the_least(kind: str) -> None:
    least = _least(KINDS[kind])
    assert len(kept_tokens(KINDS[kind], ["x"], least)) == least


def test_a_vocabulary_without_bytes_is_an_error() -> None:
    plain = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    with pytest.raises(TrainingError, match="BPE without bytes vocabulary cannot be trimmed"):
        kept_tokens(PreTrainedTokenizerFast(tokenizer_object=plain), ["ab"], 3)
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(TrainingError, match="Unigram vocabulary cannot be trimmed"):
        kept_tokens(PreTrainedTokenizerFast(tokenizer_object=unigram), ["a"], 3)


def test_losing_a_special_token_is_an_error() -> None:
    original, kept, _ = PAIRS["byte-level"]
    with pytest.raises(TrainingError, match="missing: \\['<end>'\\]"):
        trim_tokenizer(original, [i for i in kept if i != original.eos_token_id])


# ------------------------------------------------------------------------------------------------------- embeddings

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 4,
}


def llama(size: int, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=size, tie_word_embeddings=tied)).eval()


def gemma(size: int, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, vocab_size=size, tie_word_embeddings=tied)).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make", [llama, gemma])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trimmed_logits_are_the_kept_columns(
    make: Callable[..., PreTrainedModel], tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, kept = make(40, tied).to(dtype), [1, 2, 4, 7, 8, 20, 39]
    ids = torch.tensor([[0, 3, 6, 5, 4]])
    with torch.no_grad():
        before = model(torch.tensor(kept)[ids]).logits[..., kept]
        trim_embeddings(model, kept)
        after = model(ids).logits
    close = {"atol": 1e-6} if dtype == torch.float32 else {"atol": 2e-3}  # another matrix size sums in another order
    assert torch.allclose(after, before, **close)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, after, **close)


def test_ids_in_both_configs_follow() -> None:
    model = llama(40)
    model.generation_config.eos_token_id = [4, 5, 20]
    trim_embeddings(model, [2, 4, 7, 20])
    assert model.config.vocab_size == model.vocab_size == 4
    assert (model.config.pad_token_id, model.config.eos_token_id, model.config.bos_token_id) == (0, 1, None)
    assert model.generation_config.eos_token_id == [1, 3]
    assert model.get_input_embeddings().num_embeddings == model.get_output_embeddings().out_features == 4
    labels = torch.tensor([[0, 1, 2, 3]])
    assert model(labels, labels=labels).loss.isfinite()
    assert model.generate(labels, max_new_tokens=3, do_sample=False).shape[1] <= 7


def test_frozen_embeddings_stay_frozen() -> None:
    model = llama(40).requires_grad_(False)
    trim_embeddings(model, [1, 2, 4])
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kept", [[], [0, 40], [-1, 2]])
def test_rows_that_are_not_there_are_an_error(kept: list[int]) -> None:
    with pytest.raises(TrainingError, match="embedding has 40 rows"):
        trim_embeddings(llama(40), kept)
