"""What a build would do: which family it uses, what it fetches, which stages are on disk already.

    family, size = choose(specs, size=None, family="gemma")
    for step in plan(factory, ["veterinary"], size): print(step.what, step.state, step.detail)

Nothing is made or fetched here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from factory.config.schema import DEFAULT_PROFILE, FamilySpec, ModelSpec, Specs
from factory.errors import SpecError
from factory.models.references import is_cached

if TYPE_CHECKING:
    from factory.pipeline.build import Factory

DEFAULT_FAMILY = "default"


@dataclass(frozen=True)
class Step:
    """One line of a plan."""

    what: str
    state: Literal["on disk", "to do", "to fetch"]
    detail: str


def choose(
    specs: Specs, size: str | None = None, family: str | None = None, profile: str = DEFAULT_PROFILE
) -> tuple[FamilySpec, str]:
    """``choose(specs, size="gemma-tiny")``: the family of a size; ``family`` alone means its default size.

    Raises: SpecError for a name that does not exist, or a size that is another family's.
    """
    chosen, size = _family_and_size(specs, size, family)
    chosen.settings(profile)  # says which profiles there are
    return chosen, size


def _family_and_size(specs: Specs, size: str | None, family: str | None) -> tuple[FamilySpec, str]:
    if size is None:
        if family is None and DEFAULT_FAMILY not in specs.families and len(specs.families) == 1:
            family = next(iter(specs.families))
        chosen = specs.family(family or DEFAULT_FAMILY)
        return chosen, chosen.default_size
    owner = specs.family_of_size(size)
    if family is not None and specs.family(family) != owner:
        theirs = ", ".join(specs.family(family).sizes)
        raise SpecError(f"size {size!r} belongs to family {owner.name}, not {family}; sizes of {family}: {theirs}")
    return owner, size


def plan(factory: Factory, domains: Sequence[str], size: str, *, baselines: bool = False) -> list[Step]:
    """``plan(factory, ["healthcare"], "small")``: every stage of that build, in order.

    The encoder is loaded, where it is in the cache, to find the data sets that belong to its router.
    """
    models = [_fetch("teacher", factory.family.teacher, factory), _fetch("encoder", factory.family.encoder, factory)]
    foreign = factory.family.sizes[size].base
    if foreign is not None:
        models.append(_fetch("base", foreign, factory))
    routed = factory.router_folder.exists() and all(step.state == "on disk" for step in models)
    base = factory.published_base(size) if routed else None
    names = list(dict.fromkeys([*domains, *([] if base else [domain.name for domain in factory.public_domains])]))
    return [
        *models,
        Step("router", "on disk" if routed else "to do", f"{len(factory.public_domains)} domains and the general pool"),
        *(_data(factory, name, routed=routed) for name in names),
        _base(factory, size, None if base is None else base.reference),
        *(_student(factory, name, size, baselines) for name in domains),
    ]


def _fetch(what: str, spec: ModelSpec, factory: Factory) -> Step:
    cached = is_cached(spec, factory.specs.root)
    return Step(what, "on disk" if cached else "to fetch", f"{spec.model} ({spec.license})")


def _data(factory: Factory, name: str, *, routed: bool) -> Step:
    from factory.data.dataset import load_dataset_folder

    domain = factory.specs.domain(name)
    settings = factory.family.settings(factory.profile, domain).data
    folder = factory.data_folder(domain) if routed else None
    if folder is not None and folder.exists():
        counts = load_dataset_folder(folder)[1].counts
        return Step(f"data set {name}", "on disk", ", ".join(f"{split} {count}" for split, count in counts.items()))
    wanted = f"at most {settings.max_examples} training examples of {len(domain.sources)} sources, the teacher answers"
    return Step(f"data set {name}", "to do", wanted)


def _base(factory: Factory, size: str, published: str | None) -> Step:
    if published is not None:
        return Step("base", "on disk", published)
    heal, spec = factory.family.settings(factory.profile).heal, factory.family.sizes[size]
    made = f"{spec.layers} layers of the teacher" if spec.base is None else spec.base.model
    kept = f"{spec.vocabulary} tokens" if spec.vocabulary else "the teacher's vocabulary"
    on = ", ".join(domain.name for domain in factory.public_domains)
    return Step("base", "to do", f"{made}, {kept}; healed for {heal.steps} steps of {heal.batch} on {on}")


def _student(factory: Factory, name: str, size: str, baselines: bool) -> Step:
    settings = factory.family.settings(factory.profile, factory.specs.domain(name))
    distill, measured = settings.distill, settings.evaluate.examples
    sft = "; the SFT baseline for as many" if baselines else ""
    detail = f"distil for {distill.steps} steps of {distill.batch}{sft}; evaluate on at most {measured} prompts"
    return Step(f"student {name}-{size}", "to do", detail)


def plan_table(steps: Sequence[Step]) -> Any:
    """``print_table(plan_table(plan(factory, ["healthcare"], "small")))``: a stage a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for step in steps:
        style = "green" if step.state == "on disk" else "yellow"
        table.add_row(Text(step.state, style=style), Text(step.what), Text(step.detail))
    return table
