"""Whatever a file has, its reader gives what is in it or refuses it in one line, within bounds of time and memory.

Each reader is given files of the project's own making that were damaged: bytes flipped, cut, doubled and replaced, values
replaced by odd ones. A quick run tries EXAMPLES of each; the long one takes HOURS for all of them together:

    pytest tests/fuzz -m big -s
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny
from support.gguf import tiny_gguf
from support.manifests import publish
from support.workplace import FAMILY, PLANTS, domain

from factory.config.load import load_methods, load_specs
from factory.config.schema import TeacherSpec
from factory.config.settings import DistillConfig
from factory.data.documents import read_document
from factory.data.layouts import read_rows
from factory.data.records import read_records
from factory.errors import MAX_LINE, DataError, FactoryError, ModelResolutionError, RegistryError, ServeError, SpecError
from factory.evaluation.bias import load_pairs
from factory.evaluation.confidence import FIRST, SIGNALS, TOP, Confidence
from factory.evaluation.items import Item, load_items
from factory.models.adapter import check_adapter
from factory.models.base import attach_adapter
from factory.models.embedding_head import EmbeddingHead, load_embedding_head
from factory.models.folders import load_config, load_tokenizer, weight_files
from factory.models.gguf import convert_gguf
from factory.models.templates import usable_template
from factory.registry import records as registry_records
from factory.registry.ledger import read_ledger
from factory.registry.registry import Registry
from factory.registry.versions import load_version
from factory.serve.auth import Keys

EXAMPLES = 100
HOURS = 1.0
SECONDS = 20  # of this process's CPU for one file
MEMORY = 1 << 30  # bytes by which all files of one kind may raise this process's peak

Damage = st.SearchStrategy[bytes]


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies, what a good one has, how it is read, and what may be raised."""

    name: str
    make: Callable[[Path], Path]  # into a folder; returns the file that is damaged
    read: Callable[[Path], Any]
    refusal: type[FactoryError]
    damage: Callable[[bytes], Damage]
    examples: int = EXAMPLES


# ------------------------------------------------------------------------------------------------------------------ damage

SIGNS = rb"""\0 \n " ' { } , : NaN 1e999 -1 null ../ \ud800 *a &a << >> stream endobj !!int &#x0; {{ }} %} {%for(a)in(a)%}"""
ODD_BYTES = st.sampled_from(
    [
        *SIGNS.split(b" "),
        *(
            b"\0" * 8,
            b"\xff" * 8,
            b"\xff" * 7 + b"\x7f",
            b"[" * 3000,
            b"9" * 5000,
            b"\xed\xa0\x80",
            b"\x1b[31m",
            b" 0 R",
            b"\n\n",
        ),
        b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    ]
) | st.binary(max_size=8)
DEEP = json.loads("[" * 200 + "]" * 200)
ODD_VALUES = (
    st.sampled_from([None, True, -1, 0, 10**30, 2**31, 2**63, 1e308, float("nan"), float("inf")])
    | st.sampled_from(["", "x" * 5000, "\ud800", "\x1b[31m", "\n", "../../x", "/etc/passwd", "(a?){500}", "{{ x }}"])
    | st.sampled_from([[], {}, [[]], [None], {"a": None}, ["x"] * 1000, DEEP])
    | st.integers()
    | st.text(max_size=8)
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 5))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(1, 64))
        match draw(st.sampled_from(["flip", "cut", "remove", "double", "insert", "replace", "move"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:]
            case "remove":
                del data[at : at + length]
            case "double":
                data[at:at] = data[at : at + length]
            case "insert":
                data[at:at] = draw(ODD_BYTES)
            case "replace":
                odd = draw(ODD_BYTES)
                data[at : at + len(odd)] = odd
            case "move":
                moved = data[at : at + length]
                del data[at : at + length]
                data[draw(st.integers(0, len(data))) :][:0] = moved
    return bytes(data)


@st.composite
def other_values(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON, which YAML reads too, with odd values and names in some places."""
    value: Any = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        value = _replaced(draw, value)
    return json.dumps(value).encode()


def _replaced(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(ODD_VALUES)
    key: Any = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    if isinstance(value, dict) and draw(st.integers(0, 9)) == 0:
        return {**{name: one for name, one in value.items() if name != key}, draw(st.text(max_size=8)): value[key]}
    return {**value, key: _replaced(draw, value[key])} if isinstance(value, dict) else [
        _replaced(draw, one) if place == key else one for place, one in enumerate(value)
    ]  # fmt: skip


def json_damage(content: bytes) -> Damage:
    return other_values(content) | damaged(content)


def gzip_damage(content: bytes) -> Damage:
    return damaged(gzip.decompress(content)).map(gzip.compress) | damaged(content)


@st.composite
def inside_zip(draw: st.DrawFn, content: bytes) -> bytes:
    """Word and Excel: a member is damaged, and packed again."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        chosen = draw(st.sampled_from(sorted(old.namelist())))
        for name in old.namelist():
            new.writestr(name, draw(damaged(old.read(name))) if name == chosen else old.read(name))
    return file.getvalue()


def zip_damage(content: bytes) -> Damage:
    return inside_zip(content) | damaged(content)


@st.composite
def header(draw: st.DrawFn, content: bytes) -> bytes:
    """safetensors: the JSON in front of the weights has odd values, or the file is damaged."""
    size = int.from_bytes(content[:8], "little")
    made = draw(json_damage(content[8 : 8 + size]))
    length = draw(st.sampled_from([len(made), len(made), len(made) + 1, 2**63 - 1, 0]))
    return length.to_bytes(8, "little") + made + content[8 + size :]


# ------------------------------------------------------------------------------------------------------------------- files

ROWS = [{"question": "Why, then?", "answer": "So."}, {"question": "How?\nAnd when?", "answer": "Thus, so."}]
SPECS = {
    "default.family.yaml": FAMILY,
    "plants.yaml": domain("plants", PLANTS),
    "general.pool.yaml": domain("general", PLANTS),
}
LLAMA = tiny.llama().config
SETTINGS = DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8)
EXPERIMENT = {
    "minutes": 1.0,
    "teacher_tokens": 9,
    "learning_rates": [1e-3],
    "methods": [{"name": "a", "distill": {"loss": "gjs"}}, {"name": "b", "targets": "hard"}],
}


def written(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def spec_folder(name: str, dump: Callable[[Any], str] = json.dumps) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "teacher").mkdir()
        (folder / "encoder").mkdir()
        for file, content in SPECS.items():
            (folder / file).write_text(dump(content))
        return folder / name

    return make


def table(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        if name.endswith("parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        elif name.endswith("xlsx"):
            book = pytest.importorskip("openpyxl").Workbook()
            for row in [[*ROWS[0]], *([*row.values()] for row in ROWS)]:
                book.active.append(row)
            book.save(path)
        else:
            path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
        return path

    return make


def document(folder: Path) -> Path:
    made = pytest.importorskip("docx").Document()
    made.add_heading("Leave")
    made.add_table(rows=2, cols=2).rows[0].cells[0].text = "2026"
    made.save(folder / "a.docx")
    return folder / "a.docx"


def page(folder: Path) -> Path:
    """Compressed, with a table of objects, as programs write it."""
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    blank = writer.add_blank_page(200, 200)
    drawn = DecodedStreamObject()
    drawn.set_data(b"BT /F 12 Tf 20 20 Td (You have 30 days.) Tj [(Ask) 20 (early)] TJ ET")
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1")})
    blank[NameObject("/Contents")] = writer._add_object(drawn.flate_encode())
    blank[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): DictionaryObject({NameObject("/F"): font})})
    writer.write(folder / "a.pdf")
    return folder / "a.pdf"


def model(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        return tiny.saved(folder, tiny.llama(layers=1)) / name

    return make


def adapter(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        attach_adapter(tiny.base(), SETTINGS).save_pretrained(str(folder))
        return folder / name

    return make


def head(folder: Path) -> Path:
    EmbeddingHead(np.zeros((4, 32), dtype=np.float32), np.zeros(4, dtype=np.float32)).save(folder)
    return folder / "embedding_head.safetensors"


def gguf(folder: Path) -> Path:
    tiny_gguf(folder / "small.gguf")
    return folder / "small.gguf"


def version(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        registry = Registry(folder / "registry")
        found = registry.record(registry.promote(publish(registry).reference), "review", {"wins": 7})
        for path in found.folder.rglob("*"):
            path.chmod(0o644)
        return registry.root / name if name == "registry.json" else found.folder / name

    return make


# ----------------------------------------------------------------------------------------------------------------- readers


def exchanges(path: Path) -> None:
    for record, _ in read_rows(read_records(path), str(path)):
        assert all(isinstance(column, str) for column in record.fields)


def template(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    own = tiny.tokenizer()
    own.chat_template = text
    usable_template(own, TeacherSpec(model="path:m", license="MIT"))


def model_folder(path: Path) -> None:
    weight_files(path.parent, "path:m")
    load_config(path.parent)
    load_tokenizer(path.parent)


def converted(path: Path) -> None:
    (path.parent / "target").mkdir(exist_ok=True)
    convert_gguf(path, path.parent / "target", quiet=True)


def kept_records(path: Path) -> None:
    _, problems = registry_records.read_records(path.parent)
    assert all(problem.isprintable() for problem in problems)


def specs(path: Path) -> None:
    load_specs(path.parent)


def methods(path: Path) -> None:
    load_methods(path, SETTINGS)


def items(path: Path) -> None:
    load_items(path.name, path.parent, Item)


def adapter_folder(path: Path) -> None:
    check_adapter(path.parent, LLAMA)


def embedding(path: Path) -> None:
    load_embedding_head(path.parent)


def manifest(path: Path) -> None:
    load_version(path.parents[3], "student", "healthcare-small", 1)


def ledger(path: Path) -> None:
    read_ledger(path.parent)


def confidence(path: Path) -> None:
    Confidence.load(path.parent)


def pairs(path: Path) -> None:
    load_pairs([path.name], path.parent)


SIGNALS_OF = dict.fromkeys(("means", "scales", "weights"), [0.5] * len(SIGNALS)) | {"bias": 0.0, "held_out": [[0.5, True]]}
CONFIDENCE = {"signals": SIGNALS, "first": FIRST, "top": TOP, "margin": 0.1, "whole": SIGNALS_OF, "beginning": SIGNALS_OF}
PAIRS = {"axes": {"gender": [{"groups": [["he", "she"]], "templates": ["{group} {is|was} a nurse"]}]}}
PAGE = "<html><head><title>a</title><body><p>b &amp; c<table><tr><td>d</table>"
ITEMS = '{"prompt": "a", "topic": "b"}\n{"prompt": "c"}\n'
CSV = 'question,answer\n"Why, then?",So.\nHow?,"Thus,\nso."\n'
KEYS = '{"a-long-key": ["healthcare-small"], "another": "*"}'
KINDS = [
    Kind("domain", spec_folder("plants.yaml"), specs, SpecError, json_damage),
    Kind("family", spec_folder("default.family.yaml"), specs, SpecError, json_damage),
    Kind("pool", spec_folder("general.pool.yaml"), specs, SpecError, json_damage),
    Kind("YAML", spec_folder("plants.yaml", yaml.safe_dump), specs, SpecError, damaged),
    Kind("methods", written("m.yaml", json.dumps(EXPERIMENT)), methods, SpecError, json_damage),
    Kind("jsonl", table("a.jsonl"), exchanges, DataError, damaged),
    Kind("jsonl.gz", written("a.jsonl.gz", gzip.compress(ITEMS.encode())), exchanges, DataError, gzip_damage),
    Kind("json", written("a.json", json.dumps(ROWS)), exchanges, DataError, json_damage),
    Kind("csv", written("a.csv", CSV), exchanges, DataError, damaged),
    Kind("csv in cp1252", written("a.csv", "question;answer\nGröße?;Öl\n".encode("cp1252")), exchanges, DataError, damaged),
    Kind("parquet", table("a.parquet"), exchanges, DataError, damaged),
    Kind("xlsx", table("a.xlsx"), exchanges, DataError, zip_damage),
    Kind("pdf", page, read_document, DataError, damaged),
    Kind("docx", document, read_document, DataError, zip_damage),
    Kind("html", written("a.html", PAGE), read_document, DataError, damaged),
    Kind("items", written("a.jsonl", ITEMS), items, DataError, damaged),
    Kind("chat template", written("a.jinja", tiny.CHATML), template, ModelResolutionError, damaged),
    Kind("adapter_config.json", adapter("adapter_config.json"), adapter_folder, ModelResolutionError, json_damage),
    Kind("adapter_model.safetensors", adapter("adapter_model.safetensors"), adapter_folder, ModelResolutionError, header),
    Kind("embedding_head.safetensors", head, embedding, ModelResolutionError, header),
    Kind("config.json", model("config.json"), model_folder, ModelResolutionError, json_damage),
    Kind("tokenizer.json", model("tokenizer.json"), model_folder, ModelResolutionError, json_damage, examples=25),
    Kind("tokenizer_config.json", model("tokenizer_config.json"), model_folder, ModelResolutionError, json_damage, examples=25),
    Kind("gguf", gguf, converted, ModelResolutionError, damaged, examples=10),
    Kind("manifest.json", version("manifest.json"), manifest, RegistryError, json_damage),
    Kind("records.jsonl", version("records.jsonl"), kept_records, RegistryError, damaged),
    Kind("registry.json", version("registry.json"), ledger, RegistryError, json_damage),
    Kind("confidence.json", written("confidence.json", json.dumps(CONFIDENCE)), confidence, RegistryError, json_damage),
    Kind("bias pairs", written("a.yaml", json.dumps(PAIRS)), pairs, SpecError, json_damage),
    Kind("bias pairs of jsonl", written("a.jsonl", '{"stereotype": "a b", "other": "c b"}\n'), pairs, SpecError, json_damage),
    Kind("keys", written("keys.yaml", KEYS), Keys.load, ServeError, json_damage),
]


@dataclass
class Tried:
    """How many files were read and refused, and by how much that raised this process's peak of memory."""

    outcomes: Counter[str] = field(default_factory=Counter)
    memory: int = 0  # bytes; what Hypothesis keeps of its examples is not in it


def fuzz(kind: Kind, folder: Path, examples: int, *, new: bool = False) -> Iterator[Tried]:
    """Runs again and again, as often as it is asked; with ``new`` examples each time."""
    path = kind.make(folder)
    good = path.read_bytes()
    kind.read(path)  # a good file is read
    tried = Tried()

    @settings(
        max_examples=examples,
        derandomize=not new,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(content=kind.damage(good))
    def one(content: bytes) -> None:
        path.write_bytes(content)
        before, began = peak(), time.process_time()
        try:
            kind.read(path)
            tried.outcomes["read"] += 1
        except kind.refusal as error:
            lines = str(error).split("\n") if kind.refusal is SpecError else [str(error)]
            assert all(line.isprintable() and 0 < len(line) <= MAX_LINE for line in lines), lines
            tried.outcomes["refused"] += 1
        tried.memory += peak() - before
        assert time.process_time() - began < SECONDS

    while True:
        one()
        yield tried


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_file_is_read_or_refused_in_one_line(kind: Kind, tmp_path: Path) -> None:
    tried = next(fuzz(kind, tmp_path, kind.examples))
    assert tried.outcomes.total() >= kind.examples // 2
    assert tried.memory < MEMORY


@pytest.mark.slow
@pytest.mark.big
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_file_is_read_or_refused_however_long_one_tries(kind: Kind, tmp_path: Path) -> None:
    end = time.monotonic() + HOURS * 3600 / len(KINDS)
    rounds = fuzz(kind, tmp_path, 500, new=True)
    tried = next(rounds)
    while time.monotonic() < end:
        next(rounds)
    print(f"\n{kind.name}: {tried.outcomes['read']} read, {tried.outcomes['refused']} refused")
    assert tried.memory < MEMORY
