"""The router on twelve neighbouring subjects: python scripts/bench/subjects.py [--json docs/results/subjects.json]

It is trained on the templates of ``subjects.yaml`` and the family's general pool, and asked questions that were written apart
from these. Needs the family's encoder, and no other text.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.metrics import confusion_matrix, f1_score

from factory.config.load import load_specs
from factory.config.schema import TemplateSource
from factory.data.router import NONE, DomainRouter, Route
from factory.data.sources import Example, load_examples
from factory.errors import FactoryError
from factory.models.references import load_encoder

SUBJECTS = Path(__file__).with_name("subjects.yaml")
KEPT = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)  # shares of the questions that are routed, the surest first
RESAMPLES = 1000


def examples_of(subject: str, content: dict[str, Any]) -> list[Example]:
    """Every template of a subject with every value."""
    source = TemplateSource(
        id=subject, license="Apache-2.0", kind="templates", templates=content["templates"], slots={"x": content["values"]}
    )
    return load_examples([source], root=Path(), seed=0, count_tokens=len)


def fit(subjects: dict[str, Any], domains: Path, name: str) -> DomainRouter:
    """Templates are held out whole."""
    specs = load_specs(domains)
    family = specs.family(name)
    labelled: list[tuple[Example, str | None]] = [
        (example, subject) for subject, content in subjects.items() for example in examples_of(subject, content)
    ]
    pool = load_examples(specs.pools[family.general].sources, root=specs.root, seed=family.seed, count_tokens=len)
    labelled += [(example, None) for example in pool]
    return DomainRouter.fit(
        [example.text for example, _ in labelled],
        [subject for _, subject in labelled],
        load_encoder(family.encoder, root=specs.root),
        family.router,
        family.seed,
        groups=[f"{example.source}/{example.template or example.id}" for example, _ in labelled],
    )


def measure(truth: list[str], routes: list[Route]) -> dict[str, Any]:
    """Macro-F1 with a percentile interval of resampled questions, the confusion, and what abstaining more often would bring."""
    routed = [route.domain or NONE for route in routes]
    nearest = np.array([max(route.scores, key=route.scores.__getitem__) for route in routes])
    names, rng = sorted(set(truth)), np.random.default_rng(0)

    def score(rows: Any) -> float:
        return float(f1_score(np.array(truth)[rows], np.array(routed)[rows], labels=names, average="macro", zero_division=0))

    everything = np.arange(len(truth))
    low, high = np.quantile([score(rng.choice(everything, len(truth))) for _ in range(RESAMPLES)], [0.025, 0.975])
    surest = np.argsort([-route.score for route in routes], kind="stable")
    right = (nearest == np.array(truth))[surest]
    counts = {share: max(1, round(share * len(truth))) for share in KEPT}
    return {
        "n": len(truth),
        "macro_f1": {"value": score(everything), "low": float(low), "high": float(high)},
        "abstained": routed.count(NONE),
        "kept": [{"share": share, "n": count, "right": float(right[:count].mean())} for share, count in counts.items()],
        "names": [*names, NONE],
        "confusion": confusion_matrix(truth, routed, labels=[*names, NONE])[: len(names)].tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=Path, default=Path("domains"), help="folder of the YAML files")
    parser.add_argument("--family", default="default")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    subjects: dict[str, Any] = yaml.safe_load(SUBJECTS.read_text(encoding="utf-8"))
    router = fit(subjects, given.domains, given.family)
    truth = [subject for subject, content in subjects.items() for _ in content["asked"]]
    found = measure(truth, router.route([question for content in subjects.values() for question in content["asked"]]))
    found |= {"held_out_templates_macro_f1": router.report.macro_f1, "trained_on": router.report.n, "router": router.version}
    text = json.dumps(found, indent=1)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except FactoryError as error:
        sys.exit(f"error: {error}")
