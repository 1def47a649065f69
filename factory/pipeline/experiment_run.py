"""One run of an experiment: an adapter trained within the budget, and what it scores on held-out text.

    run = train_run(bench, method, training_set, rate=5e-4, seed=0)
    scores = held_out_scores(bench, run)

A run is a folder in the cache, under the key of all that decides it: the adapter, ``run.json``, and what it scored on the test
split once it was chosen.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from factory.cache import cache_key, home, is_kept, keep, kept, kept_folder
from factory.config.experiment import ExperimentSpec, MethodSpec
from factory.config.schema import DistillConfig
from factory.data.splitting import cluster_of
from factory.distill.budget import ENDLESS, Budget, CountingTrainer, Spent, train_within
from factory.distill.losses import find_loss
from factory.distill.trainer import DistillTrainer
from factory.distill.training_data import TrainingSet
from factory.distill.trl_gkd import make_trl_trainer
from factory.evaluation.answers import generate_answers
from factory.evaluation.benchmark import bits_per_byte
from factory.evaluation.fidelity import fixed_model, measure
from factory.evaluation.golden_set import Question, marks
from factory.evaluation.method_comparison import Scores
from factory.evaluation.real_text import real_texts
from factory.evaluation.stats import BootstrapConfig, ExampleSums, relation_alignment
from factory.models.base import attach_adapter, load_base, load_student
from factory.models.chat import NO_CONTEXT
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample, tokenize_examples
from factory.pipeline.base import StudentBase
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import DomainDataset
from factory.pipeline.provenance import environment
from factory.pipeline.training_set import embed_rows, training_set_key
from factory.registry.plain_json import plain_json, to_json

FORMAT = 1  # raised when what a run does changes, so that older ones are not taken for it
RUN = "run.json"  # in a run's folder, beside its adapter
FIDELITY = {"kl": ("kl", "tokens"), "top1_agreement": ("agree", "tokens"), "sure_agreement": ("sure_agree", "sure")}


@dataclass(frozen=True)
class Bench:
    """What all runs of an experiment have in common."""

    context: BuildContext
    spec: ExperimentSpec
    models: FamilyModels
    data: DomainDataset
    base: StudentBase
    teacher: Teacher  # who teaches, in the student's vocabulary; all are measured beside the base's own
    golden_set: Sequence[Question]  # those that are asked

    @property
    def settings(self) -> DistillConfig:
        """What every method starts from."""
        return self.context.settings(self.data.spec).distill

    @property
    def budget(self) -> Budget:
        return Budget(self.spec.minutes, self.spec.teacher_tokens)

    @property
    def longest_answer(self) -> int:
        """To a question of the golden set, in tokens."""
        return self.context.settings(self.data.spec).data.max_completion_tokens

    def rows(self, split: str) -> list[dict[str, Any]]:
        """``bench.rows("test")``: the rows of a split that are measured on."""
        return list(self.data.rows[split])[: self.context.settings(self.data.spec).evaluate.examples]

    def examples(self, split: str) -> list[TokenizedExample]:
        """``bench.examples("test")``: the same rows as ids."""
        return tokenize_examples(self.rows(split), self.base.teacher.tokenizer, self.data.spec.contexts)


@dataclass(frozen=True)
class Run:
    """One trained adapter."""

    folder: Path
    learning_rate: float
    seed: int
    validation_kl: float
    spent: Spent
    git_commit: str | None  # of the code that trained it

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"rate {self.learning_rate:g}, seed {self.seed}: KL {self.validation_kl:.3f} on validation after "
            f"{self.spent.steps} steps, {self.spent.minutes:.1f} min and {self.spent.teacher_tokens:,} teacher tokens"
        )


# ---------------------------------------------------------------------------------------------------------------- training


def train_run(bench: Bench, method: MethodSpec, training_set: TrainingSet, rate: float, seed: int) -> Run:
    """``train_run(bench, method, training_set, 5e-4, seed=0).validation_kl``: trained, unless it is in the cache.

    The test split takes no part in it.
    """
    config = method.config(bench.settings).model_copy(update={"learning_rate": rate, "steps": ENDLESS, "report_to": "none"})
    folder = home() / "experiments" / run_key(bench, method, training_set, config, seed)
    if not is_kept(folder, bench.context.say):
        torch.manual_seed(seed)
        loaded = load_base(bench.base.version.folder, bench.context.device)
        fresh = replace(bench.base, base=replace(loaded, shape=bench.base.base.shape))
        model = attach_adapter(fresh.base, config)
        with TemporaryDirectory() as scratch:
            trainer = _trainer(method, model, replace(fresh, teacher=bench.teacher), training_set, config, Path(scratch), seed)
            spent = train_within(trainer, bench.budget)
        sums = _fidelity_sums(bench, model.eval(), "validation")
        found = {
            "validation_kl": float(sums.kl.sum() / sums.tokens.sum()),
            "spent": asdict(spent),
            "git_commit": bench.context.git_commit,
        }
        with kept_folder(folder) as new:
            model.save_pretrained(str(new))
            (new / RUN).write_bytes(to_json(plain_json(found, RUN)))
    kept = json.loads((folder / RUN).read_text(encoding="utf-8"))
    kl = kept["validation_kl"]
    return Run(folder, rate, seed, np.nan if kl is None else kl, Spent(**kept["spent"]), kept["git_commit"])


def run_key(bench: Bench, method: MethodSpec, training_set: TrainingSet, config: DistillConfig, seed: int) -> str:
    """``run_key(bench, method, training_set, config, seed=0)``: of all that decides a run, the loss's own code included."""
    return cache_key(
        FORMAT,
        bench.base.manifest.manifest_sha256,
        bench.models.teacher_files.sha256,
        training_set_key(training_set),
        bench.rows("validation"),
        bench.data.spec.contexts.dump(),
        method.model_dump(exclude={"name", "distill"}),
        config.model_dump(),
        inspect.getsource(find_loss(config.loss)),
        bench.context.family.encoder.model_dump(),
        asdict(bench.budget),
        environment(bench.context.device),
        seed,
        *([bench.data.key] if bench.data.spec.has_own_teacher else []),  # whose targets they are: the rows may be the same
    )


def _trainer(
    method: MethodSpec,
    model: Any,
    base: StudentBase,
    training_set: TrainingSet,
    config: DistillConfig,
    folder: Path,
    seed: int,
) -> CountingTrainer:
    if method.trainer == "trl_gkd":
        examples = [training_set.examples[i] for i in training_set.indices]
        return make_trl_trainer(model, base.base, base.teacher, examples, config, folder=folder, seed=seed)
    return DistillTrainer(model, base.base, base.teacher, training_set, config, folder=folder, seed=seed)


# ---------------------------------------------------------------------------------------------------------------- the test


@dataclass(frozen=True)
class HeldOutScores:
    """What a model scored on the test split."""

    metrics: dict[str, Scores]
    relation_alignment: float | None  # of all examples together: rows have no scores of their own. None with too few


def held_out_scores(bench: Bench, run: Run | None) -> HeldOutScores:
    """``held_out_scores(bench, run).metrics["kl"].value``: measured once, then read; None is the base without an adapter."""
    key = cache_key(
        FORMAT,
        FIDELITY,
        bench.base.manifest.manifest_sha256,
        bench.models.teacher_files.sha256,
        bench.rows("test"),
        bench.data.spec.contexts.dump(),
        [question.model_dump() for question in bench.golden_set],
        bench.longest_answer,
        bench.context.family.encoder.model_dump(),
    )
    path = (run.folder if run else home() / "experiments") / f"test-{key}.json"
    found = kept(path, bench.context.say)
    if found is None:
        base = load_base(bench.base.version.folder, bench.context.device)
        measured = _measure_test(bench, load_student(base, run.folder) if run else base.model)
        columns = {name: [one.over.tolist(), one.under.tolist(), one.clusters] for name, one in measured.metrics.items()}
        measures = {"metrics": columns, "relation_alignment": measured.relation_alignment}
        found = to_json(plain_json(measures, path.name))
        keep(path, found)
    content = json.loads(found)
    metrics = {
        name: Scores(np.array(over, dtype=float), np.array(under, dtype=float), tuple(clusters))
        for name, (over, under, clusters) in content["metrics"].items()
    }
    return HeldOutScores(metrics, content["relation_alignment"])


def _measure_test(bench: Bench, model: Any) -> HeldOutScores:
    """Fidelity on the test split, bits per byte of its real text, and the golden set."""
    rows, tokenizer, device = bench.rows("test"), bench.base.teacher.tokenizer, bench.context.device
    clusters = tuple(cluster_of(row) for row in rows)
    sums = _fidelity_sums(bench, model, "test")
    metrics = {name: Scores(getattr(sums, over), getattr(sums, under), clusters) for name, (over, under) in FIDELITY.items()}
    texts = real_texts(rows)
    bits, sizes = bits_per_byte(model, tokenizer, texts, device=device)
    metrics["bits_per_byte"] = Scores(bits, sizes, tuple(text.document for text in texts))
    if bench.golden_set:
        prompts = [question.prompt for question in bench.golden_set]
        answers = generate_answers(model, tokenizer, prompts, NO_CONTEXT, bench.longest_answer)
        passed = np.array(marks(bench.golden_set, answers), dtype=float)
        topics = tuple(question.cluster for question in bench.golden_set)
        metrics["golden_set_passed"] = Scores(passed, np.ones(len(passed)), topics)
    aligned = relation_alignment(sums.embeddings, embed_rows(bench.models, rows), BootstrapConfig(), clusters)
    return HeldOutScores(metrics, aligned.value)


def _fidelity_sums(bench: Bench, model: Any, split: str) -> ExampleSums:
    return measure(bench.base.teacher, {"student": fixed_model(model)}, bench.examples(split))["student"]
