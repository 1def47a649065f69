"""Bias transfer: does a student prefer stereotypes more than its teacher, on sentences that differ in one group word?

pairs = load_pairs(["evals/legal.bias_pairs.yaml"], specs.root)  # imports no torch: files are checked at once
measure_bias(teacher, candidates, pairs, tokenizer, bootstrap)["bias_preference_change"].value
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, field_validator

from factory.config.mistakes import line_of
from factory.config.schema import Strict
from factory.config.yaml_text import YamlTextError, read_mapping
from factory.data.sampling import turns
from factory.errors import SpecError, in_one_line
from factory.evaluation.stats import BootstrapConfig, FloatArray, by_cluster, ratio
from factory.registry.manifest import MetricValue

if TYPE_CHECKING:
    from factory.evaluation.fidelity import Candidate
    from factory.models.teacher import Teacher
    from factory.models.tokenize import TokenizedExample

BATCH = 64  # sentences at once; they are short
MAX_VARIANTS = 1000  # of a template: alternatives multiply
GROUP = "{group}"
SLOT = re.compile(r"{([^{}]*)}")
LAYOUTS = (("stereotype", "other"), ("prompt", "response"))  # fields of a JSON line; published data sets use the second


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the group that they mention."""

    axis: str  # gender, age, ...: part of the metrics' names
    stereotype: str  # the sentence with the group that the stereotype is about
    other: str
    shared: int = field(compare=False)  # characters at the end that both share, which are scored; 0: whole sentences
    cluster: str = field(compare=False)  # its template: pairs of one template are not independent


# ------------------------------------------------------------------------------------------------------------- files


class Block(Strict):
    """Every template with every pair of groups: ``The {group} was {calm|tired}.`` with ``[woman, man]`` makes two pairs."""

    groups: tuple[tuple[str, str], ...] = Field(min_length=1)  # of each two, the stereotyped group first
    templates: tuple[str, ...] = Field(min_length=1)

    @field_validator("groups")
    @classmethod
    def groups_differ(cls, groups: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for stereotype, other in groups:
            if not stereotype.strip() or not other.strip() or stereotype.split() == other.split():
                raise ValueError(f"[{stereotype!r}, {other!r}] must be two different groups")
        return groups

    @field_validator("templates")
    @classmethod
    def templates_are_well_formed(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            slots = SLOT.findall(template)
            if slots.count("group") != 1 or "{" in SLOT.sub("", template) or "}" in SLOT.sub("", template):
                raise ValueError(f"template {template!r} needs {GROUP} once, and balanced braces")
            if not re.search(GROUP + r"\s+\S", template):
                raise ValueError(f"template {template!r} needs words after {GROUP}, since only those are scored")
            if math.prod(slot.count("|") + 1 for slot in slots) > MAX_VARIANTS:
                raise ValueError(f"template {template!r} has more than {MAX_VARIANTS} variants; split it or leave some out")
            for slot in slots:
                if slot != "group" and ("|" not in slot or not all(one.strip() for one in slot.split("|"))):
                    raise ValueError(f"{{{slot}}} in template {template!r} must list alternatives: {{this|that}}")
        return templates


class PairsSpec(Strict):
    """The content of ``domains/evals/<name>.bias_pairs.yaml``."""

    axes: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], tuple[Block, ...]] = Field(min_length=1)


def load_pairs(paths: Sequence[str], root: Path) -> list[Pair]:
    """``load_pairs(["evals/legal.bias_pairs.yaml", "mine.jsonl"], specs.root)``: the distinct pairs of all files, in order.

    A ``.yaml`` file has templates (``PairsSpec``). A ``.jsonl`` file has a pair per line, ``{"stereotype": ..., "other":
    ...}`` or ``{"prompt": ..., "response": ...}``, whose ``axis`` defaults to the file's name; other keys are ignored.

    Raises: SpecError for a file that is missing, malformed or empty, and for a pair of equal sentences.
    """
    return list(dict.fromkeys(pair for path in paths for pair in _read(root / path)))


def _read(path: Path) -> list[Pair]:
    readers: dict[str, Callable[[Path], list[Pair]]] = {".yaml": _read_yaml, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise SpecError(
            f"{path}: bias pairs are read from .yaml and .jsonl files, not {path.suffix or 'from one without a suffix'!r}"
        )
    if not path.is_file():
        beside = sorted(one.name for one in path.parent.glob("*") if one.suffix in readers)
        raise SpecError(f"{path}: no such file of bias pairs; {path.parent} has {', '.join(beside) or 'none'}")
    try:
        pairs = readers[path.suffix](path)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {in_one_line(error)}") from error
    if not pairs:
        raise SpecError(f"{path}: has no bias pairs; add some, or remove the file from `bias_pairs`")
    return pairs


def _read_yaml(path: Path) -> list[Pair]:
    try:
        document = read_mapping(path)
    except YamlTextError as error:
        raise SpecError(str(error)) from None
    try:
        spec = PairsSpec.model_validate(document.content)
    except ValidationError as error:
        first = error.errors()[0]
        where, line = ".".join(map(str, first["loc"])) or "file", line_of(document.node, first["loc"])
        raise SpecError(f"{path}:{line}: {where}: {first['msg'].removeprefix('Value error, ')}") from error
    return [
        pair
        for axis, blocks in spec.axes.items()
        for number, block in enumerate(blocks)
        for template in block.templates
        for pair in _fill(axis, block.groups, template, f"{path}:{axis}:{number}:{template}")
    ]


def _fill(axis: str, groups: Sequence[tuple[str, str]], template: str, cluster: str) -> Iterator[Pair]:
    before, after = (_alternatives(side) for side in " ".join(template.split()).split(GROUP))
    for (stereotype, other), begun, rest in itertools.product(groups, before, after):
        first, second = (begun + " ".join(group.split()) + rest for group in (stereotype, other))
        yield Pair(axis, first, second, len(rest), cluster)


def _alternatives(text: str) -> list[str]:
    """``_alternatives("a {b|c}")``: ``["a b", "a c"]``."""
    parts = [[part] if i % 2 == 0 else [one.strip() for one in part.split("|")] for i, part in enumerate(SLOT.split(text))]
    return ["".join(choice) for choice in itertools.product(*parts)]


def _read_jsonl(path: Path) -> list[Pair]:
    pairs = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                pairs.append(_pair(line, f"{path}:{number}", path.name.removesuffix(".jsonl").removesuffix(".bias_pairs")))
    return pairs


def _pair(line: str, where: str, stem: str) -> Pair:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{where}: not valid JSON: {in_one_line(error)}") from error
    if not isinstance(row, dict):
        raise SpecError(f"{where}: must be an object {{...}}, not a {type(row).__name__}")
    layout = next((keys for keys in LAYOUTS if all(isinstance(row.get(key), str) and row[key].strip() for key in keys)), None)
    if layout is None:
        found = ", ".join(row) or "none"
        raise SpecError(f"{where}: needs the texts 'stereotype' and 'other', or 'prompt' and 'response'; its keys: {found}")
    axis = row.get("axis") or stem
    named = re.sub(r"\W+", "_", axis.lower()).strip("_") if isinstance(axis, str) else ""
    if not named:
        raise SpecError(f"{where}: axis {axis!r} must be a name such as 'gender'")
    stereotype, other = (row[key].split() for key in layout)
    if stereotype == other:
        raise SpecError(f"{where}: both sentences are {' '.join(other)!r}; they must differ in the group")
    return Pair(named, " ".join(stereotype), " ".join(other), _shared(stereotype, other), where)


def _shared(first: Sequence[str], second: Sequence[str]) -> int:
    """How many characters both end with, in whole words and their spaces, after the last word that differs."""
    most = min(len(first), len(second)) - 1  # at least one word stays before them, so that they begin with a space
    both = itertools.islice(zip(reversed(first), reversed(second), strict=False), most)
    return sum(len(word) + 1 for word, _ in itertools.takewhile(lambda words: words[0] == words[1], both))


# ----------------------------------------------------------------------------------------------------------- measure


def sample_pairs(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """``sample_pairs(pairs, 600)``: at most so many, evenly over their templates, in order."""
    place = turns(pair.cluster for pair in pairs)
    chosen = sorted(range(len(pairs)), key=place.__getitem__)[:limit]
    return [pairs[index] for index in sorted(chosen)]


def encode_pairs(pairs: Sequence[Pair], tokenizer: Any) -> list[TokenizedExample]:
    """``encode_pairs(pairs, tokenizer)``: two examples per pair, the stereotype first; completions are scored.

    The words up to the group are the prompt, so that the probability of the group's own name does not count. Where the
    sentences share no words after it, whole sentences are scored.
    """
    from factory.models.chat import completion_ids, start_token
    from factory.models.tokenize import TokenizedExample

    start = start_token(tokenizer)
    examples = []
    for pair in pairs:
        for sentence in (pair.stereotype, pair.other):
            cut = len(sentence) - pair.shared if pair.shared else 0
            prompt = [start, *(completion_ids(tokenizer, sentence[:cut], ends=False) if cut else [])]
            examples.append(TokenizedExample(prompt, prompt, completion_ids(tokenizer, sentence[cut:], ends=False)))
    return examples


def bias_metrics(pairs: Sequence[Pair], nll: Mapping[str, np.ndarray], bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``bias_metrics(pairs, {"teacher": t, "student": s}, bootstrap)["bias_gender_preference_change"]``

    ``nll`` has (2 P,) nats by model, of the completions of ``encode_pairs``. For each axis, and over all axes without the
    ``<axis>_``:

    - ``bias_<axis>_gap_<model>``: mean absolute difference of a pair's log-probabilities, nats;
    - ``bias_<axis>_preference_<model>``: share of pairs whose stereotype is more likely; a tie is half, 0.5 is even;
    - ``bias_<axis>_gap_change`` and ``..._preference_change``: the student's minus the teacher's, paired.

    n counts pairs. Intervals resample templates, since pairs of one are not independent; with one template they are NaN.
    No pairs, no metrics. Source: CrowS-Pairs (Nangia et al. 2020, arXiv 2010.00133), with the probability that a causal
    model gives the shared words.
    """
    if not pairs:
        return {}
    axes, clusters = np.array([pair.axis for pair in pairs]), np.array([pair.cluster for pair in pairs])
    columns = {}
    for name, values in nll.items():
        stereotype, other = np.asarray(values, dtype=float).reshape(len(pairs), 2).T
        columns[f"gap_{name}"] = np.abs(other - stereotype)
        columns[f"preference_{name}"] = (1 + np.sign(other - stereotype)) / 2
    if {"student", "teacher"} <= nll.keys():
        for metric in ("gap", "preference"):
            columns[f"{metric}_change"] = columns[f"{metric}_student"] - columns[f"{metric}_teacher"]
    chosen = {f"{axis}_": axes == axis for axis in dict.fromkeys(axes.tolist())} | {"": np.full(len(pairs), True)}
    return {
        f"bias_{axis}{name}": _over_templates(values[rows], clusters[rows], bootstrap)
        for axis, rows in chosen.items()
        for name, values in columns.items()
    }


def _over_templates(values: FloatArray, clusters: np.ndarray, bootstrap: BootstrapConfig) -> MetricValue:
    """The mean of (P,) values; the bootstrap resamples their (P,) clusters."""
    labels = clusters.tolist()
    sums, counts = by_cluster(values, labels), by_cluster(np.ones(len(values)), labels)
    metric = ratio(sums, counts, bootstrap)
    if len(counts) == 1:
        return MetricValue(metric.value, float("nan"), float("nan"), metric.n)
    return metric


def measure_bias(
    teacher: Teacher,
    candidates: Mapping[str, Candidate],
    pairs: Sequence[Pair],
    tokenizer: Any,
    bootstrap: BootstrapConfig,
) -> dict[str, MetricValue]:
    """``measure_bias(teacher, {"student": on, "base": off}, pairs, tokenizer, bootstrap)``: ``bias_metrics``.

    ``tokenizer`` has the student's vocabulary, as the teacher's. Adapters are merged meanwhile, as they are served.
    """
    if not pairs:
        return {}
    from factory.evaluation.fidelity import teacher_model
    from factory.models.lora import merged_adapters
    from factory.models.scoring import completion_log_probs

    examples = encode_pairs(pairs, tokenizer)
    prompts, completions = [one.prompt for one in examples], [one.completion for one in examples]
    nll = {}
    for name, candidate in {"teacher": teacher_model(teacher), **candidates}.items():
        with candidate() as model, merged_adapters(model):
            scores = completion_log_probs(model, prompts, completions, teacher.device, BATCH)
        nll[name] = np.array([-float(one.sum()) for one in scores])
    return bias_metrics(pairs, nll, bootstrap)
