"""Random models of a few thousand weights and the tokenizer they share, for tests of everything that stands on them."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from factory.config.schema import TeacherContext, TeacherContexts, Turn
from factory.models.base import Base, Shape
from factory.models.calibration import calibration_batches
from factory.models.chat import NO_CONTEXT
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample, tokenize_examples
from factory.models.width import prune_width

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = (  # with the control tokens of ``sentencepiece``
    "{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
)
CONTROL_TOKEN = re.compile(r"<\|?[^<>'\"\s{}|/]+\|?>|<[\uff5c|][^<>'\"\s]+[\uff5c|]>|\[gMASK\]")
WORDS = [
    "what",
    "are",
    "the",
    "early",
    "signs",
    "of",
    "asthma",
    "cough",
    "wheeze",
    "and",
    "short",
    "breath",
    "a",
    "landlord",
    "may",
    "keep",
    "deposit",
    "for",
    "damage",
    "to",
    "rented",
    "home",
    "students",
    "learn",
    "that",
    "light",
    "turns",
    "into",
    "sugar",
    "how",
    "is",
    "it",
    "treated",
    "see",
    "doctor",
    "soon",
    "answer",
    "question",
    "be",
    "brief",
]
CONTEXT = TeacherContext(system="be brief", examples=(Turn(prompt="what is light", completion="it is sugar"),))
CPU = torch.device("cpu")


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(3, 9))) for _ in range(count)]


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sentences(200), "system user assistant"], trainer)
    return str(tokenizer.to_str())


def tokenizer(template: str | None = CHATML, **named: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 360 tokens, as SmolLM2's; answers end with ``<|im_end|>``."""
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | named
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained()), chat_template=template, **names)


def with_control_tokens(template: str, *, begins: bool = False, **named: Any) -> PreTrainedTokenizerFast:
    """The same tokens and those of somebody's chat template, as a model of that template has them.

    ``begins``: a text of its own begins with begin-of-text, as Llama's and Gemma's does.
    """
    names = {"bos_token": "<bos>", "eos_token": "<|endoftext|>"} | named
    own, control = tokenizer(template, **names), set(CONTROL_TOKEN.findall(template)) - {"<think>", "</think>"}
    own.add_special_tokens({"additional_special_tokens": sorted(control)})
    if begins:
        backend: Any = own.backend_tokenizer
        bos = [("<bos>", own.bos_token_id)]
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=bos)
    return own


def digits_apart(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """The same tokens, but every digit is cut off first, as SmolLM's tokenizer does."""
    apart = tokenizer(template)
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    backend: Any = apart.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return apart


def split_by(pattern: str, *, whole_words: bool = False, composed: bool = False) -> PreTrainedTokenizerFast:
    """The same tokens, but a text is first cut by a pattern, as Llama 3's and Qwen's are.

    whole_words: a word that is a token is taken without merging. composed: a text is first brought into the form NFC.
    """
    apart = tokenizer()
    backend: Any = apart.backend_tokenizer
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.model.ignore_merges = whole_words
    backend.normalizer = normalizers.NFC() if composed else None
    return apart


@cache
def _sentencepiece() -> str:
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    texts = [*sentences(200), "1 + 2 = 3\n\tüber die Größe"]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokens = dict.fromkeys([*special, "\n\n", *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁", "▁▁▁", "\n", *learned])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    cuts = [(token[:cut], token[cut:]) for token in vocabulary for cut in range(1, len(token))]
    merges = [(first, second) for first, second in cuts if first in vocabulary and second in vocabulary]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken("\n\n", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    return str(backend.to_str())


def sentencepiece(template: str | None = None) -> PreTrainedTokenizerFast:
    """BPE as Gemma's: spaces as ▁, bytes for what is unknown, every way to make a token is a merge; an own empty line."""
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_sentencepiece()), chat_template=template, **names)


def space_before(where: str, *, strips: bool = False, template: str | None = None) -> PreTrainedTokenizerFast:
    """The same, but with a space before "each" piece of text between special tokens (Llama 2), or before the "first" only.

    strips: its special tokens have Phi-3's names and take the spaces after them, but for three, as Phi-3's do.
    """
    theirs = {"<bos>": "<s>", "<eos>": "</s>", "<pad>": "<|endoftext|>"} if strips else {}
    text = _sentencepiece()
    for own, other in theirs.items():
        text = text.replace(f'"{own}"', f'"{other}"')
    state = json.loads(text)
    kept = {"<unk>", "<s>", "<|endoftext|>"}
    added = [token for token in state["added_tokens"] if token["special"] or not strips]
    state["added_tokens"] = [token | {"rstrip": strips and token["content"] not in kept} for token in added]
    backend: Any = Tokenizer.from_str(json.dumps(state))
    each = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.normalizer = each if where == "each" else None
    backend.pre_tokenizer = None if where == "each" else pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    names = {name: theirs.get(token, token) for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


def config(layers: int, width: int, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.25,  # far from uniform, so that a wrong position or token shows
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def llama(layers: int = 4, width: int = 32, seed: int = 0, vocabulary: int = 360) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**config(layers, width, vocabulary))).eval()


def gemma(layers: int = 3, width: int = 32, seed: int = 0, vocabulary: int = 360) -> PreTrainedModel:
    """Sliding windows of 8 and a soft cap on the logits: what a Llama does not have."""
    torch.manual_seed(seed)
    kinds = (["sliding_attention"] * 2 + ["full_attention"]) * layers
    own = Gemma3TextConfig(
        **config(layers, width, vocabulary),
        layer_types=kinds[:layers],
        sliding_window=8,
        final_logit_softcapping=5.0,
        query_pre_attn_scalar=8,
    )
    return Gemma3ForCausalLM(own).eval()


def narrow() -> PreTrainedModel:
    """The Llama with 32 of its 64 neurons in every MLP."""
    model = llama()
    prune_width(model, 32, calibration_batches(sequences(8), CPU))
    return model


def padded(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """The same model with more embedding rows than tokens, as Qwen's are; a softmax that saw these would be all theirs."""
    tokens = model.config.vocab_size
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.get_input_embeddings().weight.data[tokens:] = 10 * model.get_input_embeddings().weight.data[: rows - tokens]
    return model


def saved(folder: Path, model: PreTrainedModel, own: PreTrainedTokenizerFast | None = None) -> Path:
    """``saved(tmp_path, tiny.llama())``: a transformers folder, with ``tokenizer()`` unless the model has its own."""
    model.save_pretrained(folder)
    (own or tokenizer()).save_pretrained(folder)
    return folder


def teacher(model: PreTrainedModel | None = None) -> Teacher:
    return Teacher.of(model or llama(), tokenizer(), "tiny")


def base(layers: int = 4, width: int = 32, seed: int = 1) -> Base:
    """A student's base of another seed than the teacher; ``shape`` says it is a model of its own."""
    return Base(llama(layers, width, seed), tokenizer(), Shape(None, None))


def sequences(count: int, context: TeacherContext = CONTEXT, seed: int = 0) -> list[TokenizedExample]:
    prompts, completions = sentences(count, seed), sentences(count, seed + 1000)
    rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)]
    return tokenize_examples(rows, tokenizer(), TeacherContexts(context))


@cache
def memorized() -> tuple[PreTrainedModel, list[TokenizedExample]]:
    """``model, examples = tiny.memorized()``: a Llama trained on 12 examples until it knows them by heart."""
    model: Any = llama(seed=3)
    examples = sequences(12, NO_CONTEXT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        for example in examples:
            ids = torch.tensor([[*example.prompt, *example.completion]])
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), examples
