"""How time and memory grow with the data and the vocabulary: python scripts/bench/growth.py

Every line is a process of its own, on random models so small that the code around them is what is measured. ``data``: soft
targets of so many completion tokens are stored, then read back in random batches of 32 examples, as in training.
``vocabulary``: the response loss of 2,048 positions of width 576, forward and backward, against the loss written plainly.
Memory is the peak of the process minus what it used before.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from factory.distill.chunked_loss import response_loss
from factory.distill.losses import bucket_log_probs, generalized_jsd_loss
from factory.distill.target_store import SoftTargetStore
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample

TOKENS, VOCABULARIES = (10_000, 100_000, 1_000_000), (16_384, 65_536, 262_144)
POSITIONS, WIDTH, TOP_K, LENGTH = 2048, 576, 36, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # this process measures one line
    given = parser.parse_args()
    if given.one:
        what, size = given.one
        print(json.dumps(stored(int(size)) if what == "data" else loss(int(size), plain=what == "plain")))
        return
    print("| completion tokens | µs a token to store | µs a token to read | memory | bytes a token on disk |")
    print("|---|---|---|---|---|")
    for tokens in TOKENS:
        one = in_own_process("data", tokens)
        print(
            f"| {tokens:,} | {one['store']:.1f} | {one['read']:.2f} | {one['memory']:.0f} MB | {one['disk']:.0f} |", flush=True
        )
    print("\n| vocabulary | ns a position and token | memory | ns, the plain way | memory, the plain way |")
    print("|---|---|---|---|---|")
    for size in VOCABULARIES:
        one, plain = in_own_process("ours", size), in_own_process("plain", size)
        cells = [f"{run['ns']:.2f} | {run['memory']:.0f} MB" for run in (one, plain)]
        print(f"| {size:,} | {' | '.join(cells)} |", flush=True)


def in_own_process(what: str, size: int) -> dict[str, float]:
    command = [sys.executable, sys.argv[0], "--one", what, str(size)]
    result: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return result


def stored(tokens: int) -> dict[str, float]:
    """Makes a store of so many completion tokens and reads as many from it."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    untyped: Any = None
    teacher = Teacher.of(model.eval(), untyped, "random")
    chance = random.Random(0)
    count = tokens // LENGTH
    sequences = [
        TokenizedExample(ids[:10], ids[:10], ids[10:])
        for ids in (chance.choices(range(2048), k=10 + LENGTH) for _ in range(count))
    ]
    with TemporaryDirectory() as folder:
        before, begun = peak(), time.perf_counter()
        store = SoftTargetStore.make(Path(folder), teacher, sequences, top_k=TOP_K, temperature=1.0)
        made = time.perf_counter()
        for start in range(0, count, 32):
            store.rows(chance.choices(range(count), k=len(range(start, min(count, start + 32)))), torch.device("cpu"))
        read = time.perf_counter()
        return {
            "store": 1e6 * (made - begun) / tokens,
            "read": 1e6 * (read - made) / tokens,
            "memory": (peak() - before) / 1e6,
            "disk": store.response_bytes / tokens,
        }


def loss(vocabulary: int, plain: bool) -> dict[str, float]:
    """One forward and backward of the response loss, after one that is not timed."""
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, vocabulary, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    states = torch.randn(POSITIONS, WIDTH, dtype=torch.bfloat16)
    ids = torch.randint(vocabulary, (POSITIONS, TOP_K))
    targets = torch.randn(POSITIONS, TOP_K + 1).log_softmax(-1)
    before = peak()
    for _ in range(2):
        begun = time.perf_counter()
        given = states.clone().requires_grad_()
        if plain:
            divergence = generalized_jsd_loss(bucket_log_probs(head(given), ids), targets, 0.0).mean()
        else:
            divergence = response_loss(head, [], given, ids, targets, vocabulary=vocabulary, beta=0.0, temperature=1.0)
        divergence.backward()
        seconds = time.perf_counter() - begun
    return {"ns": 1e9 * seconds / POSITIONS / vocabulary, "memory": (peak() - before) / 1e6}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
