"""``GET /ready``: whether a request could be answered now, with one plain reason and no name where it could not."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import manifests
from support.engines import fake_engines
from support.fake_http import QuietHandler, served
from support.serving import running
from support.workplace import Workplace

from factory.registry.registry import Registry
from factory.serve.engines import Engines, Upstream
from factory.serve.readiness import Readiness

NO_MODEL = "no student can be resolved, and the teacher's files are not on this machine"


def problem(registry: Registry, teacher: bool = False, engines: Engines | None = None) -> str | None:
    with fake_engines() as none:
        return asyncio.run(Readiness(registry, lambda: teacher, engines or none).problem())


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    here = Registry(tmp_path / "registry")
    manifests.publish(here)
    return here


def test_a_student_that_can_be_resolved_is_enough(registry: Registry) -> None:
    assert problem(registry) is None


def test_so_is_a_teacher(tmp_path: Path) -> None:
    assert problem(Registry(tmp_path / "none")) == NO_MODEL
    assert problem(Registry(tmp_path / "none"), teacher=True) is None


def test_a_student_without_its_base_is_not(registry: Registry) -> None:
    shutil.rmtree(registry.root / "bases")
    assert problem(registry) == NO_MODEL


def test_a_registry_that_cannot_be_read_is_said_even_with_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("not a folder")
    assert problem(Registry(tmp_path / "registry"), teacher=True) == "the registry cannot be read"


@contextmanager
def upstream(status: int) -> Iterator[Upstream]:
    class Answers(QuietHandler):
        def do_GET(self) -> None:
            assert (self.path, self.headers["authorization"]) == ("/v1/models", "Bearer theirs")
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

    with served(Answers) as url:
        yield Upstream(f"{url}/v1", "theirs")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, None),
        (404, None),  # it has no list of models, and answers
        (401, "the upstream server refuses this server's key"),
        (500, "the upstream server fails"),
    ],
)
def test_an_upstream_must_answer(registry: Registry, status: int, expected: str | None) -> None:
    with upstream(status) as engines:
        assert problem(registry, engines=engines) == expected


@pytest.mark.parametrize("listens", [True, False])
def test_an_upstream_that_is_down_or_hangs_is_said(registry: Registry, listens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.serve.readiness.PATIENCE", 0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        if listens:
            free.listen()
        engines = Upstream(f"http://127.0.0.1:{free.getsockname()[1]}/v1")
        assert problem(registry, engines=engines) == "the upstream server cannot be reached"


def test_many_who_ask_at_once_cost_one_look(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []
    versions = Registry.versions
    monkeypatch.setattr(Registry, "versions", lambda *given: looks.append(given) or versions(*given))

    async def run() -> list[str | None]:
        with fake_engines() as none:
            readiness = Readiness(registry, lambda: False, none)
            return list(await asyncio.gather(*(readiness.problem() for _ in range(50))))

    assert asyncio.run(run()) == [None] * 50
    assert len(looks) == 1


@pytest.mark.parametrize("with_teacher", [True, False])
def test_the_route_needs_no_key_and_names_nothing(workplace: Workplace, models_folder: Path, with_teacher: bool) -> None:
    if with_teacher:
        shutil.copytree(models_folder, workplace.domains, dirs_exist_ok=True)
    keys = workplace.root / "keys.yaml"
    keys.write_text("secret: [a]\n")
    with running(workplace, api_keys=keys) as url:
        answer = httpx.get(f"{url}/ready")
    if with_teacher:
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
        return
    assert answer.status_code == 503
    assert answer.json()["error"] == {"message": NO_MODEL, "type": "server_error", "param": None, "code": "not_ready"}
