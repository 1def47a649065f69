"""The teacher: its weights, the completions and the prompts that it writes."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from factory.cache import cache_key, mark_used, replace_file
from factory.config.schema import TeacherContext, TeacherPromptSource
from factory.data.dataset import Completion
from factory.data.sources import Example
from factory.errors import TrainingError
from factory.models.api_teacher import ApiTeacher
from factory.models.attention import load_causal_model
from factory.models.chat import (
    NO_CONTEXT,
    completion_ids,
    end_of_prompt,
    messages,
    prompt_ids,
    shared_prefix,
    split_prefix,
    stop_tokens,
)
from factory.models.dimensions import parameters_of
from factory.models.folders import load_config, load_tokenizer
from factory.models.generation import sample
from factory.models.references import ResolvedModel
from factory.models.vocabulary import count_rows

Progress = Callable[[int], None]
CHUNK = 512  # prompts between writes to disk


@dataclass(frozen=True, eq=False)
class Teacher:
    """``Teacher.load(resolved, device).complete(examples, context, folder=folder, max_new_tokens=96, seed=0)``.

    The weights are loaded on first use and stay in memory until ``release``; everything else is known without them.
    """

    load_model: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    revision: str
    config: PreTrainedConfig
    device: torch.device
    api: ApiTeacher | None = None  # who answers in its place; it then has no weights, and tokens of the base of its students
    api_tokenizer: PreTrainedTokenizerBase | None = None  # the API's own, where it says what it knows of tokens

    @property
    def gives_text_alone(self) -> bool:
        """Whether nothing is known of its distributions."""
        return self.api is not None and self.api.spec.tokenizer is None

    @classmethod
    def load(cls, resolved: ResolvedModel, device: torch.device) -> Teacher:
        """The full-vocabulary teacher."""
        tokenizer, config = load_tokenizer(resolved.folder), load_config(resolved.folder)
        config.get_text_config().vocab_size = count_rows(tokenizer)  # as its weights have them once they are loaded

        def load_model() -> PreTrainedModel:
            return load_causal_model(resolved.folder, tokenizer, device)

        return cls(load_model, tokenizer, resolved.sha256, config, device)

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, revision: str) -> Teacher:
        """``Teacher.of(model, tokenizer, "a name")``: a teacher whose model is in memory already."""
        return cls(lambda: model, tokenizer, revision, model.config, model.device)

    @classmethod
    def behind(cls, api: ApiTeacher, base: ResolvedModel, device: torch.device) -> Teacher:
        """``Teacher.behind(ApiTeacher(...), resolve(size.base), device)``: it writes completions, and no more."""

        def load_model() -> PreTrainedModel:
            raise TrainingError(
                f"the teacher, {api.spec.model}, is behind an API: it has no weights here, and gives text alone"
            )

        return replace(cls.load(base, device), load_model=load_model, revision=api.revision, api=api)

    @cached_property
    def model(self) -> PreTrainedModel:
        return self.load_model()

    def release(self) -> None:
        """``teacher.release()``: frees the weights; the next use of ``model`` loads them again.

        Only callers release: nothing in this package does so on its own.
        """
        self.__dict__.pop("model", None)
        gc.collect()
        with suppress(OSError, AttributeError):  # glibc keeps freed pages unless told; other libraries have no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)

    @cached_property
    def parameters(self) -> int:
        """``teacher.parameters``: their number, without loading them; a tied head counts once."""
        return parameters_of(self.config)

    def complete(
        self,
        examples: Sequence[Example],
        context: TeacherContext,
        *,
        folder: Path,
        max_new_tokens: int,
        repetition_penalty: float,
        seed: int,
        progress: Progress | None = None,
        say: Callable[[str], object] = lambda line: None,
        note: Callable[[Path, int, int], None] = lambda path, of, before: None,
    ) -> dict[str, Completion]:
        """``teacher.complete(examples, context, folder=folder, ...)[example.id].text``: greedy completions of those without.

        They are cached in ``folder`` as JSON lines, in a file named by the cache key of what decides them, so an
        interrupted run loses at most ``CHUNK`` prompts and other builds do not repeat a prompt. A line is a chunk, whole or not
        there: a run that goes on asks in the same batches, on which the last bits of logits depend. One process at a time asks.
        What an API answers is a line each, as soon as it is paid.
        ``note`` hears of that file, of how many are missing in it, and of how many it has; ``say`` of damaged answers.
        """
        own = [] if self.api else [repetition_penalty, self.tokenizer.chat_template]  # an API has its own
        key = cache_key(self.revision, context.model_dump(), max_new_tokens, *own)
        path = folder / f"{key}.jsonl"
        wanted = [example for example in examples if not example.completion]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            known = read_completions(path, say)
            mark_used(path)
            asked = {_question(example): example for example in wanted}
            missing = sorted(asked.keys() - known.keys(), key=lambda question: (len(question), question))
            if missing:
                note(path, len(missing), len(known))
            if progress is not None:
                progress(len(asked) - len(missing))
            chosen = [asked[question] for question in missing]
            for written in self._chunks(chosen, context, max_new_tokens, repetition_penalty, seed, progress):
                append_completions(path, written)
                known |= written
        return {example.id: known[_question(example)] for example in wanted}

    def _chunks(
        self,
        examples: Sequence[Example],
        context: TeacherContext,
        max_new_tokens: int,
        repetition_penalty: float,
        seed: int,
        progress: Progress | None,
    ) -> Iterator[dict[str, Completion]]:
        if self.api is not None:
            turns = {_question(one): messages(one.prompt, context.then(one.history)) for one in examples}
            for question, completion in self.api.write(turns, max_new_tokens):
                yield {question: completion}
                if progress is not None:
                    progress(1)
            return
        for start in range(0, len(examples), CHUNK):
            yield self._write(examples[start : start + CHUNK], context, max_new_tokens, repetition_penalty, seed, progress)

    def _write(
        self,
        examples: Sequence[Example],
        context: TeacherContext,
        max_new_tokens: int,
        repetition_penalty: float,
        seed: int,
        progress: Progress | None,
    ) -> dict[str, Completion]:
        ids = [prompt_ids(self.tokenizer, one.prompt, context.then(one.history)) for one in examples]
        prefix, rest = split_prefix(ids)
        stop = stop_tokens(self.tokenizer)
        sampled = sample(
            self.model,
            rest,
            prefix=prefix,
            stop=stop,
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            seed=seed,
            progress=progress,
        )
        return {
            _question(one): Completion(str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip(), ids[-1] in stop)
            for one, ids in zip(examples, sampled, strict=True)
        }

    def write_prompts(self, source: TeacherPromptSource, seed: int) -> list[str]:
        """``teacher.write_prompts(source, seed)``: what the teacher writes as a user (Magpie, arXiv 2406.08464).

        The teacher continues the chat template from where the user's words begin, after ``source.opening``, until the
        turn ends. Unfinished and empty turns are left out. Raises: TrainingError behind an API, which begins no user's turn.
        """
        opened = prompt_ids(self.tokenizer, "\N{SNOWMAN}", NO_CONTEXT)
        other = prompt_ids(self.tokenizer, "Which", NO_CONTEXT)
        opening = completion_ids(self.tokenizer, source.opening, ends=False) if source.opening else []
        start = [*shared_prefix([opened, other]), *opening]
        stop = sorted({end_of_prompt(self.tokenizer), *stop_tokens(self.tokenizer)})
        sampled = sample(
            self.model,
            [start] * source.count,
            stop=stop,
            max_new_tokens=64,
            temperature=source.temperature,
            seed=seed,
        )
        texts = [
            str(self.tokenizer.decode([*opening, *ids], skip_special_tokens=True)).strip() for ids in sampled if ids[-1] in stop
        ]
        return [text for text in texts if text]


def _question(example: Example) -> str:
    """What its answer is kept by: the prompt, with what was said before it as JSON."""
    if example.history == NO_CONTEXT:
        return example.prompt
    return json.dumps([example.history.model_dump(), example.prompt], ensure_ascii=False)


def append_completions(path: Path, written: Mapping[str, Completion]) -> None:
    """``append_completions(path, {prompt: completion})``: as one line, with a checksum."""
    rows = [[prompt, one.text, one.finished, *filter(None, [one.top_logprobs])] for prompt, one in written.items()]
    with path.open("ab") as file:
        file.write(json.dumps([_checksum(rows), rows], ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_completions(path: Path, say: Callable[[str], object] = lambda line: None) -> dict[str, Completion]:
    """``read_completions(path, context.say)``: completions by prompt, for who holds the file's lock.

    Lines that were damaged, or cut off by a kill, are removed; ``say`` hears of it.
    """
    whole = [(line, rows) for line in _lines(path) if (rows := _rows(line))]
    if path.exists() and path.stat().st_size > sum(len(line) for line, _ in whole):
        say(f"{path}: some answers were damaged or cut off: their prompts are asked again")
        replace_file(path, b"".join(line for line, _ in whole))
    return {prompt: Completion(*said) for _, rows in whole for prompt, *said in rows}


def count_completions(path: Path) -> int:
    """``count_completions(path)``: how many there are, also while another process writes them."""
    return sum(len(_rows(line)) for line in _lines(path))


def _lines(path: Path) -> list[bytes]:
    """The complete ones; as bytes, since a line may be cut inside a character, and text has more line ends (U+2028)."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [line + b"\n" for line in lines]


def _rows(line: bytes) -> list[list[Any]]:
    """Of one chunk; nothing of a line that is not as it was written."""
    with suppress(ValueError, TypeError):
        checksum, rows = json.loads(line)
        if checksum == _checksum(rows):
            return list(rows)
    return []


def _checksum(rows: Sequence[Sequence[object]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
