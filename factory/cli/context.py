"""What commands set up before they call their function. A wrong name is reported before torch is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from factory.cli.options import TEACHER
from factory.cli.terminal import load_libraries, progress_bars, say
from factory.config.cascades import cascade_students
from factory.config.names import is_name
from factory.errors import RegistryError, UsageError
from factory.registry.layout import kind_of
from factory.registry.registry import Registry

if TYPE_CHECKING:
    from factory.config.load import SpecFolder
    from factory.config.schema import FamilySpec, Specs, TeacherSpec
    from factory.inference import Answer, ChatModel
    from factory.pipeline.context import BuildContext
    from factory.registry.versions import Version


def read_domains(domains: Path) -> SpecFolder:
    """``read_domains(Path("domains")).mistakes``: all that can be found out about the YAML files without loading a model."""
    from factory.config.load import read_folder
    from factory.evaluation.gate_names import check_gates

    return check_gates(read_folder(domains))


def choose(
    domains: Path,
    *,
    family: str | None = None,
    size: str | None = None,
    profile: str = "default",
    needs: Collection[str] | None = None,
) -> tuple[Specs, FamilySpec, str]:
    """``specs, family, size = choose(Path("domains"), size="tiny")``: the YAML files, and the family and size that are meant.

    ``needs`` are the domains that the command needs: others with mistakes in their files are left out, with a warning. None
    needs all, as whatever makes a base does; so does a data set where the family has a pool for the router to sort.

    Raises: SpecError for files with mistakes, and for an unknown family, size or profile.
    """
    from factory.config.choose import choose_family

    folder = read_domains(domains)
    needed, left_out = (folder, []) if needs is None else folder.without_unneeded(needs)
    specs = needed.specs()
    chosen, size = choose_family(specs, size, family, profile)
    if left_out:
        specs = folder.specs() if chosen.pool else specs
        say(f"warning: {', '.join(map(str, left_out))}: left out for mistakes, which `factory validate` lists")
    return specs, chosen, size


def choose_domains(specs: Specs, name: str | None, every: bool) -> list[str]:
    """``choose_domains(specs, "legal", every=False)`` → ["legal"].

    Raises: SpecError for an unknown domain; a usage error unless there is either a name or ``every``.
    """
    if (name is None) != every:
        raise typer.BadParameter(f"give one domain, or --all; domains: {', '.join(specs.domains)}", param_hint="NAME")
    return list(specs.domains) if name is None else [specs.domain(name).name]


def domains_of(versions: Iterable[Version]) -> list[str]:
    """``domains_of([student])``: the domains of students; a base has none of its own."""
    manifests = (version.manifest for version in versions)
    return [manifest.domain for manifest in manifests if manifest.kind == "student"]


def choose_download(specs: Specs, family: FamilySpec, given: str | None) -> TeacherSpec:
    """``choose_download(specs, family, "hub:org/name@revision")``: by reference, or a family's teacher by that family's name.

    The family's own teacher where nothing is given. ``path:`` starts at the current folder.
    Raises: UsageError for anything else.
    """
    from pydantic import ValidationError

    from factory.config.schema import TeacherSpec

    if given is None:
        return family.weights
    for one in specs.families.values():
        if given in (one.name, one.teacher.model):
            return one.weights
    kind, _, rest = given.partition(":")
    model = f"path:{Path(rest).expanduser().resolve()}" if kind == "path" else given
    try:
        return TeacherSpec(model=model, license="not given")
    except ValidationError:
        raise UsageError(
            f"--download {given}: neither a family ({', '.join(specs.families)}) nor hub:org/name@revision nor path:folder; a "
            "wheel of PyPI needs its checksum: write a family file with it as the teacher, and name that family"
        ) from None


def load_context(
    specs: Specs,
    family: FamilySpec,
    registry: Registry,
    *,
    profile: str = "default",
    seed: int | None = None,
    device: str = "auto",
    resume: bool = True,
    force: bool = False,
    json: bool = False,
) -> BuildContext:
    """``load_context(specs, family, Registry("registry"))``: a context that reports on stderr, or not at all beside JSON."""
    load_libraries(shown=not json)
    from factory.pipeline.context import make_context, say_nothing

    return make_context(
        specs,
        family,
        registry=registry,
        profile=profile,
        device=device,
        seed=seed,
        resume=resume,
        force=force,
        progress=progress_bars(shown=not json),
        say=say_nothing if json else say,
    )


def load_answerer(
    ref: str, registry: Registry, domains: Path, *, family: str | None, device: str, json: bool
) -> Callable[[str], Answer]:
    """``load_answerer("healthcare", registry, ...)(question)``: a domain's cascade, else whom ``load_chat_model`` loads."""
    if ref != TEACHER and is_name(ref) and not kind_of(registry.root, ref):
        specs, chosen, _ = choose(domains, family=family, needs=())
        if steps := _built(cascade_students(chosen, ref), registry):
            return _load_cascade(steps, registry, specs, chosen, device, json)
    chat_model = load_chat_model(ref, registry, domains, family=family, device=device, json=json)
    from factory import inference

    return partial(inference.ask, chat_model)


def _built(names: Iterable[str], registry: Registry) -> list[Version]:
    found = []
    for name in names:
        with suppress(RegistryError):  # not built, or no version of it passed
            found.append(registry.resolve(name))
    return found


def _load_cascade(
    steps: list[Version], registry: Registry, specs: Specs, family: FamilySpec, device: str, json: bool
) -> Callable[[str], Answer]:
    """Each step is loaded once it is asked."""
    load_libraries(shown=not json)
    from factory import inference
    from factory.config.schema import TeacherContext
    from factory.models.device import pick_device

    here, last, manifest = pick_device(device), family.serve.cascade[-1], steps[-1].manifest
    loaders = [partial(inference.load_chat_model, version, registry, here) for version in steps]
    if last == TEACHER and manifest.kind == "student":
        context = TeacherContext.kept(manifest.teacher_context)
        loaders.append(partial(inference.load_teacher_chat_model, family, specs, here, context))
    elif last in family.models and not json:
        say(f"{last} is not asked here: `factory serve` asks models elsewhere")
    return partial(inference.ask_cascade, loaders, keep=family.serve.keep, abstain=family.serve.abstain)


def load_chat_model(
    ref: str, registry: Registry, domains: Path, *, family: str | None, device: str, json: bool, domain: str = ""
) -> ChatModel:
    """``load_chat_model("healthcare-small", registry, domains, ...)``: that version, or the family's teacher for "teacher".

    With a ``domain`` that names a teacher of its own, "teacher" is that one.
    """
    if ref != TEACHER:
        version = registry.resolve(ref)
        load_libraries(shown=not json)
        from factory import inference
        from factory.models.device import pick_device

        return inference.load_chat_model(version, registry, pick_device(device))
    specs, chosen, _ = choose(domains, family=family, needs=())
    load_libraries(shown=not json)
    from factory import inference
    from factory.models.device import pick_device

    return inference.load_teacher_chat_model(chosen, specs, pick_device(device), domain=specs.domains.get(domain))
