"""One forward pass: padded batches, hidden states, and logits only where they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from factory.errors import TrainingError
from factory.models.kv_cache import expand_cache, prefix_cache

WIDTH = 16  # batches are padded to a multiple of it
LOGITS = 1 << 22  # logits that may exist at once, 16 MiB in float32: 300 positions of 14,000 tokens, 16 of 262,144


@dataclass(frozen=True)
class Batch:
    """Prompts and completions, padded on the right, where causal attention never looks.

    Widths are multiples of ``WIDTH`` so that shapes recur: oneDNN compiles kernels for each new shape and glibc allocates for
    it. Over 120 steps of batch 8 that gave 12 % more tokens/s in three quarters of the memory (docs/log.md).
    """

    input_ids: Tensor  # (B, T)
    predicts: Tensor  # (B, T) bool: the next token is a completion token; N in all
    real: Tensor  # (B, T) bool: not padding

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.predicts.to(device), self.real.to(device))


def make_batch(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Batch:
    """``make_batch([[1, 2]], [[3, 4]])``: one row, ``1 2 3 4``, that predicts at the positions of 2 and 3."""
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    shape = (len(lengths), -(-max(lengths) // WIDTH) * WIDTH)
    ids = torch.zeros(shape, dtype=torch.long)
    predicts, real = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, : lengths[row]] = torch.tensor([*prompt, *completion])
        predicts[row, len(prompt) - 1 : lengths[row] - 1] = True
        real[row, : lengths[row]] = True
    return Batch(ids, predicts, real)


@dataclass(frozen=True)
class States:
    """Hidden states of a batch: of the embedding and of each layer; the last one is after the final norm."""

    layers: tuple[Tensor, ...]  # L + 1 of (B, T, H)

    @property
    def final(self) -> Tensor:
        return self.layers[-1]


def unwrap(model: Any) -> PreTrainedModel:
    """``unwrap(peft_model)``: the transformers model inside, adapter layers included; any other model itself."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


def hidden_states(model: Any, batch: Batch, prefix: Sequence[int] = ()) -> States:
    """``hidden_states(model, batch).final``: (B, T, H). ``prefix`` precedes every row and is not in the result."""
    decoder: Any = unwrap(model).base_model
    shared = prefix_cache(unwrap(model), prefix)
    cache = expand_cache(unwrap(model), shared, len(batch.input_ids)) if shared is not None else None
    mask = torch.cat([batch.real.new_ones(len(batch.real), len(prefix)), batch.real], dim=1).long()
    output = decoder(
        input_ids=batch.input_ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
        output_hidden_states=True,
    )
    return States(output.hidden_states)


def logits(model: Any, states: Tensor) -> Tensor:
    """``logits(model, hidden_states(model, batch).final[batch.predicts])``: (N, H) → (N, V), by the model's own head."""
    inner: Any = unwrap(model)
    return _after_head(inner, inner.get_output_embeddings()(states))


def output_head(model: Any, dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], int]:
    """``head, vocabulary = output_head(model, torch.float32)``: the head in a dtype, outside any autocast; (N, H) → (N, V).

    Its weights are cast once, here, and not for every call of ``head``.
    """
    inner: Any = unwrap(model)
    module = inner.get_output_embeddings()
    weights = {name: parameter.detach().to(dtype) for name, parameter in module.named_parameters()}

    def head(states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            values: Tensor = functional_call(module, weights, (states.to(dtype),))
        return _after_head(inner, values)

    return head, int(module.weight.shape[0])


def _after_head(model: Any, values: Tensor) -> Tensor:
    """What a model does to its head's output: Granite divides it, Gemma caps it."""
    config = model.config.get_text_config()
    divisor, cap = getattr(config, "logits_scaling", None), getattr(config, "final_logit_softcapping", None)
    values = values / divisor if divisor else values
    return torch.tanh(values / cap) * cap if cap else values


def positions_at_once(vocabulary: int) -> int:
    """``states.split(positions_at_once(14_000))``: for how many positions logits may exist at once."""
    return max(1, LOGITS // vocabulary)


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """``mean_pool(states, batch.real)``: mean over the masked positions, (B, T, H) and (B, T) → (B, H), float32."""
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """``check_head(model)``: raises TrainingError if ``logits`` differs from the model's own (an unusual head)."""
    batch = make_batch([[1, 2, 3]], [[4, 5]]).to(model.device)
    own = model(input_ids=batch.input_ids).logits[batch.real]
    ours = logits(model, hidden_states(model, batch).final[batch.real])
    if not torch.allclose(own.float(), ours.float(), atol=1e-2, rtol=1e-2):
        raise TrainingError(
            f"{type(model).__name__}'s output head is not a linear layer with an optional divisor and soft cap (logits differ "
            f"by up to {(own - ours).abs().max().item():.3g}); choose a teacher of another architecture"
        )
