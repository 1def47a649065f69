"""What a busy neighbour costs, by how long threads spin while they wait: python scripts/bench/busy.py

A random model of SmolLM2-135M's shape: a training step of 8 texts of 144 tokens, and one new token for each of 87 answers, the
median of several, alone and beside one process that never rests. libgomp, which runs torch's threads on Linux, lets a thread
spin 300,000 times before it sleeps; ``import factory`` sets ``GOMP_SPINCOUNT``. Every line is measured in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SPINS = {"300,000, libgomp's own": "300000", "2,000, the factory's": "2000", "0, as with OMP_WAIT_POLICY=passive": "0"}
TEXTS, LENGTH, ANSWERS, WRITTEN = 8, 144, 87, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="all lines in turn, so often; the median counts")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # this process measures
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.layers, given.steps)))
        return
    runs: dict[str, dict[str, list[dict[str, float]]]] = {name: {"alone": [], "busy": []} for name in SPINS}
    for _ in range(given.rounds):
        for name, spins in SPINS.items():
            runs[name]["alone"].append(in_own_process(spins, given.layers, given.steps))
            with busy_neighbour():
                runs[name]["busy"].append(in_own_process(spins, given.layers, given.steps))
    results = [
        {"spins": name, "what": what}
        | {when: statistics.median(run[what] for run in by_time[when]) for when in ("alone", "busy")}
        for name, by_time in runs.items()
        for what in ("training step", "new tokens")
    ]
    print("| spins | | alone, s | beside a busy process, s | times as long |\n|---|---|---|---|---|")
    for one in results:
        alone, busy = float(one["alone"]), float(one["busy"])
        print(f"| {one['spins']} | {one['what']} | {alone:.3f} | {busy:.3f} | {busy / alone:.1f} |")
    if given.save:
        given.save.write_text(
            json.dumps({"layers": given.layers, "cores": os.cpu_count(), "results": results}, indent=2) + "\n"
        )


@contextmanager
def busy_neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def in_own_process(spins: str, layers: int, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", "--layers", str(layers), "--steps", str(steps)]
    environment = os.environ | {"GOMP_SPINCOUNT": spins}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(result.stdout)
    return measured


def measure(layers: int, steps: int) -> dict[str, float]:
    """Median seconds of a training step, and of a new token for all answers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from factory.models.attention import GROUPED
    from factory.models.generation import sample

    config = LlamaConfig(
        vocab_size=36_000,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    model: Any = LlamaForCausalLM(config).to(torch.bfloat16)
    model.set_attn_implementation(GROUPED)
    ids = torch.randint(config.vocab_size, (TEXTS, LENGTH))

    def step() -> None:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()

    def write() -> None:
        sample(model, [[5, 6, 7]] * ANSWERS, stop=(), max_new_tokens=WRITTEN, batch=ANSWERS)

    return {"training step": seconds(step, steps), "new tokens": seconds(write, max(1, steps // 2)) / WRITTEN}


def seconds(action: Callable[[], None], times: int) -> float:
    """The median of so many, after one that is not counted."""
    taken = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
