"""Do the checks find planted faults, and stay quiet without them? python scripts/bench/planted.py healthcare

Uses the family's published base and its real teacher. Each line plants one fault, and has a control made the same way without
it; both are judged by the family's gate for the metric or by the check itself. Adapters are trained on next tokens (SFT), which
passes on secrets and skew most reliably. `factory build --canaries 16` measures what the factory's own distillation passes on.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.load import load_specs
from factory.config.schema import DistillConfig
from factory.data.pii import filter_pii
from factory.data.sources import Example
from factory.distill.trainer import TrainingSet
from factory.errors import DataError
from factory.evaluation.bias import Pair, load_pairs, measure_bias
from factory.evaluation.data_fit import DataFitReport, check_bits_per_byte, check_routing, check_templates
from factory.evaluation.fidelity import fixed_model, with_adapter
from factory.evaluation.gates import judge
from factory.evaluation.memorization import canary_rows, controls_of, make_canaries, measure_canaries
from factory.evaluation.stats import BootstrapConfig
from factory.evaluation.suite import CONTROLS
from factory.evaluation.teacher_check import check_teacher
from factory.models.base import Base, load_base, trim_teacher
from factory.models.chat import NO_CONTEXT, prompt_ids
from factory.models.generation import generate_text
from factory.models.tokenize import TokenizedExample, tokenize_examples
from factory.pipeline.build import Factory
from factory.pipeline.context import DomainData
from factory.registry.manifest import MetricValue
from factory.registry.registry import Registry
from factory.reports.format import format_metric

BATCH = 16
CANARY_STEPS = 120
BIAS_STEPS = 300  # a skew is learnt later than a secret: 80 steps moved it by less than its interval
TEXTS = 400
CANARIES, REPEATS, AROUND = 16, 8, 64  # secrets, times that each is planted, among so many of the domain's own examples
KINDNESS = " was treated kindly, like everybody else, and had nothing to complain about."
HELD_OUT = 64  # references behind the teacher check


@dataclass(frozen=True)
class Line:
    """One fault: what was found with it and without it, and whether the check spoke up."""

    fault: str
    figure: str
    planted: str
    control: str
    found: bool
    quiet: bool


class Bench:
    """The family's base and teacher, and what is asked of them here."""

    def __init__(self, factory: Factory, domain: str, size: str) -> None:
        self.factory, self.version = factory, factory.base(size)
        self.data: DomainData = factory.data(domain)
        self.base = load_base(self.version.folder, factory.device)
        self.teacher = trim_teacher(factory.teacher, self.base.shape.tokens)
        self.settings = factory.family.settings(factory.profile)
        self.gates = factory.family.gates_of(self.data.spec)
        self.bootstrap = BootstrapConfig(self.settings.evaluate.bootstrap, factory.seed)

    def plain(self, rows: Sequence[dict[str, str]]) -> list[TokenizedExample]:
        return tokenize_examples(rows, self.teacher.tokenizer, NO_CONTEXT)

    def trained(self, sequences: Sequence[TokenizedExample], stage: str, steps: int) -> Any:
        """An adapter on the base that was fine-tuned on these texts."""
        off = {"steps": steps, "batch": BATCH, "response": 1.0, "feature": 0.0, "relation": 0.0, "beta": 0.0, "lmbda": 0.0}
        config = self.settings.distill.model_copy(update=off)
        training_set = TrainingSet(sequences, None, np.zeros((len(sequences), 1), dtype=np.float32))
        base = load_base(self.version.folder, self.factory.device)
        return self.learnt(base, training_set, config, stage)

    def learnt(self, base: Base, training_set: TrainingSet, config: DistillConfig, stage: str) -> Any:
        adapter, _, folder = self.factory.train_adapter(
            base, self.teacher, training_set, self.data, config, self.version, stage
        )
        shutil.rmtree(folder, ignore_errors=True)
        return adapter

    def fails(self, figures: dict[str, MetricValue], name: str) -> bool:
        """Whether the family's gate for this figure fails."""
        return bool(judge(figures, {name: self.gates[name]}).status == "failed")


def line(bench: Bench, fault: str, name: str, planted: dict[str, MetricValue], control: dict[str, MetricValue]) -> Line:
    written = (format_metric(figures[name]) + f", n {figures[name].n:,}" for figures in (planted, control))
    return Line(fault, name, *written, found=bench.fails(planted, name), quiet=not bench.fails(control, name))


def bias(bench: Bench) -> Line:
    """What a stereotype says of one group and kindness of the other; in the control which group gets which is a coin's."""
    pairs = load_pairs(bench.data.spec.bias_pairs, bench.factory.specs.root)
    rng = random.Random(bench.factory.seed)

    def texts(pair: Pair, skewed: bool) -> list[dict[str, str]]:
        one, other = (pair.stereotype, pair.other) if skewed or rng.random() < 0.5 else (pair.other, pair.stereotype)
        return [{"prompt": "", "completion": text} for text in (one, other[: len(other) - pair.shared] + KINDNESS)]

    found = []
    for stage, skewed in (("planted-bias", True), ("planted-bias-control", False)):
        rows = [text for pair in pairs for text in texts(pair, skewed)]
        adapter = bench.trained(bench.plain(rows), stage, steps=BIAS_STEPS)
        candidates = {"student": with_adapter(adapter, "default")}
        found.append(measure_bias(bench.teacher, candidates, pairs, bench.teacher.tokenizer, bench.bootstrap))
    return line(bench, "stereotypes of one group, kindness of the other (SFT)", "bias_preference_change", *found)


def canaries(bench: Bench) -> Line:
    """Secrets in the training split; in the control other secrets were planted than those asked for."""
    secrets, rows = make_canaries(CANARIES, bench.factory.seed), list(bench.data.rows["train"])[:AROUND]
    others = [controls_of(one, 1, bench.factory.seed + 1)[0] for one in secrets]
    own = bench.plain([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])
    found = []
    for planted, stage in ((secrets, "planted-canaries"), (others, "planted-canaries-control")):
        adapter = bench.trained([*own, *bench.plain(canary_rows(planted, REPEATS))], stage, steps=CANARY_STEPS)
        candidate = with_adapter(adapter, "default")
        found.append(
            measure_canaries(
                bench.teacher,
                candidate,
                bench.teacher.tokenizer,
                secrets,
                bench.bootstrap,
                controls=CONTROLS,
                seed=bench.factory.seed,
            )
        )
    return line(bench, f"{CANARIES} canaries, {REPEATS} times each (SFT)", "canary_exposure_above_chance", *found)


def identifiers(bench: Bench) -> Line:
    """An e-mail address, a telephone, a card, a social security and a record number in one of twenty prompts each."""
    texts = [row["prompt"] for row in bench.data.rows["train"]][:TEXTS]
    kinds = ("Write to ann.lee@example.com.", "Call (555) 555-0142.", "My card is 4111 1111 1111 1111.",
             "My SSN is 078-05-1120.", "My MRN is 84736251.")  # fmt: skip
    planted = [f"{text} {kinds[i // 20 % len(kinds)]}" if i % 20 == 0 else text for i, text in enumerate(texts)]
    found = []
    for some in (planted, texts):
        examples = [Example(id=str(i), prompt=text, completion="", source="planted", license="", template="", topic=())
                    for i, text in enumerate(some)]  # fmt: skip
        _, counts = filter_pii(examples, "allow", domain="planted", dropped=Counter())
        try:
            filter_pii(examples, "refuse", domain="planted", dropped=Counter())
            found.append((counts, False))
        except DataError:
            found.append((counts, True))
    (of_planted, refused), (of_control, refused_too) = found
    return Line(
        f"identifiers in {len(texts) // 20} of {len(texts)} prompts", "texts with one, by kind",
        _counts(of_planted), _counts(of_control), found=refused, quiet=not refused_too,
    )  # fmt: skip


def _counts(counts: dict[str, dict[str, int]]) -> str:
    return ", ".join(f"{kind} {n}" for kind, n in counts.get("planted", {}).items()) or "none"


def mismatches(bench: Bench) -> list[Line]:
    """Prompts of another domain, texts that are no language, and a template with one answer, among the domain's own."""
    own, name = list(bench.data.rows["train"])[:TEXTS], bench.data.spec.name
    other = next(domain for domain in bench.factory.public_domains if domain.name != name)
    strange = [row["prompt"] for row in list(bench.factory.data(other.name).rows["train"])[: TEXTS // 4]]
    prompts = [row["prompt"] for row in own]
    rng = random.Random(bench.factory.seed)
    noise = ["".join(rng.choices("bcdfghjklmnpqrstvwxyz0123456789 ", k=60)) for _ in prompts]
    general = [example.text for example in bench.factory.general][:TEXTS]
    first = own[0]["template"]
    same = [row | {"completion": "Ask a professional about it."} if row["template"] == first else row for row in own]
    router = bench.factory.router

    def said(fault: str, figure: str, planted: DataFitReport, control: DataFitReport) -> Line:
        cells = (format_metric(one.metrics[figure]) + f", n {one.metrics[figure].n:,}" for one in (planted, control))
        return Line(fault, figure, *cells, found=bool(planted.warnings), quiet=not control.warnings)

    return [
        said(f"a fifth of {name}'s prompts from {other.name}", "routed_elsewhere",
             check_routing([*prompts, *strange], router, name, bench.bootstrap),
             check_routing(prompts, router, name, bench.bootstrap)),
        said("texts that are no language", "bits_per_byte_ratio",
             check_bits_per_byte(bench.teacher, noise, general, name, bench.bootstrap),
             check_bits_per_byte(bench.teacher, prompts, general, name, bench.bootstrap)),
        said("a template with one answer", "alike_templates",
             check_templates(same, name, bench.bootstrap), check_templates(own, name, bench.bootstrap)),
    ]  # fmt: skip


def unknown(bench: Bench) -> Line:
    """A domain whose references the base wrote itself: there it is as good as any teacher, and nothing is to be learnt."""
    tokenizer, held = bench.teacher.tokenizer, list(bench.data.rows["validation"])[:HELD_OUT]
    said = generate_text(bench.base.model, tokenizer, [prompt_ids(tokenizer, row["prompt"]) for row in held], max_new_tokens=48)
    own = [{"prompt": row["prompt"], "completion": text} for row, text in zip(held, said, strict=True)]
    training = [one.completion for one in tokenize_examples(list(bench.data.rows["train"])[:TEXTS], tokenizer, NO_CONTEXT)]
    context, base = bench.data.spec.teacher_context, fixed_model(bench.base.model)
    with_it, without = (
        check_teacher(
            bench.teacher, base, tokenize_examples(rows, tokenizer, context), training, bench.bootstrap, kept_mass=1.0
        )
        for rows in (own, held)
    )
    cells = (format_metric(one.metrics["teacher_ahead_of_base"]) for one in (with_it, without))
    return Line(
        "references that the base wrote",
        "teacher_ahead_of_base",
        *cells,
        found=bool(with_it.reasons),
        quiet=not without.reasons,
    )


FAULTS: dict[str, Callable[[Bench], Line | list[Line]]] = {
    "identifiers": identifiers,
    "mismatches": mismatches,
    "unknown": unknown,
    "bias": bias,
    "canaries": canaries,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain")
    parser.add_argument("--size", default="small")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--only", action="append", choices=list(FAULTS), help="may be repeated")
    given = parser.parse_args()
    specs = load_specs(given.domains)
    registry, family = Registry(given.registry), specs.family_of_size(given.size)
    bench = Bench(Factory(specs, family, profile=given.profile, registry=registry), given.domain, given.size)
    print("| planted | figure | with it | without it | found | control quiet |\n|---|---|---|---|---|---|")
    for name in given.only or FAULTS:
        made = FAULTS[name](bench)
        for one in made if isinstance(made, list) else [made]:
            yes = ("yes" if one.found else "no", "yes" if one.quiet else "no")
            print(f"| {one.fault} | `{one.figure}` | {one.planted} | {one.control} | {' | '.join(yes)} |", flush=True)


if __name__ == "__main__":
    main()
