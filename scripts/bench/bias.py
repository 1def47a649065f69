"""Bias on public sentence pairs: python scripts/bench/bias.py healthcare-small DATA --registry registry

DATA has a folder ``bias`` with JSONL files of pairs (``prompt`` is the stereotyped sentence, ``response`` the other), such as
WinoBias and Winogender. Winogender's sentences differ in the pronoun alone and are not marked as stereotyped: read the gap
there; the preference is for the sentence that comes first. Without DATA the script says so and ends.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from factory.config.load import load_specs
from factory.evaluation.bias import load_pairs, measure_bias
from factory.evaluation.fidelity import base_only, with_adapter
from factory.evaluation.stats import BootstrapConfig
from factory.models.base import load_base, load_student, trim_teacher
from factory.pipeline.context import Materials
from factory.registry.registry import Registry
from factory.reports.format import format_metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref")
    parser.add_argument("data", type=Path)
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    given = parser.parse_args()
    folder = given.data / "bias"
    if not folder.is_dir():
        print(f"skipped: there is no folder {folder}")
        return
    registry, specs = Registry(given.registry), load_specs(given.domains)
    version = registry.resolve(given.ref)
    family = specs.family(version.manifest["family"])
    materials = Materials(specs, family, profile="default")
    base = load_base(registry.resolve(str(version.base)).folder, materials.device)
    teacher, student = trim_teacher(materials.teacher, base.shape.tokens), load_student(base, version.folder)
    candidates = {"student": with_adapter(student, "default"), "base": base_only(student)}
    bootstrap = BootstrapConfig(family.evaluate.bootstrap, materials.seed)
    print(f"{version.reference}, {family.evaluate.bootstrap} resamples, seed {materials.seed}\n")
    print("| pairs | n | gap, teacher | base | student | change | preference, teacher | base | student | change |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.jsonl")):
        pairs = load_pairs([path.name], folder)
        found = measure_bias(teacher, candidates, pairs, teacher.tokenizer, bootstrap)
        cells = [
            format_metric(found[f"bias_{what}_{who}"])
            for what in ("gap", "preference")
            for who in ("teacher", "base", "student", "change")
        ]
        print(f"| {path.stem} | {len(pairs):,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
