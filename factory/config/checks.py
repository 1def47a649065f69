"""What no file can say of itself: whether files that are named exist, and whether families, domains and pools fit together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from os.path import isdir, isfile  # False for a name that no file can have, where Path.is_file raises
from pathlib import Path

from pydantic import ValidationError

from factory.config.api_limits import OWN_TEACHER, family_limits
from factory.config.mistakes import Mistake, SpecFile, mistakes_of
from factory.config.names import RESERVED
from factory.config.paths import data_path, expand, no_such
from factory.config.schema import (
    DEFAULT_PROFILE,
    SECTIONS,
    DocumentSource,
    DomainSpec,
    FamilySpec,
    FileSource,
    PoolSpec,
    Strict,
)
from factory.config.sources import DOCUMENT_SUFFIXES
from factory.config.task_file import is_task_file, read_task
from factory.config.yaml_text import YamlTextError

EVALUATION_FILES = ("bias_pairs", "tasks", "golden_set", "refusals", "injections", "jailbreaks")  # a path or several


def check_files(root: Path, files: Sequence[SpecFile], pools: Sequence[str]) -> Iterator[Mistake]:
    """``check_files(root, files, ["general"])``: of the files that fit their schema, and the names of all pools there are."""
    yield from _missing_pools(files, pools)
    yield from _shared_sizes(files)
    yield from _shared_students(files)
    yield from _unknown_steps(files)
    yield from _misplaced_models(files)
    yield from _shared_models(files)
    yield from _shared_cascades(files)
    yield from _shared_ids(files)
    yield from _unseen_contexts(files)
    yield from _missing_sources(root, files)
    yield from _missing_files(root, files)
    yield from _wrong_tasks(root, files)
    yield from _misfits(files)
    yield from _api_limits(files)


def of_kind(files: Iterable[SpecFile], kind: type[Strict]) -> list[SpecFile]:
    """``of_kind(files, DomainSpec)``: the domains among them."""
    return [file for file in files if isinstance(file.spec, kind)]


def _misfits(files: Sequence[SpecFile]) -> Iterator[Mistake]:
    """Domains whose overrides do not fit a family, or one of its profiles."""
    for family in (file.spec for file in of_kind(files, FamilySpec)):
        for domain in of_kind(files, DomainSpec):
            first: dict[Mistake, str] = {}  # the first profile that shows it
            for profile in (DEFAULT_PROFILE, *family.profiles):
                for mistake in _misfits_of(family, profile, domain):
                    first.setdefault(mistake, "" if profile == DEFAULT_PROFILE else f", profile {profile}")
            for mistake, where in first.items():
                yield replace(mistake, message=f"{mistake.message} (with family {family.name}{where})")


def _misfits_of(family: FamilySpec, profile: str, domain: SpecFile) -> Iterator[Mistake]:
    for section in SECTIONS:
        try:
            family.section(section, profile, domain.spec)
        except ValidationError as error:
            yield from mistakes_of(error, domain.path, domain.node, DomainSpec, (section,))


def _api_limits(files: Sequence[SpecFile]) -> Iterator[Mistake]:
    """Families that ask a teacher behind an API for what it has not, and domains whose own teacher no family can take."""
    families = of_kind(files, FamilySpec)
    for file in families:
        for keys, message in family_limits(file.spec):
            yield file.mistake(keys, message)
    if families and all(file.spec.api for file in families):
        for file in of_kind(files, DomainSpec):
            if file.spec.teacher is not None:
                yield file.mistake(["teacher"], f"{OWN_TEACHER} (with family {families[0].spec.name})")


def _missing_sources(root: Path, files: Iterable[SpecFile]) -> Iterator[Mistake]:
    for file in files:
        key = _sources_key(file)
        for number, source in enumerate(getattr(file.spec, key)):
            where: list[str | int] = [key, number, "path"]
            if not isinstance(source, FileSource | DocumentSource):
                continue
            path = data_path(root, source.path)
            if isinstance(source, FileSource) and not any(map(isfile, expand(path))):
                yield file.mistake(where, _no_such("file", root, path))
            elif isinstance(source, DocumentSource) and not any(map(_is_folder_or_document, expand(path))):
                yield file.mistake(where, _no_such("folder or document", root, path))


def _is_folder_or_document(path: Path) -> bool:
    return isdir(path) or (isfile(path) and path.suffix.lower() in DOCUMENT_SUFFIXES)


def _missing_files(root: Path, files: Iterable[SpecFile]) -> Iterator[Mistake]:
    """Evaluation files that are named and do not exist. A task may be one of the harness's own."""
    for file in files:
        for key in EVALUATION_FILES:
            named = getattr(file.spec, key, None) or ()
            for path in (named,) if isinstance(named, str) else named:
                if (key != "tasks" or is_task_file(path)) and not isfile(root / path):
                    yield file.mistake([key], _no_such("file", root, root / path))


def _wrong_tasks(root: Path, files: Iterable[SpecFile]) -> Iterator[Mistake]:
    """Task files that are there and cannot be read."""
    for file in of_kind(files, DomainSpec):
        for path in file.spec.tasks:
            if is_task_file(path) and isfile(root / path):
                try:
                    read_task(root / path)
                except YamlTextError as error:
                    yield file.mistake(["tasks"], str(error))


def _no_such(what: str, root: Path, path: Path) -> str:
    return f"{no_such(what, path)}; paths are relative to {root}"


def _missing_pools(files: Sequence[SpecFile], pools: Sequence[str]) -> Iterator[Mistake]:
    for file in of_kind(files, FamilySpec):
        if file.spec.general not in pools:
            yield file.mistake(["general"], f"no {file.spec.general}.pool.yaml; pools here: {', '.join(pools) or 'none'}")


def _shared_sizes(files: Sequence[SpecFile]) -> Iterator[Mistake]:
    """A size names its family, so no two families have the same."""
    owners: dict[str, str] = {}
    for file in of_kind(files, FamilySpec):
        for size in file.spec.sizes:
            if size in owners:
                yield file.mistake(["sizes", size], f"family {owners[size]} has this size, too; rename one")
            owners.setdefault(size, file.spec.name)


def _shared_students(files: Sequence[SpecFile]) -> Iterator[Mistake]:
    """A student is called `<domain>-<size>`, so `law` with `eu-small` would be `law-eu` with `small`."""
    owners: dict[str, str] = {}
    sizes = dict.fromkeys(size for file in of_kind(files, FamilySpec) for size in file.spec.sizes)
    for file in of_kind(files, DomainSpec):
        for size in sizes:
            student, owner = f"{file.spec.name}-{size}", f"domain {file.spec.name} with size {size}"
            if student in owners:
                yield file.mistake(["name"], f"{owner} and {owners[student]} are both called {student}; rename one")
            owners.setdefault(student, owner)


def _unknown_steps(files: Sequence[SpecFile]) -> Iterator[Mistake]:
    """Steps of a family's cascade that are none of its sizes."""
    for file in of_kind(files, FamilySpec):
        sizes, last = list(file.spec.sizes), ["teacher", *file.spec.models]
        for number, step in enumerate(file.spec.serve.cascade):
            if step not in (*sizes, *last):
                close = get_close_matches(step, [*sizes, *last], n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                message = f"no size {step!r}; {hint}sizes here: {', '.join(sizes)}; the last step may be {' or '.join(last)}"
                yield file.mistake(["serve", "cascade", number], message)


def _misplaced_models(files: Sequence[SpecFile]) -> Iterator[Mistake]:
    """Models elsewhere that are to do more than end a cascade."""
    for file in of_kind(files, FamilySpec):
        serve, models = file.spec.serve, file.spec.models
        for number, step in enumerate(serve.cascade[:-1]):
            if step in models:
                yield file.mistake(["serve", "cascade", number], f"{step} is a model elsewhere, the last to be asked; move it")
        if serve.abstain and serve.cascade[-1] in models:
            message = f"abstain has no effect after {serve.cascade[-1]}, whose answer is always kept; leave one of them out"
            yield file.mistake(["serve", "abstain"], message)
        if serve.fallback in models:
            message = (
                f"{serve.fallback} is a model elsewhere, which only a cascade may end with; name teacher, refuse or a student"
            )
            yield file.mistake(["serve", "fallback"], message)


def _shared_models(files: Sequence[SpecFile]) -> Iterator[Mistake]:
    """Models elsewhere that are called as a size, a domain or a student: API keys and steps name them all."""
    families, domains = of_kind(files, FamilySpec), [domain.spec.name for domain in of_kind(files, DomainSpec)]
    taken = dict.fromkeys(RESERVED, "reserved") | dict.fromkeys(domains, "a domain")
    for size in (size for family in families for size in family.spec.sizes):
        taken |= {size: "a size"} | {f"{domain}-{size}": "a student" for domain in domains}
    for family in families:
        for name in family.spec.models:
            if what := taken.get(name):
                yield family.mistake(["models", name], f"{name} is {what}, too; rename one")


def _shared_cascades(files: Sequence[SpecFile]) -> Iterator[Mistake]:
    """A cascade is called as its domain, so no domain with one is called as a student."""
    families, domains = of_kind(files, FamilySpec), of_kind(files, DomainSpec)
    students = {
        f"{domain.spec.name}-{size}": f"domain {domain.spec.name} with size {size}"
        for family in families
        for size in family.spec.sizes
        for domain in domains
    }
    if any(family.spec.serve.cascade for family in families):
        for domain in domains:
            if owner := students.get(domain.spec.name):
                message = (
                    f"{domain.spec.name} is the student of {owner}, and would be the cascade of this domain, too; rename one"
                )
                yield domain.mistake(["name"], message)


def _shared_ids(files: Sequence[SpecFile]) -> Iterator[Mistake]:
    """An id names a row's source, and with it the context that the teacher is shown."""
    pools = {source.id: file.spec.name for file in of_kind(files, FamilySpec) for source in file.spec.pool}
    for file in of_kind(files, DomainSpec):
        ids = [source.id for source in file.spec.sources]
        for id in sorted({id for id in ids if ids.count(id) > 1}):
            yield file.mistake(["sources"], f"two sources have the id {id!r}; rename one")
        for number, id in enumerate(ids):
            if id in pools:
                yield file.mistake(
                    ["sources", number, "id"], f"a source in the pool of family {pools[id]} has this id; rename one"
                )


def _unseen_contexts(files: Iterable[SpecFile]) -> Iterator[Mistake]:
    """Contexts of sources that no teacher would be shown."""
    for file in files:
        key = _sources_key(file)
        for number, source in enumerate(getattr(file.spec, key)):
            if source.teacher_context is None:
                continue
            where: list[str | int] = [key, number, "teacher_context"]
            if isinstance(file.spec, PoolSpec):
                yield file.mistake(where, "the teacher answers a pool's prompts without a context; remove it")
            elif isinstance(file.spec, FamilySpec):
                yield file.mistake(where, "the teacher is shown the context of the domain that a text is sent to; remove it")
            elif isinstance(source, DocumentSource):
                yield file.mistake(where, "documents have no prompts that a context could precede; remove it")


def _sources_key(file: SpecFile) -> str:
    return "pool" if isinstance(file.spec, FamilySpec) else "sources"
