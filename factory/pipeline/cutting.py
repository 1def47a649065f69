"""How a base is cut from its teacher, on examples of every public domain as the teacher sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from factory.config.schema import SizeSpec
from factory.models.base import Base, choose_tokens, load_external_base, trim_teacher, trimming_cost
from factory.models.chat import messages
from factory.models.cutting import PrunedTeacher, Tried, prune_teacher, pruning_steps
from factory.models.dimensions import Dimensions, dimensions_of, dimensions_within
from factory.models.forward import Batch
from factory.models.references import resolve
from factory.models.scoring import student_batches
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample, row_text, tokenize_examples
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import DomainDataset, general_examples
from factory.registry.size_choice import SizeCandidate, SizeChoice

CALIBRATION_EXAMPLES = 64  # on which layers and neurons are chosen; behind the cost of trimming, too


@dataclass(frozen=True)
class CutBase:
    """A base before healing, with the teacher in its vocabulary."""

    base: Base
    teacher: Teacher  # trimmed to the base's vocabulary
    vocabulary_cost: dict[str, float]  # kept_mass, kl_to_full_teacher, positions
    calibration: tuple[TokenizedExample, ...]  # on which layers and neurons were chosen
    batches: tuple[Batch, ...]  # the same, as a student sees it
    tokens: tuple[int, ...] | None  # of the whole teacher's
    choice: SizeChoice | None = None  # what its budget was spent on, where it has one


def cut_base(
    context: BuildContext,
    models: FamilyModels,
    size: SizeSpec,
    datasets: Sequence[DomainDataset],
    tokens: tuple[int, ...] | None,
) -> CutBase:
    """``cut_base(context, models, family.sizes["small"], datasets, tokens)``: not healed yet.

    It has the chosen layers, neurons and tokens of the teacher, or is the model that the size names.
    """
    teacher = trim_teacher(models.teacher, tokens)
    dimensions = _wanted(size, teacher)
    steps = 1 + (pruning_steps(teacher, dimensions) if size.base is None else 0)
    with context.meter.stage("prune"), context.progress("base: layers, neurons and tokens", steps) as advance:
        examples = calibration_examples(datasets, teacher)
        batches = tuple(batch.to(context.device) for batch in student_batches(examples, 16))
        if size.base is not None:
            pruned = PrunedTeacher(load_external_base(resolve(size.base, root=context.specs.root).folder, teacher))
        else:
            pruned = prune_teacher(teacher, tokens, dimensions, examples, advance)
        to_device(pruned.base, context.device)
        cost = trimming_cost(models.teacher, teacher, tokens, batches)
        advance(1)
    choice = _choice(pruned.tried, len(teacher.tokenizer), len(examples)) if pruned.tried else None
    return CutBase(pruned.base, teacher, cost, tuple(examples), batches, tokens, choice)


def _wanted(size: SizeSpec, teacher: Teacher) -> list[Dimensions]:
    if size.parameters is not None:
        return dimensions_within(teacher.config, size.parameters)
    return [dimensions_of(size, teacher.config)]


def _choice(tried: Sequence[Tried], vocabulary: int, examples: int) -> SizeChoice:
    candidates = tuple(
        SizeCandidate(
            layers=one.dimensions.layers,
            intermediate_size=one.dimensions.intermediate_size,
            vocabulary=vocabulary,
            parameters=one.parameters,
            kl=one.kl,
        )
        for one in tried
    )
    chosen = min(range(len(candidates)), key=lambda i: candidates[i].kl)
    reason = f"the least KL to the teacher of {len(candidates)}, unhealed, on {examples} calibration examples"
    return SizeChoice(candidates=candidates, chosen=chosen, reason=reason)


def choose_base_tokens(
    context: BuildContext, models: FamilyModels, size: SizeSpec, datasets: Sequence[DomainDataset]
) -> tuple[int, ...] | None:
    """``choose_base_tokens(context, models, size, datasets)``: old ids to keep, by the family's text; None keeps them all.

    The text is training examples, the teacher's contexts and general prompts.
    """
    texts = [row_text(row) for data in datasets for row in data.rows["train"]]
    texts += [turn["content"] for data in datasets for shown in data.spec.contexts.all for turn in messages("", shown)]
    texts += [example.prompt for example in general_examples(context, models)]
    return choose_tokens(models.teacher, texts, size)


def calibration_examples(datasets: Sequence[DomainDataset], teacher: Teacher) -> list[TokenizedExample]:
    """``calibration_examples(datasets, trimmed_teacher)``: the first training examples of every domain in turn, 64 in all."""
    by_domain = [
        tokenize_examples(
            data.rows["train"].select(range(min(CALIBRATION_EXAMPLES, len(data.rows["train"])))),
            teacher.tokenizer,
            data.spec.contexts,
        )
        for data in datasets
    ]
    in_turn = [one for group in zip_longest(*by_domain) for one in group if one is not None]
    return in_turn[:CALIBRATION_EXAMPLES]


def to_device(base: Base, device: torch.device) -> None:
    """``to_device(base, context.device)``: in place."""
    untyped: Any = base.model
    untyped.to(device)
