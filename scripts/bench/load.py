"""What a server does at twice its capacity, with clients that behave badly: python scripts/bench/load.py --minutes 10

    python scripts/bench/load.py healthcare-medium education-medium legal-medium --minutes 10 --save FILE.json

Without names three tiny random students are made, two of them on one base. `factory serve` runs them in processes of its own.

learn      greedy answers of each student, one at a time, whole and streamed. Kept are those whose tokens all lead the second by
           a margin that the rounding of another batch cannot turn, and of which no two are equal: a crossed one would be seen.
before     seconds of single requests
capacity   answers a second to as many clients as the engines have slots, and twice as many
storm      twice that many requests a second, at random moments, streamed or whole, each answer compared byte for byte. Beside
           them clients that leave, that send half a request or do not read, that send 64 at once, and that send nonsense.
after      seconds of single requests, from the moment on when the last answer has come

Memory is the resident one of server and engines, once a second of the storm, as means of 20 equal parts after its first tenth.
Its slope and the slope's 95 % interval are those of a line through the second half of them: first, caches fill.
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
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from scipy.stats import linregress, t

ROOT = Path(__file__).parents[2]
WORDS = ["asthma", "cough", "breath", "doctor", "landlord", "deposit", "damage", "home", "light", "sugar", "learn", "question"]
PATH = "/v1/chat/completions"
TOKENS, MARGIN = 32, 0.02  # of an answer; nats between its tokens and the second ones
PER_STUDENT, TRIES = 8, 600  # questions
SINGLES, FLOOD, STALLED, MAX_OPEN = 60, 64, 12, 320
PARTS = 20  # of the storm, for the slope of memory


@dataclass(frozen=True)
class Question:
    student: str
    prompt: str
    answer: str = ""
    streamed: str = ""  # the same but for characters that the last token cuts

    def body(self, stream: bool) -> dict[str, Any]:
        messages = [{"role": "user", "content": self.prompt}]
        return {"model": self.student, "messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": stream}


@dataclass
class Counts:
    """What became of the requests of a storm."""

    answers: Counter[str] = field(default_factory=Counter)  # status, or what went wrong, of what was a proper request
    nonsense: Counter[str] = field(default_factory=Counter)
    left: int = 0
    stalled: Counter[str] = field(default_factory=Counter)
    not_sent: int = 0
    seconds: list[float] = field(default_factory=list)  # of answers
    wrong: list[dict[str, str]] = field(default_factory=list)


# --------------------------------------------------------------------------------------------------------------- server


@contextmanager
def served(registry: Path, domains: Path) -> Iterator[tuple[str, int]]:
    """URL and process of `factory serve`."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    factory = str(Path(sys.executable).with_name("factory"))
    command = [factory, "serve", "--registry", str(registry), "--domains", str(domains), "--port", str(port), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("serving"):
            raise SystemExit("error: factory serve did not start")
        try:
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def make_students(folder: Path) -> tuple[list[str], Path, Path]:
    """Three random students: their names, the registry and the domains."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support import exporting, serving, specs

    registry, version = exporting.publish_student(folder)
    bases = {"first-mini": version.base, "second-mini": version.base, "third-mini": exporting.publish_base(registry).reference}
    for seed, (name, base) in enumerate(bases.items()):
        serving.publish_again(registry, name, seed=seed, base=base)
    specs.load(folder)
    return list(bases), registry.root, folder


def resident(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    return 0


def children(pid: int) -> list[int]:
    with suppress(OSError):
        lists = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for one in lists for child in one.read_text(encoding="utf-8").split()]
    return []


# -------------------------------------------------------------------------------------------------------------- clients


@asynccontextmanager
async def session(url: str) -> AsyncIterator[ClientSession]:
    connector = TCPConnector(limit=0, force_close=True)  # each request is another client's
    async with ClientSession(url, connector=connector, timeout=ClientTimeout(total=150)) as opened:
        yield opened


async def ask(client: ClientSession, question: Question, stream: bool) -> tuple[str, str]:
    """Status and text of one answer."""
    async with client.post(PATH, json=question.body(stream)) as response:
        if response.status != 200:
            error = json.loads(await response.read())["error"]
            return str(response.status) if response.status == 429 else f"{response.status}: {error['message']}", ""
        if not stream:
            return "200", (await response.json())["choices"][0]["message"]["content"]
        events = [line[6:] async for line in response.content if line.startswith(b"data: ")]
        if events[-1].strip() != b"[DONE]":
            return f"stream: {json.loads(events[-1]).get('error', {}).get('code')}", ""
        deltas = [choice["delta"] for one in events[:-1] for choice in json.loads(one)["choices"]]
        return "200", "".join(delta.get("content") or "" for delta in deltas)


async def good(client: ClientSession, question: Question, counts: Counts, rng: random.Random) -> None:
    begun, stream = time.perf_counter(), rng.random() < 0.3
    try:
        status, text = await ask(client, question, stream)
    except (ClientError, TimeoutError, OSError) as error:
        status, text = type(error).__name__, ""
    if status == "200":
        counts.seconds.append(time.perf_counter() - begun)
        if text != (question.streamed if stream else question.answer):
            status = "200, another answer"
            counts.wrong.append({"student": question.student, "prompt": question.prompt, "text": text})
    counts.answers[status] += 1


async def leave(client: ClientSession, question: Question, counts: Counts, rng: random.Random) -> None:
    """Asks and goes: before, at or after the first token."""
    with suppress(ClientError, TimeoutError, OSError):
        async with asyncio.timeout(rng.choice([0.002, 0.02, 0.2])):
            await ask(client, question, rng.random() < 0.5)
    counts.left += 1


async def send_nonsense(client: ClientSession, question: Question, counts: Counts, rng: random.Random) -> None:
    proper = question.body(stream=False)
    garbage: list[Any] = [
        rng.randbytes(rng.randrange(2000)),
        b"{" * 5000,
        b'{"model": ' + b"[" * 50_000,
        b"x" * 1_100_000,
        json.dumps(proper | {"model": "nobody"}).encode(),
        json.dumps(proper | {"max_tokens": 10**12}).encode(),
        json.dumps(proper | {"messages": [{"role": "user", "content": "a " * 20_000}]}).encode(),
        json.dumps(proper | {"logit_bias": {"999999999": 1}}).encode(),
        json.dumps(proper | {"temperature": "hot"}).encode(),
        json.dumps(proper | {"messages": [{"role": "user", "content": "\ud800"}]}).encode(),
    ]
    path = rng.choice([PATH, PATH, PATH, "/v1/completions", "/v1/embeddings", "/v1/nothing"])
    try:
        headers = {"Content-Type": "application/json"}
        async with client.post(path, data=rng.choice(garbage), headers=headers) as response:
            await response.read()
            counts.nonsense[str(response.status)] += 1
    except (ClientError, TimeoutError, OSError) as error:  # a body that is too long may be cut off before its answer is read
        counts.nonsense[type(error).__name__] += 1


async def stall(url: str, question: Question, counts: Counts, rng: random.Random) -> None:
    """Half a head, half a body, or a stream that nobody reads; until the server closes it."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(question.body(stream=True)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    kind, sent = rng.choice([("head", whole[:40]), ("body", whole[:-20]), ("reads nothing", whole)])
    writer = None
    try:
        reader, writer = await asyncio.open_connection(host, int(port), limit=1)
        writer.write(sent)
        await writer.drain()
        if kind == "reads nothing":
            await asyncio.sleep(rng.uniform(1, 10))
        else:
            await reader.read()
        counts.stalled[f"{kind}: closed"] += 1
    except OSError:
        counts.stalled[f"{kind}: cut off"] += 1
    finally:
        if writer is not None:
            writer.close()


# --------------------------------------------------------------------------------------------------------------- phases


async def learn(client: ClientSession, students: Sequence[str], rng: random.Random) -> list[Question]:
    """Raises: SystemExit if a student has too few answers that are certain."""
    found: dict[str, Question] = {}
    for student in students:
        kept = 0
        for _ in range(TRIES):
            question = Question(student, " ".join(rng.choices(WORDS, k=rng.randrange(4, 40))))
            body = question.body(stream=False) | {"logprobs": True, "top_logprobs": 2}
            async with client.post(PATH, json=body) as response:
                if response.status != 200:
                    raise SystemExit(f"error: {student} did not answer: {await response.text()}")
                choice = (await response.json())["choices"][0]
            ranked = [[top["logprob"] for top in token["top_logprobs"]] for token in choice["logprobs"]["content"]]
            certain = all(first - second > MARGIN for first, second in ranked)
            answer = choice["message"]["content"]
            if certain and choice["finish_reason"] == "length" and answer not in found:
                _, streamed = await ask(client, question, stream=True)
                found[answer] = Question(student, question.prompt, answer, streamed)
                kept += 1
            if kept == PER_STUDENT:
                break
        else:
            raise SystemExit(f"error: only {kept} of {TRIES} answers of {student} are certain")
    return list(found.values())


async def singles(client: ClientSession, questions: Sequence[Question], rng: random.Random) -> list[float]:
    seconds = []
    for _ in range(SINGLES):
        question, begun = rng.choice(questions), time.perf_counter()
        status, text = await ask(client, question, stream=False)
        if (status, text) != ("200", question.answer):
            raise SystemExit(f"error: a single request to {question.student} was answered {status} with another text")
        seconds.append(time.perf_counter() - begun)
    return seconds


async def capacity(client: ClientSession, questions: Sequence[Question], seconds: float, rng: random.Random) -> float:
    """Answers a second."""
    best = 0.0
    for clients in (8, 16):
        counts, until = Counts(), time.monotonic() + seconds

        async def one(counts: Counts = counts, until: float = until) -> None:
            while time.monotonic() < until:
                await good(client, rng.choice(questions), counts, rng)

        begun = time.monotonic()
        await asyncio.gather(*(one() for _ in range(clients)))
        best = max(best, counts.answers["200"] / (time.monotonic() - begun))
    return best


async def storm(
    url: str, client: ClientSession, questions: Sequence[Question], rate: float, seconds: float, rng: random.Random
) -> Counts:
    """``rate`` proper requests a second, half as many others beside them; returns once all have ended."""
    counts, tasks, until = Counts(), set[asyncio.Task[None]](), time.monotonic() + seconds

    def start(work: Callable[..., Awaitable[None]], to: Any = client) -> None:
        if len(tasks) >= MAX_OPEN:
            counts.not_sent += 1
            return
        task = asyncio.ensure_future(work(to, rng.choice(questions), counts, rng))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    stalled, due = set[asyncio.Task[None]](), time.monotonic()
    while time.monotonic() < until:
        due += rng.expovariate(1.5 * rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        start(rng.choices([good, leave, send_nonsense], [1.0, 0.25, 0.25])[0])
        if rng.random() < 1 / (15 * rate):  # every ten seconds
            for _ in range(FLOOD):
                start(good)
        if len(stalled) < STALLED:
            task = asyncio.ensure_future(stall(url, rng.choice(questions), counts, rng))
            stalled.add(task)
            task.add_done_callback(stalled.discard)
    while tasks:
        await asyncio.gather(*tasks)
    for task in stalled:
        task.cancel()
    return counts


async def sample_memory(pid: int, samples: list[tuple[float, int, int]]) -> None:
    """Seconds, and the bytes of the server and of its engines."""
    begun = time.monotonic()
    while True:
        engines = sum(map(resident, children(pid)))
        samples.append((time.monotonic() - begun, resident(pid), engines))
        await asyncio.sleep(1)


def memory_report(samples: Sequence[tuple[float, int, int]]) -> dict[str, Any]:
    """MB at the beginning and at the end, and the slope of the second half in MB a minute, of the server and of its engines."""
    kept = np.array(samples[len(samples) // 10 :], dtype=float)
    parts = [part.mean(axis=0) for part in np.array_split(kept, min(PARTS, len(kept) // 2))]
    half = parts[len(parts) // 2 :]
    minutes = [part[0] / 60 for part in half]
    report = {}
    for column, name in ((1, "server"), (2, "engines")):
        line = linregress(minutes, [part[column] / 1e6 for part in half])
        width = float(np.nan_to_num(t.ppf(0.975, len(half) - 2) * line.stderr))  # nan where nothing changed
        slope = float(line.slope)
        report[name] = {
            "first_mb": parts[0][column] / 1e6,
            "last_mb": parts[-1][column] / 1e6,
            "peak_mb": float(kept[:, column].max() / 1e6),
            "mb_per_minute": [slope, slope - width, slope + width],
            "mb": [round(float(part[column]) / 1e6, 1) for part in parts],
        }
    return report


async def measure(url: str, pid: int, students: Sequence[str], seconds: float, seed: int) -> dict[str, Any]:
    rng, samples = random.Random(seed), list[tuple[float, int, int]]()
    async with session(url) as client:
        questions = await learn(client, students, rng)
        before = await singles(client, questions, rng)
        rate = await capacity(client, questions, min(20.0, seconds / 4), rng)
        watching = asyncio.create_task(sample_memory(pid, samples))
        begun = time.monotonic()
        counts = await storm(url, client, questions, 2 * rate, seconds, rng)
        took = time.monotonic() - begun
        watching.cancel()
        after = await singles(client, questions, rng)
    quantiles = {
        name: [float(np.percentile(values, q)) for q in (50, 95)]
        for name, values in (("before", before), ("during", counts.seconds), ("after", after))
    }
    return {
        "students": len(students),
        "questions": len(questions),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[2],
        "seed": seed,
        "seconds": took,
        "capacity": rate,
        "offered": sum(counts.answers.values()) / took,
        "answers": dict(counts.answers),
        "wrong": counts.wrong[:5],
        "nonsense": dict(counts.nonsense),
        "left": counts.left,
        "stalled": dict(counts.stalled),
        "not_sent": counts.not_sent,
        "singles": SINGLES,
        "latency": quantiles,
        "memory": memory_report(samples),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", help="tiny random ones if left out")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        names, registry, domains = given.students, given.registry, given.domains
        if not names:
            names, registry, domains = make_students(Path(folder))
        with served(registry, domains) as (url, pid):
            report = asyncio.run(measure(url, pid, names, 60 * given.minutes, given.seed))
    report["tiny"] = not given.students
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    print(text, end="")
    if given.save:
        given.save.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
