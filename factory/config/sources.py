"""Where a domain's or a pool's texts come from, and what the teacher is shown with them. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from factory.config.columns import check_named
from factory.config.names import NAME

Name = Annotated[str, Field(pattern=NAME, max_length=40)]
SLOT = re.compile(r"{(\w+)}")
DOCUMENT_SUFFIXES = (".txt", ".md", ".html", ".htm", ".pdf", ".docx")
PATHS = "A relative path starts at the folder of the YAML files, `~` at your home."


class Strict(BaseModel):
    """Frozen, and refuses unknown keys, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _has_braces_around_slots_alone(template: str) -> str:
    if re.search(r"[{}]", SLOT.sub("", template)):
        raise ValueError(
            "a slot is a word in single braces without spaces, such as {illness}; put any other brace into a value of a slot"
        )
    return template


SlotValue = Annotated[str, AfterValidator(_not_blank)]
Template = Annotated[str, AfterValidator(_not_blank), AfterValidator(_has_braces_around_slots_alone)]


class Turn(Strict):
    """A worked example."""

    prompt: str = Field(description="A question.")
    completion: str = Field(description="The answer, as the teacher should write it.")


class TeacherContext(Strict):
    """Shown to the teacher alone; the student learns to answer as if it had read it (arXiv 2112.00861)."""

    system: str = Field(default="", description="System prompt.")
    examples: tuple[Turn, ...] = Field(default=(), description="Worked examples; two or three are enough.")

    def then(self, history: TeacherContext) -> TeacherContext:
        """``context.then(history)``: first this one, then what was said before a question; two system prompts become one."""
        system = "\n\n".join(filter(None, (self.system, history.system)))
        return TeacherContext(system=system, examples=(*self.examples, *history.examples))

    @classmethod
    def kept(cls, content: Mapping[str, Any]) -> TeacherContext:
        """``TeacherContext.kept(manifest.teacher_context)``: the domain's, of what ``TeacherContexts.dump`` wrote."""
        return cls.model_validate({key: content[key] for key in cls.model_fields if key in content})


@dataclass(frozen=True)
class TeacherContexts:
    """``spec.contexts.of(row["source"])``: the context of a row's source if that has its own, else the domain's."""

    domain: TeacherContext = field(default_factory=TeacherContext)
    sources: Mapping[str, TeacherContext] = field(default_factory=dict)  # by the source's id

    def of(self, source: str | None) -> TeacherContext:
        """``contexts.of("tickets")``; a question of no source (None) has the domain's."""
        return self.domain if source is None else self.sources.get(source, self.domain)

    @property
    def all(self) -> tuple[TeacherContext, ...]:
        """Each once, the domain's first."""
        return tuple(dict.fromkeys([self.domain, *self.sources.values()]))

    def dump(self) -> dict[str, Any]:
        """``contexts.dump()``: for cache keys and manifests; without contexts of sources it is the domain's alone."""
        sources = {id: context.model_dump() for id, context in self.sources.items()}
        return self.domain.model_dump() | ({"sources": sources} if sources else {})


class SourceBase(Strict):
    id: Name = Field(description="Unique within the file. Manifests and cards name the source by it.")
    license: str = Field(description="Licence of the texts. Cards list it.")
    completions: Literal["source", "teacher"] = Field(
        default="source",
        description="`source` keeps the answers that the source has; `teacher` lets the teacher answer every prompt.",
    )
    limit: int | None = Field(default=None, ge=1, description="Use at most this many examples, drawn at random with the seed.")
    teacher_context: TeacherContext | None = Field(
        default=None,
        # Not dumped where there is none, so that cache keys and manifests of older sources stay as they are.
        exclude_if=lambda context: context is None,
        description="What the teacher is shown with this source's prompts, in place of the domain's; `{}` shows it nothing.",
    )


# What sources of rows have in common.
Columns = Annotated[str, AfterValidator(check_named)]
Turns = Annotated[
    Literal["every", "last"],
    Field(description="Of a chat, which answers are learnt, each after all said before it: `every` one or only the `last`."),
]
Prompt = Annotated[
    Columns | None,
    Field(description="Column of the prompt, or a template, such as `{title}\\n{body}`; recognised if left out."),
]
Completion = Annotated[
    Columns | None,
    Field(description="Column of the answer, or a template; recognised if left out, unless `prompt` is given."),
]
System = Annotated[
    Columns | None,
    Field(
        # Not dumped where there is none, so that cache keys and manifests of older sources stay as they are.
        exclude_if=lambda named: named is None,
        description="Column of a system prompt, or a template: said before the prompt, to teacher and student.",
    ),
]
IdField = Annotated[str | None, Field(description="Column of a row's id; row numbers if left out.")]


class TemplateSource(SourceBase):
    """Prompt templates, each filled with every value of its slots: `What are early signs of {condition}?`"""

    kind: Literal["templates"]
    templates: tuple[Template, ...] = Field(min_length=1, description="Prompts with slots in braces.")
    slots: dict[str, tuple[SlotValue, ...]] = Field(default={}, description="The values of each slot.")

    @model_validator(mode="after")
    def every_slot_is_filled(self) -> TemplateSource:
        for template in self.templates:
            for slot in SLOT.findall(template):
                if not self.slots.get(slot):
                    raise ValueError(f"template {template!r} needs slot {slot!r}; slots here: {sorted(self.slots)}")
        return self

    @model_validator(mode="after")
    def every_slot_is_used(self) -> TemplateSource:
        used = {slot for template in self.templates for slot in SLOT.findall(template)}
        if unused := [slot for slot in self.slots if slot not in used]:
            raise ValueError(f"no template has the slot {', '.join(unused)}; use or remove it")
        return self


class FileSource(SourceBase):
    """A file of prompts with or without answers, of chats or of texts: JSON, JSONL, CSV, TSV, Parquet, Excel, also gzipped."""

    kind: Literal["file"]
    path: str = Field(description=f"The file, or a pattern for several, `data/*.jsonl`. {PATHS}")
    turns: Turns = "every"
    prompt: Prompt = None
    completion: Completion = None
    system: System = None
    id_field: IdField = None


class DocumentSource(SourceBase):
    """Documents in .txt, .md, .html, .pdf and .docx files, cut into chunks. A student learns every token of a chunk."""

    kind: Literal["documents"]
    path: str = Field(description=f"The folder, a document, or a pattern for several, `handbook/**/*.pdf`. {PATHS}")
    chunk_tokens: int = Field(default=160, ge=16, description="Length of a chunk, in tokens.")


class HubSource(SourceBase):
    """A data set of the Hugging Face hub, read with `datasets.load_dataset`."""

    kind: Literal["hub"]
    dataset: str = Field(description="`organisation/name`.")
    revision: str = Field(description="Commit or tag, so that the data cannot change.")
    name: str | None = Field(default=None, description="Configuration of the data set.")
    split: str = Field(default="train", description="Split to read.")
    turns: Turns = "every"
    prompt: Prompt = None
    completion: Completion = None
    system: System = None
    id_field: IdField = None


class TeacherPromptSource(SourceBase):
    """Prompts that the teacher writes itself, from the opening of a user turn (Magpie, arXiv 2406.08464)."""

    kind: Literal["teacher_prompts"]
    count: int = Field(ge=1, description="Number of prompts.")
    opening: str = Field(default="", description="First words of the user turn; they steer the teacher into the domain.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature.")


Source = Annotated[TemplateSource | FileSource | DocumentSource | HubSource | TeacherPromptSource, Field(discriminator="kind")]

SOURCE_KINDS: dict[str, type[SourceBase]] = {
    "templates": TemplateSource,
    "file": FileSource,
    "documents": DocumentSource,
    "hub": HubSource,
    "teacher_prompts": TeacherPromptSource,
}
