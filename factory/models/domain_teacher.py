"""A domain's own teacher: other weights than the family's teacher, asked with the family's tokenizer and chat template.

files, teacher = load_domain_teacher(domain.teacher, family_files, family_teacher, specs.root)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from factory.config.schema import TeacherSpec
from factory.errors import ModelResolutionError
from factory.models.folders import load_tokenizer
from factory.models.references import ResolvedModel, resolve
from factory.models.teacher import Teacher


def load_domain_teacher(
    spec: TeacherSpec, family_files: ResolvedModel, family_teacher: Teacher, root: Path
) -> tuple[ResolvedModel, Teacher]:
    """``files, teacher = load_domain_teacher(domain.teacher, family_files, family_teacher, specs.root)``

    Students of the domain stand on the family's base, so its ids and its prompts have to be the teacher's too.
    Raises: ModelResolutionError as ``resolve`` does, and where a token is not the same in both.
    """
    files, tokenizer = resolve(spec, root=root), family_teacher.tokenizer
    own = load_tokenizer(files.folder)
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    if differing := [token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token)]:
        raise ModelResolutionError(
            f"the tokens of {spec.model}, a domain's own teacher, and of {family_files.reference}, its family's, differ in "
            f"{len(differing):,} ({min(differing)!r}): students learn from it on the family's base, so choose a model with the "
            "same tokens, or write a family with this one as its teacher"
        )
    if own.chat_template != tokenizer.chat_template:
        files = resolve(spec, root=root, chat_template=str(tokenizer.chat_template))
    return files, replace(Teacher.load(files, family_teacher.device), tokenizer=tokenizer)
