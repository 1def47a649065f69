"""A base that has to fit a device: fewer tokens, fewer layers or fewer neurons, whichever leaves it nearest to its teacher.

options = size_options(models, SizeSpec(max_bytes=80_000_000))  # what fits, with its bytes
made = fit_device(context, models, options, datasets)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, nan

import numpy as np

from factory.config.schema import SizeSpec
from factory.errors import TrainingError
from factory.evaluation.fidelity import fixed_model, measure
from factory.evaluation.stats import paired_difference
from factory.export.gguf import gguf_bytes, gguf_metadata_bytes
from factory.models.base import count_parameters
from factory.models.dimensions import Dimensions, dimensions_of, fitting_layers, fitting_width, resized, whole_dimensions
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.cutting import CutBase, choose_base_tokens, cut_base
from factory.pipeline.dataset import DomainDataset
from factory.pipeline.healing import direct_path, held_out_examples, probe, probe_steps
from factory.pipeline.precheck import require_teachers
from factory.pipeline.trimmed import TrimmedBase, trim_base
from factory.registry.size_choice import SizeCandidate, SizeChoice
from factory.reports.format import format_metric, format_number

MIN_TOKENS = 16_000  # fewer cost real text too much (docs/design.md)
LONGEST_NAME = "x" * 100  # that a version may have in its file


@dataclass(frozen=True)
class SizeOption:
    """One way to fit a number of bytes."""

    size: SizeSpec  # that states it
    dimensions: Dimensions
    vocabulary: int  # tokens at most
    bytes: int  # of the base's GGUF file at most

    @property
    def kind(self) -> str:
        """In what it is less than the teacher."""
        if self.size.trimmed:
            return "fewer tokens"
        return "fewer layers" if self.size.layers else "fewer neurons"

    @property
    def alone(self) -> str:
        """Why it is the only one."""
        return "nothing has to be pruned" if self.size.trimmed else "nothing else fits"

    def __str__(self) -> str:
        return f"{self.dimensions}, {self.vocabulary:,} tokens: {format_number(self.bytes, 'bytes')}"


def size_options(models: FamilyModels, size: SizeSpec) -> list[SizeOption]:
    """``size_options(models, SizeSpec(max_bytes=80_000_000))``: the most of the teacher that fits, in each of three ways.

    All of it with fewer tokens, where 16,000 fit; as many layers, and as many neurons of every MLP, as fit with all tokens, or
    those of ``size.vocabulary``. Metadata counts by the share of tokens kept, a little too much: long tokens leave first.
    Raises: TrainingError where nothing fits; ExportError where the teacher cannot be written as GGUF.
    """
    budget, grid, config = size.max_bytes or 0, size.grid or "q4_1", models.teacher.config
    every, whole = len(models.tokenizer), whole_dimensions(models.teacher.config)
    most = min(size.vocabulary or every, every)
    metadata = gguf_metadata_bytes(config, models.tokenizer, grid, name=LONGEST_NAME, license=models.family.teacher.license)

    def bytes_of(dimensions: Dimensions, tokens: int = most) -> int:
        rows = tokens if tokens < every else None  # without trimming, rows that stand for no token stay
        return gguf_bytes(resized(config, dimensions, rows), grid, ceil(metadata * tokens / every))

    def option(tokens: int, layers: int | None = None, width: int | None = None) -> SizeOption:
        heal = size.heal if layers or width else {}
        stated = SizeSpec(layers=layers, intermediate_size=width, vocabulary=tokens, quantization=grid, heal=heal)
        dimensions = dimensions_of(stated, config)
        return SizeOption(stated, dimensions, tokens, bytes_of(dimensions, tokens))

    found, enough = [], range(min(MIN_TOKENS, most), most + 1)
    if fitting := bisect_right(enough, budget, key=lambda tokens: bytes_of(whole, tokens)):
        found.append(option(enough[fitting - 1]))
    if bytes_of(whole) > budget:
        if layers := fitting_layers(whole, budget, bytes_of):
            found.append(option(most, layers=layers))
        if width := fitting_width(whole, whole.layers, budget, bytes_of):
            found.append(option(most, width=width))
    if not found:
        least = min(bytes_of(Dimensions(1, whole.intermediate_size)), bytes_of(replace(whole, intermediate_size=32)))
        raise TrainingError(
            f"{budget:,} bytes do not hold any part of the teacher with {most:,} tokens in {grid} ({least:,} at least): "
            "give more, or a smaller `vocabulary`"
        )
    return found


def fit_device(
    context: BuildContext, models: FamilyModels, options: Sequence[SizeOption], datasets: Sequence[DomainDataset]
) -> TrimmedBase | CutBase:
    """``fit_device(context, models, size_options(models, size), datasets)``: the one nearest to the teacher, not healed yet.

    Pruned ones are healed for an eighth of the steps, a trimmed one is measured as it is: on held-out text, beside the whole
    teacher with its contexts, in nats per token of the whole teacher. The result's ``choice`` says what was tried. A single
    option is not measured, and a trimmed one alone needs no ``datasets``.
    """
    made = [_make(context, models, option.size, datasets) for option in options]
    if len(options) == 1:
        return replace(made[0], choice=_choice(options, made, [nan], 0, options[0].alone))
    held_out = held_out_examples(datasets, models.teacher)
    tokens = np.array([len(one.completion) for one in held_out], dtype=float)  # (E,)
    distances = [_distance(context, models, one, datasets) for one in made]  # (E,) each
    kl = [float(one.sum() / tokens.sum()) for one in distances]
    chosen, second = sorted(range(len(options)), key=lambda i: kl[i])[:2]
    steps = probe_steps(context)
    reason = f"the least KL to the teacher on {len(held_out)} held-out examples, pruned ones after {steps} healing steps"
    choice = _choice(options, made, kl, chosen, reason)
    ahead = paired_difference(distances[second], distances[chosen], tokens, context.bootstrap)
    context.say(f"{options[chosen].kind}: {reason}; ahead of {options[second].kind} by {format_metric(ahead)} nats/token")
    return replace(made[chosen], choice=choice.model_copy(update={"ahead": ahead}))


def _make(
    context: BuildContext, models: FamilyModels, size: SizeSpec, datasets: Sequence[DomainDataset]
) -> TrimmedBase | CutBase:
    if size.trimmed:
        return trim_base(context, models, size)
    cut = cut_base(context, models, size, datasets, choose_base_tokens(context, models, size, datasets))
    require_teachers(context, models, datasets, cut)
    return cut


def _distance(
    context: BuildContext, models: FamilyModels, made: TrimmedBase | CutBase, datasets: Sequence[DomainDataset]
) -> np.ndarray:
    """(E,) KL(whole teacher ‖ base) in nats, summed over each held-out example."""
    if isinstance(made, TrimmedBase):
        held_out, candidate = held_out_examples(datasets, made.teacher), {"base": fixed_model(made.base.model)}
        sums = measure(made.teacher, candidate, held_out, whole=models.teacher)["base"]
    else:
        path = direct_path(context, models, made, datasets)
        sums = probe(context, path, made.teacher, datasets, whole=models.teacher).sums
    distance: np.ndarray = sums.kl + sums.trimmed
    return distance


def _choice(
    options: Sequence[SizeOption], made: Sequence[TrimmedBase | CutBase], kl: Sequence[float], chosen: int, reason: str
) -> SizeChoice:
    candidates = tuple(
        SizeCandidate(
            layers=option.dimensions.layers,
            intermediate_size=option.dimensions.intermediate_size,
            vocabulary=option.vocabulary,
            parameters=count_parameters(one.base.model),
            bytes=option.bytes,
            kl=value,
        )
        for option, one, value in zip(options, made, kl, strict=True)
    )
    return SizeChoice(candidates=candidates, chosen=chosen, reason=reason)
