"""A whole tiny factory on disk: a random teacher, two domains, a general pool. Nothing here needs a network."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

Result = Any  # of typer.testing, which has moved its class between versions

FAMILY: dict[str, Any] = {
    "name": "default",
    "teacher": {"model": "path:./teacher", "license": "apache-2.0"},
    "encoder": {"model": "path:./encoder", "license": "mit"},
    "sizes": {"mini": {"layers": 2, "vocabulary": 340}},
    "default_size": "mini",
    "general": "general",
    "data": {"max_examples": 24, "near_duplicate": 1.0},
    "heal": {"steps": 2, "batch": 4, "learning_rate": 1e-3, "rank": 2},
    "distill": {"steps": 2, "batch": 4, "learning_rate": 1e-3, "rank": 2, "feature": 0.1},
    "evaluate": {"examples": 4, "general": 4, "bootstrap": 100},
    "profiles": {"demo": {"distill": {"steps": 1}}},
}
WHAT = ("signs", "cause", "test", "price", "name", "age", "colour", "weight", "length", "use", "origin", "smell")


def domain(name: str, things: str) -> dict[str, Any]:
    templates = [f"what is the {what} of {{thing}} ?" for what in WHAT]
    source = {"kind": "templates", "license": "apache-2.0", "templates": templates, "slots": {"thing": things.split()}}
    return {"name": name, "description": f"questions on {name}", "sources": [{"id": f"{name}-questions", **source}]}


@dataclass(frozen=True)
class Workplace:
    """``workplace.run("build", "plants")``: a temporary folder with ``domains/`` and ``registry/``."""

    root: Path
    family: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(FAMILY)))

    @property
    def domains(self) -> Path:
        return self.root / "domains"

    def write(self, name: str, content: Any) -> Path:
        path = self.domains / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    def write_all(self) -> None:
        self.write("default.family.yaml", self.family)
        self.write("plants.yaml", domain("plants", "oak elm ash fir yew ivy moss fern reed lime pine rose"))
        self.write("stars.yaml", domain("stars", "sun vega rigel deneb altair spica mira sirius castor algol pollux hadar"))
        self.write("general.pool.yaml", domain("general", "shoe cup pen hat bag fork lamp sofa ring belt coat rug"))

    def run(self, command: str, *arguments: str) -> Result:
        """The command with this workplace's folders, as its name in the shell would run it."""
        from factory.cli.commands import app

        folders = ["--domains", str(self.domains)] if command not in NO_DOMAINS else []
        folders += ["--registry", str(self.root / "registry")] if command not in NO_REGISTRY else []
        forced = ["--force"] if command == "build" and "--no-force" not in arguments else []  # a random teacher knows nothing
        return CliRunner().invoke(app, [command, *folders, *forced, *(one for one in arguments if one != "--no-force")])

    def factory(self) -> Any:
        """What ``build`` would use."""
        from factory.config.load import load_specs
        from factory.pipeline.build import Factory
        from factory.registry.registry import Registry

        specs = load_specs(self.domains)
        return Factory(specs, specs.family("default"), profile="default", registry=Registry(self.root / "registry"), force=True)


NO_DOMAINS = {"list", "show", "compare", "promote"}
NO_REGISTRY = {"new", "validate", "data", "route"}


class BagOfWords:
    """A sentence encoder whose vectors are the words' own: what a router and a duplicate search need, at once."""

    def encode(self, sentences: list[str], /, **_: Any) -> np.ndarray:
        vectors = np.zeros((len(sentences), 64), dtype=np.float32)
        for row, sentence in enumerate(sentences):
            for word in sentence.split():
                vectors[row, zlib.crc32(word.encode()) % 64] += 1
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def tiny_models(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random teacher in ``domains/teacher`` that answers in sentences, a bag of words as encoder, an own cache."""
    import factory.pipeline.context
    from factory.data.dataset import Completion
    from factory.models.teacher import Teacher
    from support import tiny

    tiny.llama().save_pretrained(place.domains / "teacher")
    tiny.tokenizer().save_pretrained(place.domains / "teacher")
    (place.domains / "encoder").mkdir()

    def write(self: Teacher, prompts: list[str], *_: Any) -> dict[str, Completion]:
        return {prompt: Completion(f"the answer to {prompt.strip(' ?')} is light", finished=True) for prompt in prompts}

    monkeypatch.setattr(Teacher, "_write", write)
    monkeypatch.setattr(factory.pipeline.context, "load_encoder", lambda *_, **__: BagOfWords())
    monkeypatch.setenv("FACTORY_HOME", str(place.root / "home"))


Refused = Callable[[Result], str]
