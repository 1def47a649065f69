"""The same teacher here and behind an API that names 20 tokens a place, the same base, the same questions:

    python scripts/bench/api_teacher.py healthcare --save FILE.json

`factory serve` is the API, in a process of its own. The base is the teacher with every third layer taken out, as a model that
somebody has downloaded. Two adapters are trained on it, on what the teacher says here (its 20 likeliest tokens, in float) and
on what the API says (llama.cpp's, with weights of 8 bits), and both are compared with the teacher here on held-out questions.
`texts` is a third one, trained on the API's texts alone.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import yaml

from factory.config.load import load_specs
from factory.data.splitting import cluster_of
from factory.evaluation.fidelity import measure, with_adapter
from factory.evaluation.stats import BootstrapConfig, paired_difference, ratio
from factory.models.base import load_base
from factory.models.pruning import prune_layers
from factory.models.tokenize import tokenize_examples
from factory.pipeline.adapter import distil_adapter
from factory.pipeline.api_teacher import spent
from factory.pipeline.base import make_base
from factory.pipeline.context import BuildContext, make_context, models_for
from factory.pipeline.dataset import make_dataset
from factory.pipeline.training_set import make_training_set
from factory.registry.plain_json import plain_json, to_json
from factory.registry.registry import Registry

STARTS = 300.0  # seconds that the server may take
ALIKE = {"top_k": 20, "feature": 0.0, "lmbda": 0.0, "seq_kd": False, "general": 0.0}  # what an API's students can learn, too
NAMES = ("here", "api", "texts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain")
    parser.add_argument("--examples", type=int, default=120, help="questions to train on")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, served(given.domains) as url:
        found = compare(given, Path(name), url)
    print(json.dumps(found, indent=2))
    if given.save:
        given.save.write_bytes(to_json(plain_json(found, given.save.name)))


@contextmanager
def served(domains: Path) -> Iterator[str]:
    """``with served(Path("domains")) as url:`` the default family's teacher behind the project's own server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from factory.cli import app; app()", "serve", "--port", str(port)]
    with tempfile.TemporaryDirectory() as empty:
        process = subprocess.Popen([*command, "--domains", str(domains), "--registry", empty], stdout=subprocess.DEVNULL)
        try:
            url, ends = f"http://127.0.0.1:{port}", time.monotonic() + STARTS
            while not ready(url):
                if process.poll() is not None or time.monotonic() > ends:
                    sys.exit("the server did not start")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).is_success
    except httpx.TransportError:
        return False


def compare(given: argparse.Namespace, folder: Path, url: str) -> dict[str, Any]:
    """KL to the teacher here, of each adapter, and what the API and its client counted."""
    near = context_of(given.domains, "default", folder, given)
    models = models_for(near, near.specs.domain(given.domain))
    save_base(near, folder / "base")
    write_families(given.domains, folder, url)
    contexts = {"here": near} | {name: context_of(folder / "domains", name, folder, given) for name in ("api", "texts")}
    trained: dict[str, Any] = {}
    account: dict[str, float] = {}
    far = contexts["api"]
    base = make_base(far, models_for(far, far.specs.domain(given.domain)), "api-size")
    for name, context in contexts.items():
        spec = context.specs.domain(given.domain)
        own = models_for(context, spec)
        data = make_dataset(context, own, spec)
        config = context.settings(spec).distill
        training_set = make_training_set(context, own, data, own.teacher, config)
        fresh = replace(base, base=load_base(base.version.folder, context.device), teacher=own.teacher)
        trained[name] = distil_adapter(context, data, fresh, training_set, config, name)[0]
        if name == "api":
            account = {**vars(spent(own.teacher) or {}), "server_tokens": server_tokens(url)}
        if name == "here":
            rows = [*data.rows["test"], *data.rows["validation"]]
    examples = tokenize_examples(rows, models.tokenizer, near.specs.domain(given.domain).contexts)
    candidates = {name: with_adapter(trained[name], "default") for name in NAMES}
    sums = {
        name: one.by_cluster([cluster_of(row) for row in rows])
        for name, one in measure(models.teacher, candidates, examples).items()
    }
    bootstrap = BootstrapConfig(1000, given.seed)
    kl = {name: asdict(ratio(one.kl, one.tokens, bootstrap)) for name, one in sums.items()}
    behind = {
        name: asdict(paired_difference(sums[name].kl, sums["here"].kl, sums["here"].tokens, bootstrap))
        for name in ("api", "texts")
    }
    settings = {"domain": given.domain, "examples": given.examples, "steps": given.steps, "seed": given.seed}
    return settings | {"held_out": len(rows), "kl": kl, "behind_here": behind, "account": account}


def context_of(domains: Path, family: str, folder: Path, given: argparse.Namespace) -> BuildContext:
    """Greedy answers without a penalty, which an API is not asked for, and as many steps for all."""
    specs = load_specs(domains)
    overrides = {
        "data": {"max_examples": given.examples, "repetition_penalty": 1.0},
        "distill": {"steps": given.steps} | ALIKE,
    }
    chosen = specs.family(family)
    section = {name: getattr(chosen, name).model_copy(update=more) for name, more in overrides.items()}
    return make_context(
        specs,
        chosen.model_copy(update=section),
        registry=Registry(folder / "registry"),
        seed=given.seed,
        say=lambda line: print(line, file=sys.stderr),
    )


def save_base(context: BuildContext, folder: Path) -> None:
    """The teacher without every third layer."""
    teacher = models_for(context, next(iter(context.specs.domains.values()))).teacher
    model = teacher.model
    prune_layers(model, [layer for layer in range(model.config.num_hidden_layers) if layer % 3 != 2])
    model.save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)


def write_families(domains: Path, folder: Path, url: str) -> None:
    """The domains with two more families, of students of the API with and without what it says of tokens."""
    target = folder / "domains"
    target.mkdir()
    for path in domains.iterdir():
        if not path.name.endswith(".family.yaml"):
            (target / path.name).symlink_to(path.resolve())
    shipped = yaml.safe_load((domains / "default.family.yaml").read_text(encoding="utf-8"))
    for name in ("api", "texts"):
        teacher = {"api": f"{url}/v1", "model": "teacher", "license": "apache-2.0", "timeout_seconds": 300}
        size = {"base": {"model": f"path:{folder / 'base'}", "license": "apache-2.0"}}
        family = shipped | {
            "name": name,
            "teacher": teacher | ({"tokenizer": f"path:{folder / 'base'}"} if name == "api" else {}),
            "sizes": {f"{name}-size": size},
            "default_size": f"{name}-size",
            "path": "direct",
            "distill": shipped["distill"] | ALIKE,
            "serve": {"fallback": "refuse"},
            "confidence": {"examples": 0},
            "profiles": {},
        }
        family["gates"] = {}
        (target / f"{name}.family.yaml").write_text(yaml.safe_dump(family, sort_keys=False), encoding="utf-8")


def server_tokens(url: str) -> float:
    """All that it read and wrote, as it counts it."""
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(r"factory_tokens_total\{", line))


if __name__ == "__main__":
    main()
