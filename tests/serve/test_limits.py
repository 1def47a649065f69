"""The bounded queue, and errors in OpenAI's format."""

from __future__ import annotations

import pytest
import typer

from factory.cli.serving import read_bytes
from factory.machine import machine_memory
from factory.serve.limits import APIError, Limits, Queue


def test_a_full_queue_refuses_with_429_and_a_time_to_retry() -> None:
    queue = Queue(2, 2)
    queue.enter(1)
    queue.enter(1)
    with pytest.raises(APIError) as error:
        queue.enter(1)
    assert error.value.status == 429
    assert 1 <= int(error.value.headers["Retry-After"]) <= 60
    queue.leave(0.1)
    queue.enter(1)


def test_the_time_to_retry_grows_with_the_duration_of_recent_requests() -> None:
    queue = Queue(8, 8)
    for _ in range(8):
        queue.enter(4)
    with pytest.raises(APIError) as fast:
        queue.enter(4)
    queue.leave(100.0)
    queue.enter(4)
    with pytest.raises(APIError) as slow:
        queue.enter(4)
    assert int(slow.value.headers["Retry-After"]) > int(fast.value.headers["Retry-After"])


def test_one_key_has_a_share_and_leaves_the_rest_to_others() -> None:
    queue = Queue(4, 2)
    queue.enter(1, "first")
    queue.enter(1, "first")
    with pytest.raises(APIError, match="its share of the queue") as error:
        queue.enter(1, "first")
    assert (error.value.status, error.value.code) == (429, "queue_full")
    queue.enter(1, "second")
    queue.leave(0.1, "first")
    queue.enter(1, "first")
    with pytest.raises(APIError, match="the server is full"):
        for _ in range(2):
            queue.enter(1, "third")


def test_without_keys_anyone_may_fill_the_queue() -> None:
    queue = Queue(4, 2)
    for _ in range(4):
        queue.enter(1)
    assert queue.length == 4


@pytest.mark.parametrize(("given", "share"), [(Limits(), 64), (Limits(queue=1), 1), (Limits(queue=10, queue_per_key=7), 7)])
def test_a_share_is_half_of_the_queue_unless_it_is_given(given: Limits, share: int) -> None:
    assert given.per_key == share


@pytest.mark.parametrize(
    ("status", "error_type"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"), (503, "server_error")],
)
def test_errors_have_openais_format(status: int, error_type: str) -> None:
    body = APIError(status, "no", code="model_not_allowed", param="model").body()
    assert body == {"error": {"message": "no", "type": error_type, "param": "model", "code": "model_not_allowed"}}


def test_memory_is_shared_by_engines_and_models() -> None:
    given = Limits(memory=1600)
    assert (given.engine_memory, given.adapter_memory, given.model_memory) == (1200, 300, 400)


def test_memory_is_half_of_the_machines_unless_it_is_given() -> None:
    here = machine_memory()
    assert here > 10**8
    assert 0.37 < Limits().engine_memory / here < 0.38


@pytest.mark.parametrize(
    ("text", "value"), [("4GB", 4 * 10**9), ("600MB", 6 * 10**8), ("0.5 GB", 5 * 10**8), ("123456", 123456)]
)
def test_sizes_are_written_as_in_the_yaml_files(text: str, value: int) -> None:
    assert read_bytes(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "4 gigabytes", "4TB", "0MB", "\u00b2", "1e9", "nan"])
def test_no_other_size_is_taken(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected 4GB, 600MB or a number of bytes"):
        read_bytes(text)
