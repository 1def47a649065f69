"""Where a domain's or a pool's texts come from: the five kinds of source. No torch here."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from factory.config.names import NAME

Name = Annotated[str, Field(pattern=NAME, max_length=40)]


class Strict(BaseModel):
    """Frozen, and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceBase(Strict):
    id: Name = Field(description="Unique within the file. Manifests and cards name the source by it.")
    license: str = Field(description="Licence of the texts. Cards list it.")
    completions: Literal["source", "teacher"] = Field(
        default="source",
        description="`source` keeps the answers that the source has; `teacher` lets the teacher answer every prompt.",
    )
    limit: int | None = Field(default=None, ge=1, description="Use at most this many examples, drawn at random with the seed.")


class TemplateSource(SourceBase):
    """Prompt templates, each filled with every value of its slots: `What are early signs of {condition}?`"""

    kind: Literal["templates"]
    templates: tuple[str, ...] = Field(min_length=1, description="Prompts with slots in braces.")
    slots: dict[str, tuple[str, ...]] = Field(default={}, description="The values of each slot.")

    @model_validator(mode="after")
    def every_slot_is_filled(self) -> TemplateSource:
        for template in self.templates:
            for slot in re.findall(r"{(\w*)}", template):
                if not self.slots.get(slot):
                    raise ValueError(f"template {template!r} needs slot {slot!r}; slots here: {sorted(self.slots)}")
        return self


class FileSource(SourceBase):
    """A JSONL, CSV or Parquet file of prompts, with or without answers."""

    kind: Literal["file"]
    path: str = Field(description="The file. A relative path starts at the folder of the YAML files.")
    prompt: str = Field(default="prompt", description="Column of the prompt.")
    completion: str | None = Field(default=None, description="Column of the answer, if there is one.")
    id_field: str | None = Field(default=None, description="Column of a row's id; row numbers if left out.")


class DocumentSource(SourceBase):
    """A folder of .txt and .md files, cut into chunks. A student learns every token of a chunk."""

    kind: Literal["documents"]
    path: str = Field(description="The folder. A relative path starts at the folder of the YAML files.")
    chunk_tokens: int = Field(default=160, ge=16, description="Length of a chunk, in tokens.")


class HubSource(SourceBase):
    """A data set of the Hugging Face hub, read with `datasets.load_dataset`."""

    kind: Literal["hub"]
    dataset: str = Field(description="`organisation/name`.")
    revision: str = Field(description="Commit or tag, so that the data cannot change.")
    name: str | None = Field(default=None, description="Configuration of the data set.")
    split: str = Field(default="train", description="Split to read.")
    prompt: str = Field(default="prompt", description="Column of the prompt.")
    completion: str | None = Field(default=None, description="Column of the answer, if there is one.")
    id_field: str | None = Field(default=None, description="Column of a row's id; row numbers if left out.")


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
