"""What an unfinished build is said to have on disk, and what its note decides."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from support.manifests import publish
from support.workplace import Workplace

from factory.cache import keep, seal
from factory.data.dataset import Completion
from factory.errors import TrainingError
from factory.models.teacher import append_completions
from factory.pipeline.build import build_student
from factory.pipeline.unfinished import NO_NOTE, BuildNote, begun
from factory.registry.registry import Registry


@pytest.fixture
def note(tmp_path: Path) -> BuildNote:
    return BuildNote(tmp_path / "note.json")


def checkpoint(folder: Path, step: int, *, whole: bool = True) -> None:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    if whole:
        seal(folder / f"checkpoint-{step}")


def test_what_is_there_is_counted_on_disk_and_summed_by_kind(note: BuildNote, tmp_path: Path) -> None:
    assert note.found() is None
    answers, targets = tmp_path / "answers.jsonl", tmp_path / "targets"
    note.add("answers", answers, 34)
    assert note.found() == "nothing of it is on disk"
    append_completions(answers, {f"prompt {i}": Completion("answer", finished=True) for i in range(34)})
    note.add("answers", answers, 10, before=34)  # another domain's, in the same file
    append_completions(answers, {f"other {i}": Completion("answer", finished=True) for i in range(4)})
    targets.mkdir()
    keep(targets / "notes.json", json.dumps({"0": {}, "256": {}}).encode())
    note.add("targets", targets, 3)
    checkpoint(tmp_path / "run", 50)
    checkpoint(tmp_path / "run", 100, whole=False)
    note.add("training", tmp_path / "run", 120)
    note.add("evaluation", tmp_path / "none", 14)
    assert note.found() == "38 of 44 answers of the teacher, 2 of 3 soft-target shards, training checkpoint at step 50 of 120"


def test_a_build_that_goes_on_counts_from_where_the_first_one_began(note: BuildNote, tmp_path: Path) -> None:
    note.add("answers", tmp_path / "answers.jsonl", 34, before=6)
    note.add("answers", tmp_path / "answers.jsonl", 20, before=20)
    note.add("targets", tmp_path / "targets", 3)
    note.add("targets", tmp_path / "targets", 3)
    assert [(one.what, one.of, one.before) for one in note.read().made] == [("answers", 34, 6), ("targets", 3, 0)]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"made": [{"what": "else"}]}', '{"made": 3}', '{"more": 1}', "\udcff"]
)
def test_a_note_that_cannot_be_read_is_one_that_says_nothing(note: BuildNote, content: str) -> None:
    assert note.path is not None
    note.path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert note.found() == "nothing of it is on disk" and not note.has_base("default-mini-base")
    note.add("targets", note.path.parent, 3)
    assert len(note.read().made) == 1


def test_work_that_is_no_build_notes_nothing(tmp_path: Path) -> None:
    NO_NOTE.add("targets", tmp_path, 3)
    assert NO_NOTE.found() is None and NO_NOTE.read().made == ()


def test_a_base_is_known_by_its_name(note: BuildNote, tmp_path: Path) -> None:
    note.add("base", tmp_path / "bases" / "default-small-base" / "2", 1)
    assert note.has_base("default-small-base") and not note.has_base("default-tiny-base")


def test_a_note_goes_with_its_checkpoints_and_stays_after_an_error(tmp_path: Path) -> None:
    path, folder = tmp_path / "builds" / "note.json", tmp_path / "run"
    checkpoint(folder, 50)
    with pytest.raises(TrainingError), begun(path, print) as note:
        note.add("training", folder, 120)
        raise TrainingError("the loss became nan")
    assert path.exists() and folder.exists()
    with begun(path, print) as note:
        assert note.found() == "training checkpoint at step 50 of 120"
    assert not path.exists() and not folder.exists()


def test_of_two_builds_of_one_student_the_second_says_that_it_waits(tmp_path: Path) -> None:
    path, said, order = tmp_path / "note.json", list[str](), list[str]()

    def second() -> None:
        with begun(path, said.append):
            order.append("second")

    waiting = threading.Thread(target=second)
    with begun(path, said.append):
        waiting.start()
        while not said:
            pass
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert said == ["another process builds the same student: waiting until it is done"]


def test_only_a_version_that_appeared_since_with_the_same_weights_is_the_build_s_own(note: BuildNote, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    first = publish(registry)
    sha256 = first.manifest.files["adapter_model.safetensors"].sha256
    assert note.published(registry) is None
    note.publishing(registry, first.name, sha256)
    assert note.published(registry) is None  # it was there before
    second = publish(registry)
    found = note.published(registry)
    assert found is not None and found.number == second.number == 2
    note.publishing(registry, first.name, "0" * 64)
    publish(registry)
    assert note.published(registry) is None


def test_a_rebuilt_base_is_not_rebuilt_again_by_a_build_that_goes_on(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.pipeline import build
    from factory.pipeline.build import BuildOptions

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = BuildOptions(rebuild_base=True)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(build, "train_adapter", stopped)
        build_student(built.context(), "plants", "mini", options)
    lines: list[str] = []
    student = build_student(built.context(say=lines.append), "plants", "mini", options)
    assert student.base == "default-mini-base@2"
    assert "going on with an unfinished build: healing" not in str(lines)
    assert [line for line in lines if line.startswith("going on with an unfinished build: ") and line.endswith("the base")]
    assert built.context().registry.aliases("default-mini-base") == {}
    assert len(built.context().registry.versions("base")) == 2
