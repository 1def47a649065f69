"""A vocabulary that lasts: what a new domain's text lacks in a published base is added to it, as rows after the old ones.

    gap = find_gap(context, models, manifest, load_shape(version.folder).tokens, spec)
    grown = grow(context, models, load_base(version.folder, context.device), manifest, gap) if gap else None

Every old token keeps its id and its row, so nothing is healed or chosen again, and an adapter that was trained before is as
valid on the grown base as on its own. A private domain's text adds no token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factory.config.schema import DomainSpec
from factory.models.base import Base, count_parameters, trim_teacher, trimming_cost
from factory.models.growth import grow_base
from factory.models.vocabulary import count_tokens, missing_tokens, trim_tokenizer
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import general_examples
from factory.pipeline.provenance import energy_info
from factory.pipeline.trimmed import domain_texts, scored_batches, text_key, vocabulary_info
from factory.registry.manifest import BaseManifest, VocabularyGrowth
from factory.registry.provenance import library_versions

# More tokens than with the teacher's tokenizer, before tokens are added, or a student's card warns. Each per cent costs up
# to 0.028 bits per byte (docs/log.md, "a vocabulary that lasts"), and 0.01 is as much as should be lost.
MAX_GROWTH = 0.005
MAX_ROWS = 0.1  # of the size's `vocabulary`: all that a base may grow by, before its tokens should be chosen anew


@dataclass(frozen=True)
class TextFit:
    """How a vocabulary fits a text: both are 0 where the text lacks nothing."""

    growth: float  # 0.06: the text takes 6 % more tokens than with the teacher's tokenizer
    missing: float  # share of the text's tokens, in the teacher's tokenizer, that the vocabulary lacks


@dataclass(frozen=True)
class VocabularyGap:
    """What a domain's text lacks in a base, and what would be added for it."""

    domain: DomainSpec
    texts: Sequence[str]
    counts: Counter[int]  # of the texts' tokens, in the teacher's tokenizer
    fit: TextFit  # as the base is
    tokens: tuple[int, ...]  # of the teacher's, to be added


@dataclass(frozen=True)
class GrownBase:
    """A base with more tokens, and the manifest to publish it with."""

    base: Base
    manifest: BaseManifest


def find_gap(
    context: BuildContext, models: FamilyModels, manifest: BaseManifest, kept: tuple[int, ...] | None, domain: DomainSpec
) -> VocabularyGap | None:
    """``find_gap(context, models, manifest, load_shape(version.folder).tokens, spec)``: None where no token is to be added.

    So it is where the domain is private, its text had its say when the tokens were chosen, it takes at most ``MAX_GROWTH`` more
    tokens than with the teacher's tokenizer, or the base has grown by ``MAX_ROWS`` already.
    """
    size, known = context.family.sizes[manifest.size], manifest.vocabulary.chosen_by.get(domain.name)
    if kept is None or size.vocabulary is None or domain.private or known == text_key(context, domain):
        return None
    texts = domain_texts(context, models, domain)
    tokenizer: Any = models.tokenizer
    counts = count_tokens(tokenizer, texts)
    if not counts:  # the teacher writes all of its prompts
        return None
    fit = _fit(trim_tokenizer(tokenizer, kept), kept, texts, counts)
    room = round((1 + MAX_ROWS) * size.vocabulary) - len(kept)
    tokens = missing_tokens(tokenizer, kept, counts, room) if fit.growth > MAX_GROWTH else ()
    return VocabularyGap(domain, texts, counts, fit, tokens) if tokens else None


def _fit(trimmed: Any, kept: Sequence[int], texts: Sequence[str], counts: Counter[int]) -> TextFit:
    """Of the texts in a trimmed tokenizer, and ``counts`` of their tokens in the whole one."""
    needed, whole = count_tokens(trimmed, texts).total(), counts.total()
    return TextFit(needed / whole - 1, 1 - sum(counts[token] for token in kept) / whole)


def grow(context: BuildContext, models: FamilyModels, base: Base, manifest: BaseManifest, gap: VocabularyGap) -> GrownBase:
    """``grow(context, models, base, manifest, find_gap(...)).manifest.grown[-1].rows``: a published base with the gap's tokens.

    Its manifest is that of the version that it was grown from, but for the vocabulary and what growing cost.
    """
    with context.meter.stage("grow"), context.progress("base: more tokens", 1) as advance:
        grown = grow_base(base, models.teacher, gap.tokens, manifest.quantization)
        kept = grown.shape.tokens or ()
        trimmed = trim_teacher(models.teacher, kept)
        texts = [
            gap.texts if domain.name == gap.domain.name else domain_texts(context, models, domain)
            for domain in context.public_domains
        ]
        general = [example.prompt for example in general_examples(context, models)]
        batches = scored_batches(context, trimmed, [*texts, general])
        cost = trimming_cost(models.teacher, trimmed, kept, batches)
        fit = _fit(trimmed.tokenizer, kept, gap.texts, gap.counts)
        advance(1)
    chosen_by = manifest.vocabulary.chosen_by | {gap.domain.name: text_key(context, gap.domain)}
    added = VocabularyGrowth(
        domain=gap.domain.name,
        rows=len(gap.tokens),
        growth_before=gap.fit.growth,
        growth_after=fit.growth,
        missing_before=gap.fit.missing,
        missing_after=fit.missing,
    )
    changes: dict[str, Any] = {
        "parameters": count_parameters(grown.model),
        "vocabulary": vocabulary_info(models, trimmed, cost, chosen_by),
        "grown_from": f"{manifest.name}@{manifest.version}",
        "grown": (*manifest.grown, added),
        "libraries": library_versions(),
        "git_commit": context.git_commit,
        "seconds": dict(context.meter.seconds),
        "energy": energy_info(context.meter),
        # The registry's, of the new version:
        "version": 0,
        "created": "",
        "files": {},
        "manifest_sha256": "",
    }
    return GrownBase(grown, manifest.model_copy(update=changes))
