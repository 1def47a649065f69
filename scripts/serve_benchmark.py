"""`factory serve` beside bare llama.cpp and `transformers serve`: the same students on the same machine, in one run.

    python scripts/serve_benchmark.py healthcare-medium education-medium legal-medium --data DATA

single     one stream at a time: the gateway, bare llama.cpp (same GGUF, adapters and slots) and `transformers serve` (the
           merged student in bfloat16) get the same prompts in turn; medians over rounds, ratios within a round
crowd      64 clients at once, on one student and on all named ones: seconds to the first token and between tokens
memory     what each further adapter adds to a running engine, beside the size of its file
auto       mixed real prompts to the model `auto`: where they were routed, and how long routing took

Answers end where the student stops or at the token limit; only generated tokens are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from openai import AsyncOpenAI, OpenAI

from factory.config.load import load_specs
from factory.export.export import export_version
from factory.models.device import pick_device
from factory.models.llama_server import LlamaServer, lora_choice
from factory.pipeline.context import resolve_models
from factory.registry.registry import Registry
from factory.serve.engines import GgufFiles
from factory.serve.limits import Limits

KEY = "not needed on this machine"
ROUNDS, TOKENS, CLIENTS, CROWD_TOKENS, PROMPTS, FURTHER = 9, 96, 64, 48, 300, 16
QUESTIONS = (
    "What are early signs of asthma?",
    "How does a vaccine protect the body?",
    "Why do plants need light?",
    "Explain fractions to a child.",
    "What is a lease?",
    "Can a contract be spoken?",
    "How is a sprained ankle treated?",
    "What does a judge do?",
)


@dataclass(frozen=True)
class Stream:
    """One streamed answer; times in seconds from the request."""

    version: str
    first: float
    last: float
    tokens: int

    @property
    def rate(self) -> float:
        return self.tokens / self.last


async def streamed(client: AsyncOpenAI, model: str, question: str, tokens: int, extra: dict[str, Any] | None = None) -> Stream:
    """Asks for one greedy answer and times it."""
    begun, first, count = time.perf_counter(), 0.0, 0
    async with client.chat.completions.with_streaming_response.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        extra_body=extra,
    ) as response:
        async for chunk in await response.parse():
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - begun
                count += 1
        version = response.headers.get("x-factory-version", "")
    return Stream(version, first, time.perf_counter() - begun, count)


# ------------------------------------------------------------------------------------------------------------- servers


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[str]:
    """Runs a server; yields its URL once it answers ``/health``."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"error: {' '.join(command)} exited: {process.stderr.read() if process.stderr else ''}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def gateway(given: argparse.Namespace) -> Iterator[str]:
    port = free_port()
    factory = str(Path(sys.executable).with_name("factory"))
    options = ["--registry", str(given.registry), "--domains", str(given.domains), "--port", str(port)]
    with running([factory, "serve", *options], port) as url:
        yield url


@contextmanager
def bare_llamacpp(gguf: Path, adapters: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """URL and key of llama.cpp alone, in a process of its own like the gateway."""
    command = [sys.executable, __file__, "--bare", str(gguf), *map(str, adapters)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        url, key = process.stdout.readline().split()
        yield url, key
        process.stdin.close()  # which ends the process


def bare(gguf: Path, adapters: Sequence[Path]) -> None:
    """Runs llama.cpp until stdin closes; prints its URL and key."""
    with LlamaServer(gguf, adapters=adapters, parallel=Limits().parallel, context=Limits().context) as server:
        print(server.url, server.headers["Authorization"].removeprefix("Bearer "), flush=True)
        sys.stdin.read()


@contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--port", str(port)]
    os.environ["HF_HUB_OFFLINE"] = "1"
    with running(command, port) as url:
        yield url


# ------------------------------------------------------------------------------------------------------------ sections


def single(given: argparse.Namespace, folder: Path) -> list[str]:
    """Tokens/s of one stream; in each round every server gets the same questions, in random order."""
    student, registry = given.students[0], Registry(given.registry)
    export_version(registry.resolve(student), registry, "merged", folder)
    gguf, adapters = files(given)
    with gateway(given) as url, bare_llamacpp(gguf, adapters) as (bare, key), transformers_serve(folder) as peer:
        lora = {"lora": lora_choice(len(adapters), 0), "top_k": 0, "min_p": 0.0}  # as the gateway sends it
        asked = {
            "gateway": (AsyncOpenAI(base_url=url, api_key=KEY), student, None),
            "bare llama.cpp": (AsyncOpenAI(base_url=f"{bare}/v1", api_key=key), student, lora),
            "transformers serve": (AsyncOpenAI(base_url=peer, api_key=KEY, timeout=600), str(folder), None),
        }
        rates: dict[str, list[float]] = {name: [] for name in asked}

        async def rounds() -> None:
            for round_ in range(ROUNDS + 1):  # the first round warms up
                for name in sorted(asked, key=lambda _: random.random()):
                    client, model, extra = asked[name]
                    streams = [await streamed(client, model, question, TOKENS, extra) for question in QUESTIONS]
                    if round_:
                        rates[name].append(sum(one.tokens for one in streams) / sum(one.last for one in streams))

        asyncio.run(rounds())
    lines = [f"| one stream of {student} | tokens/s, median of {ROUNDS} rounds | min | max |", "|---|---|---|---|"]
    lines += [f"| {name} | {np.median(r):.1f} | {min(r):.1f} | {max(r):.1f} |" for name, r in rates.items()]
    overhead = np.median(np.array(rates["bare llama.cpp"]) / np.array(rates["gateway"])) - 1
    speedup = np.median(np.array(rates["gateway"]) / np.array(rates["transformers serve"]))
    return [
        *lines,
        "",
        f"overhead over bare llama.cpp {overhead:.1%}; {speedup:.1f} times `transformers serve` (medians of ratios)",
    ]


def files(given: argparse.Namespace) -> tuple[Path, list[Path]]:
    """GGUF files of the students' base and adapters, as the gateway uses them."""
    specs, registry = load_specs(given.domains), Registry(given.registry)
    versions = [registry.resolve(student) for student in given.students]
    family = specs.family(versions[0].manifest.family)
    written = GgufFiles(registry, lambda: resolve_models(family, specs.root, pick_device("auto")), "q8_0")
    return written.base(str(versions[0].base)), [written.adapter(version) for version in versions]


def crowd(given: argparse.Namespace) -> list[str]:
    """Latency of 64 clients at once, each with two questions, on one student and on all."""

    async def ask(url: str, students: Sequence[str]) -> tuple[list[Stream], int, float]:
        client = AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=600)

        async def one(index: int) -> list[Stream]:
            student = students[index % len(students)]
            questions = [QUESTIONS[(index + turn) % len(QUESTIONS)] for turn in range(2)]
            return [await streamed(client, student, question, CROWD_TOKENS) for question in questions]

        begun = time.perf_counter()
        done = await asyncio.gather(*(one(index) for index in range(CLIENTS)), return_exceptions=True)
        lost = sum(isinstance(streams, BaseException) for streams in done)
        found = [stream for streams in done if not isinstance(streams, BaseException) for stream in streams]
        return found, lost, time.perf_counter() - begun

    columns = ("lost", "first token, p50", "p95", "between tokens, p50", "p95", "tokens/s in all")
    lines = [f"| {CLIENTS} clients, 2 questions each | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    with gateway(given) as url:
        asyncio.run(ask(url, given.students))  # engines start, caches fill
        for name, students in (("one student", given.students[:1]), (f"{len(given.students)} students", given.students)):
            streams, lost, seconds = asyncio.run(ask(url, students))
            first = [one.first for one in streams]
            each = [1000 * (one.last - one.first) / max(1, one.tokens - 1) for one in streams]
            cells = [f"{np.percentile(first, 50):.2f} s", f"{np.percentile(first, 95):.2f} s"]
            cells += [f"{np.percentile(each, 50):.0f} ms", f"{np.percentile(each, 95):.0f} ms"]
            lines.append(f"| {name} | {lost} | {' | '.join(cells)} | {sum(one.tokens for one in streams) / seconds:.0f} |")
    return lines


def auto(given: argparse.Namespace) -> list[str]:
    """Real prompts of each domain and of none, mixed: where `auto` routes them, and how long that takes."""
    wanted = {"healthcare": "healthcare", "education": "education", "legal": "legal", "general": ""}
    rng, mixed = random.Random(1), []
    for folder, domain in wanted.items():
        rows = [json.loads(line) for path in sorted((given.data / folder).glob("*.jsonl")) for line in path.open()]
        mixed += [(row["prompt"][:800], domain) for row in rng.sample(rows, PROMPTS // len(wanted))]
    rng.shuffle(mixed)
    right, abstained, took = Counter[str](), 0, []
    with gateway(given) as url:
        client = OpenAI(base_url=url, api_key=KEY, timeout=600)
        for prompt, domain in mixed:
            said = client.chat.completions.with_raw_response.create(
                model="auto", messages=[{"role": "user", "content": prompt}], max_tokens=1
            )
            chosen = said.headers.get("x-factory-domain", "")
            right[domain or "none"] += chosen == domain
            abstained += not chosen
            took.append(float(said.headers["server-timing"].partition("dur=")[2].partition(",")[0]))
    total, each = sum(right.values()), PROMPTS // len(wanted)
    lines = ["| prompts to `auto` | n | routed correctly | abstained | routing, p50 | p95 |", "|---|---|---|---|---|---|"]
    times = f"{np.percentile(took, 50):.1f} ms | {np.percentile(took, 95):.1f} ms"
    lines.append(f"| all | {len(mixed)} | {total / len(mixed):.3f} | {abstained / len(mixed):.3f} | {times} |")
    return lines + [f"| of {name} | {each} | {count / each:.3f} | | | |" for name, count in right.items()]


def memory(given: argparse.Namespace) -> list[str]:
    """Memory per further adapter, from engines with one and with seventeen: once loaded, and after answers of each adapter."""
    gguf, adapters = files(given)

    def held(count: int) -> np.ndarray:
        command = [sys.executable, __file__, "--hold", str(count), str(gguf), str(adapters[0])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return np.array([int(word) for word in done.stdout.split()])

    loaded, answered = (held(1 + FURTHER) - held(1)) / FURTHER
    size = adapters[0].stat().st_size
    lines = ["| per further adapter | MB in memory | MB of its file | ratio |", "|---|---|---|---|"]
    for when, each in (("loaded", loaded), ("after each has answered", answered)):
        lines.append(f"| {when}, mean of {FURTHER} | {each / 1e6:.2f} | {size / 1e6:.2f} | {each / size:.2f} |")
    return lines


def hold(count: int, gguf: Path, adapter: Path) -> Iterator[int]:
    """Resident bytes of an engine with ``count`` adapters loaded, then again after 17 answers."""
    with LlamaServer(gguf, adapters=[adapter] * count) as server:
        yield resident(server.pid)
        for turn in range(1 + FURTHER):
            body = {"prompt": [1, 2, 3], "n_predict": 8, "lora": lora_choice(count, turn % count)}
            httpx.post(f"{server.url}/completion", headers=server.headers, json=body, timeout=600).raise_for_status()
        yield resident(server.pid)


def resident(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", help="students of one base; the first one is also measured alone")
    parser.add_argument("--data", type=Path, help="folder of real prompts: healthcare/, education/, legal/, general/")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--only", action="append", choices=["single", "crowd", "memory", "auto"], help="repeatable")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        sections: dict[str, Callable[[], list[str]]] = {
            "single": lambda: single(given, Path(folder) / "merged"),
            "crowd": lambda: crowd(given),
            "memory": lambda: memory(given),
            "auto": lambda: auto(given),
        }
        for name in given.only or sections:
            if name == "auto" and (given.data is None or not given.data.is_dir()):
                print(f"auto: skipped, because --data is not a folder ({given.data})", file=sys.stderr)
                continue
            print("\n".join(sections[name]()) + "\n", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hold"]:
        print(*hold(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])))
    elif sys.argv[1:2] == ["--bare"]:
        bare(Path(sys.argv[2]), [Path(adapter) for adapter in sys.argv[3:]])
    else:
        main()
