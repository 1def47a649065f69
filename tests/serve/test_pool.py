"""Engines as processes: they crash, get stuck, make room for others and go; requests are answered, or end with one error."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import exporting
from support.serving import publish_again, running_students

from factory.errors import ServeError
from factory.models import llama_server
from factory.registry.registry import Registry
from factory.serve import pool as pools
from factory.serve.engine_client import EngineClient
from factory.serve.engines import GgufFiles
from factory.serve.limits import APIError, Limits
from factory.serve.pool import Crashes, Pool
from factory.serve.resolver import Target

NEEDS_STOP = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no such signal here")
LONG = {"prompt": [5] * 8, "max_tokens": 400, "logit_bias": [[0, -100], [1, -100], [2, -100]], "temperature": 0}
ENDLESS = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string", "pattern": "^(a?){1999}$"}}}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """``plants-mini`` and ``stars-mini`` on one base; ``other-mini`` and ``third-mini`` on bases of their own."""
    root = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTORY_HOME", str(root / "home"))
        registry, _ = exporting.publish_student(root)
        publish_again(registry, "stars-mini", seed=1)
        for seed, name in enumerate(("other-mini", "third-mini"), start=2):
            publish_again(registry, name, seed=seed, base=exporting.publish_base(registry).reference)
        yield registry


def target(registry: Registry, name: str = "plants-mini") -> Target:
    version = registry.resolve(name)
    return Target(version, version.base or "")


def no_models() -> Any:
    raise AssertionError("the teacher's files were asked for")


@asynccontextmanager
async def opened(registry: Registry, *, stuck: float | None = None, **limits: Any) -> Any:
    chosen = Limits(**{"parallel": 2, "prompt_tokens": 512, "output_tokens": 512, "memory": 10**10} | limits)
    pool = Pool(GgufFiles(registry, no_models, "f16"), chosen, threads=1, stuck=stuck)
    client = EngineClient()
    try:
        yield pool, client
    finally:
        await pool.close()
        await client.close()


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work()

    return asyncio.run(bounded())


async def ask(pool: Pool, client: EngineClient, asked: Target, **body: Any) -> str:
    async with pool.lease(asked) as lease:
        path = "/chat/completions" if "messages" in body else "/completions"
        said = await client.answer(lease, path, {"prompt": [5], "max_tokens": 4, "temperature": 0} | body)
        return str(said["choices"][0].get("text"))


def engine_of(pool: Pool, asked: Target) -> Any:
    return pool._engines[asked.base]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


# -------------------------------------------------------------------------------------------------------------- crashes


def test_an_engine_that_died_is_started_again_by_the_next_request(registry: Registry) -> None:
    async def work() -> None:
        async with opened(registry) as (pool, client):
            asked = target(registry)
            first = await ask(pool, client, asked)
            engine = engine_of(pool, asked)
            os.kill(engine.server.pid, signal.SIGKILL)
            engine.server._process.wait()
            assert await ask(pool, client, asked) == first
            assert engine_of(pool, asked) is not engine
            await until(lambda: pool.count() == 1)

    run(work)


def test_a_crash_costs_what_was_being_answered_and_not_what_waits(registry: Registry) -> None:
    async def work() -> None:
        async with opened(registry) as (pool, client):
            asked = target(registry)
            expected = await ask(pool, client, asked)
            engine = engine_of(pool, asked)
            running = [asyncio.create_task(ask(pool, client, asked, **LONG)) for _ in range(2)]
            await until(lambda: engine.scheduler.running == 2)
            waiting = [asyncio.create_task(ask(pool, client, asked)) for _ in range(3)]
            await asyncio.sleep(0.05)
            os.kill(engine.server.pid, signal.SIGSEGV)
            for task in running:
                with pytest.raises(APIError) as error:
                    await task
                assert (error.value.status, error.value.code, error.value.headers) == (
                    503,
                    "engine_failed",
                    {"Retry-After": "1"},
                )
            assert await asyncio.gather(*waiting) == [expected] * 3

    run(work)


def test_an_engine_that_cannot_start_waits_longer_each_time(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts: list[float] = []

    def crash(*_: Any, **__: Any) -> None:
        starts.append(time.monotonic())
        raise ServeError("llama.cpp cannot load a file: it ended by signal SIGSEGV")

    monkeypatch.setattr(pools, "LlamaServer", crash)

    async def work() -> None:
        async with opened(registry) as (pool, client):
            for _ in range(2):
                with pytest.raises(ServeError, match="plants-mini@1 did not start"):
                    await ask(pool, client, target(registry))
            for _ in range(50):
                with pytest.raises(APIError, match="failed 2 times in a row; try again in 1 s") as error:
                    await ask(pool, client, target(registry))
                assert (error.value.status, error.value.headers) == (503, {"Retry-After": "1"})
            assert len(starts) == 2
            await asyncio.sleep(1)
            with pytest.raises(ServeError):
                await ask(pool, client, target(registry))
            assert len(starts) == 3

    run(work)
    assert "did not start; it is started again after 3 crashes in a row not before 2 s" in caplog.text


def test_the_wait_doubles_up_to_a_minute_and_begins_anew_after_a_minute_of_work() -> None:
    crashes = Crashes()
    assert [crashes.add(now=0.0, lived=1.0) for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert crashes.add(now=0.0, lived=61.0) == 0


def test_a_gateway_survives_its_engine_and_says_so_in_one_error(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crash comes in the middle of two streams and of a whole answer."""
    processes: list[Any] = []
    spawn = llama_server._spawn
    monkeypatch.setattr(llama_server, "_spawn", lambda: processes.append(spawn()) or processes[-1])
    endless = {str(token): -100 for token in range(3)}
    asked = {"model": "plants-mini", "prompt": ["a"] * 64, "max_tokens": 400, "logit_bias": endless}

    def post(url: str, streams: bool, begun: threading.Event) -> tuple[int, str]:
        body = asked | {"stream": streams}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            text = ""
            for part in answer.iter_text():
                text += part
                begun.set()
            return answer.status_code, text

    with running_students(registry, limits=Limits(parallel=4, output_tokens=400)) as url:
        short = {"model": "plants-mini", "prompt": "a", "max_tokens": 2}
        before = httpx.post(f"{url}/v1/completions", json=short, timeout=60).json()["choices"]
        for _ in range(2):
            streams = [threading.Event(), threading.Event()]
            with ThreadPoolExecutor(3) as threads:
                streamed = [threads.submit(post, url, True, begun) for begun in streams]
                assert all(begun.wait(30) for begun in streams)
                whole = threads.submit(post, url, False, threading.Event())
                while "factory_queue_length 3.0" not in httpx.get(f"{url}/metrics").text:
                    time.sleep(0.01)
                processes[-1].kill()
                status, text = whole.result()
                if status != 200:  # else it was not sent yet, and the next engine answered
                    assert (status, json.loads(text)["error"]["code"]) == (503, "engine_failed")
                for one in streamed:
                    status, text = one.result()
                    *_, last = [line for line in text.split("\n\n") if line]
                    assert (status, json.loads(last.removeprefix("data: "))["error"]["code"]) == (200, "engine_failed")
            assert httpx.get(f"{url}/health").is_success
            after = httpx.post(f"{url}/v1/completions", json=short, timeout=60)
            if after.status_code == 503:  # the second crash in a row
                time.sleep(1.1)
                after = httpx.post(f"{url}/v1/completions", json=short, timeout=60)
            assert after.json()["choices"] == before
    assert all(process.poll() is not None for process in processes) and len(processes) >= 3


# ---------------------------------------------------------------------------------------------------------------- stuck


@NEEDS_STOP
def test_an_engine_that_is_stuck_is_ended_and_the_next_request_answered(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with opened(registry, stuck=0.5) as (pool, client):
            asked = target(registry)
            expected = await ask(pool, client, asked)
            os.kill(engine_of(pool, asked).server.pid, signal.SIGSTOP)
            begun = time.monotonic()
            with pytest.raises(APIError) as error:
                await ask(pool, client, asked)
            assert error.value.status == 503
            assert time.monotonic() - begun < 5
            assert await ask(pool, client, asked) == expected

    run(work)
    assert "the engine for mini-base@1 was stuck for 0.5 s and is ended; it is started again at its next request" in caplog.text


def test_a_grammar_that_takes_minutes_does_not_hold_up_others_for_longer(registry: Registry) -> None:
    """The gateway refuses such schemas; this is what happens where one comes through, and its client leaves."""

    async def work() -> None:
        async with opened(registry, stuck=1.0) as (pool, client):
            asked = target(registry)
            expected = await ask(pool, client, asked)
            body = {"messages": [{"role": "user", "content": "a"}], "response_format": ENDLESS, "max_tokens": 99}
            bad = asyncio.create_task(ask(pool, client, asked, **body))
            await asyncio.sleep(0.3)
            bad.cancel()  # the client leaves, or its deadline passes: the engine does not notice
            begun = time.monotonic()
            with pytest.raises(APIError) as error:
                await ask(pool, client, asked)
            assert error.value.status == 503
            assert await ask(pool, client, asked) == expected
            assert time.monotonic() - begun < 10

    run(work)


def test_a_busy_engine_is_not_taken_for_a_stuck_one(registry: Registry) -> None:
    async def work() -> None:
        async with opened(registry, stuck=0.5, parallel=4) as (pool, client):
            asked = target(registry)
            await asyncio.gather(*(ask(pool, client, asked, prompt=[5] * 500, max_tokens=400) for _ in range(12)))
            assert not pool._crashes

    run(work)


# --------------------------------------------------------------------------------------------------------------- memory


async def size(registry: Registry) -> int:
    """Of one engine of these tests."""
    async with opened(registry) as (pool, client):
        await ask(pool, client, target(registry, "other-mini"))
        return int(pool.bytes)


def budget(engines: float, each: int) -> int:
    return int(engines * each * 4 / 3) + 1  # a quarter is for transformers


def test_the_least_recently_used_engine_makes_room(registry: Registry) -> None:
    async def work() -> None:
        each = await size(registry)
        async with opened(registry, memory=budget(2.5, each)) as (pool, client):
            first, other, third = (target(registry, name) for name in ("plants-mini", "other-mini", "third-mini"))
            for asked in (first, other, first):
                await ask(pool, client, asked)
            process = engine_of(pool, other).server._process
            await ask(pool, client, third)
            assert set(pool._engines) == {first.base, third.base}
            assert process.poll() is not None
            await ask(pool, client, other)
            assert set(pool._engines) == {third.base, other.base}

    run(work)


def test_a_busy_engine_answers_before_it_makes_room_and_nothing_is_lost(registry: Registry) -> None:
    async def work() -> None:
        each = await size(registry)
        names = ("plants-mini", "other-mini", "third-mini")
        async with opened(registry) as (pool, client):
            expected = {name: await ask(pool, client, target(registry, name), max_tokens=60) for name in names}
        async with opened(registry, memory=budget(1.5, each)) as (pool, client):
            most = 0

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, pool.bytes)
                    await asyncio.sleep(0.001)

            watching = asyncio.create_task(watch())
            asked = [name for name in names for _ in range(4)]
            found = await asyncio.gather(*(ask(pool, client, target(registry, name), max_tokens=60) for name in asked))
            watching.cancel()
            assert found == [expected[name] for name in asked]
            assert each <= most <= 1.5 * each

    run(work)


def test_an_engine_larger_than_all_memory_is_started_alone(registry: Registry) -> None:
    async def work() -> None:
        async with opened(registry, memory=1000) as (pool, client):
            for name in ("plants-mini", "other-mini"):
                assert await ask(pool, client, target(registry, name))
                assert pool.count() == 1

    run(work)


def test_adapters_beyond_their_share_are_left_out_until_they_are_asked_for(registry: Registry) -> None:
    async def work() -> None:
        async with opened(registry, memory=1000) as (pool, client):
            plants, stars = target(registry), target(registry, "stars-mini")
            for asked in (plants, stars, plants):
                await ask(pool, client, asked)
                assert engine_of(pool, asked).adapters == (asked.reference,)
        async with opened(registry) as (pool, client):
            await ask(pool, client, plants)
            assert set(engine_of(pool, plants).adapters) == {plants.reference, stars.reference}

    run(work)


def test_an_idle_engine_is_closed_after_a_while(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(pools, "IDLE_SECONDS", 0.3)

    async def work() -> None:
        async with opened(registry) as (pool, client):
            asked = target(registry)
            async with pool.lease(asked):
                process = engine_of(pool, asked).server._process
                await asyncio.sleep(0.5)
                assert process.poll() is None  # in use
            await until(lambda: pool.count() == 0)
            assert process.poll() is not None
            assert await ask(pool, client, asked)

    run(work)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory a process takes")
def test_an_engine_takes_about_as_much_memory_as_is_counted(registry: Registry) -> None:
    async def work() -> None:
        async with opened(registry, parallel=4) as (pool, client):
            asked = target(registry)
            await ask(pool, client, asked, prompt=[5] * 400, max_tokens=100)
            status = Path(f"/proc/{engine_of(pool, asked).server.pid}/status").read_text().splitlines()
            (line,) = (line for line in status if line.startswith("VmRSS"))
            assert 0.5 < int(line.split()[1]) * 1024 / pool.bytes < 1.25

    run(work)
