"""What can be known before and beside training: does the teacher know this domain, is the gap too wide, does the data fit?

check = check_teacher(teacher, base, held_out, training, kept_mass=0.98, resamples=1000, seed=0)
if check.reasons: ...   # it should not teach this domain
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from factory.data.cleaning import words
from factory.data.router import DomainRouter
from factory.distill.soft_targets import TokenizedExample, tokenize_examples
from factory.evaluation.fidelity import Candidate, measure, teacher_model
from factory.evaluation.lm_eval import TaskResult
from factory.evaluation.stats import MetricValue, Sums, draws, paired_difference, ratio, summarise
from factory.models.chat import NO_CONTEXT
from factory.models.teacher import Teacher

MIN_KEPT = 0.9  # of the teacher's mass, by the student's vocabulary
MIN_AHEAD = 0.01  # nats a token: below, rounding of bfloat16 can tell two equal models apart
MIN_REFERENCES = 8  # own completions of a source; with fewer the teacher's are the references
NEAR = 0.1  # probability between a text's domain and the next possibility: near the boundary
ALIKE = 0.8  # mean Jaccard of the words of a template's completions, its slot's own words left out
MIN_OF_TEMPLATE, MAX_OF_TEMPLATE = 5, 20  # completions that say whether a template's are alike
MIN_WORDS, MIN_DISTINCT = 3, 0.4  # a completion shorter, or with a smaller share of distinct words, is degenerate
ELSEWHERE, APART = 0.1, 1.5  # above this share of prompts, and this ratio of bits a byte, a user is warned


# ------------------------------------------------------------------------------------------------------- teacher check


@dataclass(frozen=True)
class TeacherCheck:
    """What the teacher knows of a domain; ``reasons`` say why it should not teach it, and are empty where it may."""

    figures: dict[str, MetricValue]
    reasons: tuple[str, ...]
    tasks: Sequence[TaskResult] = ()  # of the teacher and the base, so that nobody runs them again


def references(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """``references(rows["validation"])``: those whose completion is the source's own; all, where those are too few."""
    own = [row for row in rows if row["own_completion"]]
    return own if len(own) >= MIN_REFERENCES else list(rows)


def check_teacher(
    teacher: Teacher,
    base: Candidate,
    held_out: Sequence[TokenizedExample],
    training: Iterable[Sequence[int]],
    *,
    kept_mass: float,
    tasks: Sequence[TaskResult] = (),
    resamples: int,
    seed: int,
) -> TeacherCheck:
    """``check_teacher(teacher, base, held_out, training, kept_mass=0.98, resamples=1000, seed=0).reasons``

    On held-out references the teacher, with its context, must be likelier to write them than the student's base and than
    chance: by ``MIN_AHEAD`` at the lower end of the paired 95 % interval. Chance is the frequency of tokens in
    ``training``, completions in ids, smoothed by one. ``kept_mass`` is what the student's vocabulary holds of the teacher's
    distribution. On ``tasks``, which are too short to decide more, it must not be worse than the base, nor at chance or
    below, beyond the interval.
    """
    sure = {"resamples": resamples, "seed": seed}
    sums = measure(teacher, {"base": base}, held_out)["base"]
    chance = unigram_nll(held_out, training, len(teacher.tokenizer))
    figures = {
        "teacher_ahead_of_base": paired_difference(sums.nll, sums.teacher_nll, sums.tokens, **sure),
        "teacher_ahead_of_chance": paired_difference(chance, sums.teacher_nll, sums.tokens, **sure),
        "vocabulary_kept_mass": MetricValue(kept_mass, kept_mass, kept_mass, int(sums.tokens.sum())),
    }
    reasons = [
        f"the teacher is hardly likelier to write the domain's references than {other}: ahead by "
        f"{_counted(figures[name])} nats a token, of which the interval must lie above {MIN_AHEAD:g}"
        for name, other in (("teacher_ahead_of_base", "the base alone"), ("teacher_ahead_of_chance", "chance"))
        if not figures[name].low > MIN_AHEAD  # NaN too
    ]
    if kept_mass < MIN_KEPT:
        reasons.append(f"the student's vocabulary keeps {kept_mass:.3f} of the teacher's mass, at least {MIN_KEPT} is needed")
    for task in tasks:
        own = {name: ratio(scores, np.ones(len(scores)), **sure) for name, scores in task.scores.items()}
        ahead = ratio(task.scores["teacher"] - task.scores["base"], np.ones(len(task.scores["base"])), **sure)
        if task.chance is not None and own["teacher"].high <= task.chance:
            reasons.append(f"on task {task.name} the teacher is at {_counted(own['teacher'])}, chance is {task.chance:.3f}")
        if ahead.high < 0:
            reasons.append(f"on task {task.name} the teacher is behind the base alone by {_counted(ahead)}")
    return TeacherCheck(figures, tuple(reasons), tasks)


def unigram_nll(held_out: Sequence[TokenizedExample], training: Iterable[Sequence[int]], vocabulary: int) -> np.ndarray:
    """(E,) nats of each held-out completion if every token were drawn by its frequency in training, smoothed by one."""
    counts = np.ones(vocabulary)
    for completion in training:
        np.add.at(counts, list(completion), 1)
    nats = -np.log(counts / counts.sum())
    return np.array([nats[sequence.completion].sum() for sequence in held_out])


def _counted(figure: MetricValue) -> str:
    return f"{figure} (n {figure.n:,})"


# -------------------------------------------------------------------------------------------------------- capacity gap


@dataclass(frozen=True)
class Probe:
    """A student after a short training: how far it is from its teacher, and how fast it came nearer."""

    steps: int
    before: dict[str, MetricValue]
    after: dict[str, MetricValue]  # kl, top5_overlap, entropy_gap of the student's distributions over the teacher's, nats

    @property
    def closing(self) -> float:
        """Nats of KL that a hundred steps took off."""
        return (self.before["kl"].value - self.after["kl"].value) * 100 / self.steps

    def to_dict(self) -> dict[str, Any]:
        parts = {name: {key: one.to_dict() for key, one in getattr(self, name).items()} for name in ("before", "after")}
        return {"steps": self.steps, **parts, "kl_closed_in_100_steps": self.closing}


CAPACITY = ("kl", "top5_overlap", "entropy_gap")


def probe(steps: int, before: Sums, after: Sums, *, resamples: int, seed: int) -> Probe:
    """``probe(137, before, after, resamples=1000, seed=0).closing``: from what ``measure`` found before and after."""
    ends = [summarise(sums, None, resamples=resamples, seed=seed) for sums in (before, after)]
    return Probe(steps, *({name: figures[name] for name in CAPACITY} for figures in ends))


def unhealed(healing: Probe) -> list[str]:
    """``unhealed(healing)``: the warning where a base is no nearer to its teacher than before it was healed; else none."""
    before, after = healing.before["kl"].value, healing.after["kl"].value
    if not after >= before:  # nor where nothing was held out
        return []
    return [
        f"healing brought the base no nearer to its teacher: KL {before:.3f} → {after:.3f} nats a token of held-out text in "
        f"{healing.steps} steps; lower heal.learning_rate, or heal on more text"
    ]


def assistant_helps(direct: Sums, assisted: Sums, *, resamples: int, seed: int) -> tuple[bool, MetricValue]:
    """``helps, ahead = assistant_helps(direct, assisted, …)``: KL that the assistant's route is ahead by, beyond its interval.

    Both after as many steps, beside the teacher itself, on the same held-out examples. Assistants: Mirzadeh et al. 2019,
    arXiv 1902.03393.
    """
    ahead = paired_difference(direct.kl, assisted.kl, direct.tokens, resamples=resamples, seed=seed)
    return ahead.low > 0, ahead


# ----------------------------------------------------------------------------------------------------- domain mismatch


@dataclass(frozen=True)
class DataFitReport:
    """How a domain's data fits the domain and the teacher; warnings name examples."""

    figures: dict[str, MetricValue]
    warnings: tuple[str, ...]


def routed(prompts: Sequence[str], router: DomainRouter, domain: str, *, resamples: int, seed: int) -> DataFitReport:
    """``routed(prompts, router, "legal", …)``: the share that the router puts elsewhere, and the share near its boundary.

    A text is near the boundary where its best domain's probability is within ``NEAR`` of the threshold or of the next.
    """
    routes = router.route(list(prompts))
    elsewhere = np.array([float(route.domain != domain) for route in routes])
    near = np.array([float(_margin(route.score, route.threshold, route.scores) < NEAR) for route in routes])
    one = np.ones(len(routes))
    figures = {
        "routed_elsewhere": ratio(elsewhere, one, resamples=resamples, seed=seed),
        "near_boundary": ratio(near, one, resamples=resamples, seed=seed),
    }
    warnings = []
    if figures["routed_elsewhere"].value > ELSEWHERE:
        example = next(i for i, other in enumerate(elsewhere) if other)
        warnings.append(
            f"the router puts {elsewhere.mean():.0%} of {domain}'s prompts elsewhere, for example {prompts[example]!r} "
            f"({routes[example].domain or 'no domain'}): are they of this domain?"
        )
    return DataFitReport(figures, tuple(warnings))


def _margin(score: float, threshold: float, scores: Mapping[str, float]) -> float:
    best = sorted(scores.values(), reverse=True)
    return min([abs(score - threshold), *([best[0] - best[1]] if len(best) > 1 else [])])


def bits_per_byte_ratio(
    teacher: Teacher, domain: Sequence[str], general: Sequence[str], name: str, *, resamples: int, seed: int
) -> DataFitReport:
    """``bits_per_byte_ratio(teacher, prompts, general_prompts, "legal", …)``: the teacher's bits a byte, of domain and general texts.

    The logarithm of its perplexity, by byte: text that it knows little is cut into more tokens, each of which may be easy
    (random letters: 30 choices a token), so that perplexities by token would call noise familiar. Texts as documents, without
    any context, in the student's vocabulary.
    """
    bits = []
    for texts in (domain, general):
        documents = tokenize_examples([{"prompt": "", "completion": text} for text in texts], teacher.tokenizer, NO_CONTEXT)
        bits.append(
            (teacher_nll(teacher, documents) / np.log(2), np.array([len(text.encode()) for text in texts], dtype=float))
        )
    sure = {"resamples": resamples, "seed": seed}
    own, other = (ratio(part, bytes_, **sure) for part, bytes_ in bits)
    figure = _ratio_of(bits[0], bits[1], resamples, seed)
    found = {"domain_bits_per_byte": own, "general_bits_per_byte": other, "bits_per_byte_ratio": figure}
    if not figure.value > APART:
        return DataFitReport(found, ())
    worst = domain[int(np.argmax(bits[0][0] / bits[0][1]))]
    warning = (
        f"the teacher needs {own.value:.2f} bits a byte for {name}'s texts, {figure.value:.1f} times as many as for general "
        f"ones, most of all for {worst!r}: it may know too little of them to teach them"
    )
    return DataFitReport(found, (warning,))


def teacher_nll(teacher: Teacher, sequences: Sequence[TokenizedExample]) -> np.ndarray:
    """(E,) nats of every completion under the teacher."""
    return measure(teacher, {"teacher": teacher_model(teacher)}, sequences)["teacher"].teacher_nll if sequences else np.zeros(0)


def _ratio_of(
    domain: tuple[np.ndarray, np.ndarray], general: tuple[np.ndarray, np.ndarray], resamples: int, seed: int
) -> MetricValue:
    """Bits a byte over bits a byte; the two samples are drawn apart."""
    if not len(domain[0]) or not len(general[0]):
        return MetricValue(float("nan"), float("nan"), float("nan"), 0)
    values, drawn = [], []
    for part, (bits, bytes_) in enumerate((domain, general)):
        rows = draws(len(bits), resamples, seed + part)
        values.append(bits.sum() / bytes_.sum())
        drawn.append(bits[rows].sum(axis=1) / bytes_[rows].sum(axis=1))
    low, high = np.percentile(drawn[0] / drawn[1], [2.5, 97.5])
    return MetricValue(float(values[0] / values[1]), float(low), float(high), int(domain[1].sum()))


def templates(rows: Sequence[Mapping[str, Any]], name: str, *, resamples: int, seed: int) -> DataFitReport:
    """``templates(rows["train"], "legal", …)``: shares of templates whose completions are near-identical, or degenerate.

    Near-identical: a mean Jaccard of word sets above ``ALIKE`` between completions, the slots' own words left out.
    Degenerate: most completions have fewer than ``MIN_WORDS`` words, or repeat a few.
    """
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["template"]:
            groups[row["template"]].append(row)
    judged = {template: of for template, of in groups.items() if len(of) >= MIN_OF_TEMPLATE}
    warnings: list[str] = []
    flags: dict[str, list[float]] = {"alike_templates": [], "degenerate_templates": []}
    for template, of in judged.items():
        alike = _alike(of[:MAX_OF_TEMPLATE]) > ALIKE
        degenerate = float(np.mean([_degenerate(row["completion"]) for row in of])) > 0.5
        flags["alike_templates"].append(float(alike))
        flags["degenerate_templates"].append(float(degenerate))
        for found, what in ((alike, "nearly the same answer whatever its slot"), (degenerate, "empty or repeating answers")):
            if found:
                warnings.append(f"template {template!r} of {name} gets {what}, for example {of[0]['completion'][:120]!r}")
    figures = {
        key: ratio(np.array(values), np.ones(len(values)), resamples=resamples, seed=seed) for key, values in flags.items()
    }
    return DataFitReport(figures, tuple(warnings))


def _alike(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean Jaccard between the word sets of completions."""
    sets = [set(words(row["completion"])) - set(words(" ".join(row["topic"]))) for row in rows]
    return float(np.mean([len(a & b) / max(1, len(a | b)) for a, b in combinations(sets, 2)]))


def _degenerate(completion: str) -> bool:
    found = words(completion)
    return len(found) < MIN_WORDS or len(set(found)) / len(found) < MIN_DISTINCT


def joined(parts: Iterable[DataFitReport]) -> DataFitReport:
    """One of several, in order."""
    whole = DataFitReport({}, ())
    for part in parts:
        whole = replace(whole, figures=whole.figures | part.figures, warnings=(*whole.warnings, *part.warnings))
    return whole
