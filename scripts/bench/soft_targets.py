"""What stored soft targets lose, by the number k of tokens kept: python scripts/bench/soft_targets.py healthcare

Measured on a domain's held-out text, in the vocabulary of the published base of a size. KL is in nats/token.

stored                         KL from the teacher's distribution over the k tokens and the bucket of all others to what is
                               read back: the cost of one byte per log-probability
rest as the student's          KL from the whole distribution to what is stored, the bucket's mass spread as the student
                               spreads it (the bucket teaches only its sum)
rest even                      the same, with that mass spread evenly
gradient cosine                between the gradient of the loss at the student's logits and that with the whole distribution
gradient cosine, renormalised  the same without the bucket, the k tokens scaled to sum to one
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from factory.config.load import load_specs
from factory.distill.losses import bucket_log_probs, generalized_jsd_loss
from factory.distill.target_store import dequantize, quantize
from factory.models.forward import hidden_states, logits, make_batch
from factory.models.scoring import student_batches
from factory.models.tokenize import TokenizedExample, tokenize_examples
from factory.pipeline.base import StudentBase, make_base
from factory.pipeline.context import make_context, resolve_models
from factory.pipeline.dataset import make_dataset
from factory.registry.registry import Registry

KEPT = (4, 8, 16, 24, 36, 64, 128, 256)
BATCH = 8


@dataclass(frozen=True)
class Loss:
    """Sums over the positions of one batch, in the order of the table's columns."""

    stored: float
    as_student: float
    even: float
    cosine: float
    renormalised: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain")
    parser.add_argument("--size", default="small")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    given = parser.parse_args()
    specs = load_specs(given.domains)
    family = specs.family_of_size(given.size)
    context = make_context(specs, family, registry=Registry(given.registry), profile=given.profile)
    models = resolve_models(family, specs.root, context.device)
    data = make_dataset(context, models, specs.domain(given.domain))
    base = make_base(context, models, given.size)
    rows = list(data.rows["test"])[: given.examples]
    held_out = tokenize_examples(rows, base.teacher.tokenizer, data.spec.contexts)
    sums, positions = {k: np.zeros(5) for k in KEPT}, 0
    for start in range(0, len(held_out), BATCH):
        teacher, student = both_logits(base, held_out[start : start + BATCH])
        positions += len(teacher)
        for k in KEPT:
            sums[k] += astuple(compare(teacher.log_softmax(-1), student, k))
    id_bytes = 2 if len(base.teacher.tokenizer) <= 1 << 16 else 4
    reference = base.version.reference
    print(f"{given.domain}-{given.size}, {positions:,} positions of {len(held_out)} held-out examples, {reference}\n")
    print("| k | bytes/token | stored | rest as the student's | rest even | gradient cosine | gradient cosine, renormalised |")
    print("|---|---|---|---|---|---|---|")
    for k in KEPT:
        print(f"| {k} | {k * id_bytes + k + 1} | {' | '.join(f'{value:.4f}' for value in sums[k] / positions)} |")


def both_logits(base: StudentBase, examples: list[TokenizedExample]) -> tuple[Tensor, Tensor]:
    """Of teacher and base, each (N, V), at the completion positions; the teacher sees its context."""
    teacher, student = base.teacher.model, base.base.model
    seen = make_batch([one.teacher_prompt for one in examples], [one.completion for one in examples]).to(teacher.device)
    own = student_batches(examples, len(examples))[0].to(teacher.device)
    with torch.no_grad():
        return (
            logits(teacher, hidden_states(teacher, seen).final[seen.predicts]).float(),
            logits(student, hidden_states(student, own).final[own.predicts]).float(),
        )


def compare(full: Tensor, student: Tensor, k: int) -> Loss:
    """full (N, V) log-probabilities of the teacher, student (N, V) logits → sums over N of what k kept tokens lose."""
    ids = full.topk(k, dim=-1).indices
    kept = bucket_log_probs(full, ids)
    stored = dequantize(quantize(kept.numpy(force=True))).to(full.device)
    own = student.log_softmax(-1)
    as_student = spread(stored, own, ids)
    even = spread(stored, torch.zeros_like(own), ids)
    dense = gradient(student, lambda values: generalized_jsd_loss(values.log_softmax(-1), full, 0.0))
    sparse = gradient(student, lambda values: generalized_jsd_loss(bucket_log_probs(values, ids), stored, 0.0))
    scaled = stored[:, :-1].log_softmax(-1)
    top = gradient(student, lambda values: generalized_jsd_loss(values.log_softmax(-1).gather(-1, ids), scaled, 0.0))
    return Loss(
        stored=generalized_jsd_loss(stored, kept, 0.0).sum().item(),
        as_student=generalized_jsd_loss(as_student, full, 0.0).sum().item(),
        even=generalized_jsd_loss(even, full, 0.0).sum().item(),
        cosine=torch.cosine_similarity(sparse, dense).sum().item(),
        renormalised=torch.cosine_similarity(top, dense).sum().item(),
    )


def spread(stored: Tensor, shape: Tensor, ids: Tensor) -> Tensor:
    """(N, k + 1), (N, V), (N, k) → (N, V): the bucket's mass over all other tokens, in the proportions of ``shape``."""
    others = shape.scatter(-1, ids, float("-inf")).log_softmax(-1)
    return (others + stored[:, -1:]).scatter(-1, ids, stored[:, :-1])


def gradient(student: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    values = student.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(values).sum(), values)
    return found


if __name__ == "__main__":
    main()
