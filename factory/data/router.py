"""The domain of a text, or none: logistic regression on sentence embeddings, with a score below which it abstains.

    router = DomainRouter.fit(texts, labels, encoder, config, seed, groups=templates)  # label None: no domain
    router.route(["Can my landlord keep my deposit?"])[0].domain  # "legal"
    router.save(folder); DomainRouter.load(folder, encoder)

``encoder`` is a ``sentence_transformers.SentenceTransformer``, or anything with its ``encode``.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from factory.cache import kept_folder, storage_errors
from factory.config.schema import RouterConfig
from factory.data.sampling import turns
from factory.errors import DataError

FORMAT = 1
FOLDS = 5
STRENGTHS = (0.3, 1.0, 3.0, 10.0)  # C of the logistic regression, chosen by held-out log loss
NONE = "none"  # "no domain" in reports; class 0
WEIGHTS, SETTINGS = "router.npz", "router.json"

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Encoder(Protocol):
    """The part of a SentenceTransformer that the router uses."""

    def encode(self, sentences: list[str], /) -> Any: ...  # (N, D) float32


@dataclass(frozen=True)
class Route:
    """``route.domain`` is None if ``score``, the probability of the best domain, is below ``threshold``."""

    domain: str | None
    score: float
    threshold: float
    scores: dict[str, float]  # by domain; the rest to 1 is "no domain"


@dataclass(frozen=True)
class RouterReport:
    """Cross-validated: each text is scored by a model and a threshold that were fitted without its group."""

    n: int
    macro_f1: float  # over the domains and "none"
    per_domain: dict[str, dict[str, float]]  # precision, recall, f1, n
    confusion: dict[str, dict[str, int]]  # confusion[true][routed]
    out_of_domain_recall: float  # share of out-of-domain texts sent to no domain
    false_rejection: float  # share of in-domain texts sent to no domain
    calibration_error: float  # expected calibration error of `score`, 10 equal bins


@dataclass(frozen=True)
class DomainRouter:
    """``DomainRouter.fit(...)``, then ``route``; ``version`` names its exact weights, threshold and domains."""

    encoder: Encoder
    domains: tuple[str, ...]
    coefficients: Floats  # (1 + domains, D); row 0 is "no domain"
    intercepts: Floats  # (1 + domains,)
    threshold: float
    report: RouterReport

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: Sequence[str | None],
        encoder: Encoder,
        config: RouterConfig,
        seed: int,
        groups: Sequence[Hashable] | None = None,
    ) -> DomainRouter:
        """``DomainRouter.fit(texts, ["legal", None, ...], encoder, config, seed, groups=templates)``

        Groups are held out whole, so that no template is in both parts; by default each text is its own group. The
        threshold maximises in-domain plus out-of-domain recall while rejecting at most ``config.max_false_rejection``
        of held-out in-domain texts.

        Raises: DataError if a domain, or "no domain", has fewer than ``FOLDS`` groups.
        """
        group_of: list[Hashable] = list(range(len(texts))) if groups is None else list(groups)
        domains = tuple(sorted({label for label in labels if label is not None}))
        _check_enough(labels, group_of, domains)
        rows = _sample(labels, group_of, config.max_per_domain, seed)
        classes = {label: index for index, label in enumerate((None, *domains))}
        y = np.array([classes[labels[row]] for row in rows], dtype=np.int64)  # (N,)
        group_ids = {group: index for index, group in enumerate(dict.fromkeys(group_of))}
        fold_groups = np.array([group_ids[group_of[row]] for row in rows])
        x = _embed(encoder, [texts[row] for row in rows])  # (N, D)

        folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(x, y, fold_groups))
        held_out = {c: cross_val_predict(_classifier(c), x, y, cv=folds, method="predict_proba") for c in STRENGTHS}
        best = min(STRENGTHS, key=lambda c: log_loss(y, held_out[c]))
        probabilities = held_out[best]  # (N, 1 + domains)
        model = _classifier(best).fit(x, y)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(domains) == 1:  # scikit-learn keeps one row for two classes: "no domain" gets zeros
            coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([np.zeros(1), intercepts])
        return cls(
            encoder=encoder,
            domains=domains,
            coefficients=np.asarray(coefficients, dtype=np.float64),
            intercepts=np.asarray(intercepts, dtype=np.float64),
            threshold=choose_threshold(probabilities, y, config.max_false_rejection),
            report=_report(probabilities, y, [test for _, test in folds], domains, config.max_false_rejection),
        )

    @property
    def version(self) -> str:
        """Twelve hex digits of the sha256 of weights, threshold and domains."""
        return _content_hash(self.coefficients, self.intercepts, self.domains, self.threshold)

    def route(self, texts: Sequence[str]) -> list[Route]:
        """``router.route(["Can my landlord keep my deposit?"])``: one Route a text, in order."""
        if not texts:
            return []
        logits = _embed(self.encoder, texts) @ self.coefficients.T + self.intercepts  # (N, 1 + domains)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        routes = []
        for row, best in zip(probabilities, _decide(probabilities, self.threshold), strict=True):
            scores = dict(zip(self.domains, map(float, row[1:]), strict=True))
            domain = self.domains[best - 1] if best else None
            routes.append(Route(domain, max(scores.values()), self.threshold, scores))
        return routes

    def save(self, folder: Path) -> None:
        """``router.save(Path("build/router"))``: weights and settings, in place of an older router.

        Raises: StorageError if the folder cannot be written.
        """
        settings = {
            "format": FORMAT,
            "version": self.version,
            "domains": self.domains,
            "threshold": self.threshold,
            "report": asdict(self.report),
        }
        with storage_errors(f"cannot write the router to {folder}"), kept_folder(folder) as new:
            np.savez(new / WEIGHTS, coefficients=self.coefficients, intercepts=self.intercepts)
            (new / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> DomainRouter:
        """``DomainRouter.load(Path("build/router"), encoder)``

        Raises: DataError if a file is missing or damaged.
        """
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            with (folder / WEIGHTS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                coefficients, intercepts = arrays["coefficients"], arrays["intercepts"]
            domains, threshold = tuple(settings["domains"]), float(settings["threshold"])
            report, written, form = RouterReport(**settings["report"]), settings["version"], settings["format"]
        except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
            raise DataError(
                f"router: {folder} is missing or damaged ({error}); delete the folder to fit the router again"
            ) from error
        found = _content_hash(coefficients, intercepts, domains, threshold)
        if form != FORMAT or found != written:
            raise DataError(
                f"router: {folder} claims version {written} (format {form}) but contains {found} (format {FORMAT}); "
                "delete the folder to fit the router again"
            )
        return cls(encoder, domains, coefficients, intercepts, threshold, report)


def choose_threshold(probabilities: Floats, y: Ints, max_false_rejection: float) -> float:
    """``choose_threshold(held_out, y, 0.05)``: the score below which a text belongs to no domain.

    Among the thresholds that reject at most ``max_false_rejection`` of in-domain texts, the one with the highest sum of
    in-domain and out-of-domain recall; the middle one of several equally good ones.

    probabilities: (N, 1 + domains), column 0 "no domain"; y: (N,) class numbers.
    """
    scores = probabilities[:, 1:].max(axis=1)
    inside, outside = np.sort(scores[y > 0]), np.sort(scores[y == 0])
    ceiling = inside[int(max_false_rejection * len(inside))]  # at most this share of scores is below it
    candidates = np.unique(np.append(scores[scores <= ceiling], ceiling))
    accepted = 1 - np.searchsorted(inside, candidates) / len(inside)
    abstained = np.searchsorted(outside, candidates) / len(outside)
    gain = accepted + abstained
    best = candidates[gain >= gain.max() - 1e-9]
    return float(best[len(best) // 2])


def calibration_error(confidence: Floats, correct: npt.NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): mean |accuracy - confidence| over equal bins."""
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    members = [number == each for each in np.unique(number)]
    return float(sum(abs(correct[m].mean() - confidence[m].mean()) * m.mean() for m in members))


def _classifier(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")


def _embed(encoder: Encoder, texts: Sequence[str]) -> Floats:
    """Unit vectors, (N, D)."""
    vectors = np.asarray(encoder.encode(list(texts)), dtype=np.float64)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _decide(probabilities: Floats, threshold: float) -> Ints:
    """Class numbers, (N,): the top-1 domain, or 0 if its score is below the threshold."""
    best = probabilities[:, 1:].argmax(axis=1) + 1
    return np.where(probabilities[:, 1:].max(axis=1) >= threshold, best, 0)


def _sample(labels: Sequence[str | None], groups: Sequence[Hashable], limit: int, seed: int) -> list[int]:
    """Row numbers, at most ``limit`` per label, taken in turn from the label's groups, so that small groups are kept whole."""
    rows = list(range(len(labels)))
    random.Random(seed).shuffle(rows)
    by_label: dict[str | None, list[tuple[int, int]]] = {}
    for row, turn in zip(rows, turns((labels[row], groups[row]) for row in rows), strict=True):
        by_label.setdefault(labels[row], []).append((turn, row))
    return sorted(row for in_turn in by_label.values() for _, row in sorted(in_turn)[:limit])


def _check_enough(labels: Sequence[str | None], groups: Sequence[Hashable], domains: tuple[str, ...]) -> None:
    for label in (None, *domains):
        count = len({group for group, each in zip(groups, labels, strict=True) if each == label})
        if count < FOLDS:
            what = f"domain {label!r}" if label else "the general pool (texts of no domain)"
            raise DataError(
                f"router: {what} has {count} independent texts or templates and needs at least {FOLDS}; add sources"
            )
    if not domains:
        raise DataError("router: no text belongs to a domain; add a domain YAML that is not private")


def _report(
    probabilities: Floats, y: Ints, folds: list[Ints], domains: tuple[str, ...], max_false_rejection: float
) -> RouterReport:
    """Each fold is routed with the threshold chosen on the other folds."""
    routed = np.zeros_like(y)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(y)), fold)
        threshold = choose_threshold(probabilities[others], y[others], max_false_rejection)
        routed[fold] = _decide(probabilities[fold], threshold)
    names, numbers = (NONE, *domains), range(len(domains) + 1)
    table = confusion_matrix(y, routed, labels=list(numbers))
    columns = precision_recall_fscore_support(y, routed, labels=list(numbers), zero_division=0)
    keys = ("precision", "recall", "f1", "n")
    best = probabilities[:, 1:].argmax(axis=1) + 1
    return RouterReport(
        n=len(y),
        macro_f1=float(f1_score(y, routed, labels=list(numbers), average="macro", zero_division=0)),
        per_domain={name: {k: float(c[i]) for k, c in zip(keys, columns, strict=True)} for i, name in enumerate(names)},
        confusion={a: {b: int(table[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
        out_of_domain_recall=float((routed[y == 0] == 0).mean()),
        false_rejection=float((routed[y > 0] == 0).mean()),
        calibration_error=calibration_error(probabilities[:, 1:].max(axis=1), best == y),
    )


def _content_hash(coefficients: Floats, intercepts: Floats, domains: Sequence[str], threshold: float) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, list(domains), threshold, list(coefficients.shape)]).encode())
    for array in (coefficients, intercepts):
        digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return digest.hexdigest()[:12]
