"""What an unfinished build has on disk already: said by the next one, which goes on with it.

    with begun(path, context.say) as note:
        note.add("healing", folder, of=320)  # by each stage, before it begins
    # gone when the build has ended well; after a kill it stays, and the same build finds it

A note is a JSON file in ``FACTORY_HOME/builds`` under the key of all that decides a build. Stages find by themselves what they
go on from; only what one build must not do twice is read from it: publish a rebuilt base, and publish its student.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from factory.cache import replace_file
from factory.distill.checkpoints import last_step, remove_checkpoints
from factory.distill.target_store import finished_shards
from factory.evaluation.parts import count_parts
from factory.models.teacher import count_completions
from factory.registry.entry import Count, Entry
from factory.registry.registry import Registry
from factory.registry.versions import Version

WEIGHTS = "adapter_model.safetensors"
What = Literal["answers", "targets", "healing", "base", "training", "evaluation"]
# What there can be of a build, in the order in which it is made: how much of it is on disk, and how that is said.
COUNTED: dict[What, tuple[Callable[[Path], int], str]] = {
    "answers": (count_completions, "{} of {} answers of the teacher"),
    "targets": (finished_shards, "{} of {} soft-target shards"),
    "healing": (last_step, "healing checkpoint at step {} of {}"),
    "base": (lambda folder: int(folder.exists()), "the base"),
    "training": (last_step, "training checkpoint at step {} of {}"),
    "evaluation": (count_parts, "{} of {} parts of the evaluation"),
}


class Made(Entry):
    """Where a stage keeps what it makes, how much that will be, and how much was there before."""

    what: What
    path: Path
    of: Count
    before: Count = 0

    @property
    def done(self) -> int:
        return max(0, min(self.of, COUNTED[self.what][0](self.path) - self.before))


class Publishing(Entry):
    """The student that is about to appear in the registry: the next version of its name that has its weights."""

    name: str
    after: Count  # the last number before
    sha256: str


class Content(Entry):
    """Of a note."""

    made: tuple[Made, ...] = ()
    publishing: Publishing | None = None


@dataclass(frozen=True)
class BuildNote:
    """``note.add("training", folder, of=60)``; ``note.found()`` → "2 of 3 soft-target shards"."""

    path: Path | None = None  # None, of work that is no build: nothing is noted

    def read(self) -> Content:
        """``note.read().made``: nothing where there is no note, or none that can be read."""
        with suppress(OSError, ValueError):
            return Content.model_validate_json(self.path.read_bytes()) if self.path else Content()
        return Content()

    def _write(self, content: Content) -> None:
        if self.path is not None:
            replace_file(self.path, content.model_dump_json(indent=1).encode())

    def add(self, what: What, path: Path, of: int, before: int = 0) -> None:
        """``note.add("targets", folder, of=3)``: before it is made; what was noted by a stopped build stays as it was."""
        content = self.read()
        same = [one for one in content.made if (one.what, one.path) == (what, path)]
        if not any(one.before <= before < one.before + one.of for one in same):
            made = Made(what=what, path=path, of=of, before=before)
            self._write(content.model_copy(update={"made": (*content.made, made)}))

    def has_base(self, name: str) -> bool:
        """``note.has_base("default-small-base")``: whether this build, or the stopped one before it, has published one."""
        return any(one.what == "base" and one.path.parent.name == name for one in self.read().made)

    def found(self) -> str | None:
        """``note.found()``: what an unfinished build has left, in words; None where there is no such build."""
        if self.path is None or not self.path.exists():
            return None
        made, said = self.read().made, []
        for what, (_, words) in COUNTED.items():
            entries = [one for one in made if one.what == what]
            if done := sum(one.done for one in entries):
                said.append(words.format(done, sum(one.of for one in entries)))
        return ", ".join(said) or "nothing of it is on disk"

    def publishing(self, registry: Registry, name: str, sha256: str) -> None:
        """``note.publishing(registry, "healthcare-small", sha256)``: before the student with that adapter is published."""
        after = max((one.number for one in registry.versions("student", name)), default=0)
        self._write(self.read().model_copy(update={"publishing": Publishing(name=name, after=after, sha256=sha256)}))

    def published(self, registry: Registry) -> Version | None:
        """``note.published(registry)``: the student, where a stopped build came so far that it is in the registry."""
        noted = self.read().publishing
        if noted is None:
            return None
        for one in registry.versions("student", noted.name):
            version = registry.resolve(one.reference)
            if version.number > noted.after and version.manifest.files[WEIGHTS].sha256 == noted.sha256:
                return version
        return None

    def clear(self) -> None:
        """``note.clear()``: gone, with the checkpoints that a process did not come to remove."""
        for one in self.read().made:
            if one.what in ("healing", "training"):
                remove_checkpoints(one.path)
        if self.path is not None:
            self.path.unlink(missing_ok=True)


NO_NOTE = BuildNote()


@contextmanager
def begun(path: Path, say: Callable[[str], None]) -> Iterator[BuildNote]:
    """``with begun(home() / "builds" / f"{name}-{key}.json", context.say) as note:`` by one process at a time.

    The note, and the checkpoints that it names, go when the block ends without an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(path.with_suffix(".lock")), BuildNote(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process builds the same student: waiting until it is done")
        lock.acquire()
    try:
        yield note
        note.clear()
    finally:
        lock.release()
