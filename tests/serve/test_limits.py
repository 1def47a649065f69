"""Keys, the bounded queue, and whose turn it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from factory.errors import ServeError
from factory.serve.limits import AdapterScheduler, APIError, Keys, Queue


def keys(tmp_path: Path, content: str) -> Keys:
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    return Keys.load(path)


def test_a_key_opens_its_students_alone(tmp_path: Path) -> None:
    caller = keys(tmp_path, "k1: [healthcare-small]\nk2: '*'\n").caller("Bearer k1")
    assert caller.may("healthcare-small")
    assert not caller.may("legal-small")
    assert not caller.may("teacher")


def test_a_star_opens_everything_and_json_is_read_too(tmp_path: Path) -> None:
    assert keys(tmp_path, '{"k2": "*"}').caller("bearer k2").may("teacher")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic k1", "Bearer k", "Bearer k11", "Bearer é"])
def test_any_other_header_is_refused_with_401(tmp_path: Path, header: str | None) -> None:
    with pytest.raises(APIError) as refusal:
        keys(tmp_path, "k1: [a]").caller(header)
    assert refusal.value.status == 401
    assert "k1" not in str(refusal.value)


def test_without_a_file_everybody_may_everything() -> None:
    assert Keys.load(None).caller(None).may("teacher")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "expected keys"),
        ("[a]", "expected keys"),
        ("secret: {a: b}", "entry 1"),
        ("secret: [1]", "entry 1"),
        ("a: [", "no YAML"),
    ],
)
def test_a_wrong_keys_file_is_one_line_that_tells_no_key(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(ServeError, match=says) as error:
        keys(tmp_path, content)
    assert "secret" not in str(error.value)


def test_a_keys_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"none\.yaml cannot be read: No such file"):
        Keys.load(tmp_path / "none.yaml")


def test_a_full_queue_says_when_to_come_again() -> None:
    queue = Queue(2)
    queue.enter(1)
    queue.enter(1)
    with pytest.raises(APIError) as refusal:
        queue.enter(1)
    assert refusal.value.status == 429
    assert 1 <= int(refusal.value.headers["Retry-After"]) <= 60
    queue.leave(0.1)
    queue.enter(1)


def test_errors_have_openais_shape() -> None:
    body = APIError(403, "no", code="model_not_allowed", param="model").body()
    assert body == {"error": {"message": "no", "type": "permission_error", "param": "model", "code": "model_not_allowed"}}


# --------------------------------------------------------------------------------------------------------------- turns


async def hold(turns: AdapterScheduler, adapter: str, log: list[str], release: asyncio.Event) -> None:
    async with turns.slot(adapter):
        log.append(adapter)
        await release.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_one_adapter_at_a_time_as_many_requests_as_there_are_slots() -> None:
    async def run() -> list[list[str]]:
        turns, log, release, seen = AdapterScheduler(2), [], asyncio.Event(), []
        tasks = [asyncio.create_task(hold(turns, adapter, log, release)) for adapter in "abaab"]
        await settle()
        seen.append(list(log))
        release.set()
        await asyncio.gather(*tasks)
        return [*seen, log]

    first, every = asyncio.run(run())
    assert first == ["a", "a"]  # the b between them waits: a batch holds one adapter
    assert sorted(every) == ["a", "a", "a", "b", "b"]


def test_who_has_waited_too_long_is_next_although_the_others_go_on_coming() -> None:
    async def run() -> list[str]:
        turns, log = AdapterScheduler(1, patience=0.0), []
        first, others = asyncio.Event(), asyncio.Event()
        others.set()
        running = asyncio.create_task(hold(turns, "a", log, first))
        await settle()
        tasks = [asyncio.create_task(hold(turns, adapter, log, others)) for adapter in "baaa"]
        await settle()
        first.set()
        await asyncio.gather(running, *tasks)
        return log

    assert asyncio.run(run()) == ["a", "b", "a", "a", "a"]


def test_a_busy_adapter_starves_nobody() -> None:
    async def run() -> list[str]:
        turns, log = AdapterScheduler(2, patience=0.0), []
        releases = [asyncio.Event() for _ in range(3)]
        tasks = [
            asyncio.create_task(hold(turns, "a", log, releases[0])),
            asyncio.create_task(hold(turns, "a", log, releases[1])),
        ]
        await settle()
        tasks += [
            asyncio.create_task(hold(turns, "b", log, releases[2])),
            asyncio.create_task(hold(turns, "a", log, releases[2])),
        ]
        await asyncio.sleep(0.01)
        releases[0].set()  # a slot is free, but b has waited: no further a joins
        await settle()
        assert log == ["a", "a"]
        releases[1].set()
        await settle()
        assert log == ["a", "a", "b"]
        releases[2].set()
        await asyncio.gather(*tasks)
        return log

    assert asyncio.run(run()) == ["a", "a", "b", "a"]


def test_who_leaves_the_queue_or_a_slot_frees_it() -> None:
    async def run() -> int:
        turns, log, release = AdapterScheduler(1), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(turns, adapter, log, release)) for adapter in "abc"]
        await settle()
        tasks[1].cancel()  # waiting
        tasks[0].cancel()  # running
        await settle()
        assert log == ["a", "c"]
        release.set()
        await tasks[2]
        return turns.running

    assert asyncio.run(run()) == 0


def test_a_request_cancelled_in_the_moment_it_is_admitted_gives_its_slot_back() -> None:
    async def run() -> int:
        turns, log, release = AdapterScheduler(1), [], asyncio.Event()
        async with turns.slot("a"):
            second = asyncio.create_task(hold(turns, "b", log, release))
            await settle()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        async with turns.slot("c"):
            return turns.running

    assert asyncio.run(run()) == 1
