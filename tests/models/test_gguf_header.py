"""Headers of GGUF files whose counts are not those of the file: refused in one line before memory is taken for them."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import gguf
import pytest
from support.gguf import tiny_gguf

from factory.bounded import Bounded, Limits
from factory.errors import ModelResolutionError
from factory.models import gguf_header
from factory.models.gguf import convert_gguf
from factory.models.gguf_header import check_header, read_header


def test_a_good_header_says_its_pre_tokenizer(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "a.gguf")
    assert check_header(tmp_path / "a.gguf") == "smollm"


def with_number(path: Path, name: str, value: int) -> Path:
    """The tiny model, whose header has another 32-bit number."""
    data = tiny_gguf(path)
    key = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", gguf.GGUFValueType.UINT32)
    at = data.index(key) + len(key)
    path.write_bytes(data[:at] + struct.pack("<I", value) + data[at + 4 :])
    return path


@pytest.mark.parametrize("name", ["block_count", "embedding_length", "feed_forward_length", "attention.head_count"])
def test_more_layers_and_wider_ones_than_the_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    path = with_number(tmp_path / "a.gguf", f"llama.{name}", 2_000_000_000)
    with pytest.raises(ModelResolutionError, match=f"a.gguf cannot be converted: its header says {name} 2000000000"):
        convert_gguf(path, tmp_path, quiet=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's memory")
def test_a_list_of_more_items_than_bytes_ends_at_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "_reader", lambda: Bounded(read_header, Limits(seconds=2, memory=1 << 28, output=1 << 20)))
    endless = struct.pack("<IIQQ", gguf.GGUF_MAGIC, 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    endless += struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8, 1 << 60)
    (tmp_path / "a.gguf").write_bytes(endless)
    with pytest.raises(ModelResolutionError, match=r"a\.gguf cannot be converted: "):
        check_header(tmp_path / "a.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\3\4", b"GGUF" + b"\xff" * 64])
def test_what_is_no_gguf_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelResolutionError, match=r"^a\.gguf cannot be converted: "):
        convert_gguf(tmp_path / "a.gguf", tmp_path, quiet=True)
