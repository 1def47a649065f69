"""Every verb of the registry in any order, beside a model of what should be there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule
from hypothesis.stateful import Bundle as Values
from support.manifests import publish

from factory.errors import GateError, RegistryError
from factory.registry.garbage import collect, find_garbage
from factory.registry.registry import Registry
from factory.registry.versions import Version

NAMES = ("law-tiny", "law-small")
BASES = ("one-base", "two-base")


class Verbs(RuleBasedStateMachine):
    """``there`` is each version's base (None for a base itself), ``aliases`` where they point, ``last`` the numbers given."""

    versions: Values[str] = Values("versions")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.registry = Registry(self.folder / "registry")
        self.there: dict[str, str | None] = {}
        self.failed: set[str] = set()
        self.damaged: set[str] = set()
        self.aliases: dict[str, str] = {}
        self.last: dict[str, int] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def added(self, version: Version, base: str | None, *, failed: bool = False) -> str:
        assert version.number == self.last.get(version.name, 0) + 1
        self.last[version.name] = version.number
        self.there[version.reference] = base
        if failed:
            self.failed.add(version.reference)
        return version.reference

    @rule(target=versions, name=st.sampled_from(BASES))
    def publish_base(self, name: str) -> str:
        return self.added(publish(self.registry, name, "base"), None)

    @precondition(lambda self: any(base is None for base in self.there.values()))
    @rule(target=versions, name=st.sampled_from(NAMES), passed=st.booleans(), data=st.data())
    def publish_student(self, name: str, passed: bool, data: st.DataObject) -> str:
        base = data.draw(st.sampled_from(sorted(one for one, on in self.there.items() if on is None)))
        if base in self.damaged:
            with pytest.raises(RegistryError, match="its base is not in"):
                publish(self.registry, name, base=base)
            return multiple()  # type: ignore[return-value]
        verdict = {"status": "passed" if passed else "failed", "reasons": [] if passed else ["kl is 9"]}
        return self.added(publish(self.registry, name, base=base, verdict=verdict), base, failed=not passed)

    @rule(ref=versions, alias=st.sampled_from(["champion", "trial"]), force=st.booleans())
    def promote(self, ref: str, alias: str, force: bool) -> None:
        name = ref.partition("@")[0]
        base = self.there.get(ref)
        unusable = ref not in self.there or ref in self.damaged or not self.is_whole(base)
        current = self.aliases.get(f"{name}@{alias}")
        objected = ref in self.failed or (alias == "champion" and name in NAMES and current not in (None, ref))
        reason = "to be sure" if force else None
        if unusable or objected != force:
            with pytest.raises(RegistryError) as caught:
                self.registry.promote(ref, alias, override=reason)
            assert isinstance(caught.value, GateError) == (not unusable and objected)
            return
        assert self.registry.promote(ref, alias, override=reason).reference == ref
        self.aliases[f"{name}@{alias}"] = ref

    @rule(name=st.sampled_from(NAMES + BASES), alias=st.sampled_from(["champion", "trial"]))
    def demote(self, name: str, alias: str) -> None:
        if f"{name}@{alias}" not in self.aliases:
            with pytest.raises(RegistryError, match="is no alias"):
                self.registry.demote(f"{name}@{alias}")
            return
        assert f"{name}@{self.registry.demote(f'{name}@{alias}').before}" == self.aliases.pop(f"{name}@{alias}")

    @rule(ref=versions)
    def delete(self, ref: str) -> None:
        students = {one for one, base in self.there.items() if base == ref}  # a damaged one, too: it may be restored
        if ref not in self.there or ref in self.aliases.values() or students:
            with pytest.raises(RegistryError):
                self.registry.delete(ref)
            return
        self.registry.delete(ref)
        self.forget(ref)

    @rule(ref=consumes(versions))
    def lose(self, ref: str) -> None:
        """Somebody removes the folder by hand."""
        if ref in self.there:
            shutil.rmtree(self.path(ref))
            self.forget(ref)

    @rule(ref=versions)
    def damage(self, ref: str) -> None:
        if ref in self.there and ref not in self.damaged:
            manifest = self.path(ref) / "manifest.json"
            manifest.chmod(0o644)
            manifest.write_bytes(manifest.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
            self.damaged.add(ref)

    @rule(ref=versions)
    def copy_by_hand(self, ref: str) -> None:
        """A folder under the next number is nobody's version, and its number is not given again."""
        if ref in self.there:
            name, number = ref.partition("@")[0], self.last[ref.partition("@")[0]] + 1
            shutil.copytree(self.path(ref), self.path(ref).parent / str(number))
            self.last[name] = number

    @rule()
    def reindex(self) -> None:
        assert self.registry.reindex() is False

    @rule()
    def collect_garbage(self) -> None:
        for one in find_garbage(self.registry):
            if one.path.is_relative_to(self.registry.root):
                collect(self.registry, one)

    @rule()
    def kill_while_staging(self) -> None:
        (self.registry.root / ".staging" / "law-tiny-0000").mkdir(parents=True, exist_ok=True)

    def is_whole(self, base: str | None) -> bool:
        """Also for a base itself, which stands on none."""
        return base is None or (base in self.there and base not in self.damaged)

    def path(self, ref: str) -> Path:
        name, _, number = ref.partition("@")
        return self.registry.root / ("bases" if name in BASES else "students") / name / number

    def forget(self, ref: str) -> None:
        del self.there[ref]
        self.damaged.discard(ref)

    @invariant()
    def listed_resolved_and_verified_are_the_same(self) -> None:
        whole = sorted(self.there.keys() - self.damaged)
        assert sorted(one.reference for one in self.registry.versions()) == whole
        for ref in whole:
            version = self.registry.resolve(ref)
            problems = self.registry.verify(version)
            assert [problem for problem in problems if not problem.startswith("its base is gone")] == []
            base = self.there[ref]
            assert bool(problems) == (not self.is_whole(base))
        for ref in self.damaged:
            with pytest.raises(RegistryError):
                self.registry.resolve(ref)

    @invariant()
    def aliases_point_where_they_were_moved(self) -> None:
        for alias, ref in self.aliases.items():
            if ref in self.there and ref not in self.damaged:
                assert self.registry.resolve(alias).reference == ref
        names = {alias.partition("@")[0] for alias in self.aliases} | set(NAMES + BASES)
        found = {f"{name}@{alias}": f"{name}@{to}" for name in names for alias, to in self.registry.aliases(name).items()}
        assert found == self.aliases


QUICK = settings(max_examples=15, stateful_step_count=25, suppress_health_check=list(HealthCheck), print_blob=True)
TestVerbs = Verbs.TestCase
TestVerbs.settings = QUICK


@pytest.mark.slow
@pytest.mark.big
class TestVerbsAtLength(Verbs.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(QUICK, max_examples=300, stateful_step_count=50)
