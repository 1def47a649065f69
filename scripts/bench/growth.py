"""How time and memory grow with the data and the vocabulary: python scripts/bench/growth.py

Every line is measured in a process of its own, on random models so small that the code around them dominates. The first table
stores soft targets of so many completion tokens, then reads them back in random batches of 32 examples, as training does. The
second runs the response loss of 2,048 positions of width 576, forward and backward, with chunks and without. Memory is the
peak of the process minus what it used before.
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
POSITIONS, WIDTH, TOP_K, LENGTH, BATCH = 2048, 576, 36, 50, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # this process measures one line
    given = parser.parse_args()
    if given.one:
        what, size = given.one
        measured = store(int(size)) if what == "store" else loss(int(size), chunked=what == "chunked")
        print(json.dumps(measured))
        return
    print("| completion tokens | µs/token to store | µs/token to read | memory | bytes/token on disk |")
    print("|---|---|---|---|---|")
    for tokens in TOKENS:
        one = in_own_process("store", tokens)
        print(
            f"| {tokens:,} | {one['store']:.1f} | {one['read']:.2f} | {one['memory']:.0f} MB | {one['disk']:.0f} |", flush=True
        )
    print("\n| vocabulary | ns per position and token | memory | ns, without chunks | memory, without chunks |")
    print("|---|---|---|---|---|")
    for size in VOCABULARIES:
        runs = [in_own_process(what, size) for what in ("chunked", "whole")]
        cells = [f"{run['ns']:.2f} | {run['memory']:.0f} MB" for run in runs]
        print(f"| {size:,} | {' | '.join(cells)} |", flush=True)


def in_own_process(what: str, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", what, str(size)]
    result: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return result


def store(tokens: int) -> dict[str, float]:
    """Stores the targets of so many completion tokens and reads as many."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    no_tokenizer: Any = None
    teacher = Teacher.of(LlamaForCausalLM(config).eval(), no_tokenizer, "random")
    rng = random.Random(0)
    texts = [rng.choices(range(2048), k=10 + LENGTH) for _ in range(tokens // LENGTH)]
    examples = [TokenizedExample(ids[:10], ids[:10], ids[10:]) for ids in texts]
    with TemporaryDirectory() as folder:
        before, begin = peak(), time.perf_counter()
        stored = SoftTargetStore.make(Path(folder), teacher, examples, top_k=TOP_K, temperature=1.0)
        made = time.perf_counter()
        for start in range(0, len(examples), BATCH):
            count = min(BATCH, len(examples) - start)
            stored.rows(rng.choices(range(len(examples)), k=count), torch.device("cpu"))
        read = time.perf_counter()
        return {
            "store": 1e6 * (made - begin) / tokens,
            "read": 1e6 * (read - made) / tokens,
            "memory": (peak() - before) / 1e6,
            "disk": stored.bytes / tokens,
        }


def loss(vocabulary: int, chunked: bool) -> dict[str, float]:
    """One forward and backward of the response loss, after one that is not timed."""
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, vocabulary, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    states = torch.randn(POSITIONS, WIDTH, dtype=torch.bfloat16)
    ids = torch.randint(vocabulary, (POSITIONS, TOP_K))
    targets = torch.randn(POSITIONS, TOP_K + 1).log_softmax(-1)

    def divergence(values: torch.Tensor, span: slice) -> torch.Tensor:
        return generalized_jsd_loss(bucket_log_probs(values, ids[span]), targets[span], 0.0)

    before = peak()
    for _ in range(2):
        begin = time.perf_counter()
        leaf = states.clone().requires_grad_()
        if chunked:
            value = response_loss(head, [], leaf, divergence, vocabulary=vocabulary)
        else:
            value = divergence(head(leaf), slice(None)).mean()
        value.backward()
        seconds = time.perf_counter() - begin
    return {"ns": 1e9 * seconds / POSITIONS / vocabulary, "memory": (peak() - before) / 1e6}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
