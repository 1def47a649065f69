"""What is kept is used as it was made or not at all: whatever byte was changed, cut off or lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.damage import damages

from factory.cache import SEAL, atomic_folder, is_intact, is_kept, keep, kept, kept_folder, storage_errors
from factory.errors import StorageError

FILES = {"rows.json": b'{"a": [1, 2]}', "deep/weights": bytes(range(64)), "empty": b""}


def make(folder: Path) -> None:
    with kept_folder(folder) as new:
        for name, content in FILES.items():
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_bytes(content)


@given(name=st.sampled_from([*FILES, SEAL]), data=st.data())
def test_a_kept_folder_with_any_damage_is_dropped_and_said(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder, said = tmp_path_factory.mktemp("kept") / "entry", list[str]()
    make(folder)
    assert is_kept(folder, said.append) and said == []
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(data.draw(damages(content)))
    assert not is_intact(folder)
    assert not is_kept(folder, said.append) and not folder.exists()
    assert said == [f"{folder} was damaged: it is dropped and made again"]
    make(folder)
    assert is_kept(folder, said.append) and len(said) == 1


@pytest.mark.parametrize("name", [*FILES, SEAL])
def test_a_kept_folder_that_lacks_a_file_is_dropped(tmp_path: Path, name: str) -> None:
    make(tmp_path / "entry")
    (tmp_path / "entry" / name).unlink()
    assert not is_kept(tmp_path / "entry", print)


def test_what_is_added_to_a_kept_folder_later_is_not_covered(tmp_path: Path) -> None:
    make(tmp_path / "entry")
    (tmp_path / "entry" / "more").write_text("later")
    assert is_kept(tmp_path / "entry", print)


def test_a_folder_that_is_not_there_is_not_kept_and_nothing_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    assert not is_kept(tmp_path / "nowhere", said.append) and said == []
    assert kept(tmp_path / "nowhere", said.append) is None and said == []


@given(content=st.binary(max_size=200), data=st.data())
def test_a_kept_file_is_as_it_was_written_or_none(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    path, said = tmp_path_factory.mktemp("kept") / "deep" / "notes.json", list[str]()
    keep(path, content)
    assert kept(path, said.append) == content and said == []
    path.write_bytes(data.draw(damages(path.read_bytes())))
    assert kept(path, said.append) is None
    assert said == [f"{path} was damaged: it is dropped and made again"]


def test_a_folder_for_people_has_no_seal(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as new:
        (new / "a").write_text("b")
    assert os.listdir(tmp_path / "out") == ["a"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "no space left on the disk that holds /a/b; free some"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), r"Read-only file system \(/a/b\); check that disk"),
        (RuntimeError("Error while serializing (os error 30)"), "Read-only file system; check that disk"),
    ],
)
def test_what_a_disk_refuses_is_one_line_that_says_what_to_do(error: Exception, line: str) -> None:
    with (
        pytest.raises(StorageError, match=f"cannot write x: {line}.*, then run the command again"),
        storage_errors("cannot write x"),
    ):
        raise error


def test_a_bug_is_no_disk_s_refusal() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), storage_errors("cannot write x"):
        raise RuntimeError("size mismatch")
