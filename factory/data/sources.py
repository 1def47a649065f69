"""Examples from sources: templates, files, documents, Hub data sets, and prompts that the teacher writes."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets

from factory.config.paths import data_path, expand, folder_of, no_such
from factory.config.schema import DocumentSource, FileSource, HubSource, Source, TeacherPromptSource, TemplateSource
from factory.config.sources import SLOT, TeacherContext
from factory.data.documents import CountTokens, cut_chunks, document_files, read_documents
from factory.data.history import NOTHING, conversation_text
from factory.data.layouts import Exchange
from factory.data.layouts import read_rows as rows_of_file
from factory.data.records import Record, Say, beside, read_records, silent, text_of
from factory.errors import DataError, in_one_line

MAX_COMBINATIONS = 20_000  # prompts per template source: three slots of 100 values would give a million
TEXT_CHUNK_TOKENS = 160  # of running text in a file, as `chunk_tokens` of documents
READING = 3  # raised when files are read otherwise, so that data sets that were read before are made again

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
    topic: tuple[str, ...]  # slot values, or (document name,), or (id of the chat,), or ()
    history: TeacherContext = NOTHING  # what was said before the prompt; teacher and student both see it

    @property
    def text(self) -> str:
        """The prompt after what was said before it, or the chunk of a document."""
        return conversation_text(self.prompt, self.history) or self.completion

    @property
    def conversation(self) -> str:
        """Of a turn of a chat the chat's id, else its own: what has to stay together."""
        return self.topic[0] if self.prompt and self.topic and not self.template else self.id

    @property
    def is_passage(self) -> bool:
        """A chunk of a document or of running text."""
        return not self.prompt and bool(self.topic)

    @property
    def neighbours(self) -> set[str]:
        """Ids of the passages before and after this one; none of what is no passage."""
        text, _, number = self.id.rpartition("#")
        return {f"{text}#{int(number) + step}" for step in (-1, 1)} if self.is_passage else set()


def content_hash(sources: Sequence[Source], root: Path) -> str:
    """``content_hash(domain.sources, specs.root)``: sha256 of the files that ``file`` and ``documents`` sources read.

    Missing paths are ignored here; ``load_examples`` reports them.
    """
    digest = hashlib.sha256()
    for source in sources:
        if isinstance(source, FileSource | DocumentSource | HubSource):
            digest.update(f"reading {READING}\n".encode())
        if isinstance(source, FileSource | DocumentSource):
            for file in files_of(source, root):
                digest.update(str(file.relative_to(root) if file.is_relative_to(root) else file.name).encode())
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def files_of(source: FileSource | DocumentSource, root: Path) -> list[Path]:
    """``files_of(source, specs.root)``: every file that it reads, in this order."""
    path = data_path(root, source.path)
    return [file for file in expand(path) if file.is_file()] if isinstance(source, FileSource) else document_files(path)


def load_examples(
    sources: Sequence[Source],
    *,
    root: Path,
    seed: int,
    count_tokens: CountTokens,
    write_prompts: WritePrompts | None = None,
    say: Say = silent,
) -> list[Example]:
    """``load_examples(domain.sources, root=specs.root, seed=0, count_tokens=lambda t: len(tokenizer(t).input_ids))``

    Relative paths start at ``root``, the folder of the YAML files. ``completions: teacher`` discards a source's own
    completions; ``limit`` keeps a seeded sample. The same seed gives the same examples in the same order. ``say`` hears of
    each source that is read what it was taken for, how many rows were kept, and why others were not.

    Raises:
        DataError: a source is missing, unreadable or empty, a cell is not text, a named column is nowhere, an id is used twice.
    """
    examples: list[Example] = []
    seen: set[str] = set()
    for source in sources:
        if source.id in seen:
            raise DataError(f"source id {source.id!r} is used twice; give each source a unique id")
        seen.add(source.id)
        try:
            loaded = load_source(source, root, seed, count_tokens, write_prompts, say)
        except DataError as error:
            raise DataError(f"source {source.id!r}: {error}") from error
        if not loaded:
            raise DataError(f"source {source.id!r} ({source.kind}) is empty; add content or remove the source")
        if source.limit is not None:
            loaded = sample_evenly(loaded, source.limit, seed)
        if source.completions == "teacher":
            loaded = [replace(example, completion="") for example in loaded]
        examples.extend(loaded)
    return examples


def load_source(
    source: Source, root: Path, seed: int, count_tokens: CountTokens, write_prompts: WritePrompts | None, say: Say
) -> list[Example]:
    """One source's examples, before ``limit`` and ``completions``."""

    def tell(line: str) -> None:
        say(f"{source.id}: {line}")

    match source:
        case TemplateSource():
            return fill_templates(source, seed)
        case FileSource():
            return read_rows(source, tables_of(source, root, tell), count_tokens, tell)
        case DocumentSource():
            return chunk_documents(source, data_path(root, source.path), count_tokens, tell)
        case HubSource():
            table = Table(f"{source.dataset}@{source.revision}", load_hub(source))
            return read_rows(source, [table], count_tokens, tell)
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


def load_hub(source: HubSource) -> Iterator[Record]:
    """The rows of a data set on the Hub at its pinned revision. No code from the data set is run."""
    try:
        loaded = datasets.load_dataset(source.dataset, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # datasets raises dozens of kinds: offline, unknown name, unknown split ...
        where = f"{source.dataset}@{source.revision}, split {source.split!r}"
        raise DataError(
            f"cannot load {where}: {in_one_line(error)}; check the names and the network, or use a `file` source"
        ) from error
    return (Record(f"row {number}", dict(row)) for number, row in enumerate(loaded))


@dataclass(frozen=True)
class Table:
    """The rows of a file, or of a data set."""

    where: str  # for messages
    records: Iterable[Record]
    prefix: str = ""  # of row numbers, where a source has several tables


def tables_of(source: FileSource, root: Path, say: Say) -> list[Table]:
    """A table for each file, by name. Raises: DataError where no file matches a pattern."""
    path = data_path(root, source.path)
    files = [path] if expand(path) == [path] else files_of(source, root)
    if not files:
        raise DataError(f"{no_such('file', path)}; {beside(path)}")
    names = ["" if file == path else f"{file.relative_to(folder_of(path)).as_posix()}/" for file in files]
    return [Table(str(file), read_records(file, say), name) for file, name in zip(files, names, strict=True)]


def read_rows(source: FileSource | HubSource, tables: Iterable[Table], count_tokens: CountTokens, say: Say) -> list[Example]:
    """The examples of each row, an empty one for a row that cannot be used; running text is cut into chunks."""
    examples: list[Example] = []
    names: set[str] = set()
    for where, name, exchanges in named_rows(source, tables, say):
        if name in names:
            raise DataError(f"{source.id_field} {name!r} is in {where} twice; leave id_field out to number the rows instead")
        names.add(name)
        text = exchanges[0].completion if exchanges and not exchanges[0].prompt else ""
        if text and source.completions == "teacher":
            raise DataError(f"{where} is running text without prompts for the teacher to answer; remove `completions: teacher`")
        if text:
            examples += chunks_of(source, name, text, TEXT_CHUNK_TOKENS, count_tokens)
        else:
            examples += examples_of(source, name, exchanges)
    return examples


def named_rows(
    source: FileSource | HubSource, tables: Iterable[Table], say: Say
) -> Iterator[tuple[str, str, tuple[Exchange, ...]]]:
    """Where each is from, its own id or its number, and what it says. Raises: DataError where no row of a table has an id."""
    for table in tables:
        number, has_id = -1, False
        columns = {"prompt": source.prompt, "answer": source.completion, "system": source.system}
        for number, (record, exchanges) in enumerate(rows_of_file(table.records, table.where, **columns, say=say)):
            has_id = has_id or source.id_field in record.fields
            yield table.where, text_of(record, source.id_field) or f"{table.prefix}{number}", exchanges
        if source.id_field and number >= 0 and not has_id:
            raise DataError(f"no column {source.id_field!r} in {table.where}; leave id_field out to number the rows instead")


def examples_of(source: FileSource | HubSource, name: str, exchanges: Sequence[Exchange]) -> list[Example]:
    """The questions of a row, those of a chat as its turns; an empty one for a row without."""
    id = f"{source.id}/{name}"
    if len(exchanges) < 2:
        only = exchanges[0] if exchanges else Exchange("")
        return [Example(id, only.prompt, only.completion, source.id, source.license, "", (), only.history)]
    turns = [
        Example(f"{id}#{number}", one.prompt, one.completion, source.id, source.license, "", (id,), one.history)
        for number, one in enumerate(exchanges)
    ]
    return turns[-1:] if source.turns == "last" else turns


# -------------------------------------------------------------------------------------------------------- documents


def chunk_documents(source: DocumentSource, path: Path, count_tokens: CountTokens, say: Say) -> list[Example]:
    """Chunks of all documents that are there; a chunk is a completion without a prompt."""
    if source.completions == "teacher":
        raise DataError("documents have no prompts for the teacher to answer; remove `completions: teacher`")
    folder = folder_of(path)
    return [
        chunk
        for file, text in read_documents(path, say)
        for chunk in chunks_of(source, file.relative_to(folder).as_posix(), text, source.chunk_tokens, count_tokens)
    ]


def chunks_of(source: Source, name: str, text: str, chunk_tokens: int, count_tokens: CountTokens) -> list[Example]:
    """The chunks of one text, which stay together in one split."""
    return [
        Example(f"{source.id}/{name}#{number}", "", chunk, source.id, source.license, "", (name,))
        for number, chunk in enumerate(cut_chunks(text, chunk_tokens, count_tokens))
    ]


# ---------------------------------------------------------------------------------------------------------- teacher


def ask_teacher(source: TeacherPromptSource, seed: int, write_prompts: WritePrompts | None) -> list[Example]:
    """Prompts that the teacher writes (Magpie, arXiv 2406.08464)."""
    if write_prompts is None:
        raise DataError("the teacher is to write its prompts, but no teacher was given")
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
