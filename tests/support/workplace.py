"""A whole tiny factory on disk: a random teacher, two domains, a general pool. Nothing here needs a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from support.teacher import ANSWERS

Result = Any  # of typer.testing, which has moved its class between versions

FAMILY: dict[str, Any] = {
    "name": "default",
    "teacher": {"model": "path:./teacher", "license": "apache-2.0", "languages": ["en"]},
    "encoder": {"model": "path:./encoder", "license": "mit", "languages": ["en"]},
    "sizes": {"mini": {"layers": 2, "vocabulary": 350}},  # of 360 tokens: answers to held-out templates need their own
    "default_size": "mini",
    "general": "general",
    "data": {"max_examples": 24, "near_duplicate": 1.0},
    "heal": {"steps": 2, "batch": 4, "learning_rate": 1e-3, "rank": 2},
    "distill": {"steps": 2, "batch": 4, "learning_rate": 1e-3, "rank": 2, "feature": 0.1},
    "evaluate": {"examples": 4, "general": 4, "bootstrap": 100},
    "profiles": {"demo": {"distill": {"steps": 1}}},
}
WHAT = tuple(ANSWERS)
PLANTS = "oak elm ash fir yew ivy moss fern reed lime pine rose"
STARS = "sun vega rigel deneb altair spica mira sirius castor algol pollux hadar"
GENERAL = "shoe cup pen hat bag fork lamp sofa ring belt coat rug"
BIRDS = "robin wren finch owl crow jay swan duck goose hawk kite tern"  # of a domain that tests add
THINGS = f"{PLANTS} {STARS} {GENERAL} {BIRDS}".split()


def domain(name: str, things: str) -> dict[str, Any]:
    templates = [f"what is the {what} of {{thing}} ?" for what in WHAT]
    source = {"kind": "templates", "license": "apache-2.0", "templates": templates, "slots": {"thing": things.split()}}
    return {"name": name, "description": f"questions on {name}", "sources": [{"id": f"{name}-questions", **source}]}


def two_contexts(**second: Any) -> dict[str, Any]:
    """``two_contexts(teacher_context={"system": "be long"})``: plants.yaml with a context and a second source, of birds."""
    [source] = domain("birds", BIRDS)["sources"]
    plants = domain("plants", PLANTS) | {"teacher_context": {"system": "be brief"}}
    return plants | {"sources": [*plants["sources"], source | second]}


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
        self.domains.mkdir(parents=True, exist_ok=True)
        self.write("default.family.yaml", self.family)
        self.write("plants.yaml", domain("plants", PLANTS))
        self.write("stars.yaml", domain("stars", STARS))
        self.write("general.pool.yaml", domain("general", GENERAL))

    def run(self, command: str, *arguments: str) -> Result:
        """The command with this workplace's folders, as its name in the shell would run it."""
        from factory.cli import app

        folders = ["--domains", str(self.domains)] if command not in NO_DOMAINS else []
        folders += ["--registry", str(self.root / "registry")] if command not in NO_REGISTRY else []
        return CliRunner(env={"COLUMNS": "160"}).invoke(app, [command, *folders, *arguments])

    def context(self, family: str = "default", **more: Any) -> Any:
        """``workplace.context(force=True)``: what ``build`` would use."""
        from factory.config.load import load_specs
        from factory.pipeline.context import make_context
        from factory.registry.registry import Registry

        specs = load_specs(self.domains)
        return make_context(specs, specs.family(family), registry=Registry(self.root / "registry"), **more)


NO_DOMAINS = {"list", "show", "promote", "export", "verify", "history", "demote", "delete", "import", "reindex", "gc"}
NO_REGISTRY = {"new", "validate"}


def make_models(folder: Path) -> None:
    """``make_models(folder)``: a trained teacher in ``folder/teacher`` and a bag of words in ``folder/encoder``."""
    from support.teacher import train_teacher

    prompts = [f"what is the {what} of {thing} ?" for what in WHAT for thing in THINGS]
    train_teacher(folder / "teacher", prompts)
    save_encoder(folder / "encoder", [*prompts, *" ".join(ANSWERS.values()).split()])


def save_encoder(folder: Path, texts: list[str]) -> None:
    """A sentence-transformers folder whose vectors are the means of random word vectors."""
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = dict.fromkeys(["[UNK]", *(word for text in texts for word in text.split())])
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    vectors = np.random.default_rng(0).normal(size=(len(words), 64)).astype(np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=vectors)
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)


Refused = Callable[[Result], str]
