"""The teacher pre-check: before anything is trained, does the teacher know the domain that it is to teach?"""

from __future__ import annotations

from collections.abc import Sequence

from factory.errors import TrainingError
from factory.evaluation.fidelity import Candidate, fixed_model, teacher_model
from factory.evaluation.lm_eval import run_tasks
from factory.evaluation.teacher_check import TeacherCheck, check_teacher, references
from factory.models.base import trimming_cost
from factory.models.scoring import student_batches
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.cutting import CutBase
from factory.pipeline.dataset import DomainDataset

CHECKED_REFERENCES = 64  # of a domain's held-out references


def check_domain(
    context: BuildContext,
    models: FamilyModels,
    data: DomainDataset,
    teacher: Teacher,
    base: Candidate,
    tokens: Sequence[int] | None,
    *,
    tasks: Sequence[str] = (),
    trimmed: bool = False,
) -> TeacherCheck:
    """``check_domain(context, models, data, trimmed_teacher, base, tokens).reasons``: whether the teacher knows the domain."""
    if teacher.api is not None:
        return unchecked(context, data, teacher, base, tasks)
    with context.meter.stage("check"), context.progress(f"{data.spec.name}: teacher pre-check", 1) as advance:
        settings = context.settings(data.spec)
        items = settings.evaluate.task_items
        rows = references(data.held_out)[:CHECKED_REFERENCES]
        held_out = tokenize_examples(rows, teacher.tokenizer, data.spec.contexts)
        batches = [batch.to(context.device) for batch in student_batches(held_out, 16)]
        cost = trimming_cost(models.teacher, teacher, tokens, batches)
        training = teacher.tokenizer(list(data.rows["train"]["completion"]), add_special_tokens=False)["input_ids"]
        both = {"teacher": teacher_model(teacher), "base": base}
        found = check_teacher(
            teacher,
            base,
            held_out,
            training,
            context.bootstrap,
            kept_mass=cost["kept_mass"],
            trimmed=trimmed,
            learns_references=data.spec.teacher_adaptation is not None
            or (settings.distill.ground_truth > 0 and any(data.rows["train"]["own_completion"])),
            tasks=run_tasks(both, teacher.tokenizer, tasks, root=context.specs.root, limit=items) if tasks and items else (),
        )
        advance(1)
    return found


def unchecked(
    context: BuildContext, data: DomainDataset, teacher: Teacher, base: Candidate, tasks: Sequence[str]
) -> TeacherCheck:
    """``unchecked(context, data, teacher, base, tasks).warnings``: behind an API; what the base scores on tasks."""
    items = context.settings(data.spec).evaluate.task_items
    asked = tasks if items else ()
    scores = run_tasks({"base": base}, teacher.tokenizer, asked, root=context.specs.root, limit=items)
    warning = "the teacher pre-check was not made: an API does not say how likely its teacher finds the domain's references"
    return TeacherCheck({}, (), (warning,), scores)


def require_teachers(context: BuildContext, models: FamilyModels, datasets: Sequence[DomainDataset], cut: CutBase) -> None:
    """``require_teachers(context, models, datasets, cut)``: before a base is healed on these domains.

    A domain that names a teacher of its own is left out: the family's is not who teaches its students.
    Raises: TrainingError as ``require_teacher`` does.
    """
    own = {spec.name for spec in context.specs.domains.values() if spec.teacher is not None}
    for data in [data for data in datasets if data.spec.name not in own]:
        check = check_domain(context, models, data, cut.teacher, fixed_model(cut.base.model), cut.tokens)
        require_teacher(context, data, check)


def require_teacher(context: BuildContext, data: DomainDataset, check: TeacherCheck) -> list[str]:
    """``warnings = require_teacher(context, data, check)``: what the card must say of a teacher that failed its pre-check.

    Raises: TrainingError with the figures, unless the context is to ``force`` the build.
    """
    if check.reasons and not context.force:
        raise TrainingError(
            f"teacher pre-check failed for {data.spec.name}: {'; '.join(check.reasons)}. Better references, a teacher_context "
            "or another teacher would help; --force builds anyway, and the card says so"
        )
    forced = [f"built with --force although the teacher pre-check failed: {reason}" for reason in check.reasons]
    return [*forced, *check.warnings]
