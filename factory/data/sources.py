"""Sources to examples: templates, files, documents, Hub data sets and prompts that the teacher writes."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from factory.config.schema import DocumentSource, FileSource, HubSource, Source, TeacherPromptSource, TemplateSource
from factory.errors import DataError

MAX_COMBINATIONS = 20_000  # of one template source: three slots of 100 values would be a million prompts
SLOT = re.compile(r"{(\w*)}")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
PARAGRAPH_END = re.compile(r"\n\s*\n")

CountTokens = Callable[[str], int]
WritePrompts = Callable[[TeacherPromptSource, int], list[str]]  # (source, seed) -> prompts


@dataclass(frozen=True)
class Example:
    """One prompt on its way into a data set, with where it comes from."""

    id: str  # unique: "<source id>/<own id or running number>"
    prompt: str  # "" for a chunk of a document
    completion: str  # "": the teacher writes it
    source: str  # id of the source
    license: str
    template: str  # the template's text, "" if there is none
    topic: tuple[str, ...]  # slot values, or (document name,), or ()

    @property
    def text(self) -> str:
        """What the example is about: its prompt, or the chunk where there is no prompt."""
        return self.prompt or self.completion


def content_hash(sources: Sequence[Source], root: Path) -> str:
    """``content_hash(domain.sources, specs.root)``: changes with the files that ``file`` and ``documents`` sources read.

    A missing path adds nothing here: ``load_examples`` is what says that it is missing.
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

    Relative paths start at ``root``, the folder of the YAML files. ``completions: teacher`` blanks a source's own
    completions; ``limit`` keeps a seeded sample. The same seed gives the same examples in the same order.

    Raises:
        DataError: for a missing, unreadable or empty source, a field that no row has, or an id used twice.
    """
    examples: list[Example] = []
    seen: set[str] = set()
    for source in sources:
        if source.id in seen:
            raise DataError(f"source {source.id!r} is there twice; give each source an id of its own")
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
    """Every combination of slot values, or an even sample over the templates above 20,000."""
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
    """In one pass, so that braces inside a value stay as they are."""
    return SLOT.sub(lambda match: values[match[1]], template)


def pick_values(slots: Sequence[Sequence[str]], combination: int) -> list[str]:
    """The values of one combination, counted like digits of a number: no list of a million combinations is made."""
    values = []
    for choices in slots:
        combination, index = divmod(combination, len(choices))
        values.append(choices[index])
    return values


def seeded_sample(size: int, count: int, seed: str) -> list[int]:
    """``count`` different numbers below ``size``, the same for the same seed."""
    return random.Random(seed).sample(range(size), count)


# ------------------------------------------------------------------------------------------------------------- rows


def read_file(source: FileSource, path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl, csv or parquet file."""
    readers = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}
    if path.suffix not in readers:
        raise DataError(f"source {source.id!r}: {path} must end in one of {', '.join(readers)}")
    if not path.is_file():
        raise DataError(f"source {source.id!r}: no file {path}; {beside(path)}")
    try:
        return list(readers[path.suffix](path))
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors and UnicodeDecodeError are ValueErrors
        raise DataError(f"source {source.id!r}: cannot read {path}: {one_line(error)}") from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is no JSON ({error.msg} at column {error.colno})") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is a {type(row).__name__}, it must be an object {{...}}")
            yield row


def read_csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row:  # where DictReader puts what is left over
                raise ValueError(f"line {reader.line_num} has more fields than the header")
            yield row


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    yield from pyarrow.parquet.read_table(path).to_pylist()


def load_hub(source: HubSource) -> list[dict[str, Any]]:
    """The rows of a data set on the Hub, at its pinned revision; no code of the data set's own is run."""
    try:
        loaded = datasets.load_dataset(source.dataset, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # the library raises dozens of kinds: offline, unknown name, unknown split ...
        where = f"{source.dataset}@{source.revision}, split {source.split!r}"
        raise DataError(
            f"source {source.id!r}: cannot load {where}: {one_line(error)}; check the names and the network, "
            "or use a `file` source"
        ) from error
    return [dict(row) for row in loaded]


def read_rows(source: FileSource | HubSource, rows: Sequence[dict[str, Any]], where: str) -> list[Example]:
    """Rows to examples: the named fields are prompt, completion and id; a row's empty field is ""."""
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
                "leave id_field out to number the rows"
            )
        prompt, completion = as_text(row, source.prompt), as_text(row, source.completion)
        # An empty prompt stays empty with no completion either, so that it is dropped and not taken for a document.
        examples[id] = Example(id, prompt, completion if prompt else "", source.id, source.license, "", ())
    return list(examples.values())


def as_text(row: dict[str, Any], field: str | None) -> str:
    value = row.get(field) if field is not None else None
    text = "" if value is None else str(value).strip()
    return text.encode("utf-8", "replace").decode()  # JSON can hold half a character, which nothing can write


# -------------------------------------------------------------------------------------------------------- documents


def read_documents(source: DocumentSource, folder: Path, count_tokens: CountTokens) -> list[Example]:
    """Chunks of every .txt and .md file below the folder; a chunk is a completion without a prompt."""
    if source.completions == "teacher":
        raise DataError(f"source {source.id!r}: documents have no prompts to answer; remove `completions: teacher`")
    if not folder.is_dir():
        raise DataError(f"source {source.id!r}: no folder {folder}; {beside(folder)}")
    examples = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md") and path.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError) as error:
            raise DataError(f"source {source.id!r}: cannot read {path}: {one_line(error)}; save it as UTF-8") from error
        for number, chunk in enumerate(cut_chunks(text, source.chunk_tokens, count_tokens)):
            examples.append(Example(f"{source.id}/{name}#{number}", "", chunk, source.id, source.license, "", (name,)))
    if not examples:
        raise DataError(f"source {source.id!r}: no text in .txt or .md files in {folder}; {beside(folder / '*')}")
    return examples


def cut_chunks(text: str, chunk_tokens: int, count_tokens: CountTokens) -> list[str]:
    """Whole sentences, as many as fit into ``chunk_tokens``; only a longer sentence is cut, between words."""
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
    """Pairs of a sentence (or a word of one too long) and what joins it to the text before it."""
    for paragraph in PARAGRAPH_END.split(text):
        joiner = "\n\n"
        for sentence in SENTENCE_END.split(paragraph.strip()):
            pieces = [sentence] if count_tokens(sentence) <= chunk_tokens else sentence.split()
            for piece in filter(None, pieces):
                yield piece, joiner
                joiner = " "


# ---------------------------------------------------------------------------------------------------------- teacher


def ask_teacher(source: TeacherPromptSource, seed: int, write_prompts: WritePrompts | None) -> list[Example]:
    """Prompts that the teacher itself writes (Magpie, arXiv 2406.08464)."""
    if write_prompts is None:
        raise DataError(f"source {source.id!r}: the teacher writes its prompts, and no teacher is loaded here")
    prompts = write_prompts(source, seed)
    return [
        Example(f"{source.id}/{number}", prompt, "", source.id, source.license, "", ()) for number, prompt in enumerate(prompts)
    ]


# --------------------------------------------------------------------------------------------------------- sampling


def seeded_order(seed: int, text: str) -> bytes:
    """A sort key: random for different texts, the same for the same text and seed, whatever else is sorted."""
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()


def even_shares(sizes: Sequence[int], total: int) -> list[int]:
    """``even_shares([2, 10, 10], 12) == [2, 5, 5]``: as equal as the sizes allow, at most ``total`` together."""
    shares = [0] * len(sizes)
    smallest_first = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for done, index in enumerate(smallest_first):
        shares[index] = min(sizes[index], total // (len(sizes) - done))
        total -= shares[index]
    return shares


def sample_evenly(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """At most ``count`` examples, in their order: equal parts of every file and of all templates together, and the
    templates' part in equal parts of every template. So neither a large file nor many combinations crowd out the rest.
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


# ----------------------------------------------------------------------------------------------------------- errors


def beside(path: Path) -> str:
    """What exists in the nearest folder above a path that does not exist."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir())
    return f"in {folder}: {', '.join(names[:10]) or 'nothing'}{' ...' if len(names) > 10 else ''}"


def one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
