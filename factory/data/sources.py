"""Examples from sources: templates, files, documents, Hub data sets, and prompts that the teacher writes."""

from __future__ import annotations

import csv
import hashlib
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from factory.config.schema import DocumentSource, FileSource, HubSource, Source, TeacherPromptSource, TemplateSource
from factory.config.sources import SLOT
from factory.data.formats import READERS, beside
from factory.errors import DataError, in_one_line

MAX_COMBINATIONS = 20_000  # prompts per template source: three slots of 100 values would give a million
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
PARAGRAPH_END = re.compile(r"\n\s*\n")

CountTokens = Callable[[str], int]
WritePrompts = Callable[[TeacherPromptSource, int], list[str]]  # (source, seed) -> prompts


@dataclass(frozen=True)
class Example:
    """One prompt and where it comes from."""

    id: str  # unique: "<source id>/<own id or running number>"
    prompt: str  # "" for a chunk of a document
    completion: str  # "" if the teacher is to write it
    source: str  # id of the source
    license: str
    template: str  # the template's text, or ""
    topic: tuple[str, ...]  # slot values, or (document name,), or ()

    @property
    def text(self) -> str:
        """The prompt, or the chunk of a document."""
        return self.prompt or self.completion


def content_hash(sources: Sequence[Source], root: Path) -> str:
    """``content_hash(domain.sources, specs.root)``: sha256 of the files that ``file`` and ``documents`` sources read.

    Missing paths are ignored here; ``load_examples`` reports them.
    """
    digest = hashlib.sha256()
    for source in sources:
        if isinstance(source, FileSource | DocumentSource):
            path = root / source.path
            for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
                digest.update(str(file.relative_to(root) if file.is_relative_to(root) else file.name).encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def load_examples(
    sources: Sequence[Source],
    *,
    root: Path,
    seed: int,
    count_tokens: CountTokens,
    write_prompts: WritePrompts | None = None,
) -> list[Example]:
    """``load_examples(domain.sources, root=specs.root, seed=0, count_tokens=lambda t: len(tokenizer(t).input_ids))``

    Relative paths start at ``root``, the folder of the YAML files. ``completions: teacher`` discards a source's own
    completions; ``limit`` keeps a seeded sample. The same seed gives the same examples in the same order.

    Raises:
        DataError: a source is missing, unreadable or empty, no row has a named field, or an id is used twice.
    """
    examples: list[Example] = []
    seen: set[str] = set()
    for source in sources:
        if source.id in seen:
            raise DataError(f"source id {source.id!r} is used twice; give each source a unique id")
        seen.add(source.id)
        loaded = load_source(source, root, seed, count_tokens, write_prompts)
        if not loaded:
            raise DataError(f"source {source.id!r} ({source.kind}) is empty; add content or remove the source")
        if source.limit is not None:
            loaded = sample_evenly(loaded, source.limit, seed)
        if source.completions == "teacher":
            loaded = [replace(example, completion="") for example in loaded]
        examples.extend(loaded)
    return examples


def load_source(
    source: Source, root: Path, seed: int, count_tokens: CountTokens, write_prompts: WritePrompts | None
) -> list[Example]:
    """One source's examples, before ``limit`` and ``completions``."""
    match source:
        case TemplateSource():
            return fill_templates(source, seed)
        case FileSource():
            return read_rows(source, read_file(source, root / source.path), str(root / source.path))
        case DocumentSource():
            return read_documents(source, root / source.path, count_tokens)
        case HubSource():
            return read_rows(source, load_hub(source), f"{source.dataset}@{source.revision}")
        case TeacherPromptSource():
            return ask_teacher(source, seed, write_prompts)


# -------------------------------------------------------------------------------------------------------- templates


def slot_names(template: str) -> list[str]:
    """``slot_names("Can {who} give {whom} notice?") == ["who", "whom"]``, each once, in order; matches ``topic``."""
    return list(dict.fromkeys(SLOT.findall(template)))


def fill_templates(source: TemplateSource, seed: int) -> list[Example]:
    """Every combination of slot values; above ``MAX_COMBINATIONS`` an even sample over the templates."""
    names = [slot_names(template) for template in source.templates]
    sizes = [math.prod(len(source.slots[name]) for name in slots) for slots in names]
    limit = min(MAX_COMBINATIONS, source.limit or MAX_COMBINATIONS)
    examples = []
    for number, (template, slots, size, share) in enumerate(
        zip(source.templates, names, sizes, even_shares(sizes, limit), strict=True)
    ):
        chosen = range(size) if share == size else sorted(seeded_sample(size, share, f"{seed}/{source.id}/{template}"))
        for combination in chosen:
            values = pick_values([source.slots[name] for name in slots], combination)
            prompt = fill(template, dict(zip(slots, values, strict=True)))
            id = f"{source.id}/{number}-{combination}"
            examples.append(Example(id, prompt, "", source.id, source.license, template, tuple(values)))
    return examples


def fill(template: str, values: Mapping[str, str]) -> str:
    """``fill("What is {x}?", {"x": "gout"})``; braces inside a value are kept."""
    return SLOT.sub(lambda match: values[match[1]], template)


def pick_values(slots: Sequence[Sequence[str]], combination: int) -> list[str]:
    """The values of combination number n, whose digits index the slots: no list of a million combinations is built."""
    values = []
    for choices in slots:
        combination, index = divmod(combination, len(choices))
        values.append(choices[index])
    return values


def seeded_sample(size: int, count: int, seed: str) -> list[int]:
    """``seeded_sample(10, 3, "seed")``: 3 distinct numbers below 10, the same for the same seed."""
    return random.Random(seed).sample(range(size), count)


# ------------------------------------------------------------------------------------------------------------- rows


def read_file(source: FileSource, path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl, csv or parquet file."""
    if path.suffix not in READERS:
        raise DataError(f"source {source.id!r}: {path} must end in one of {', '.join(READERS)}")
    if not path.is_file():
        raise DataError(f"source {source.id!r}: no file {path}; {beside(path)}")
    try:
        return list(READERS[path.suffix](path))
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors and UnicodeDecodeError are ValueErrors
        raise DataError(f"source {source.id!r}: cannot read {path}: {in_one_line(error)}") from error


def load_hub(source: HubSource) -> list[dict[str, Any]]:
    """The rows of a data set on the Hub at its pinned revision. No code from the data set is run."""
    try:
        loaded = datasets.load_dataset(source.dataset, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # datasets raises dozens of kinds: offline, unknown name, unknown split ...
        where = f"{source.dataset}@{source.revision}, split {source.split!r}"
        raise DataError(
            f"source {source.id!r}: cannot load {where}: {in_one_line(error)}; check the names and the network, "
            "or use a `file` source"
        ) from error
    return [dict(row) for row in loaded]


def read_rows(source: FileSource | HubSource, rows: Sequence[dict[str, Any]], where: str) -> list[Example]:
    """One example per row; the source names the fields of prompt, completion and id."""
    fields = list(dict.fromkeys(field for row in rows for field in row))
    for field in (source.prompt, source.completion, source.id_field):
        if rows and field is not None and field not in fields:
            raise DataError(f"source {source.id!r}: no field {field!r} in {where}; fields there: {', '.join(fields)}")
    examples: dict[str, Example] = {}
    for number, row in enumerate(rows):
        id = f"{source.id}/{as_text(row, source.id_field) or number}"
        if id in examples:
            raise DataError(
                f"source {source.id!r}: {source.id_field} {id.partition('/')[2]!r} is in {where} twice; "
                "leave id_field out to number the rows instead"
            )
        prompt, completion = as_text(row, source.prompt), as_text(row, source.completion)
        # Without a prompt the completion goes too, so that the row is dropped and not mistaken for a document.
        examples[id] = Example(id, prompt, completion if prompt else "", source.id, source.license, "", ())
    return list(examples.values())


def as_text(row: dict[str, Any], field: str | None) -> str:
    value = row.get(field) if field is not None else None
    text = "" if value is None else str(value).strip()
    return text.encode("utf-8", "replace").decode()  # JSON can hold a lone surrogate, which cannot be encoded


# -------------------------------------------------------------------------------------------------------- documents


def read_documents(source: DocumentSource, folder: Path, count_tokens: CountTokens) -> list[Example]:
    """Chunks of all .txt and .md files below the folder; a chunk is a completion without a prompt."""
    if source.completions == "teacher":
        raise DataError(
            f"source {source.id!r}: documents have no prompts for the teacher to answer; remove `completions: teacher`"
        )
    if not folder.is_dir():
        raise DataError(f"source {source.id!r}: no folder {folder}; {beside(folder)}")
    examples = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md") and path.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError) as error:
            raise DataError(f"source {source.id!r}: cannot read {path}: {in_one_line(error)}; save it as UTF-8") from error
        for number, chunk in enumerate(cut_chunks(text, source.chunk_tokens, count_tokens)):
            examples.append(Example(f"{source.id}/{name}#{number}", "", chunk, source.id, source.license, "", (name,)))
    if not examples:
        raise DataError(f"source {source.id!r}: no text in .txt or .md files in {folder}; {beside(folder / '*')}")
    return examples


def cut_chunks(text: str, chunk_tokens: int, count_tokens: CountTokens) -> list[str]:
    """Chunks of whole sentences, up to ``chunk_tokens`` each; only a sentence longer than that is cut, between words."""
    chunks: list[str] = []
    chunk = ""
    for piece, joiner in sentences(text, chunk_tokens, count_tokens):
        longer = f"{chunk}{joiner}{piece}" if chunk else piece
        if chunk and count_tokens(longer) > chunk_tokens:
            chunks.append(chunk)
            longer = piece
        chunk = longer
    return [*chunks, chunk] if chunk else chunks


def sentences(text: str, chunk_tokens: int, count_tokens: CountTokens) -> Iterator[tuple[str, str]]:
    """Pairs of a sentence (or a word of one that is too long) and the separator before it."""
    for paragraph in PARAGRAPH_END.split(text):
        joiner = "\n\n"
        for sentence in SENTENCE_END.split(paragraph.strip()):
            pieces = [sentence] if count_tokens(sentence) <= chunk_tokens else sentence.split()
            for piece in filter(None, pieces):
                yield piece, joiner
                joiner = " "


# ---------------------------------------------------------------------------------------------------------- teacher


def ask_teacher(source: TeacherPromptSource, seed: int, write_prompts: WritePrompts | None) -> list[Example]:
    """Prompts that the teacher writes (Magpie, arXiv 2406.08464)."""
    if write_prompts is None:
        raise DataError(f"source {source.id!r}: the teacher is to write its prompts, but no teacher was given")
    prompts = write_prompts(source, seed)
    return [
        Example(f"{source.id}/{number}", prompt, "", source.id, source.license, "", ()) for number, prompt in enumerate(prompts)
    ]


# --------------------------------------------------------------------------------------------------------- sampling


def seeded_order(seed: int, text: str) -> bytes:
    """A sort key: pseudo-random, but always the same for the same text and seed."""
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()


def even_shares(sizes: Sequence[int], total: int) -> list[int]:
    """``even_shares([2, 10, 10], 12) == [2, 5, 5]``: as equal as the sizes allow, ``total`` in all at most."""
    shares = [0] * len(sizes)
    smallest_first = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for done, index in enumerate(smallest_first):
        shares[index] = min(sizes[index], total // (len(sizes) - done))
        total -= shares[index]
    return shares


def sample_evenly(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """At most ``count`` examples, in their order, so that neither a large file nor many combinations crowd out the rest.

    Every file gets an equal share and all templates together get one, which is divided equally among the templates.
    """
    if len(examples) <= count:
        return list(examples)
    pools: dict[str, list[Example]] = {}
    for example in examples:
        pools.setdefault("" if example.template else example.source, []).append(example)
    chosen: set[str] = set()
    for (pool, members), share in zip(pools.items(), even_shares([len(p) for p in pools.values()], count), strict=True):
        groups: dict[str, list[str]] = {}
        for example in members:
            groups.setdefault(example.template if pool == "" else "", []).append(example.id)
        for ids, part in zip(groups.values(), even_shares([len(g) for g in groups.values()], share), strict=True):
            chosen.update(sorted(ids, key=lambda id: seeded_order(seed, id))[:part])
    return [example for example in examples if example.id in chosen]
