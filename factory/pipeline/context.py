"""What a family's builds share: teacher, encoder, router and the domains' data sets, each made once and kept on disk."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from factory.cache import cache_key, home, replace_file, sha256
from factory.config.schema import DomainSpec, FamilySpec, Settings, Specs, TeacherPromptSource
from factory.data.dataset import DatasetManifest, finish_dataset, load_dataset_folder, make_prompts, make_rows, route_pool
from factory.data.pii import filter_pii
from factory.data.router import DomainRouter
from factory.data.sources import Example, content_hash, load_examples, sample_evenly
from factory.energy import EnergyMeter
from factory.errors import DataError
from factory.models.chat import NO_CONTEXT, prompt_ids
from factory.models.device import pick_device
from factory.models.references import ResolvedModel, load_encoder, resolve
from factory.models.teacher import Teacher

DECIDES_DATA = {"name", "sources", "teacher_context", "private", "personal_data"}  # of a domain's YAML
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def no_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that is not drawn."""
    yield lambda steps: None


@dataclass(frozen=True)
class DomainData:
    """One domain's data set on disk."""

    spec: DomainSpec
    folder: Path
    rows: DatasetDict
    manifest: DatasetManifest

    @property
    def held_out(self) -> list[Any]:
        """The rows that decisions before the last evaluation may look at."""
        return list(self.rows["validation"]) or list(self.rows["test"])

    def without_context(self) -> DomainData:
        """``data.without_context()``: the same examples, which a teacher then sees as its student does."""
        return replace(self, spec=self.spec.model_copy(update={"teacher_context": NO_CONTEXT}))

    def first(self, share: float) -> DomainData:
        """``data.first(0.5)``: only the first half of its training examples, as a data set of its own."""
        count = round(share * len(self.rows["train"]))
        rows = DatasetDict({**self.rows, "train": self.rows["train"].select(range(count))})
        named = f"{self.manifest.fingerprint[:12]}-first-{count}"
        return replace(self, rows=rows, manifest=replace(self.manifest, fingerprint=named))

    def targets_folder(self, key: str) -> Path:
        """``data.targets_folder(key)``: where the teacher's targets for this data set are, by what else decides them."""
        return home() / "targets" / f"{self.spec.name}-{self.manifest.fingerprint[:12]}-{key}"

    def targets_folders(self) -> list[Path]:
        """Every folder of targets for this data set."""
        pattern = self.targets_folder("*")
        return sorted(pattern.parent.glob(pattern.name))


class Materials:
    """``Materials(specs, family, profile="demo").data("legal")``: teacher, encoder, router and data sets of one family."""

    def __init__(
        self,
        specs: Specs,
        family: FamilySpec,
        *,
        profile: str,
        device: str = "auto",
        seed: int | None = None,
        progress: ProgressBar = no_progress,
    ) -> None:
        family.settings(profile)  # an unknown profile is said before anything is fetched
        self.specs, self.family, self.profile = specs, family, profile
        self.device, self.progress = pick_device(device), progress
        self.seed = family.seed if seed is None else seed
        self.seconds: dict[str, float] = {}
        self.energy = EnergyMeter()

    # ------------------------------------------------------------------------------------------ models, when needed

    @cached_property
    def teacher_files(self) -> ResolvedModel:
        spec = self.family.teacher
        return resolve(spec, root=self.specs.root, chat_template=spec.chat_template)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.teacher_files.folder)
        return tokenizer

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher.load(self.teacher_files, self.device)

    @cached_property
    def encoder(self) -> Any:
        return load_encoder(self.family.encoder, self.device.type, root=self.specs.root)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 unit vectors of the family's encoder."""
        embeddings = self.encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(embeddings, dtype=np.float32)

    def embed_rows(self, rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
        """(N, D): the rows of a data set as the relation term sees them, prompt and completion together."""
        return self.embed([f"{row['prompt']}\n{row['completion']}" for row in rows])

    def embeddings(self, data: DomainData) -> np.ndarray:
        """(E, D) float32 of a domain's training split; made once for all students, kept beside the data set, and mapped."""
        path = data.folder / f"embeddings-{cache_key(self.family.encoder.model)}.npy"
        total = path.with_suffix(".sha256")
        if not path.exists() or not total.exists() or sha256(path) != total.read_text(encoding="ascii"):
            made = io.BytesIO()
            with self.timed("embeddings"):
                np.save(made, self.embed_rows(data.rows["train"]))
            replace_file(path, made.getvalue())
            replace_file(total, sha256(path).encode("ascii"))
        mapped: np.ndarray = np.load(path, mmap_mode="r")
        return mapped

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            with self.energy.stage(stage):
                yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun

    # ----------------------------------------------------------------------------------------------- sources, router

    def examples(self, sources: Any) -> list[Example]:
        """Examples of some sources; the teacher is loaded only where a source has it write prompts."""

        def count(text: str) -> int:
            return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        def write(source: TeacherPromptSource, seed: int) -> list[str]:
            return self.teacher.write_prompts(source, seed)

        return load_examples(sources, root=self.specs.root, seed=self.seed, count_tokens=count, write_prompts=write)

    @cached_property
    def general(self) -> list[Example]:
        return self.examples(self.specs.pools[self.family.general].sources)

    @cached_property
    def public_domains(self) -> list[DomainSpec]:
        return [domain for domain in self.specs.domains.values() if not domain.private]

    @property
    def router_folder(self) -> Path:
        """Named by what decides the router: the public domains' sources, the general pool, settings, encoder, seed."""
        decides = [
            [domain.model_dump(include={"name", "sources"}), content_hash(domain.sources, self.specs.root)]
            for domain in self.public_domains
        ]
        general, config = self.specs.pools[self.family.general].model_dump(), self.family.router
        return home() / "routers" / cache_key(decides, general, config.model_dump(), self.family.encoder.model, self.seed)

    @cached_property
    def router(self) -> DomainRouter:
        """Trained on the public domains' own texts and the general pool; kept on disk."""
        folder, config = self.router_folder, self.family.router
        if folder.exists():
            return DomainRouter.load(folder, self.encoder)
        with self.timed("router"), self.progress("router", 1) as advance:
            labelled = [
                (example, domain.name)
                for domain in self.public_domains
                for example in self.examples([s for s in domain.sources if s.kind != "teacher_prompts"])
            ]
            texts = [(example, name) for example, name in labelled] + [(example, None) for example in self.general]
            router = DomainRouter.fit(
                [example.text for example, _ in texts],
                [name for _, name in texts],
                self.encoder,
                config,
                self.seed,
                groups=[example.template or example.id for example, _ in texts],
            )
            router.save(folder)
            advance(1)
        return router

    @cached_property
    def routed_pool(self) -> dict[str, list[Example]]:
        return route_pool(self.examples(self.family.pool), self.router) if self.family.pool else {}

    # -------------------------------------------------------------------------------------------------------- data set

    def data_folder(self, spec: DomainSpec) -> Path:
        """Named by what decides the data set, the content of its files included."""
        settings = self.family.settings(self.profile, spec)
        key = cache_key(
            spec.model_dump(include=DECIDES_DATA),
            settings.data.model_dump(),
            self.seed,
            self.teacher_files.sha256,
            None if spec.private else self.router.version,
            self.family.teacher.chat_template,
            [source.model_dump() for source in self.family.pool],
            content_hash([*spec.sources, *self.family.pool], self.specs.root),
        )
        return home() / "data" / f"{spec.name}-{key}"

    def data(self, name: str) -> DomainData:
        """``factory.data("legal").manifest.counts``: the domain's data set with the teacher's completions."""
        spec = self.specs.domain(name)
        settings, folder = self.family.settings(self.profile, spec), self.data_folder(spec)
        router = None if spec.private else self.router
        if not folder.exists():
            self._make_data(spec, settings, router, folder)
        rows, manifest = load_dataset_folder(folder)
        return DomainData(spec, folder, rows, manifest)

    def _make_data(self, spec: DomainSpec, settings: Settings, router: DomainRouter | None, folder: Path) -> None:
        with self.timed("data"), self.progress(f"{spec.name}: prompts", 1) as advance:
            every = [*self.examples(spec.sources), *([] if spec.private else self.routed_pool.get(spec.name, []))]
            screened: Counter[str] = Counter()
            kept, identifiers = filter_pii(every, spec.personal_data, domain=spec.name, dropped=screened)
            prompts = make_prompts(
                kept,
                encoder=self.encoder,
                count_tokens=lambda text: len(prompt_ids(self.tokenizer, text)),
                config=settings.data,
                seed=self.seed,
            )
            prompts = replace(prompts, dropped=prompts.dropped | screened)
            advance(1)
        asked = [*prompts.train, *prompts.validation, *prompts.test]
        with self.timed("completions"), self.progress(f"{spec.name}: teacher answers", len(asked)) as advance:
            completions = self._complete(asked, spec, settings, advance)
        provenance = {
            "teacher": self.family.teacher.model,
            "teacher_sha256": self.teacher_files.sha256,
            "teacher_context": spec.teacher_context.model_dump(),
            "router": router.version if router else None,
            "personal_data": {"policy": spec.personal_data, "found": identifiers},  # counts, never the values
        }
        finish_dataset(prompts, completions, folder, domain=spec.name, seed=self.seed, provenance=provenance)

    def _complete(self, examples: Sequence[Example], spec: DomainSpec | None, settings: Settings, advance: Any) -> Any:
        if all(example.completion for example in examples):
            return {}
        return self.teacher.complete(
            examples,
            spec.teacher_context if spec else NO_CONTEXT,
            folder=home() / "completions",
            max_new_tokens=settings.data.max_completion_tokens,
            repetition_penalty=settings.data.repetition_penalty,
            seed=self.seed,
            progress=advance,
        )

    def general_rows(self) -> list[dict[str, Any]]:
        """Held-out general prompts with the teacher's own answers, without any domain's context."""
        settings = self.family.settings(self.profile)
        chosen = sample_evenly(self.general, settings.evaluate.general, self.seed)
        with self.timed("completions"), self.progress("general: teacher answers", len(chosen)) as advance:
            completions = self._complete(chosen, None, settings, advance)
        rows = make_rows(chosen, completions, Counter())
        if not rows:
            raise DataError(
                f"none of {len(chosen)} general prompts has a finished answer of the teacher's, so what a student keeps "
                f"outside its domain cannot be measured; raise data.max_completion_tokens "
                f"({settings.data.max_completion_tokens}) or evaluate.general ({settings.evaluate.general})"
            )
        return rows
