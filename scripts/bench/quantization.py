"""What the kind of gate and up projections costs under q4, for factory/export/gguf_architectures.py:

python scripts/bench/quantization.py gemma --noise 0.05 --layers 0 1 2 3 4 5 6 12 13 14 15 16 17

A family's teacher is rounded as its GGUF file would be, once with each kind, and compared with itself on the general texts of
the parity check. ``--layers`` keeps these alone, unhealed. ``--noise`` first adds noise of so many standard deviations to each
matrix (seed 0), as training does: published weights often come from a grid, which the same grid costs nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from factory.config.load import load_specs
from factory.export.gguf import _tensors
from factory.export.parity import GENERAL_TEXTS, ParityText, compare_log_probs, model_log_probs
from factory.models.chat import completion_ids, prompt_ids
from factory.models.folders import load_tokenizer, load_weights
from factory.models.pruning import prune_layers
from factory.models.quantization import on_grid
from factory.models.templates import resolve_teacher

KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q8_0")
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family")
    parser.add_argument("--layers", type=int, nargs="*")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    given = parser.parse_args()
    specs = load_specs(given.domains)
    folder = resolve_teacher(specs.family(given.family).weights, root=specs.root).folder
    model: Any = load_weights(folder, torch.float32).eval()
    if given.layers:
        prune_layers(model, given.layers)
    add_noise(model, given.noise)
    tokenizer = load_tokenizer(folder)
    pairs = [(prompt_ids(tokenizer, question), completion_ids(tokenizer, answer)) for question, answer in GENERAL_TEXTS]
    texts = [ParityText("", "", prompt, answer) for prompt, answer in pairs]
    published, written = model_log_probs(model, texts), list(_tensors(model, "q4"))
    original = [weight.clone() for _, _, weight, _ in written]
    print(f"{given.family}, noise {given.noise:g}, {sum(len(text.completion) for text in texts)} tokens")
    print("| gate and up | KL, nats/token | same top-1 token | bits a weight of a layer |\n| --- | --- | --- | --- |")
    for name in KINDS:
        bits = weights = 0.0
        for (target, _, weight, kind), values in zip(written, original, strict=True):
            wanted = GGMLQuantizationType[name] if "ffn_gate" in target or "ffn_up" in target else kind
            weight.copy_(on_grid(values, wanted))
            if target.startswith("blk.") and weight.ndim == 2:
                block, size = GGML_QUANT_SIZES[wanted]
                bits, weights = bits + weight.numel() / block * size * 8, weights + weight.numel()
        found = compare_log_probs(published, model_log_probs(model, texts))
        print(f"| {name} | {found.kl:.4f} | {found.top1_agreement:.1%} | {bits / weights:.2f} |", flush=True)


def add_noise(model: torch.nn.Module, share: float) -> None:
    torch.manual_seed(SEED)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.add_(torch.randn_like(weight) * weight.std() * share)


if __name__ == "__main__":
    main()
