"""``factory new NAME --from DATA``: a folder with a domain and a family that fit the data and the teacher.

new_folder(FolderSpec("tickets", Path("tickets.xlsx"), Path("tickets")), say=print)
# then: factory build tickets --domains tickets
"""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from factory.cache import atomic_folder, storage_errors
from factory.config import SHIPPED
from factory.config.columns import check_named
from factory.config.new_domain import FolderSpec, check_domain_name
from factory.config.new_files import NOT_STATED, FoundLimits, FoundTeacher, domain_text, family_text
from factory.config.schema import DataConfig, DocumentSource, DomainSpec, FamilySpec, FileSource, SizeSpec, TeacherSpec
from factory.data.dataset import MIN_TEST, MIN_TRAIN
from factory.data.survey import COVERED, MAX_MEASURED, FoundSource, lengths, limit_for, survey
from factory.errors import DataError, SpecError, UsageError
from factory.models.chat import completion_ids, prompt_ids
from factory.models.teacher import Teacher
from factory.models.templates import resolve_teacher
from factory.models.wheels import wheel_sha256

MAX_TOKENS = 48_000  # that a size keeps of a larger vocabulary
Say = Callable[[str], None]


def new_folder(wish: FolderSpec, *, say: Say) -> Path:
    """``new_folder(FolderSpec("tickets", Path("tickets.xlsx"), Path("tickets")), say=print)``: the folder, whole or not there.

    Reads all of the data, and fetches the teacher, whose tokenizer decides the limits. ``say`` hears how each file was read.
    Raises: SpecError for a bad name or a folder with something in it; UsageError for a bad reference or size; DataError for
        data that cannot be used.
    """
    check_domain_name(wish.name)
    if wish.folder.exists() and (not wish.folder.is_dir() or any(wish.folder.iterdir())):
        raise SpecError(f"{wish.folder} exists; name a new folder with --domains, or remove it")
    _check_size(wish.max_bytes)
    _check_columns(wish)
    shipped, spec, is_shipped = _family_of(wish.teacher)
    found = survey(wish.data, prompt=wish.prompt, answer=wish.answer, say=say)
    sources = _sources(wish, found)
    _check_enough(wish.data, found)
    teacher = Teacher.load(resolve_teacher(spec, root=SHIPPED), torch.device("cpu"))
    own = None if is_shipped else _described(_seen_from(wish.folder, spec), teacher)
    limits = _limits(found, teacher, DataConfig.model_validate(yaml.safe_load(shipped).get("data", {})))
    said = {source.id: one.said for source, one in zip(sources, found, strict=True)}
    has_answers = any(one.prompt and one.completion for source in found for one in source.exchanges)
    texts = {
        f"{wish.name}.yaml": domain_text(wish.name, wish.data.name, sources, said, answers=has_answers),
        f"{wish.name}.family.yaml": family_text(shipped, wish.name, own, limits, wish.max_bytes),
    }
    DomainSpec.model_validate(yaml.safe_load(texts[f"{wish.name}.yaml"]))
    family = FamilySpec.model_validate(yaml.safe_load(texts[f"{wish.name}.family.yaml"]))
    _write(wish.folder, texts, [f"{family.general}.pool.yaml", family.injections, family.jailbreaks])
    return wish.folder


def _check_size(max_bytes: str | None) -> None:
    try:
        SizeSpec.model_validate({"max_bytes": max_bytes} if max_bytes is not None else {"vocabulary": 300})
    except ValidationError:
        raise UsageError(f"--max-bytes {max_bytes}: expected 600MB, 0.6GB or 600_000_000") from None


def _check_columns(wish: FolderSpec) -> None:
    for option, named in (("--prompt", wish.prompt), ("--completion", wish.answer)):
        try:
            if named:
                check_named(named)
        except ValueError as error:
            raise UsageError(f"{option} {named}: {error}") from None


# ------------------------------------------------------------------------------------------------------------- the teacher


def _family_of(given: str | None) -> tuple[str, TeacherSpec, bool]:
    """The text of the shipped family to start from, the teacher, and whether it is that family's own."""
    families = {path.name.removesuffix(".family.yaml"): path for path in sorted(SHIPPED.glob("*.family.yaml"))}
    default = families["default"].read_text(encoding="utf-8")
    for name, path in families.items():
        text = path.read_text(encoding="utf-8")
        spec = FamilySpec.model_validate(yaml.safe_load(text)).weights
        if given in (name, spec.model) or (given is None and name == "default"):
            return text, spec, True
    return default, _teacher_spec(str(given), list(families)), False


def _teacher_spec(given: str, families: Sequence[str]) -> TeacherSpec:
    """Of a reference. A path starts at the current folder; a wheel is pinned to the checksum that it has now."""
    kind, _, rest = given.partition(":")
    model = f"path:{Path(rest).expanduser().resolve()}" if kind == "path" else given
    try:
        spec = TeacherSpec(model=model, license=NOT_STATED, sha256="0" * 64 if kind == "pypi" else None)
    except ValidationError:
        raise UsageError(
            f"--teacher {given}: neither a shipped family ({', '.join(families)}) nor hub:org/name@revision, "
            "pypi:package==version/file or path:folder"
        ) from None
    if kind != "pypi":
        return spec
    return spec.model_copy(update={"sha256": wheel_sha256(rest.partition("/")[0])})


def _seen_from(folder: Path, spec: TeacherSpec) -> TeacherSpec:
    """With a path that starts at the folder of the YAML files."""
    kind, _, path = spec.model.partition(":")
    return spec.model_copy(update={"model": f"path:{_relative(Path(path), folder)}"}) if kind == "path" else spec


def _described(spec: TeacherSpec, teacher: Teacher) -> FoundTeacher:
    config = teacher.config.get_text_config()
    return FoundTeacher(spec, config.num_hidden_layers, min(config.vocab_size, MAX_TOKENS))


# ---------------------------------------------------------------------------------------------------------------- the data


def _sources(wish: FolderSpec, found: Sequence[FoundSource]) -> list[FileSource | DocumentSource]:
    """One a file, called as the domain and the file."""
    sources: list[FileSource | DocumentSource] = []
    for one in found:
        plain = unicodedata.normalize("NFKD", one.path.name.partition(".")[0]).encode("ascii", "ignore").decode()
        own = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
        id = wish.name if own in ("", wish.name) else f"{wish.name}-{own}"[:37].rstrip("-")
        used = [source.id for source in sources]
        id = next(name for name in (id, *(f"{id}-{number}" for number in range(2, 1000))) if name not in used)
        path = _relative(one.path.resolve(), wish.folder)
        if one.kind == "documents":
            sources.append(DocumentSource(id=id, kind="documents", license=wish.license or NOT_STATED, path=path))
        else:
            prompt, answer = (wish.prompt, wish.answer) if wish.prompt or wish.answer else one.columns
            sources.append(
                FileSource(id=id, kind="file", license=wish.license or NOT_STATED, path=path, prompt=prompt, completion=answer)
            )
    return sources


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder.resolve())).as_posix()


def _check_enough(data: Path, found: Sequence[FoundSource]) -> None:
    """Running text has few rows and many chunks: a build counts these."""
    texts = {(one.prompt, one.completion) for source in found for one in source.exchanges}
    if all(prompt for prompt, _ in texts) and len(texts) < MIN_TRAIN + MIN_TEST:
        raise DataError(
            f"{data} has {len(texts)} different examples; a student needs at least {MIN_TRAIN} to train on and {MIN_TEST} "
            "to be tested on; add rows"
        )


def _limits(found: Sequence[FoundSource], teacher: Teacher, before: DataConfig) -> FoundLimits:
    """That leave nearly all prompts and answers whole, and fit what the teacher can read."""
    tokenizer, asked = teacher.tokenizer, [one for source in found for one in source.exchanges if one.prompt]
    answers = [one.completion for one in asked if one.completion]
    prompt, answer = before.max_prompt_tokens, before.max_completion_tokens
    if asked:
        found_prompts = lengths(asked, lambda one: len(prompt_ids(tokenizer, one.prompt, one.history)))
        prompt = max(prompt, limit_for(found_prompts))  # a lower limit saves nothing
    if answers:
        own = limit_for(lengths(answers, lambda text: len(completion_ids(tokenizer, text))))
        answer = own if len(answers) == len(asked) else max(own, answer)  # the teacher writes the others
    positions = getattr(teacher.config.get_text_config(), "max_position_embeddings", None) or prompt + answer
    prompt = min(prompt, max(8, positions // 2))
    answer = min(answer, max(8, positions - prompt))
    sampled = f", measured on {MAX_MEASURED:,} of each" if len(asked) > MAX_MEASURED else ""
    why = f"{COVERED:.0%} of {len(asked):,} prompts and {len(answers):,} answers are within these limits{sampled}."
    if not asked:
        why = "There are no prompts, only text to continue, which is cut into chunks: these limits are the shipped family's."
    return FoundLimits({"max_prompt_tokens": prompt, "max_completion_tokens": answer}, why)


def _write(folder: Path, texts: dict[str, str], shipped: Sequence[str | None]) -> None:
    with storage_errors(f"cannot write {folder}"), atomic_folder(folder) as new:
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
        for path in filter(None, shipped):
            (new / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(SHIPPED / path, new / path)
