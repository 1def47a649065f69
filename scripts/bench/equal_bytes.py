"""Students beside their own teacher at equal bytes, in every quantization that llama.cpp reads:

python scripts/bench/equal_bytes.py healthcare-medium@1 --save equal-bytes.json --plot equal-bytes.svg

The rivals are the teacher as it is and in the student's vocabulary, shown the domain's context, which llama.cpp keeps in
its cache from question to question. Weights are written as GGUF and read back, so figures are of the file that would be served.
KL is to the untouched teacher with its context, over its whole vocabulary. Tokens per second, the time to the first token and
memory are llama.cpp's, each file in a process of its own; without xllamacpp they are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from factory.config.load import load_specs
from factory.config.schema import DomainSpec
from factory.data.splitting import cluster_of
from factory.errors import FactoryError
from factory.evaluation.answers import generate_answers
from factory.evaluation.fidelity import fixed_model, measure
from factory.evaluation.golden_set import asked_questions, golden_set_report, load_golden_set
from factory.evaluation.stats import summarize
from factory.export.gguf import load_gguf_weights, write_base_gguf
from factory.export.parity import SPEED_TOKENS
from factory.inference import load_version
from factory.models.base import count_parameters, trim_teacher
from factory.models.chat import NO_CONTEXT, prompt_ids
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.context import BuildContext, FamilyModels, make_context, resolve_models
from factory.pipeline.dataset import published_rows
from factory.registry.manifest import MetricValue, StudentManifest
from factory.registry.plain_json import plain_json, to_json
from factory.registry.registry import Registry

QUANTIZATIONS = ("q4_1", "q5_1", "q8_0")
METRICS = ("kl_whole_teacher", "top1_agreement", "sure_agreement")
TIMED = 6  # questions of which the first fills the cache
CONTEXT = 1024  # tokens that llama.cpp makes room for


@dataclass(frozen=True)
class Rival:
    """A model in memory, the teacher in its vocabulary, and whether it is shown the domain's context."""

    name: str
    model: Any
    teacher: Teacher
    shown: bool


@dataclass(frozen=True)
class Row:
    name: str
    quantization: str
    parameters: int
    bytes: int
    metrics: dict[str, MetricValue]
    speed: dict[str, float] | None  # tokens_per_second, first_token_ms, memory_mb


def rivals(context: BuildContext, models: FamilyModels, students: Sequence[str]) -> Iterator[Rival]:
    """One after the other, so that few are in memory at once."""
    seen: set[str] = set()
    for reference in students:
        loaded = load_version(context.registry.resolve(reference), context.registry, context.device, torch.float32)
        teacher = trim_teacher(models.teacher, loaded.base.shape.tokens)
        model = loaded.model.merge_and_unload() if isinstance(loaded.model, PeftModel) else loaded.model
        yield Rival(reference, model, teacher, shown=False)
        base = loaded.base_version
        if base.manifest.kind == "base" and base.manifest.trimmed and base.reference not in seen:
            seen.add(base.reference)
            again = load_version(base, context.registry, context.device, torch.float32)
            yield Rival("teacher with fewer tokens", again.model, teacher, shown=True)
    for shown in (True, False):
        whole = models.teacher.load_model().float()
        yield Rival(f"teacher, {'with its' if shown else 'without'} context", whole, models.teacher, shown)


@dataclass(frozen=True)
class Asked:
    """What every model is measured on."""

    context: BuildContext
    models: FamilyModels
    domain: DomainSpec
    rows: Sequence[dict[str, Any]]  # held-out prompts with the teacher's answers
    golden: int  # questions at most


def measure_rival(asked: Asked, rival: Rival) -> Iterator[Row]:
    """A row for each quantization; the rival's weights are replaced by what the file holds."""
    parameters = count_parameters(rival.model)
    original = {name: weight.clone() for name, weight in rival.model.state_dict().items()}
    for kind in QUANTIZATIONS:
        rival.model.float().load_state_dict(original)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{kind}.gguf"
            write_base_gguf(rival.model, rival.teacher.tokenizer, file, kind, name=rival.name, license="")
            load_gguf_weights(rival.model, file)
            metrics = fidelity(asked, rival) | golden_set(asked, rival)
            yield Row(rival.name, kind, parameters, file.stat().st_size, metrics, speed(asked, rival, file))


def fidelity(asked: Asked, rival: Rival) -> dict[str, MetricValue]:
    """To the untouched teacher with its context."""
    examples = tokenize_examples(asked.rows, rival.teacher.tokenizer, asked.domain.contexts)
    if rival.shown:
        examples = [replace(example, prompt=example.teacher_prompt) for example in examples]
    whole = None if rival.teacher is asked.models.teacher else asked.models.teacher
    sums = measure(rival.teacher, {"rival": fixed_model(rival.model)}, examples, whole=whole)["rival"]
    found = summarize(sums, None, asked.context.bootstrap, [cluster_of(row) for row in asked.rows])
    return {name: found[name] for name in METRICS}


def golden_set(asked: Asked, rival: Rival) -> dict[str, MetricValue]:
    """The share of questions that it passes, answered greedily in bfloat16."""
    if asked.domain.golden_set is None or not asked.golden:
        return {}
    questions = asked_questions(load_golden_set(asked.domain.golden_set, asked.context.specs.root), asked.golden)
    shown = asked.domain.teacher_context if rival.shown else NO_CONTEXT
    length = asked.context.settings(asked.domain).data.max_completion_tokens
    model = rival.model.to(torch.bfloat16)
    answers = generate_answers(model, rival.teacher.tokenizer, [one.prompt for one in questions], shown, length)
    report = golden_set_report(questions, {"student": answers}, asked.context.bootstrap)
    return {"golden_set_passed": report.metrics["golden_set_passed"]}


def speed(asked: Asked, rival: Rival, file: Path) -> dict[str, float] | None:
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    shown = asked.domain.teacher_context if rival.shown else NO_CONTEXT
    prompts = [prompt_ids(rival.teacher.tokenizer, row["prompt"], shown) for row in asked.rows[:TIMED]]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_llamacpp, file, prompts).result()


def run_llamacpp(file: Path, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Medians over the prompts after the first, and the memory that this process came to need."""
    from factory.models.llama_server import LlamaServer

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    first, rates = [], []
    with LlamaServer(file, context=CONTEXT, threads=torch.get_num_threads()) as server:
        for prompt in prompts:
            begin = time.perf_counter()
            server.generate(prompt, 1, cached=True)
            first.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            count = len(server.generate(prompt, SPEED_TOKENS, cached=True))
            rates.append(count / (time.perf_counter() - begin))
        needed = memory("VmHWM") - before
    return {
        "tokens_per_second": float(np.median(rates[1:])),
        "first_token_ms": 1000 * float(np.median(first[1:])),
        "memory_mb": needed / 1e6,
    }


def memory(name: str) -> int:
    """``memory("VmHWM")``: bytes of this process, as Linux counts them."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(lines[name].split()[0]) * 1024


def plot(rows: Sequence[Row], target: Path) -> None:
    """Bytes against KL, a line for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(dict.fromkeys(row.name for row in rows), "osD^vPX*", strict=False):
        own = [row for row in rows if row.name == name]
        values = [row.metrics["kl_whole_teacher"] for row in own]
        errors = [[one.value - one.low for one in values], [one.high - one.value for one in values]]
        megabytes = [row.bytes / 1e6 for row in own]
        axes.errorbar(megabytes, [one.value for one in values], yerr=errors, marker=marker, capsize=3, label=name)
        for row, value, size in zip(own, values, megabytes, strict=True):
            axes.annotate(row.quantization, (size, value.value), xytext=(4, 6), textcoords="offset points", fontsize=8)
    axes.set(xlabel="MB of the GGUF file", ylabel="KL to the teacher with its context, nats/token")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", metavar="student", help="of one domain: healthcare-medium@1")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--examples", type=int, default=150)
    parser.add_argument("--golden", type=int, default=120, help="questions of the golden set at most")
    parser.add_argument("--save", type=Path, metavar="FILE.json", required=True)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    given = parser.parse_args()
    specs, registry = load_specs(given.domains), Registry(given.registry)
    manifests = [registry.resolve(reference).manifest for reference in given.students]
    of_students = [one for one in manifests if isinstance(one, StudentManifest)]
    if len({one.domain for one in of_students}) != 1 or len(of_students) != len(manifests):
        raise SystemExit(f"name students of one domain, not {', '.join(given.students)}")
    manifest = of_students[0]
    context = make_context(specs, specs.family(manifest.family), registry=registry, profile=manifest.profile)
    models = resolve_models(context.family, specs.root, context.device)
    held_out = published_rows(manifest)["test"].to_list()[: given.examples]
    asked = Asked(context, models, specs.domain(manifest.domain), held_out, given.golden)
    rows = []
    for rival in rivals(context, models, given.students):
        for row in measure_rival(asked, rival):
            print(json.dumps({"name": row.name, "quantization": row.quantization, "kl": row.metrics["kl_whole_teacher"].value}))
            rows.append(row)
    given.save.write_bytes(to_json(plain_json([asdict(row) for row in rows], given.save.name)))
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    try:
        main()
    except FactoryError as error:
        raise SystemExit(f"error: {error}") from error
