"""What a build would do: the models it fetches, the stages that are on disk already, and how long the rest takes.

    for step in plan(make_context(specs, specs.family("gemma"), registry=registry), ["veterinary"], "gemma-small"):
        print(step.what, step.state, step.detail)

Nothing is made or fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from factory.config.schema import DomainSpec, ModelSpec, SizeSpec
from factory.data.dataset import load_dataset_folder
from factory.models.references import is_cached
from factory.pipeline.base import base_name, choose_base
from factory.pipeline.build import BuildOptions
from factory.pipeline.context import BuildContext, FamilyModels, resolve_models
from factory.pipeline.dataset import dataset_folder, dataset_key, router_folder
from factory.pipeline.estimate import generation_seconds, matrix_rate, scoring_seconds, training_seconds
from factory.pipeline.publish import student_name

PRUNING_PASSES = 60  # forward passes over the calibration examples that choosing layers takes, roughly
ROUTER_SECONDS = 30.0  # of embedding the texts of a few domains
EVALUATED_EXAMPLES = 700  # short texts behind bias, tasks, golden set and refusals, roughly, for three models


@dataclass(frozen=True)
class Step:
    """One line of a plan; ``seconds`` is an estimate, 0 where nothing is left to do, None where it depends on the network."""

    what: str
    state: Literal["on disk", "to do", "to fetch"]
    detail: str
    seconds: float | None = 0.0


def plan(context: BuildContext, domains: Sequence[str], size: str, options: BuildOptions | None = None) -> list[Step]:
    """``plan(context, ["healthcare"], "small")``: every stage of that build, in order.

    Without the teacher's files nothing is known of what is on disk, and there are no estimates.
    """
    options, family = options or BuildOptions(), context.family
    model = family.sizes[size].base
    fetched = [("teacher", family.teacher), ("encoder", family.encoder), *([("base", model)] if model else [])]
    steps = [_fetch(context, what, spec) for what, spec in fetched]
    if steps[0].state == "to fetch":
        return [*steps, *_unknown(context, domains, size, options)]
    models = resolve_models(family, context.specs.root, context.device)
    rate = matrix_rate(context.device)
    bases = _bases(context, models, size, options, rate)
    making = any(step.state == "to do" for step in bases)
    names = list(dict.fromkeys([*domains, *([domain.name for domain in context.public_domains] if making else [])]))
    return [
        *steps,
        *(_data(context, models, context.specs.domain(name), rate) for name in names),
        _router(context),
        *bases,
        *(_student(context, models, name, size, options, rate, making=making) for name in domains),
    ]


def _unknown(context: BuildContext, domains: Sequence[str], size: str, options: BuildOptions) -> list[Step]:
    """Everything after the teacher, whose files are not here yet."""
    names = dict.fromkeys([*domains, *(domain.name for domain in context.public_domains)])
    details = {f"data set {name}": _data_detail(context, context.specs.domain(name)) for name in names}
    details[f"base {base_name(context, size)}"] = _base_detail(context, context.family.sizes[size])
    details |= {f"student {student_name(name, size)}": _student_detail(context, name, options) for name in domains}
    return [Step(what, "to do", detail, None) for what, detail in details.items()]


def total_seconds(steps: Sequence[Step]) -> float:
    """``total_seconds(plan(...))``: of all that can be estimated."""
    return sum(step.seconds or 0.0 for step in steps)


def _fetch(context: BuildContext, what: str, spec: ModelSpec) -> Step:
    if is_cached(spec, context.specs.root):
        return Step(what, "on disk", f"{spec.model} ({spec.license})")
    return Step(what, "to fetch", f"{spec.model} ({spec.license})", None)


def _router(context: BuildContext) -> Step:
    detail = f"{len(context.public_domains)} domains and the general pool"
    if router_folder(context).exists():
        return Step("router", "on disk", detail)
    return Step("router", "to do", detail, ROUTER_SECONDS)


def _data(context: BuildContext, models: FamilyModels, spec: DomainSpec, rate: float) -> Step:
    folder = dataset_folder(spec, dataset_key(context, models.teacher_files.sha256, spec))
    if folder.exists():
        counts = load_dataset_folder(folder)[1].counts
        return Step(f"data set {spec.name}", "on disk", ", ".join(f"{split} {count}" for split, count in counts.items()))
    config = context.settings(spec).data
    prompts = round(config.max_examples * (1 + config.validation + config.test))
    seconds = generation_seconds(rate, models.teacher.parameters, prompts)
    return Step(f"data set {spec.name}", "to do", _data_detail(context, spec), seconds)


def _data_detail(context: BuildContext, spec: DomainSpec) -> str:
    config = context.settings(spec).data
    return f"at most {config.max_examples} training examples from {len(spec.sources)} sources; the teacher answers the prompts"


def _bases(context: BuildContext, models: FamilyModels, size: str, options: BuildOptions, rate: float) -> list[Step]:
    """The base, after the teacher assistant that it needs."""
    choice = choose_base(context, models.teacher_files.sha256, size, pinned=options.base, rebuild=options.rebuild_base)
    if choice.version is not None:
        detail = f"{choice.version.reference}{f' ({choice.reason})' if choice.reason else ''}"
        return [Step(f"base {base_name(context, size)}", "on disk", detail)]
    assistant, spec = context.family.teacher_assistant(size), context.family.sizes[size]
    before = _bases(context, models, assistant, BuildOptions(), rate) if assistant else []
    heal, domains = context.settings().heal, context.public_domains
    examples = sum(context.settings(domain).data.max_examples for domain in domains)
    seconds = scoring_seconds(rate, models.teacher.parameters, PRUNING_PASSES * 16 + examples) + training_seconds(
        rate, _base_parameters(models, spec), heal.steps * heal.batch
    )
    detail = f"{choice.reason + '; ' if choice.reason else ''}{_base_detail(context, spec)}"
    return [*before, Step(f"base {base_name(context, size)}", "to do", detail, seconds)]


def _base_parameters(models: FamilyModels, spec: SizeSpec) -> int:
    depth = int(models.teacher.config.get_text_config().num_hidden_layers)
    return round(models.teacher.parameters * (spec.layers or depth) / depth)


def _base_detail(context: BuildContext, spec: SizeSpec) -> str:
    heal = context.settings().heal
    made = f"{spec.layers} layers of the teacher" if spec.base is None else spec.base.model
    kept = f"{spec.vocabulary:,} tokens" if spec.vocabulary else "the teacher's vocabulary"
    on = ", ".join(domain.name for domain in context.public_domains)
    return f"{made}, {kept}; healed for {heal.steps} steps of {heal.batch} on {on}"


def _student(
    context: BuildContext,
    models: FamilyModels,
    name: str,
    size: str,
    options: BuildOptions,
    rate: float,
    *,
    making: bool,
) -> Step:
    spec = context.specs.domain(name)
    settings, parameters = context.settings(spec), _base_parameters(models, context.family.sizes[size])
    trainings = 2 if options.baselines else 1
    seconds = (
        (0 if making else scoring_seconds(rate, models.teacher.parameters, settings.data.max_examples))
        + trainings * training_seconds(rate, parameters, settings.distill.steps * settings.distill.batch)
        + generation_seconds(rate, models.teacher.parameters, settings.evaluate.general + 40)
        + 3 * scoring_seconds(rate, models.teacher.parameters, settings.evaluate.examples + 2 * settings.evaluate.general)
        + scoring_seconds(rate, models.teacher.parameters, EVALUATED_EXAMPLES)
    )
    return Step(f"student {student_name(name, size)}", "to do", _student_detail(context, name, options), seconds)


def _student_detail(context: BuildContext, name: str, options: BuildOptions) -> str:
    settings = context.settings(context.specs.domain(name))
    distill, measured = settings.distill, settings.evaluate
    sft = "; the SFT baseline for as many" if options.baselines else ""
    others = ", ".join(domain.name for domain in context.public_domains if domain.name != name)
    return (
        f"distil for {distill.steps} steps of {distill.batch}{sft}; evaluate on at most {measured.examples} test prompts, "
        f"{measured.general} general ones{f', and what exists of {others}' if others else ''}"
    )
