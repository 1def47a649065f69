"""Scoring and embedding that nobody waits for any more end, and models make room for others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import exporting, specs
from support.serving import publish_again
from support.tiny import CPU

from factory.models.embedding_head import BATCH
from factory.registry.registry import Registry
from factory.serve.auth import Caller
from factory.serve.resolver import ModelResolver, Target
from factory.serve.scoring import Scorer


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scorer, Target]]:
    def no_models() -> Any:
        raise AssertionError("the teacher was asked for")

    root: Path = tmp_path_factory.mktemp("scoring")
    registry, version = exporting.publish_student(root)
    family = specs.load(root).family("small")
    scorer = Scorer(registry, no_models, CPU, memory=10**9)
    yield scorer, ModelResolver(registry, family, no_models).resolve(version.reference, Caller())
    scorer.close()


@pytest.mark.parametrize("work", ["embed", "score"])
def test_work_ends_soon_after_its_request_was_cancelled(student: tuple[Scorer, Target], work: str) -> None:
    scorer, target = student
    passes, forward = threading.Semaphore(0), []

    def slow(*_: object) -> None:
        forward.append(1)
        passes.release()
        time.sleep(0.05)

    async def run() -> None:
        await scorer.embed(target, [[5]])  # loads the model
        model = scorer._loaded[target.base].model
        with model.get_input_embeddings().register_forward_pre_hook(slow):
            many = scorer.embed(target, [[5]] * BATCH * 100) if work == "embed" else scorer.score(target, [5], max_tokens=100)
            task = asyncio.ensure_future(many)
            await asyncio.to_thread(passes.acquire)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            begun = time.monotonic()
            assert (await scorer.embed(target, [[5], [6]])).shape[0] == 2
            assert time.monotonic() - begun < 2  # of the 5 s that were left

    asyncio.run(run())
    assert len(forward) < 20


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Two students on one base, and one on a base of its own."""
    registry, first = exporting.publish_student(tmp_path_factory.mktemp("several"))
    second = publish_again(registry, "second-mini", seed=1)
    other = publish_again(registry, "other-mini", seed=2, base=exporting.publish_base(registry).reference)
    return {version.name: Target(version, version.base or "") for version in (first, second, other)}


def embedded(several: dict[str, Target], memory: int, names: Sequence[str]) -> tuple[Scorer, list[Any]]:
    """Embeddings by each of these students, one after the other."""

    def no_models() -> Any:
        raise AssertionError("the teacher was asked for")

    version = next(iter(several.values())).version
    assert version is not None
    scorer = Scorer(Registry(version.folder.parents[2]), no_models, CPU, memory)

    async def run() -> list[Any]:
        return [(await scorer.embed(several[name], [[5, 6, 7]])).tolist() for name in names]

    try:
        return scorer, asyncio.run(run())
    finally:
        scorer.close()


def test_models_used_least_recently_make_room(several: dict[str, Target]) -> None:
    turns = ("plants-mini", "second-mini", "plants-mini", "other-mini", "plants-mini")
    roomy, expected = embedded(several, 10**9, turns)
    plants, other = several["plants-mini"], several["other-mini"]
    assert list(roomy._loaded) == [other.base, plants.base]
    both = list(roomy._loaded[plants.base].adapters)
    assert both == ["second-mini@1", "plants-mini@1"]
    assert embedded(several, 10**9, turns[:1])[1] == expected[:1] and expected[0] != expected[1] != expected[3]

    one_base = roomy._loaded[plants.base].bytes
    tight, found = embedded(several, one_base, turns)
    assert found == expected
    assert list(tight._loaded) == [plants.base]

    tiny, found = embedded(several, 1, turns)  # a base with one adapter is kept all the same
    assert found == expected
    assert list(tiny._loaded[plants.base].adapters) == ["plants-mini@1"]


def test_an_adapter_used_least_recently_makes_room(several: dict[str, Target]) -> None:
    roomy, expected = embedded(several, 10**9, ("plants-mini", "second-mini"))
    both = roomy._loaded[several["plants-mini"].base].bytes
    tight, found = embedded(several, both - 1, ("plants-mini", "second-mini"))
    assert found == expected
    assert list(tight._loaded[several["plants-mini"].base].adapters) == ["second-mini@1"]
