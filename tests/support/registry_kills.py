"""A process that kills itself before one file operation of a registry's verb, for every operation, and looks at what is left.

python tests/support/registry_kills.py FOLDER EVERY [VERB ...]    # prints JSON: {verb: kills}; EVERY 5: before every fifth
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder, whose gguf.py is not the library
sys.path.insert(0, str(Path(__file__).parents[1]))

from factory.registry.garbage import collect, find_garbage
from factory.registry.registry import Registry
from support.manifests import publish

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.listdir", "os.scandir"}
Verb = Callable[[Registry], Any]


def gc(registry: Registry) -> None:
    for one in find_garbage(registry):
        if one.path.is_relative_to(registry.root):
            collect(registry, one)


def import_it(registry: Registry) -> None:
    from factory.export.import_version import import_version

    import_version(registry.root.parent / "sent", registry)


VERBS: dict[str, Verb] = {
    "publish a base": lambda registry: publish(registry, "default-tiny-base", "base"),
    "publish": lambda registry: publish(registry, verdict={"status": "passed", "champion": "healthcare-small@1"}),
    "promote": lambda registry: registry.promote("healthcare-small@2", "trial"),
    "override": lambda registry: registry.promote("healthcare-small@3", "trial", override="to be sure"),
    "demote": lambda registry: registry.demote("healthcare-small@champion"),
    "delete": lambda registry: registry.delete("healthcare-small@2"),
    "record": lambda registry: registry.record(registry.resolve("healthcare-small@2"), "review", {"wins": 7}),
    "reindex": lambda registry: registry.reindex(),
    "gc": gc,
    "import": import_it,
}


def prepare(root: Path) -> None:
    registry = Registry(root)
    for verdict in ("passed", "passed", "failed"):
        publish(registry, verdict={"status": verdict, "reasons": [] if verdict == "passed" else ["kl is 9"]})
    registry.promote("healthcare-small@1")
    (root / ".staging" / "healthcare-small-0000").mkdir(parents=True)  # for gc
    (root / ".staging" / "healthcare-small-0000" / "half").write_text("half")


def run_and_die(verb: Verb, registry: Registry, before: int) -> bool:
    """In a child: the verb, ended by SIGKILL before its so many-th file operation; whether it came so far."""
    child = os.fork()
    if child == 0:
        kill_before(before)
        try:
            verb(registry)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, f"the verb failed in operation {before}"
    return False


def kill_before(operation: int) -> None:
    count, sync = 0, os.fsync

    def step() -> None:
        nonlocal count
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def synced(file: Any) -> None:
        step()
        sync(file)

    os.fsync = synced
    sys.addaudithook(lambda event, arguments: step() if event in EVENTS else None)


def state(registry: Registry) -> tuple[list[str], dict[str, int], list[str]]:
    """References, aliases, and the kinds of records; every version is as it was published."""
    damage = [problem for problems in registry.verify_all().values() for problem in problems if "it was deleted" not in problem]
    assert damage == []
    references = [one.reference for one in registry.versions()]
    records = [record["kind"] for reference in references for record in registry.resolve(reference).records]
    return references, registry.aliases("healthcare-small"), records


def check(name: str, template: Path, root: Path, every: int) -> int:
    """Kills the verb before every operation in turn, or every so many-th; how often."""
    verb, kills = VERBS[name], 0
    before = state(Registry(template))
    fresh(template, root)
    verb(Registry(root))
    after = state(Registry(root))
    while True:
        fresh(template, root)
        registry = Registry(root)
        if not run_and_die(verb, registry, kills * every + 1):
            return kills
        kills += 1
        found = state(registry)
        between = [before, after, (before[0], before[1], after[2])]  # an override's reason is recorded before its alias moves
        assert found in between, (name, kills, before, found, after)
        left = [problem for problem in registry.problems() if "`factory gc` removes" not in problem]
        assert left == [], (name, kills, left)
        gc(registry)
        assert registry.problems() == [], (name, kills, registry.problems())
        assert state(registry) in between, (name, kills)
        last = max(int(one.partition("@")[2]) for one in found[0] if one.startswith("healthcare-small@"))
        assert publish(registry).number == last + 1, (name, kills)  # it goes on, and no number was lost


def fresh(template: Path, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)


def main() -> None:
    folder = Path(sys.argv[1])
    template, root = folder / "template", folder / "registry"
    prepare(template)
    names = sys.argv[3:] or [name for name in VERBS if name != "import"]
    print(json.dumps({name: check(name, template, root, int(sys.argv[2])) for name in names}))


if __name__ == "__main__":
    main()
