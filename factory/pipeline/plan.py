"""What a build would do: the models it fetches, the stages that are on disk already, and how long the rest takes.

    for step in plan(make_context(specs, specs.family("gemma"), registry=registry), ["veterinary"], "gemma-small"):
        print(step.what, step.state, step.detail)

Nothing is made or fetched.
"""

from __future__ import annotations

from collections.abc import Sequence

from factory.cache import is_intact
from factory.config.schema import ApiTeacherSpec, DataConfig, DomainSpec, FamilySpec, ModelSpec, Settings, TeacherAdaptation
from factory.data.dataset import load_dataset_folder
from factory.export.foresight import llamacpp_notes
from factory.models.chat import NO_CONTEXT, messages, prompt_ids
from factory.models.references import is_cached
from factory.pipeline.api_teacher import describe_api, licence_duties, require_teachable
from factory.pipeline.base_choice import base_name
from factory.pipeline.build import BuildOptions
from factory.pipeline.context import BuildContext, FamilyModels, resolve_models, taught
from factory.pipeline.dataset import dataset_folder, dataset_key, router_folder
from factory.pipeline.estimate import (
    adapter_seconds,
    answer_tokens,
    evaluation_seconds,
    example_tokens,
    generation_seconds,
    matrix_rate,
    scoring_seconds,
)
from factory.pipeline.plan_answers import KnownAnswers, answer_steps, known_answers
from factory.pipeline.plan_base import BasePlan, base_detail, plan_base
from factory.pipeline.plan_base import Step as Step
from factory.pipeline.plan_languages import language_steps
from factory.pipeline.plan_memory import memory_steps
from factory.pipeline.publish import student_name
from factory.pipeline.teacher_adaptation import adaptation_folder

ROUTER_SECONDS = 30.0  # of embedding the texts of a few domains


def plan(
    context: BuildContext,
    domains: Sequence[str],
    size: str,
    options: BuildOptions | None = None,
    *,
    sample: bool = False,
) -> list[Step]:
    """``plan(context, ["healthcare"], "small")``: every stage of that build, in order.

    Without the teacher's files nothing is known of what is on disk, and there are no estimates. With ``sample`` the teacher
    answers some prompts of these domains, to see how long its answers are.
    Raises: DataError for a file that cannot be used.
    """
    options, family = options or BuildOptions(), context.family
    own = [context.specs.domain(name) for name in dict.fromkeys(domains)]
    for spec in own:
        require_teachable(family, context.profile, spec)
    model = family.sizes[size].base
    teacher: list[tuple[str, ModelSpec]] = [] if family.api else [("teacher", family.weights)]
    teachers = [(f"teacher of {spec.name}", spec.teacher) for spec in own if spec.teacher is not None]
    fetched = [*teacher, *teachers, ("encoder", family.encoder), *([("base", model)] if model else [])]
    steps = [*_api(family), *(_fetch(context, what, spec) for what, spec in fetched)]
    if not all(is_cached(spec, context.specs.root) for spec in (family.files, *(spec for _, spec in teachers))):
        return [*steps, *_unknown(context, domains, size, options)]
    models = resolve_models(family, context.specs.root, context.device)
    rate, who = matrix_rate(context.device), {spec.name: taught(context, models, spec) for spec in own}
    base = plan_base(context, models, size, options, rate, own)
    others = _of_base(context, own) if base.heals else []
    known = {spec.name: known_answers(context, models, spec) for spec in [*own, *others]}
    return [
        *steps,
        *(Step("teacher", "on disk", note) for note in [*models.teacher_files.notes, *_in_llamacpp(context, models, size)]),
        *(step for spec in own for step in _data(context, who[spec.name], spec, rate, known[spec.name], sample)),
        *(step for spec in others for step in _data(context, models, spec, rate, known[spec.name])),
        _router(context),
        *base.steps,
        *memory_steps(context, models, size, own, known, heals=base.heals),
        *(
            step
            for name in domains
            for step in (
                _student(context, who[name], name, size, options, rate, base),
                _evaluation(context, who[name], name, size, rate, base),
            )
        ),
    ]


def _in_llamacpp(context: BuildContext, models: FamilyModels, size: str) -> list[str]:
    return llamacpp_notes(models.teacher.config, models.tokenizer, context.family.sizes[size])


def _api(family: FamilySpec) -> list[Step]:
    """What has to be known of an API before anything is sent there."""
    if family.api is None:
        return []
    return [Step("teacher", "elsewhere", text) for text in (describe_api(family.api), licence_duties(family.api))]


def _unknown(context: BuildContext, domains: Sequence[str], size: str, options: BuildOptions) -> list[Step]:
    """Everything after the teacher, whose files are not here yet."""
    trimmed = context.family.sizes[size].trimmed or context.family.api is not None
    own = [context.specs.domain(name) for name in domains]
    details = {}
    for spec in [*own, *([] if trimmed else _of_base(context, own))]:
        if spec.teacher_adaptation is not None:
            details[f"adapted teacher of {spec.name}"] = _adaptation_detail(spec.teacher_adaptation)
        details[_data_name(context, spec)] = _data_detail(context, spec)
    details[f"base {base_name(context, size)}"] = base_detail(context, size)
    for name in domains:
        details[f"student {student_name(name, size)}"] = _student_detail(context, name, options)
        details[f"evaluation of {student_name(name, size)}"] = _evaluation_detail(context, name)
    return [Step(what, "to do", detail, None) for what, detail in details.items()]


def total_seconds(steps: Sequence[Step]) -> float:
    """``total_seconds(plan(...))``: of all that can be estimated."""
    return sum(step.seconds or 0.0 for step in steps)


def _fetch(context: BuildContext, what: str, spec: ModelSpec) -> Step:
    if is_cached(spec, context.specs.root):
        return Step(what, "on disk", f"{spec.model} ({spec.license})")
    return Step(what, "to fetch", f"{spec.model} ({spec.license})", None)


def _router(context: BuildContext) -> Step:
    count = len(context.routed_domains)
    detail = f"{count} domain{'s' if count > 1 else ''} and the general pool"
    if is_intact(router_folder(context)):
        return Step("router", "on disk", detail)
    return Step("router", "to do", detail, ROUTER_SECONDS)


def _of_base(context: BuildContext, own: Sequence[DomainSpec]) -> list[DomainSpec]:
    """The domains that a base is healed on, answered by the teacher as it is; without those that students need so."""
    return [spec for domain in context.healing_domains if (spec := domain.unadapted()) not in own]


def _data(
    context: BuildContext, models: FamilyModels, spec: DomainSpec, rate: float, known: KnownAnswers, sample: bool = False
) -> list[Step]:
    """The data set, after the teacher that is adapted to the domain for it; and how long its answers are."""
    key = dataset_key(context, models.teacher_files.sha256, spec)
    before = _adaptation(context, models, spec, key, rate)
    after = [*language_steps(context, spec, known), *answer_steps(context, models, spec, known, sample)]
    folder, what = dataset_folder(spec, key), _data_name(context, spec)
    if is_intact(folder):
        counts = load_dataset_folder(folder)[1].counts
        return [*before, Step(what, "on disk", ", ".join(f"{split} {count}" for split, count in counts.items())), *after]
    config = context.settings(spec).data
    prompts = round(config.max_examples * (1 + config.validation + config.test) * known.unanswered)
    detail = _data_detail(context, spec, known.unanswered)
    if context.family.api is not None:
        most = _most_asked(context.family.api, prompts, spec, config)
        return [*before, Step(what, "to do", f"{detail}; {most}", None), *after]
    seconds = max(1.0, generation_seconds(rate, models.teacher.parameters, prompts * answer_tokens(config)))
    return [*before, Step(what, "to do", detail, seconds), *after]


def _most_asked(api: ApiTeacherSpec, prompts: int, spec: DomainSpec, config: DataConfig) -> str:
    """What the prompts of a domain cost at most, without those that are sent twice."""
    shown = max(api.most({"messages": messages("", one)})["prompt_tokens"] for one in spec.contexts.all)
    usage = {
        "prompt_tokens": prompts * (shown + config.max_prompt_tokens),
        "completion_tokens": prompts * config.max_completion_tokens,
    }
    cost = f" for {api.cost(usage):.4g}" if api.price else ""
    return f"at most {prompts:,} requests, {sum(usage.values()):,} tokens{cost}"


def _data_name(context: BuildContext, spec: DomainSpec) -> str:
    """Where another teacher teaches a domain's students, a base has another data set of the domain."""
    known = context.specs.domains.get(spec.name)  # none where the data is the general pool's
    shared = not spec.has_own_teacher and known is not None and known.has_own_teacher
    return f"data set {spec.name}{' of the base' if shared else ''}"


def _adaptation(context: BuildContext, models: FamilyModels, spec: DomainSpec, key: str, rate: float) -> list[Step]:
    settings = spec.teacher_adaptation
    if settings is None:
        return []
    what, detail = f"adapted teacher of {spec.name}", _adaptation_detail(settings)
    if is_intact(adaptation_folder(key)):
        return [Step(what, "on disk", detail)]
    own, shown = (len(prompt_ids(models.tokenizer, "?", one)) for one in (NO_CONTEXT, spec.teacher_context))
    average = example_tokens(context.settings(spec).data) + shown - own  # it reads the context each time
    seconds = adapter_seconds(rate, models.teacher.parameters, settings.steps * settings.batch * average)
    return [Step(what, "to do", detail, seconds)]


def _adaptation_detail(settings: TeacherAdaptation) -> str:
    return f"LoRA on the domain's references for {settings.steps} steps of {settings.batch}"


def _data_detail(context: BuildContext, spec: DomainSpec, unanswered: float = 1.0) -> str:
    config, count = context.settings(spec).data, len(spec.sources)
    answers = {0.0: "nothing is left for the teacher to answer", 1.0: "the teacher answers the prompts"}.get(
        unanswered, f"the teacher answers {unanswered:.0%} of the prompts"
    )
    return f"at most {config.max_examples} training examples from {count} source{'s' if count > 1 else ''}; {answers}"


def _teacher_parameters(models: FamilyModels) -> int:
    """Of what runs here: none behind an API."""
    return 0 if models.teacher.api else models.teacher.parameters


def _student(
    context: BuildContext,
    models: FamilyModels,
    name: str,
    size: str,
    options: BuildOptions,
    rate: float,
    base: BasePlan,
) -> Step:
    spec = context.specs.domain(name)
    settings = context.settings(spec)
    distill, average = settings.distill, example_tokens(settings.data)
    known = base.heals and not spec.has_own_teacher  # scored by the base's teacher, for its healing
    scored = 0 if known else settings.data.max_examples * average
    general = round(distill.general * settings.data.max_examples) * answer_tokens(settings.data)
    trained = distill.steps * distill.batch * average * (2 if options.baselines else 1)
    own = distill.on_policy.steps * distill.batch if distill.on_policy else 0
    beside = trained * bool(distill.feature) + own * average  # what the teacher reads while the student learns
    seconds = (
        scoring_seconds(rate, _teacher_parameters(models), scored + beside)
        + generation_seconds(rate, _teacher_parameters(models), general)
        + generation_seconds(rate, base.parameters, own * answer_tokens(settings.data))
        + adapter_seconds(rate, base.parameters, trained + own * average)
        + scoring_seconds(rate, base.parameters, settings.embed.texts * average // 2)  # a prompt or an answer, not both
        + generation_seconds(rate, base.parameters, 2 * _confidence_prompts(settings) * answer_tokens(settings.data))
    )
    return Step(f"student {student_name(name, size)}", "to do", _student_detail(context, name, options), seconds)


def _confidence_prompts(settings: Settings) -> int:
    """Validation prompts whose answers a confidence is fitted on, and as many test prompts, about."""
    return min(settings.confidence.examples, round(settings.data.validation * settings.data.max_examples))


def _student_detail(context: BuildContext, name: str, options: BuildOptions) -> str:
    spec = context.specs.domain(name)
    settings, canaries = context.settings(spec), options.canaries_in(spec)
    distill, texts = settings.distill, settings.embed.texts
    secrets = f" with {canaries} planted secrets" if canaries else ""
    sft = "; the SFT baseline for as many" if options.baselines else ""
    most = "at most " if distill.checks else ""
    head = f"; an embedding head on {texts} texts" if texts else ""
    sure = _confidence_prompts(settings)
    confidence = f"; how sure it is, on {sure} answers" if sure else ""
    own = f", then {distill.on_policy.steps} on its own samples" if distill.on_policy else ""
    return f"distil for {most}{distill.steps} steps of {distill.batch}{own}{secrets}{sft}{head}{confidence}"


def _evaluation(context: BuildContext, models: FamilyModels, name: str, size: str, rate: float, base: BasePlan) -> Step:
    """What is measured before the verdict, of teacher, student and base, and how long that takes."""
    spec = context.specs.domain(name)
    settings, asked = context.settings(spec), _asked(context, spec)
    config, average, answer = settings.evaluate, example_tokens(settings.data), answer_tokens(settings.data)
    sentences = 2 * config.bias_pairs * bool(spec.bias_pairs) + 4 * config.task_items * len(spec.tasks)
    scored = (config.examples + 2 * config.general) * average
    seconds = (
        evaluation_seconds(
            rate,
            [_teacher_parameters(models), base.parameters],
            scored=scored,
            sentences=sentences,
            written=sum(asked.values()) * answer,
        )
        + scoring_seconds(rate, base.parameters, scored)  # the base
        + generation_seconds(rate, _teacher_parameters(models), config.general * answer)
    )
    return Step(f"evaluation of {student_name(name, size)}", "to do", _evaluation_detail(context, name), seconds)


def _asked(context: BuildContext, spec: DomainSpec) -> dict[str, int]:
    """How many prompts are answered at most, by what they ask for."""
    config, family = context.settings(spec).evaluate, context.family
    return {
        "golden-set questions": config.golden_set * bool(spec.golden_set),
        "prompts to decline and look-alikes": config.refusals * bool(spec.refusals),
        "attacks": config.safety * (bool(family.injections) + bool(family.jailbreaks)),
    }


def _evaluation_detail(context: BuildContext, name: str) -> str:
    spec = context.specs.domain(name)
    config = context.settings(spec).evaluate
    others = ", ".join(domain.name for domain in context.public_domains if domain.name != name)
    counts = {"test prompts": config.examples, "general ones": config.general} | _asked(context, spec)
    counts |= {"sentence pairs": config.bias_pairs * bool(spec.bias_pairs)}
    counts |= {"task items": config.task_items * len(spec.tasks)}
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    return f"on at most {', '.join(parts)}{f'; what exists of {others}' if others else ''}"
