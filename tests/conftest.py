"""A whole tiny factory on disk: a small trained teacher, two domains, a general pool. Nothing here needs a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.workplace import Refused, Result, Workplace, make_models

from factory.models import device

# The same examples each time, however busy the machine: a test that fails says that something has changed.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def one_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """float32 on every CPU, so that what tests count and keep as golden does not depend on the machine.

    Tests with the real teacher, which run by themselves, compute as a user's build does.
    """
    multiplies = device._multiplies_bfloat16
    with pytest.MonkeyPatch.context() as patched:
        if not all(item.get_closest_marker("slow") for item in request.session.items):
            patched.setattr(device, "_multiplies_bfloat16", lambda where: where.type == "cuda" and multiplies(where))
        yield


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """Specs only: the folders of its models are not there."""
    place = Workplace(tmp_path)
    place.write_all()
    return place


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``teacher/`` and ``encoder/``, made once for all tests."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def with_models(workplace: Workplace, models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """Everything that a build needs."""
    shutil.copytree(models_folder, workplace.domains, dirs_exist_ok=True)
    monkeypatch.setenv("FACTORY_HOME", str(workplace.root / "home"))
    return workplace


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Workplace:
    """A workplace where ``plants-mini`` and its base are published. Tests get copies: ``built``."""
    place = Workplace(tmp_path_factory.mktemp("built-once"))
    place.write_all()
    shutil.copytree(models_folder, place.domains, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTORY_HOME", str(place.root / "home"))
        result = place.run("build", "plants", "--baselines")
        assert result.exit_code == 0, (result.output, result.exception)
    return place


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, built_once: Workplace) -> Iterator[Workplace]:
    """``plants-mini`` and its base, published, in a folder that this file's tests may change."""
    root = tmp_path_factory.mktemp("built")
    shutil.copytree(built_once.root, root, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTORY_HOME", str(root / "home"))
        yield Workplace(root)


@pytest.fixture
def refused() -> Refused:
    """``line = refused(result)``: it failed with exit code 1 and one line on stderr, which is returned; no traceback."""

    def check(result: Result) -> str:
        assert result.exit_code == 1, (result.output, result.exception)
        assert isinstance(result.exception, SystemExit), result.exception
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, result.stderr
        assert "Traceback" not in result.output
        return lines[0]

    return check
