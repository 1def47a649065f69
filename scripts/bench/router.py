"""The router on real text that it has never seen: python scripts/bench/router.py DATA

It is trained on the shipped prompts alone. DATA holds ``healthcare/medquad.jsonl`` and the other files in ``FILES``, one JSON
object with a ``prompt`` per line; without them the script says so and ends. Misrouted texts of these files were read while the
templates were written, to learn which kinds of text were missing. None was copied; the number of exact matches is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from factory.config.load import load_specs
from factory.config.schema import FamilySpec, Specs
from factory.data.router import NONE, DomainRouter, calibration_error
from factory.data.sources import Example, load_examples
from factory.errors import FactoryError
from factory.models.references import load_encoder
from factory.registry.manifest import MetricValue

FILES = {
    "healthcare/medquad.jsonl": "healthcare",
    "education/gsm8k_train.jsonl": "education",
    "education/openstax_psychology.jsonl": "education",
    "legal/cuad_clauses.jsonl": "legal",
    "legal/openstax_american_government.jsonl": "legal",
    "general/clinc150_oos.jsonl": NONE,
    "general/self_instruct_human.jsonl": NONE,
}
Names = npt.NDArray[np.str_]


def train(specs: Specs, family: FamilySpec) -> tuple[DomainRouter, set[str]]:
    """The router, and every prompt that ships. Templates are held out whole."""
    labelled: list[tuple[Example, str | None]] = [
        (example, domain.name)
        for domain in specs.domains.values()
        if not domain.private
        for example in load_texts(domain.sources, specs, family)
    ]
    labelled += [(example, None) for example in load_texts(specs.pools[family.general].sources, specs, family)]
    texts = [example.text for example, _ in labelled]
    groups = [f"{example.source}/{example.template or example.id}" for example, _ in labelled]
    encoder = load_encoder(family.encoder, root=specs.root)
    labels = [label for _, label in labelled]
    return DomainRouter.fit(texts, labels, encoder, family.router, family.seed, groups=groups), set(texts)


def load_texts(sources: Sequence[object], specs: Specs, family: FamilySpec) -> list[Example]:
    return load_examples(sources, root=specs.root, seed=family.seed, count_tokens=len)


def read_sample(path: Path, size: int, seed: int) -> list[str]:
    """Different prompts of one file, at random."""
    with path.open(encoding="utf-8") as lines:
        prompts = sorted({json.loads(line)["prompt"] for line in lines})
    return random.Random(seed).sample(prompts, min(size, len(prompts)))


def share(hits: npt.NDArray[np.bool_]) -> MetricValue:
    """A proportion and its Wilson 95 % interval."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return MetricValue(float(hits.mean()), float(interval.low), float(interval.high), len(hits))


def bootstrap(measure: Callable[[Names, Names], float], truth: Names, routed: Names, files: Names) -> MetricValue:
    """Percentile 95 % interval of 1,000 resamples within each file."""
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(files == file) for file in np.unique(files)]
    picks = [np.concatenate([rng.choice(part, len(part)) for part in rows]) for _ in range(1000)]
    low, high = np.quantile([measure(truth[pick], routed[pick]) for pick in picks], [0.025, 0.975])
    return MetricValue(measure(truth, routed), float(low), float(high), len(truth))


def macro_f1(truth: Names, routed: Names) -> float:
    return float(f1_score(truth, routed, average="macro", zero_division=0))


def print_metric(name: str, metric: MetricValue, target: str = "") -> None:
    print(f"{name:<48}{metric.value:>8.3f}  [{metric.low:.3f}, {metric.high:.3f}]{metric.n:>7}  {target}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the real texts")
    parser.add_argument("--domains", type=Path, default=Path("domains"), help="folder of the YAML files")
    parser.add_argument("--family", default="default")
    parser.add_argument("--sample", type=int, default=500, help="texts per file, at most")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--misrouted", type=int, default=0, metavar="N", help="print N misrouted texts per file")
    given = parser.parse_args()
    missing = [name for name in FILES if not (given.data / name).is_file()]
    if missing:
        print(f"skipped: {given.data} lacks {len(missing)} of {len(FILES)} files, the first is {missing[0]}")
        return
    specs = load_specs(given.domains)
    router, shipped = train(specs, specs.family(given.family))
    texts, truth, files = [], [], []
    for name, label in FILES.items():
        for text in read_sample(given.data / name, given.sample, given.seed):
            texts.append(text)
            truth.append(label)
            files.append(name)
    measure(router, texts, np.array(truth), np.array(files))
    print(f"real texts that are also shipped prompts, word for word: {sum(text in shipped for text in texts)}")
    for name in FILES if given.misrouted else ():
        print_misrouted(router, name, [t for t, file in zip(texts, files, strict=True) if file == name], given.misrouted)


def measure(router: DomainRouter, texts: list[str], truth: Names, files: Names) -> None:
    """Prints the tables."""
    routes = router.route(texts)
    routed = np.array([route.domain or NONE for route in routes])
    top = np.array([max(route.scores, key=route.scores.__getitem__) for route in routes])
    inside = truth != NONE
    held_out = router.report
    print(
        f"router {router.version}, threshold {router.threshold:.3f}, trained on {held_out.n} shipped prompts; "
        "cross-validated on these:"
    )
    print(
        f"  macro-F1 {held_out.macro_f1:.3f}, out-of-domain recall {held_out.out_of_domain_recall:.3f}, "
        f"in-domain rejected {held_out.false_rejection:.3f}, calibration error {held_out.calibration_error:.3f}\n"
    )
    print(f"{'on real text':<48}{'value':>8}  {'95 % interval':<14}{'n':>7}  target")
    print_metric("macro-F1 (domains and none)", bootstrap(macro_f1, truth, routed, files), ">= 0.90")
    print_metric("out-of-domain recall", share(routed[~inside] == NONE), ">= 0.80")
    print_metric("in-domain text rejected", share(routed[inside] == NONE), "<= 0.10")
    for name in FILES:
        print_metric(f"  right: {name}", share(routed[files == name] == FILES[name]))
    error = calibration_error(np.array([route.score for route in routes]), top == truth)
    print(f"{'calibration error':<48}{error:>8.3f}\n")
    names = sorted({*truth, *routed})
    print(f"{'true, routed to':<20}" + "".join(f"{name:>12}" for name in names))
    for name in names:
        print(f"{name:<20}" + "".join(f"{int(((truth == name) & (routed == other)).sum()):>12}" for other in names))


def print_misrouted(router: DomainRouter, name: str, texts: list[str], count: int) -> None:
    print(f"\n{name}")
    wrong = [(r, t) for r, t in zip(router.route(texts), texts, strict=True) if (r.domain or NONE) != FILES[name]]
    for route, text in wrong[:count]:
        print(f"  {route.domain or NONE:<11}{route.score:.2f}  {' '.join(text.split())[:180]}")


if __name__ == "__main__":
    try:
        main()
    except FactoryError as error:
        sys.exit(f"error: {error}")
