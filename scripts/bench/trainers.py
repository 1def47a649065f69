"""This project's trainer and trl's on the same teacher, student, data, batch and length; every run is a process of its own.

    python scripts/bench/trainers.py healthcare --size small --minutes 10 --save docs/results/trainers-smollm2.json
    python scripts/bench/trainers.py healthcare --size gemma-small --minutes 10 --accumulate 2 \\
        --save docs/results/trainers-gemma.json

Every student is the teacher cut to the layers of the size's published base, not healed, with LoRA on every linear layer at
the family's rank and learning rate. Runs with the ``full`` vocabulary keep the teacher's, as users of trl do; ``trimmed`` is
the one that this project trains in. The peers are trl's GKDTrainer (without gradient checkpointing, similar lengths batched
together), its DistillationTrainer on-policy, and LoRA fine-tuning on the same answers. No teacher is shown its context.

Tokens are those of prompts and completions, without padding. Memory is the peak of the process while it trains, libraries
included. KL is measured on held-out text in the run's own vocabulary, before and after the steps of its line, with a learning
rate schedule of that length; ``--minutes`` adds a second line with as many steps as fit. The bf16 matrix rate is that of a
product of two large matrices in the same process.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from factory.config.load import load_specs
from factory.config.schema import DistillConfig
from factory.distill.target_store import SoftTargetStore
from factory.distill.trainer import DistillTrainer
from factory.distill.training_data import TrainingSet
from factory.distill.trl_gkd import trl_rows
from factory.evaluation.fidelity import base_only, measure, with_adapter
from factory.models.base import Base, Shape, attach_adapter, load_base, trim_teacher
from factory.models.chat import NO_CONTEXTS
from factory.models.pruning import prune_layers
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample, tokenize_examples
from factory.pipeline.context import make_context, resolve_models
from factory.pipeline.dataset import make_dataset
from factory.registry.registry import Registry

BATCH, EXAMPLES, HELD_OUT, WARM_UP = 8, 4096, 64, 2


@dataclass(frozen=True)
class Run:
    """One line of the table."""

    vocabulary: str
    trainer: str
    dtype: str = "bf16"
    on_policy: bool = False
    long: bool = False  # its held-out KL after ``--minutes`` is measured too


RUNS = {
    "student factory": Run("trimmed", "ours", long=True),
    "trl GKD": Run("full", "gkd", long=True),
    "trl GKD, trimmed": Run("trimmed", "gkd"),
    "trl GKD, float32": Run("full", "gkd", dtype="float32"),
    "trl LoRA SFT, trimmed": Run("trimmed", "sft"),
    "student factory, on-policy": Run("trimmed", "ours", on_policy=True),
    "trl GKD, on-policy": Run("full", "gkd", on_policy=True),
    "trl GKD, on-policy, trimmed": Run("trimmed", "gkd", on_policy=True),
    "trl DistillationTrainer, on-policy": Run("full", "distillation", on_policy=True),
    "trl DistillationTrainer, on-policy, trimmed": Run("trimmed", "distillation", on_policy=True),
}


@dataclass(frozen=True)
class Result:
    """What one process measured."""

    name: str
    steps: int
    tokens_per_second: float
    step_seconds: float  # median
    peak_bytes: int  # of the whole process while it trained; of the device's allocator on a GPU
    teacher_seconds: float  # before training, for targets that every further student reads
    kl_before: float
    kl_after: float  # after these steps, with a schedule of this length
    matrix_share: float  # of this machine's bf16 matrix rate, of the student's multiplications alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain")
    parser.add_argument("--size", default="small")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--text-of", help="a family whose data set is used instead of the size's own")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--steps", type=int, default=8, help="timed steps per run, after two that are not")
    parser.add_argument("--minutes", type=float, default=0, help="training before the held-out KL; 0 leaves it out")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--accumulate", type=int, default=1, help="parts in which the peers take a batch, where memory is short"
    )
    parser.add_argument("--only", action="append", choices=list(RUNS), help="may be repeated")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--one", choices=list(RUNS), help=argparse.SUPPRESS)  # this process measures one run
    parser.add_argument("--targets", type=Path, help=argparse.SUPPRESS)  # where this project's trainer keeps the teacher's
    given = parser.parse_args()
    if given.one:
        print(json.dumps(asdict(measure_run(given.one, given))))
        return
    with TemporaryDirectory() as targets:
        results = list(compared(given, targets))
    print(table(results))
    if given.save:
        given.save.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def compared(given: argparse.Namespace, targets: str) -> Any:
    """What every run measured; with ``--minutes`` the long ones a second time, for as many steps as fit."""
    for name in given.only or RUNS:
        if RUNS[name].trainer == "ours":
            in_own_process(name, 1, targets)  # stores the targets, so that the measured process has them stored
        result = in_own_process(name, given.steps, targets)
        if result and given.minutes and RUNS[name].long:
            yield result
            result = in_own_process(name, int(60 * given.minutes / result["step_seconds"]) - WARM_UP, targets)
        if result:
            yield result


def in_own_process(name: str, steps: int, targets: str) -> dict[str, Any] | None:
    """One run's result; None, and a line on stderr, where it fails."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--steps", str(steps), "--targets", targets]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{name}: failed with exit code {done.returncode}", file=sys.stderr, flush=True)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(table([result]).splitlines()[-1], file=sys.stderr, flush=True)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, one run per line."""
    lines = ["| run | steps | tokens/s | peak memory | teacher before training | KL before → after | of the bf16 matrix rate |"]
    lines.append("|---|---|---|---|---|---|---|")
    for one in results:
        lines.append(
            f"| {one['name']} | {one['steps']} | {one['tokens_per_second']:.0f} | {one['peak_bytes'] / 1e9:.2f} GB | "
            f"{one['teacher_seconds']:.0f} s | {one['kl_before']:.3f} → {one['kl_after']:.3f} | {one['matrix_share']:.2f} |"
        )
    return "\n".join(lines)


def measure_run(name: str, given: argparse.Namespace) -> Result:
    """Loads one run's models, trains, and measures."""
    run, specs = RUNS[name], load_specs(given.domains)
    family = specs.family_of_size(given.size)
    context = make_context(specs, family, registry=Registry(given.registry), profile=given.profile, device=given.device)
    models = resolve_models(family, specs.root, context.device)
    shape = load_base(context.registry.resolve(f"{family.name}-{given.size}-base").folder, context.device).shape
    teacher = trim_teacher(models.teacher, shape.tokens) if run.vocabulary == "trimmed" else models.teacher
    dtype = torch.float32 if run.dtype == "float32" else torch.bfloat16
    teacher.model.to(dtype)
    base = pruned(teacher, shape)
    data_family = specs.family(given.text_of) if given.text_of else family
    data_context = replace(context, family=data_family, seed=data_family.seed)
    data = make_dataset(data_context, resolve_models(data_family, specs.root, context.device), specs.domain(given.domain))
    train, test = (tokenize_examples(data.rows[split], teacher.tokenizer, NO_CONTEXTS) for split in ("train", "test"))
    objective = {"feature": 0.0, "relation": 0.0, "lmbda": float(run.on_policy)}
    config = context.settings(data.spec).distill.model_copy(update=objective | {"batch": BATCH, "steps": given.steps + WARM_UP})
    timer = StepTimer()
    with TemporaryDirectory() as folder:
        make = ours if run.trainer == "ours" else theirs
        setup = Setup(run, base, teacher, train[:EXAMPLES], config, Path(folder), given.targets, given.accumulate, timer)
        trainer, model, seconds = make(setup)
        if run.trainer == "sft" or (run.trainer == "ours" and not run.on_policy):
            teacher.release()
            models.teacher.release()
        timer.watch(model)
        trainer.train()
    candidates = {"before": base_only(model), "after": with_adapter(model, "default")}
    kl = {
        name: float(sums.kl.sum() / sums.tokens.sum()) for name, sums in measure(teacher, candidates, test[:HELD_OUT]).items()
    }
    rate = timer.tokens_per_second()
    completion = sum(len(s.completion) for s in train) / sum(len(s.prompt) + len(s.completion) for s in train)
    return Result(
        name=name,
        steps=given.steps + WARM_UP,
        tokens_per_second=rate,
        step_seconds=timer.step_seconds(),
        peak_bytes=timer.peak,
        teacher_seconds=seconds,
        kl_before=kl["before"],
        kl_after=kl["after"],
        matrix_share=rate * operations(model, completion) / matrix_rate(context.device),
    )


def pruned(teacher: Teacher, shape: Shape) -> Base:
    """The teacher cut to the layers of the published base, not healed."""
    assert shape.layers is not None, "a base that was not cut from the teacher has none of its layers"
    model: Any = copy.deepcopy(teacher.model)
    prune_layers(model, list(shape.layers))
    return Base(model, teacher.tokenizer, Shape(shape.layers, shape.tokens))


# ------------------------------------------------------------------------------------------------------------ trainers


@dataclass(frozen=True)
class Setup:
    """What a trainer is given."""

    run: Run
    base: Base
    teacher: Teacher
    train: list[TokenizedExample]
    config: DistillConfig
    folder: Path
    targets: Path
    accumulate: int
    timer: StepTimer


def ours(setup: Setup) -> tuple[Any, Any, float]:
    """This project's trainer. Its targets are stored first; completions that the student samples are scored live."""
    config, train = setup.config, setup.train
    adapter = attach_adapter(setup.base, config)
    store = SoftTargetStore.make(setup.targets, setup.teacher, train, top_k=config.top_k, temperature=1.0)
    training_set = TrainingSet(train, store, np.zeros((len(train), 1), dtype=np.float32))
    trainer = DistillTrainer(
        adapter,
        setup.base,
        setup.teacher,
        training_set,
        config,
        folder=setup.folder,
        seed=0,
        callbacks=[setup.timer],
    )
    return trainer, adapter, 0.0 if setup.run.on_policy else store.describe().teacher_seconds


def theirs(setup: Setup) -> tuple[Any, Any, float]:
    """trl's trainer of that name, with the same LoRA, ids, global batch and learning rate."""
    run, config, teacher = setup.run, setup.config, setup.teacher
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    shared: dict[str, Any] = {
        "output_dir": str(setup.folder),
        "max_steps": config.steps,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, config.steps // 20),
        "per_device_train_batch_size": BATCH // setup.accumulate,
        "gradient_accumulation_steps": setup.accumulate,
        "learning_rate": config.learning_rate,
        "bf16": run.dtype == "bf16",
        "use_cpu": teacher.model.device.type == "cpu",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    rows = trl_rows(setup.train, teacher.tokenizer)
    given = {
        "model": setup.base.model,
        "processing_class": setup.base.tokenizer,
        "peft_config": lora,
        "callbacks": [setup.timer],
    }
    trainer: Any
    if run.trainer == "sft":
        alike = SFTConfig(**shared, completion_only_loss=True, train_sampling_strategy="group_by_length")
        trainer = SFTTrainer(**given, args=alike, train_dataset=rows.remove_columns("prompt"))
    elif run.trainer == "distillation":
        on_policy = DistillationConfig(**shared, max_completion_length=config.max_new_tokens, beta=config.beta)
        prompts = rows.select_columns("prompt")
        trainer = DistillationTrainer(**given, teacher_model=teacher.model, args=on_policy, train_dataset=prompts)
    else:
        gkd = GKDConfig(
            **shared,
            train_sampling_strategy="group_by_length",
            lmbda=config.lmbda,
            beta=config.beta,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )
        trainer = GKDTrainer(**given, teacher_model=teacher.model, args=gkd, train_dataset=rows)
    return trainer, trainer.model, 0.0


# ----------------------------------------------------------------------------------------------------------- measuring


class StepTimer(TrainerCallback):
    """Seconds and tokens of the student's training passes, padding left out, at the end of every step; peak memory."""

    def __init__(self) -> None:
        self.tokens, self.ends, self.peak = 0, [(0.0, 0)], 0

    def watch(self, model: Any) -> None:
        def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled() and kwargs.get("attention_mask") is not None:
                self.tokens += int(kwargs["attention_mask"].sum())

        model.get_base_model().base_model.register_forward_pre_hook(count, with_kwargs=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        forget_peak()
        self.ends = [(time.perf_counter(), self.tokens)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), self.tokens))
        self.peak = peak_bytes()

    def tokens_per_second(self) -> float:
        (begin, before), (end, after) = self.ends[WARM_UP], self.ends[-1]
        return (after - before) / (end - begin)

    def step_seconds(self) -> float:
        return float(np.median(np.diff([end for end, _ in self.ends])[WARM_UP:]))


def operations(model: Any, completion_share: float) -> float:
    """Floating-point operations per token that a training step needs: two for each multiplication and addition.

    Forward, and backward to the activations, since frozen weights have no gradient. The head is computed at completion
    positions only. Attention and the adapter, a few per cent, are left out.
    """
    inner = model.get_base_model()
    layers = sum(p.numel() for name, p in inner.named_parameters() if "layers." in name and "lora_" not in name)
    return float(4 * (layers + completion_share * inner.get_output_embeddings().weight.numel()))


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations per second of a bf16 product of two square matrices that fill the device; the best of ten."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def forget_peak() -> None:
    """Leaves out what loading models and targets took."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux only; elsewhere the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError):
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
