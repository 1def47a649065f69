"""The router, trained on the shipped prompts alone, on real text that it has never seen.

    python scripts/bench/router.py path/to/data

The folder holds ``healthcare/medquad.jsonl`` and the other files named in ``FILES``: a JSON object with ``prompt`` per line.
Misrouted texts of these files were read while the templates were written, to learn which kinds of text were missing. None was
copied, and the number of exact matches is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from factory.config.load import load_specs
from factory.config.schema import FamilySpec, Specs
from factory.data.router import NONE, DomainRouter, calibration_error
from factory.data.sources import load_examples
from factory.errors import FactoryError
from factory.models.references import load_encoder

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


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float
    n: int


def train(specs: Specs, family: FamilySpec) -> tuple[DomainRouter, set[str]]:
    """The router and every prompt that ships; a template is a group."""
    labelled: list[tuple[str | None, Sequence[object]]] = [
        *((name, domain.sources) for name, domain in specs.domains.items() if not domain.private),
        (None, specs.pools[family.general].sources),
    ]
    texts, labels, groups = [], [], []
    for label, sources in labelled:
        for example in load_examples(sources, root=specs.root, seed=family.seed, count_tokens=len):  # type: ignore[arg-type]
            texts.append(example.text)
            labels.append(label)
            groups.append(f"{example.source}/{example.template or example.id}")
    encoder = load_encoder(family.encoder, root=specs.root)
    return DomainRouter.fit(texts, labels, encoder, family.router, family.seed, groups=groups), set(texts)


def read_sample(path: Path, size: int, seed: int) -> list[str]:
    """Different prompts of one file, seeded."""
    with path.open(encoding="utf-8") as lines:
        prompts = sorted({json.loads(line)["prompt"] for line in lines})
    return random.Random(seed).sample(prompts, min(size, len(prompts)))


def share(hits: npt.NDArray[np.bool_]) -> Interval:
    """A proportion and its Wilson 95 % interval."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return Interval(float(hits.mean()), float(interval.low), float(interval.high), len(hits))


def bootstrap(measure: Callable[[Names, Names], float], truth: Names, routed: Names, files: Names) -> Interval:
    """Percentile 95 % interval of 1,000 resamplings within each file."""
    draw = np.random.default_rng(0)
    rows = [np.flatnonzero(files == file) for file in np.unique(files)]
    picks = [np.concatenate([draw.choice(part, len(part)) for part in rows]) for _ in range(1000)]
    low, high = np.quantile([measure(truth[pick], routed[pick]) for pick in picks], [0.025, 0.975])
    return Interval(measure(truth, routed), float(low), float(high), len(truth))


def macro_f1(truth: Names, routed: Names) -> float:
    return float(f1_score(truth, routed, average="macro", zero_division=0))


def show(name: str, figure: Interval, target: str = "") -> None:
    print(f"{name:<48}{figure.value:>8.3f}  [{figure.low:.3f}, {figure.high:.3f}]{figure.n:>7}  {target}".rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="folder with the real texts")
    parser.add_argument("--domains", type=Path, default=Path("domains"), help="folder of the YAML files")
    parser.add_argument("--family", default="default")
    parser.add_argument("--sample", type=int, default=500, help="texts a file, at most")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--misrouted", type=int, default=0, metavar="N", help="print N misrouted texts a file")
    arguments = parser.parse_args()
    missing = [name for name in FILES if not (arguments.path / name).is_file()]
    if missing:
        print(f"skipped: {arguments.path} lacks {len(missing)} of {len(FILES)} files, the first is {missing[0]}")
        return 0
    specs = load_specs(arguments.domains)
    router, shipped = train(specs, specs.families[arguments.family])
    texts, truth, files = [], [], []
    for name, label in FILES.items():
        for text in read_sample(arguments.path / name, arguments.sample, arguments.seed):
            texts.append(text)
            truth.append(label)
            files.append(name)
    measure(router, texts, np.array(truth), np.array(files))
    print(f"real texts that are also shipped prompts, word for word: {sum(text in shipped for text in texts)}")
    for name in FILES if arguments.misrouted else ():
        print_misrouted(router, name, [t for t, file in zip(texts, files, strict=True) if file == name], arguments.misrouted)
    return 0


def measure(router: DomainRouter, texts: list[str], truth: Names, files: Names) -> None:
    """Prints the tables."""
    routes = router.route(texts)
    routed = np.array([route.domain or NONE for route in routes])
    likeliest = np.array([max(route.scores, key=route.scores.__getitem__) for route in routes])
    inside = truth != NONE
    held_out = router.report
    print(
        f"router {router.version}, threshold {router.threshold:.3f}, trained on {held_out.n} shipped prompts; "
        "on those, held out:"
    )
    print(
        f"  macro-F1 {held_out.macro_f1:.3f}, out-of-domain recall {held_out.out_of_domain_recall:.3f}, "
        f"in-domain rejected {held_out.false_rejection:.3f}, calibration error {held_out.calibration_error:.3f}\n"
    )
    print(f"{'on real text':<48}{'value':>8}  {'95 % interval':<14}{'n':>7}  target")
    show("macro-F1 (domains and none)", bootstrap(macro_f1, truth, routed, files), ">= 0.90")
    show("out-of-domain recall", share(routed[~inside] == NONE), ">= 0.80")
    show("in-domain text rejected", share(routed[inside] == NONE), "<= 0.10")
    for name in FILES:
        show(f"  right: {name}", share(routed[files == name] == FILES[name]))
    error = calibration_error(np.array([route.score for route in routes]), likeliest == truth)
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
        sys.exit(main())
    except FactoryError as error:
        sys.exit(f"error: {error}")
