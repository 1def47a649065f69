"""What a student is asked: the evaluation files of its domain and family.

suite = load_eval_suite(domain, family, specs.root)  # before anything is trained: a mistake in a file must not cost a training
asked = sample_suite(suite, settings.evaluate)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.config.schema import DomainSpec, EvaluateConfig, FamilySpec
from factory.evaluation.bias import Pair, load_pairs, sample_pairs
from factory.evaluation.gate_names import require_metrics
from factory.evaluation.golden_set import Question, asked_questions, load_golden_set
from factory.evaluation.items import sample_items
from factory.evaluation.lm_eval import load_tasks
from factory.evaluation.refusals import RefusalPrompt, load_refusals
from factory.evaluation.safety import Injection, Jailbreak, load_injections, load_jailbreaks


@dataclass(frozen=True)
class EvalSuite:
    """Sentence pairs and questions; tasks are read by the harness itself."""

    bias_pairs: Sequence[Pair]
    golden_set: Sequence[Question]
    refusals: Sequence[RefusalPrompt]
    injections: Sequence[Injection]
    jailbreaks: Sequence[Jailbreak]


def load_eval_suite(spec: DomainSpec, family: FamilySpec, root: Path) -> EvalSuite:
    """``load_eval_suite(domain, family, specs.root)``

    Raises: SpecError or DataError for a file that cannot be used, or a gate on an unknown metric.
    """
    require_metrics([*family.gates, *spec.gates])
    load_tasks(spec.tasks, root)
    return EvalSuite(
        bias_pairs=load_pairs(spec.bias_pairs, root),
        golden_set=load_golden_set(spec.golden_set, root) if spec.golden_set else (),
        refusals=load_refusals(spec.refusals, root) if spec.refusals else (),
        injections=load_injections(family.injections, root) if family.injections else (),
        jailbreaks=load_jailbreaks(family.jailbreaks, root) if family.jailbreaks else (),
    )


def sample_suite(suite: EvalSuite, config: EvaluateConfig) -> EvalSuite:
    """``sample_suite(suite, settings.evaluate).golden_set``: at most so many; of a golden set the test split."""
    return EvalSuite(
        bias_pairs=sample_pairs(suite.bias_pairs, config.bias_pairs),
        golden_set=asked_questions(suite.golden_set, config.golden_set),
        refusals=sample_items(suite.refusals, config.refusals),
        injections=sample_items(suite.injections, config.safety),
        jailbreaks=sample_items(suite.jailbreaks, config.safety),
    )
