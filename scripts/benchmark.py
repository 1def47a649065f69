"""This project beside its peers, on the same teacher, student, data, batch and length, each in a process of its own.

    python scripts/benchmark.py healthcare --registry registry --steps 8 --minutes 10 --save scripts/benchmark.json

Peers are trl's GKDTrainer (float32 and bf16, without gradient checkpointing), its DistillationTrainer (on-policy) and LoRA
fine-tuning on the same completions. ``full`` is the teacher's whole vocabulary, as a user of trl would have it: the student
is the same published base with its rows put back among the teacher's. ``trimmed`` is what this project trains on. No one sees a
teacher's context here. Tokens are the real ones of prompts and completions; KL is of held-out text, in the run's own
vocabulary, after the same wall-clock time of training from the same base.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from factory.build import Factory
from factory.distill.store import SoftTargetStore
from factory.distill.targets import Sequence_, encode
from factory.distill.trainer import DistillTrainer, Lesson
from factory.models.chat import NO_CONTEXT
from factory.models.pruning import prune_layers
from factory.models.student import Base, attach_adapter, load_base, trim_teacher
from factory.models.teacher import Teacher
from factory.quality.evaluate import measure, switched
from factory.registry import Registry
from factory.spec import DistillConfig, load_specs

BATCH, HELD_OUT, WARM_UP = 8, 64, 2
RUNS = {
    "student factory": "trimmed",
    "trl GKD, bf16": "full",
    "trl GKD, float32": "full",
    "trl GKD, bf16, trimmed": "trimmed",
    "trl LoRA SFT, bf16, trimmed": "trimmed",
    "student factory, on-policy": "trimmed",
    "trl GKD, on-policy": "full",
    "trl GKD, on-policy, trimmed": "trimmed",
    "trl DistillationTrainer, on-policy, trimmed": "trimmed",
}


@dataclass(frozen=True)
class Result:
    """What one process measured."""

    name: str
    tokens_per_second: float
    step_seconds: float  # median
    peak_bytes: int  # of the whole process; of the device's allocator on a GPU
    teacher_seconds: float  # before training, for targets that every further student reads
    kl_before: float
    kl_after: float | None  # after `minutes`
    matrix_share: float  # of this machine's bf16 matrix rate, of the student's multiplications alone


class Clock(TrainerCallback):
    """Times every step, and stops after some steps or some seconds of training."""

    def __init__(self, steps: int | None, seconds: float | None) -> None:
        self.steps, self.limit = steps, seconds
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends = [time.perf_counter()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())
        late = self.limit is not None and self.ends[-1] - self.ends[0] > self.limit
        if late or (self.steps is not None and state.global_step >= self.steps + WARM_UP):
            control.should_training_stop = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain")
    parser.add_argument("--size", default="small")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--steps", type=int, default=8, help="timed steps a run, after two that are not")
    parser.add_argument("--minutes", type=float, default=0, help="training before the held-out KL; 0 leaves it out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", action="append", choices=list(RUNS), help="may be repeated")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--one", choices=list(RUNS), help=argparse.SUPPRESS)  # this process measures one run
    given = parser.parse_args()
    if given.one:
        print(json.dumps(asdict(run(given.one, given))))
        return
    results = []
    for name in given.only or RUNS:
        done = subprocess.run([sys.executable, *sys.argv, "--one", name], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{name}: ended with {done.returncode}", file=sys.stderr)
            continue
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{name}: {results[-1]['tokens_per_second']:.0f} tokens/s", file=sys.stderr, flush=True)
    print(table(results))
    if given.save:
        given.save.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, each figure beside the first run's."""
    lines = ["| run | tokens/s | peak memory | teacher before training | KL before → after | of the bf16 matrix rate |"]
    lines.append("|---|---|---|---|---|---|")
    for one in results:
        after = f" → {one['kl_after']:.3f}" if one["kl_after"] is not None else ""
        lines.append(
            f"| {one['name']} | {one['tokens_per_second']:.0f} | {one['peak_bytes'] / 1e9:.2f} GB | "
            f"{one['teacher_seconds']:.0f} s | {one['kl_before']:.3f}{after} | {one['matrix_share']:.2f} |"
        )
    return "\n".join(lines)


def run(name: str, given: argparse.Namespace) -> Result:
    """Loads one run's models, trains, and measures."""
    specs = load_specs(given.domains)
    family = specs.family_of_size(given.size)
    factory = Factory(specs, family, profile=given.profile, registry=Registry(given.registry), device=given.device)
    version = factory.published_base(given.size)
    if version is None:
        sys.exit(f"no base of size {given.size} in {given.registry}; factory build {given.domain} makes it")
    base = load_base(version.folder, factory.device, torch.float32 if "float32" in name else torch.bfloat16)
    teacher = trim_teacher(factory.teacher, base.shape.tokens)
    if RUNS[name] == "full":
        base, teacher = untrimmed(base, factory.teacher), factory.teacher
    rows = factory.data(given.domain).rows
    train, test = (encode(rows[split], teacher.tokenizer, NO_CONTEXT) for split in ("train", "test"))
    config = family.settings(given.profile, specs.domain(given.domain)).distill.model_copy(
        update={"batch": BATCH, "feature": 0.0, "relation": 0.0, "lmbda": 1.0 if "on-policy" in name else 0.0, "steps": 10**6}
    )
    clock = Clock(None if given.minutes else given.steps, 60 * given.minutes or None)
    with TemporaryDirectory() as folder:
        make = ours if name.startswith("student factory") else theirs
        trainer, model, seconds = make(name, base, teacher, train, config, Path(folder), clock)
        before = held_out_kl(model, teacher, test)
        counted = count_tokens(model)
        trainer.train()
        counted.stop()
    steps = np.diff(clock.ends)[WARM_UP:]
    tokens = np.array(counted.tokens[WARM_UP : WARM_UP + len(steps)])
    rate = float(tokens.sum() / steps.sum())
    share = rate * counted.multiplications / matrix_rate(factory.device)
    return Result(
        name=name,
        tokens_per_second=rate,
        step_seconds=float(np.median(steps)),
        peak_bytes=peak_bytes(factory.device),
        teacher_seconds=seconds,
        kl_before=before,
        kl_after=held_out_kl(model, teacher, test) if given.minutes else None,
        matrix_share=share,
    )


# ------------------------------------------------------------------------------------------------------------ trainers


def ours(
    name: str, base: Base, teacher: Teacher, train: list[Sequence_], config: DistillConfig, folder: Path, clock: Clock
) -> tuple[Any, Any, float]:
    """This project's trainer, its targets stored first (on-policy, they are scored live)."""
    adapter = attach_adapter(base, config)
    begun = time.perf_counter()
    targets = SoftTargetStore.make(folder / "targets", teacher, train, top_k=config.top_k, temperature=config.temperature)
    seconds = time.perf_counter() - begun
    lesson = Lesson(train, targets, np.zeros((len(train), 1), dtype=np.float32))
    return DistillTrainer(adapter, base, teacher, lesson, config, folder=folder, seed=0, callbacks=[clock]), adapter, seconds


def theirs(
    name: str, base: Base, teacher: Teacher, train: list[Sequence_], config: DistillConfig, folder: Path, clock: Clock
) -> tuple[Any, Any, float]:
    """trl's trainer of that name, with the same LoRA, ids, batch and learning rate."""
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 10**6,
        "per_device_train_batch_size": BATCH,
        "learning_rate": config.learning_rate,
        "bf16": "float32" not in name,
        "use_cpu": teacher.model.device.type == "cpu",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    rows = Dataset.from_list(
        [
            {
                "prompt": teacher.tokenizer.decode(one.prompt),
                "input_ids": [*one.prompt, *one.completion],
                "attention_mask": [1] * (len(one.prompt) + len(one.completion)),
                "completion_mask": [0] * len(one.prompt) + [1] * len(one.completion),
            }
            for one in train
        ]
    )
    given = {"model": base.model, "processing_class": base.tokenizer, "peft_config": lora, "callbacks": [clock]}
    trainer: Any
    if "SFT" in name:
        arguments = SFTConfig(**shared, completion_only_loss=True, train_sampling_strategy="group_by_length")
        trainer = SFTTrainer(**given, args=arguments, train_dataset=rows.remove_columns("prompt"))
    elif "DistillationTrainer" in name:
        on_policy = DistillationConfig(**shared, max_completion_length=config.max_new_tokens, beta=config.beta)
        trainer = DistillationTrainer(
            **given, teacher_model=teacher.model, args=on_policy, train_dataset=rows.select_columns("prompt")
        )
    else:
        gkd = GKDConfig(**shared, lmbda=config.lmbda, beta=config.beta, max_new_tokens=config.max_new_tokens)
        trainer = GKDTrainer(**given, teacher_model=teacher.model, args=gkd, train_dataset=rows)
    return trainer, trainer.model, 0.0


def untrimmed(base: Base, teacher: Teacher) -> Base:
    """The same base with the teacher's whole vocabulary: healed rows in their old places, the teacher's own elsewhere."""
    assert base.shape.layers is not None and base.shape.tokens is not None
    model: Any = copy.deepcopy(teacher.model)
    prune_layers(model, list(base.shape.layers))
    model.to(base.model.dtype)
    embedding, place = model.get_input_embeddings().weight, torch.tensor(base.shape.tokens)
    healed = base.model.state_dict()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.shape[0] == embedding.shape[0] and value.shape != healed[key].shape:
                value[place] = healed[key]
            else:
                value.copy_(healed[key])
    return Base(model, teacher.tokenizer, base.shape)


# ----------------------------------------------------------------------------------------------------------- measuring


class count_tokens:
    """Real tokens of every training pass of a student, and the multiplications that one of them needs."""

    def __init__(self, model: Any) -> None:
        inner = model.get_base_model()
        self.tokens: list[int] = []
        self.hook = inner.base_model.register_forward_pre_hook(self._count, with_kwargs=True)
        layers = sum(p.numel() for name, p in inner.named_parameters() if "layers." in name and "lora_" not in name)
        # forward, and backward to the activations: frozen weights have no gradient of their own
        self.multiplications = 4 * (layers + inner.get_output_embeddings().weight.numel())

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and kwargs.get("attention_mask") is not None:
            self.tokens.append(int(kwargs["attention_mask"].sum()))

    def stop(self) -> None:
        self.hook.remove()


def held_out_kl(model: Any, teacher: Teacher, test: list[Sequence_]) -> float:
    """KL(teacher ‖ student), nats per completion token."""
    training = model.training
    model.eval()
    sums = measure(teacher, {"student": switched(model, "default")}, test[:HELD_OUT])["student"]
    model.train(training)
    return float(sums.kl.sum() / sums.tokens.sum())


def matrix_rate(device: torch.device, size: int = 2048) -> float:
    """Floating-point operations a second of a bf16 product of two square matrices; the best of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
