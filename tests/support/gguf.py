"""A GGUF file of a few thousand weights, with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers


def tiny_gguf(path: Path) -> bytes:
    """A Llama of 2 layers, 16 wide, with a byte-level vocabulary like SmolLM's."""
    rng = np.random.default_rng(0)
    width, inner, vocabulary = 16, 24, ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges(["Ċ Ċ", "a b"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id, writer.add_unk_token_id):
        add(0)
    shapes = {"token_embd": (len(vocabulary), width), "output_norm": (width,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,)}
        shapes |= {f"blk.{i}.attn_q": (width, width), f"blk.{i}.attn_output": (width, width)}
        shapes |= {f"blk.{i}.attn_k": (8, width), f"blk.{i}.attn_v": (8, width)}
        shapes |= {f"blk.{i}.ffn_gate": (inner, width), f"blk.{i}.ffn_up": (inner, width)}
        shapes |= {f"blk.{i}.ffn_down": (width, inner)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()
