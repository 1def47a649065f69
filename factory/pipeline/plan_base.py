"""What a build would do about its base: use a published one, or make one, after all that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from factory.config.schema import DomainSpec, SizeSpec
from factory.models.base import load_shape
from factory.models.dimensions import check_size, dimensions_of, parameters_of, resized
from factory.pipeline.base_choice import base_manifest, base_name, choose_base
from factory.pipeline.build import BuildOptions
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.device import SizeOption, size_options
from factory.pipeline.estimate import example_tokens, scoring_seconds, training_seconds
from factory.pipeline.grown import find_gap
from factory.pipeline.healing import probe_steps
from factory.registry.versions import Version
from factory.reports.format import format_number

PRUNING_PASSES = 120  # forward passes over 16 calibration examples that choosing layers and neurons takes, roughly
TRIMMING_SECONDS = 20.0  # of counting the tokens of what people wrote


@dataclass(frozen=True)
class Step:
    """One line of a plan; ``seconds`` is an estimate, 0 where nothing is left to do, None where it depends on the network."""

    what: str
    state: Literal["on disk", "to do", "to fetch", "needs", "warning", "elsewhere"]
    detail: str
    seconds: float | None = 0.0


@dataclass(frozen=True)
class BasePlan:
    """The steps up to a base, the base last."""

    steps: Sequence[Step]
    parameters: int  # of the base, at most where it is not made yet
    heals: bool  # whether it takes the answers of all public domains


def plan_base(
    context: BuildContext,
    models: FamilyModels,
    size: str,
    options: BuildOptions,
    rate: float,
    domains: Sequence[DomainSpec] = (),
) -> BasePlan:
    """``plan_base(context, models, "small", options, matrix_rate(context.device), [legal]).steps``

    ``domains`` are those whose students will stand on it: a published base is given the tokens that their text lacks.
    Raises: TrainingError for a size that cannot be cut from the teacher.
    """
    choice = choose_base(context, models.teacher_files.sha256, size, pinned=options.base, rebuild=options.rebuild_base)
    what, reason = f"base {base_name(context, size)}", f"{choice.reason}; " if choice.reason else ""
    if choice.version is not None:
        detail = f"{choice.version.reference}{f' ({choice.reason})' if choice.reason else ''}"
        more = _more_tokens(context, models, choice.version, domains) if options.base is None else []
        return BasePlan([Step(what, "on disk", detail), *more], base_manifest(choice.version).parameters, heals=False)
    spec, own = context.family.sizes[size], context.of_size(size)
    check_size(spec, models.teacher.config)
    tried = size_options(models, spec) if spec.max_bytes is not None else []
    kinds = [one.size for one in tried] or [spec]
    parameters = max(_parameters(models, kind) for kind in kinds)
    heals = context.family.api is None and not all(kind.trimmed for kind in kinds)
    detail = f"{tried[0]}; {tried[0].alone}" if len(tried) == 1 else base_detail(context, size)
    seconds = TRIMMING_SECONDS
    if heals:
        seconds = _pruning_seconds(own, models, rate) + _healing_seconds(own, parameters, own.settings().heal.steps, rate)
    steps = [
        *_assistant(context, models, size, rate),
        *(_trials(own, models, tried, rate) if len(tried) > 1 else ()),
        Step(what, "to do", reason + detail, seconds),
    ]
    return BasePlan(steps, parameters, heals)


def base_detail(context: BuildContext, size: str) -> str:
    """``base_detail(context, "small")``: what the base is made of, as far as the YAML says it."""
    spec, heal = context.family.sizes[size], context.of_size(size).settings().heal
    kept = f"{spec.vocabulary:,} tokens" if spec.vocabulary else "the teacher's vocabulary"
    if spec.trimmed:
        return f"all layers of the teacher, {kept}; nothing to heal"
    if context.family.api is not None and spec.base is not None:
        return f"{spec.base.model} as it is; nothing to heal"
    on = ", ".join(domain.name for domain in context.healing_domains)
    healed = f"healed for {heal.steps} steps of {heal.batch} on {on}"
    if spec.max_bytes is not None:
        return f"what is nearest to the teacher in {format_number(spec.max_bytes, 'bytes')} of {spec.grid}; if pruned, {healed}"
    if spec.base is not None:
        made = spec.base.model
    elif spec.parameters is not None:
        made = f"depth and width chosen together for {format_number(spec.parameters, 'parameters')} parameters"
    else:
        layers = f"{spec.layers} layers of the teacher" if spec.layers else "all layers of the teacher"
        made = f"{layers} with {spec.intermediate_size:,} neurons each" if spec.intermediate_size else layers
    return f"{made}, {kept}; {healed}"


def _more_tokens(context: BuildContext, models: FamilyModels, base: Version, domains: Sequence[DomainSpec]) -> list[Step]:
    """What a published base will be given for domains whose text lacks tokens in it; of texts on the Hub nothing is known."""
    steps, manifest, kept = [], base_manifest(base), load_shape(base.folder).tokens
    for spec in domains:
        there = not any(source.kind == "hub" for source in spec.sources)
        gap = find_gap(context, models, manifest, kept, spec) if there else None
        if kept is not None and gap is not None:
            kept = (*kept, *gap.tokens)
            lost = f"its text takes {gap.fit.growth:.1%} more than with the teacher's tokenizer"
            detail = f"{len(gap.tokens):,} tokens will be added for {spec.name}: {lost}"
            steps.append(Step(f"vocabulary of {base.name}", "to do", detail, TRIMMING_SECONDS))
    return steps


def _assistant(context: BuildContext, models: FamilyModels, size: str, rate: float) -> Sequence[Step]:
    assistant = context.family.larger_size(size)
    return plan_base(context, models, assistant, BuildOptions(), rate).steps if assistant else []


def _trials(context: BuildContext, models: FamilyModels, options: Sequence[SizeOption], rate: float) -> list[Step]:
    """The ways to fit a number of bytes; a single one is taken untried."""
    steps, found = probe_steps(context), []
    for option in options:
        seconds, healed = TRIMMING_SECONDS, ""
        if not option.size.trimmed:
            seconds = _pruning_seconds(context, models, rate)
            seconds += _healing_seconds(context, _parameters(models, option.size), steps, rate)
            healed = f"; healed for {steps} steps"
        found.append(Step(f"trial of {option.kind}", "to do", f"{option}{healed}", seconds))
    return found


def _pruning_seconds(context: BuildContext, models: FamilyModels, rate: float) -> float:
    """Of choosing what is kept, and of the teacher's soft targets on what it is healed on."""
    data = [context.settings(domain).data for domain in context.healing_domains]
    scored = sum(one.max_examples * example_tokens(one) for one in data)
    average = example_tokens(context.settings().data)
    return scoring_seconds(rate, models.teacher.parameters, PRUNING_PASSES * 16 * average + scored)


def _healing_seconds(context: BuildContext, parameters: int, steps: int, rate: float) -> float:
    settings = context.settings()
    return training_seconds(rate, parameters, steps * settings.heal.batch * example_tokens(settings.data))


def _parameters(models: FamilyModels, spec: SizeSpec) -> int:
    """Of a base cut from the teacher, at most."""
    config = models.teacher.config
    found = parameters_of(resized(config, dimensions_of(spec, config), spec.vocabulary))
    return min(found, spec.parameters or found)
