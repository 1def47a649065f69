"""Stage `embed`: the head with which a student embeds texts. Its weights stay as they are, so its answers do too.

It is fitted again where a stopped build goes on: one forward pass over short texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from factory.models.embedding_head import EmbeddingHead, fit_embedding_head, pool_texts, text_ids
from factory.pipeline.adapter import TrainedAdapter
from factory.pipeline.base import StudentBase
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import DomainDataset, split_general
from factory.registry.manifest import EmbeddingInfo

MAX_TOKENS = 128  # of a text; what is longer is cut


@dataclass(frozen=True)
class FittedHead:
    """A student's embedding head, and what its manifest says of it."""

    head: EmbeddingHead
    info: EmbeddingInfo


def fit_head(
    context: BuildContext, models: FamilyModels, data: DomainDataset, base: StudentBase, adapter: TrainedAdapter
) -> FittedHead | None:
    """``fit_head(context, models, data, base, adapter).info.texts``: None where the domain's ``embed.texts`` is 0."""
    count = context.settings(data.spec).embed.texts
    if not count:
        return None
    texts = unlabelled_texts(context, models, data, count)
    with context.meter.stage("embed"), context.progress(f"{data.spec.name}: embedding head", len(texts)) as advance:
        states = pool_texts(adapter.model, text_ids(base.base.tokenizer, texts, MAX_TOKENS), advance)
        head = fit_embedding_head(states, models.embed(texts))
    info = EmbeddingInfo(texts=len(texts), dimensions=len(head.bias), encoder=context.family.encoder.model)
    return FittedHead(head, info)


def unlabelled_texts(context: BuildContext, models: FamilyModels, data: DomainDataset, count: int) -> list[str]:
    """``unlabelled_texts(context, models, data, 2000)``: so many different ones at most, none of which is held out.

    Prompts and answers of the domain's training split, each a text of its own; general prompts where they are too few.
    """
    own = [row[part] for row in data.rows["train"] for part in ("prompt", "completion")]
    general = [example.text for example in split_general(context, models)[0]] if len(own) < count else []
    return list(islice(dict.fromkeys(text for text in (*own, *general) if text.strip()), count))
