"""What stored soft targets lose, by the number of tokens kept: python scripts/bench/soft_targets.py healthcare

Measured on a domain's held-out text, in the vocabulary of the published base of a size.

stored                  nats from the teacher's distribution over the k tokens and the bucket of all others to what is read
                        back: the cost of one byte per log-probability
rest as the student's   nats from the whole distribution to what is stored, with the mass outside the k tokens spread as the
                        student spreads it (the bucket teaches only its sum)
rest even               the same with that mass spread evenly
cosine                  of the loss's gradient at the student's logits with that of the whole distribution
renormalised            the same without the rest, the k tokens scaled to sum to one
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from factory.config.load import load_specs
from factory.distill.losses import bucket_log_probs, generalized_jsd_loss
from factory.distill.target_store import dequantize, quantize
from factory.models.base import load_base, trim_teacher
from factory.models.forward import hidden_states, logits, make_batch
from factory.models.scoring import student_batches
from factory.models.tokenize import tokenize_examples
from factory.pipeline.build import Factory
from factory.registry.registry import Registry

KEPT = (4, 8, 16, 24, 36, 64, 128, 256)


@dataclass(frozen=True)
class Loss:
    """Sums over positions of one batch."""

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
    factory = Factory(specs, family, profile=given.profile, registry=Registry(given.registry))
    version, data = factory.base(given.size), factory.data(given.domain)
    base = load_base(version.folder, factory.device)
    teacher = trim_teacher(factory.teacher, base.shape.tokens)
    held_out = tokenize_examples(data.rows["test"].select(range(given.examples)), teacher.tokenizer, data.spec.teacher_context)
    sums, positions = {k: [0.0] * 5 for k in KEPT}, 0
    for start in range(0, len(held_out), 8):
        part = held_out[start : start + 8]
        seen = make_batch([s.teacher_prompt for s in part], [s.completion for s in part]).to(factory.device)
        own = student_batches(part, len(part))[0].to(factory.device)
        with torch.no_grad():
            full = logits(teacher.model, hidden_states(teacher.model, seen).final[seen.predicts]).float().log_softmax(-1)
            student = logits(base.model, hidden_states(base.model, own).final[own.predicts]).float()
        positions += len(full)
        for k in KEPT:
            lost = compare(full, student, k)
            sums[k] = [before + more for before, more in zip(sums[k], vars(lost).values(), strict=True)]
    wide = 2 if len(teacher.tokenizer) <= 1 << 16 else 4
    print(f"{given.domain}-{given.size}, {positions} positions of {len(held_out)} held-out examples, {version.reference}\n")
    print("| k | bytes a token | stored | rest as the student's | rest even | cosine | renormalised |")
    print("|---|---|---|---|---|---|---|")
    for k in KEPT:
        cells = [value / positions for value in sums[k]]
        print(f"| {k} | {k * wide + k + 1} | {' | '.join(f'{cell:.4f}' for cell in cells)} |")


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
    """(N, k + 1), (N, V), (N, k) → (N, V): the rest's mass over all other tokens, in the proportions of ``shape``."""
    others = shape.scatter(-1, ids, float("-inf")).log_softmax(-1)
    return (others + stored[:, -1:]).scatter(-1, ids, stored[:, :-1])


def gradient(student: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    values = student.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(values).sum(), values)
    return found


if __name__ == "__main__":
    main()
