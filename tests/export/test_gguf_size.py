"""Bytes of a GGUF file, counted before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import exporting, tiny

from factory.config.quantization import QUANTIZATIONS
from factory.errors import ExportError
from factory.export.gguf import gguf_bytes, gguf_metadata_bytes, write_base_gguf

METADATA = {"name": "tiny@1", "license": "apache-2.0"}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("architecture", ["llama", "gemma", "narrow"])
def test_the_count_is_the_size_of_the_file_that_is_written(architecture: str, quantization: str, tmp_path: Path) -> None:
    model, tokenizer = exporting.model_and_tokenizer(architecture)
    write_base_gguf(model, tokenizer, tmp_path / "base.gguf", quantization, **METADATA)
    metadata = gguf_metadata_bytes(model.config, tokenizer, quantization, **METADATA)
    assert gguf_bytes(model.config, quantization, metadata) == (tmp_path / "base.gguf").stat().st_size


def test_an_untied_head_and_matrices_without_whole_blocks_are_counted_as_they_are_written(tmp_path: Path) -> None:
    model: Any = tiny.llama(width=40)
    model.config.tie_word_embeddings = False
    untied = type(model)(model.config).eval()
    write_base_gguf(untied, tiny.tokenizer(), tmp_path / "base.gguf", "q4_1", **METADATA)
    metadata = gguf_metadata_bytes(model.config, tiny.tokenizer(), "q4_1", **METADATA)
    assert gguf_bytes(model.config, "q4_1", metadata) == (tmp_path / "base.gguf").stat().st_size


def test_an_architecture_that_cannot_be_written_has_no_size() -> None:
    config: Any = tiny.llama().config
    config.model_type = "other"
    with pytest.raises(ExportError, match="other cannot be written as GGUF"):
        gguf_metadata_bytes(config, tiny.tokenizer(), "q4_1", **METADATA)
