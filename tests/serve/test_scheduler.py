"""Requests share an engine one adapter at a time, and none of them starves."""

from __future__ import annotations

import asyncio

import pytest

from factory.serve.scheduler import AdapterScheduler


async def hold(scheduler: AdapterScheduler, adapter: str, log: list[str], release: asyncio.Event) -> None:
    async with scheduler.slot(adapter):
        log.append(adapter)
        await release.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_all_slots_go_to_one_adapter() -> None:
    async def run() -> list[list[str]]:
        scheduler, log, release, seen = AdapterScheduler(2), [], asyncio.Event(), []
        tasks = [asyncio.create_task(hold(scheduler, adapter, log, release)) for adapter in "abaab"]
        await settle()
        seen.append(list(log))
        release.set()
        await asyncio.gather(*tasks)
        return [*seen, log]

    first, all_adapters = asyncio.run(run())
    assert first == ["a", "a"]  # b waits, because a batch has one adapter
    assert sorted(all_adapters) == ["a", "a", "a", "b", "b"]


def test_a_request_that_waited_too_long_comes_next_while_others_keep_coming() -> None:
    async def run() -> list[str]:
        scheduler, log = AdapterScheduler(1, patience=0.0), []
        first, others = asyncio.Event(), asyncio.Event()
        others.set()
        running = asyncio.create_task(hold(scheduler, "a", log, first))
        await settle()
        tasks = [asyncio.create_task(hold(scheduler, adapter, log, others)) for adapter in "baaa"]
        await settle()
        first.set()
        await asyncio.gather(running, *tasks)
        return log

    assert asyncio.run(run()) == ["a", "b", "a", "a", "a"]


def test_a_busy_adapter_gets_no_further_slots_while_another_waits() -> None:
    async def run() -> list[str]:
        scheduler, log = AdapterScheduler(2, patience=0.0), []
        releases = [asyncio.Event() for _ in range(3)]
        tasks = [
            asyncio.create_task(hold(scheduler, "a", log, releases[0])),
            asyncio.create_task(hold(scheduler, "a", log, releases[1])),
        ]
        await settle()
        tasks += [
            asyncio.create_task(hold(scheduler, "b", log, releases[2])),
            asyncio.create_task(hold(scheduler, "a", log, releases[2])),
        ]
        await asyncio.sleep(0.01)
        releases[0].set()  # a slot is free, but b has waited too long: no further a gets it
        await settle()
        assert log == ["a", "a"]
        releases[1].set()
        await settle()
        assert log == ["a", "a", "b"]
        releases[2].set()
        await asyncio.gather(*tasks)
        return log

    assert asyncio.run(run()) == ["a", "a", "b", "a"]


def test_a_cancelled_request_frees_its_place_or_its_slot() -> None:
    async def run() -> int:
        scheduler, log, release = AdapterScheduler(1), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(scheduler, adapter, log, release)) for adapter in "abc"]
        await settle()
        tasks[1].cancel()  # waiting
        tasks[0].cancel()  # running
        await settle()
        assert log == ["a", "c"]
        release.set()
        await tasks[2]
        return scheduler.running

    assert asyncio.run(run()) == 0


def test_a_request_cancelled_in_the_moment_of_admission_frees_its_slot() -> None:
    async def run() -> int:
        scheduler, log, release = AdapterScheduler(1), [], asyncio.Event()
        async with scheduler.slot("a"):
            second = asyncio.create_task(hold(scheduler, "b", log, release))
            await settle()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        async with scheduler.slot("c"):
            return scheduler.running

    assert asyncio.run(run()) == 1
