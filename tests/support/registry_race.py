"""A process that works on a registry beside others until the time is up, and prints what it did, a line of JSON each.

python tests/support/registry_race.py ROOT SECONDS SEED
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

sys.path.pop(0)  # this folder, whose gguf.py is not the library
sys.path.insert(0, str(Path(__file__).parents[1]))

from factory.errors import RegistryError, StorageError
from factory.registry.garbage import collect, find_garbage
from factory.registry.registry import Registry
from support.manifests import publish

NAMES, BASES, ALIASES = ("law-tiny", "law-small"), ("one-base", "two-base"), ("champion", "trial")


def work(registry: Registry, draw: random.Random) -> tuple[str, str]:
    """One verb at random: what it was, and on what. Raises: RegistryError where it is refused, as it should be."""
    versions = [one.reference for one in registry.versions()]
    bases = [one for one in versions if one.startswith(BASES)]
    ref = draw.choice(versions) if versions else "nobody@1"
    verb = draw.choice(("base", "student", "student", "promote", "demote", "delete", "gc", "reindex", "record", "read"))
    if verb == "base":
        return "published", publish(registry, draw.choice(BASES), "base").reference
    if verb == "student" and bases:
        return "published", publish(
            registry, draw.choice(NAMES), base=draw.choice(bases), verdict={"status": "passed"}
        ).reference
    if verb == "promote":
        registry.promote(ref, draw.choice(ALIASES))
    if verb == "demote":
        registry.demote(f"{ref.partition('@')[0]}@{draw.choice(ALIASES)}")
    if verb == "delete" and len(versions) > 6:
        registry.delete(ref)
        return "deleted", ref
    if verb == "gc":
        for one in find_garbage(registry):
            if one.path.is_relative_to(registry.root):
                collect(registry, one)
    if verb == "reindex":
        assert registry.reindex() is False
    if verb == "record":
        version = registry.resolve(ref)
        try:
            registry.record(version, "review", {"wins": 1})
        except StorageError:
            if version.folder.exists():
                raise
            return "refused", f"{ref} was deleted meanwhile"
        return "recorded", ref
    if verb == "read":
        registry.problems()
        registry.verify(registry.resolve(ref))
    return verb, ref


def main() -> None:
    registry, until, draw = Registry(sys.argv[1]), time.monotonic() + float(sys.argv[2]), random.Random(int(sys.argv[3]))
    while time.monotonic() < until:
        try:
            done = work(registry, draw)
        except RegistryError as error:
            done = ("refused", str(error))
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
