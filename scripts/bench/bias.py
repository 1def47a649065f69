"""Bias on public sentence pairs: python scripts/bench/bias.py healthcare-small DATA

DATA/bias holds JSONL files of sentence pairs, such as WinoBias and Winogender: ``prompt`` is the stereotyped sentence,
``response`` the other. Winogender's sentences differ in the pronoun alone and neither is marked as the stereotype: read the gap
there, since its preference is for whichever sentence comes first. Without that folder the script says so and ends.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from factory.config.load import load_specs
from factory.evaluation.bias import load_pairs, measure_bias
from factory.evaluation.fidelity import base_only, with_adapter
from factory.evaluation.stats import BootstrapConfig
from factory.inference import load_family_teacher, load_version, matching_family
from factory.models.base import trim_teacher
from factory.models.device import pick_device
from factory.registry.registry import Registry
from factory.reports.format import format_metric

METRICS = [f"bias_{what}_{who}" for what in ("gap", "preference") for who in ("teacher", "base", "student", "change")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("data", type=Path)
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    given = parser.parse_args()
    folder = given.data / "bias"
    if not folder.is_dir():
        print(f"skipped: there is no folder {folder}")
        return
    registry, specs, device = Registry(given.registry), load_specs(given.domains), pick_device("auto")
    version = registry.resolve(given.student)
    family, loaded = matching_family(version, specs), load_version(version, registry, device)
    teacher = trim_teacher(load_family_teacher(family, specs, device), loaded.base.shape.tokens)
    candidates = {"student": with_adapter(loaded.model, "default"), "base": base_only(loaded.model)}
    bootstrap = BootstrapConfig(family.evaluate.bootstrap, family.seed)
    print(f"{version.reference}, {bootstrap.resamples} resamples, seed {bootstrap.seed}\n")
    print("| pairs | n | gap: teacher | base | student | change | preference: teacher | base | student | change |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.jsonl")):
        pairs = load_pairs([path.name], folder)
        metrics = measure_bias(teacher, candidates, pairs, teacher.tokenizer, bootstrap)
        cells = " | ".join(format_metric(metrics[name]) for name in METRICS)
        print(f"| {path.stem} | {len(pairs):,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
