"""Scoring and embedding that nobody waits for any more end, and the next request is not held up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import exporting, specs
from support.tiny import CPU

from factory.models.embedding_head import BATCH
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
    scorer = Scorer(registry, no_models, CPU)
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
        model, _ = scorer._loaded[target.base]
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
