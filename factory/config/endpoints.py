"""Models elsewhere, behind OpenAI-compatible endpoints: what they cost, a cascade's last step, a teacher. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from factory.config.languages import Languages
from factory.config.models import MODEL, TeacherSpec
from factory.config.sources import Strict

TEMPLATE_TOKENS = 32  # of a message, at most, beside its text: its role and what divides it from the next
LIMITS = ("max_tokens", "max_completion_tokens")


class Price(Strict):
    """What a model elsewhere costs, for a million tokens, in whichever currency."""

    input: float = Field(ge=0, allow_inf_nan=False, description="A million tokens of prompts.")
    output: float = Field(ge=0, allow_inf_nan=False, description="A million tokens of answers.")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """``price.of(1200, 300)``: in the currency of the price."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class RemoteModel(Strict):
    """Where a model elsewhere is, and how it is asked."""

    api: str = Field(pattern=r"^https?://[^\s?#]+$", description="Its URL up to and with `/v1`.")
    model: str = Field(min_length=1, description="The model's name there.")
    key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The environment variable that holds the key. The key itself is in no file.",
    )
    price: Price | None = Field(default=None, description="Nothing is paid if left out.")
    may_leave: bool = Field(default=False, description="Whether text of a `private` domain may be sent there.")
    timeout_seconds: float = Field(default=30.0, gt=0, le=600, description="For a whole answer.")
    body: dict[str, Any] = Field(
        default={},
        description="Fields of every request, such as `reasoning_effort: low`; `null` leaves one out that it does not know.",
        json_schema_extra={"expects": "fields of a request, each with its value"},
    )

    @model_validator(mode="after")
    def the_factory_decides_the_rest(self) -> RemoteModel:
        if fixed := sorted({"model", "messages", "stream", "n"} & self.body.keys()):
            raise ValueError(f"body has {', '.join(fixed)}, which the factory sets itself; leave it out")
        return self

    @model_validator(mode="after")
    def no_key_is_in_a_file(self) -> RemoteModel:
        if "@" in self.api.partition("://")[2].partition("/")[0]:
            raise ValueError("api has a user or a password before its @; put the key into the environment and name key_env")
        return self

    def key(self, environment: Mapping[str, str]) -> str | None:
        """``spec.key(os.environ)``: None where none is needed, empty where its variable is not set."""
        return environment.get(self.key_env, "").strip() if self.key_env else None

    def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``spec.request({"max_tokens": 64, ...})``: the body as it is sent, with the spec's own fields."""
        merged = {**body, "model": self.model, "stream": False} | self.body
        return {name: value for name, value in merged.items() if value is not None and name != "stream_options"}

    def cost(self, usage: Mapping[str, int]) -> float:
        """``spec.cost({"prompt_tokens": 1200, "completion_tokens": 300})``: in the currency of its price."""
        return self.price.of(usage["prompt_tokens"], usage["completion_tokens"]) if self.price else 0.0

    def most(self, sent: Mapping[str, Any]) -> dict[str, int]:
        """``spec.most(spec.request(...))["prompt_tokens"]``: the usage of a request at most.

        A token is a byte at least; reasoning counts as part of an answer.
        """
        prompt = sum(len(message["content"].encode()) + TEMPLATE_TOKENS for message in sent["messages"])
        return {"prompt_tokens": prompt, "completion_tokens": max(sent.get(name) or 0 for name in LIMITS)}


class EndpointSpec(RemoteModel):
    """A model elsewhere, behind an OpenAI-compatible endpoint."""

    max_cost_per_hour: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="In the currency of `price`, which it must come with."
    )

    @model_validator(mode="after")
    def what_is_paid_is_capped(self) -> EndpointSpec:
        if (self.price is None) != (self.max_cost_per_hour is None):
            raise ValueError("price and max_cost_per_hour belong together: what is paid has a cap, and only that")
        return self


class ApiTeacherSpec(RemoteModel):
    """A teacher behind an OpenAI-compatible API: students learn from the texts that it writes, and from ``top_logprobs``."""

    license: str = Field(
        description="The terms of its answers, as cards and manifests name them. Some APIs forbid training on their answers."
    )
    tokenizer: str | None = Field(
        default=None,
        pattern=MODEL,
        description="The teacher's tokenizer: a `hub:` or `path:` reference, or a base's own `model`. Students then also learn "
        "how likely the 20 likeliest tokens were at each place (`top_logprobs`); bases may have other tokens. "
        "Its texts alone if left out.",
    )
    languages: Languages = ()
    max_cost: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="For the answers of one domain under one profile and seed, stopped builds included, in the currency of "
        "`price`, which it must come with.",
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="The same in tokens, prompts and answers together; no limit if left out."
    )
    concurrency: int = Field(default=4, ge=1, le=256, description="Requests at a time.")
    requests_per_minute: float | None = Field(default=None, gt=0, description="At most; no limit if left out.")
    attempts: int = Field(default=8, ge=1, le=20, description="Times that a request is tried before the build stops.")

    @model_validator(mode="after")
    def what_is_paid_is_capped(self) -> ApiTeacherSpec:
        if (self.price is None) != (self.max_cost is None):
            raise ValueError("price and max_cost belong together: what is paid has a cap, and only that")
        return self

    @property
    def reference(self) -> str:
        """``family.teacher.reference``: as manifests and lists name it."""
        return f"api:{self.api.rstrip('/')}#{self.model}"

    @property
    def template_parts(self) -> list[Any]:
        """Nothing: its chat template is its own, and students have their base's."""
        return []

    def dump(self) -> dict[str, Any]:
        """``spec.dump()``: what decides its answers, and how they are called; keys, prices, caps and speed do not."""
        return self.model_dump(include={"api", "model", "body", "license", *self._tokens})

    @property
    def identity(self) -> list[Any]:
        """``cache_key(*spec.identity)``: of what decides its answers; keys, prices, caps and speed do not."""
        return [self.api.rstrip("/"), self.model, self.body, *self._tokens]

    @property
    def _tokens(self) -> list[str]:
        return [] if self.tokenizer is None else ["tokenizer"]


# Tags, by which a mistake's location is read; no key is called so.
TEACHERS: dict[str, type[TeacherSpec] | type[ApiTeacherSpec]] = {"a model": TeacherSpec, "an API": ApiTeacherSpec}


def _kind_of_teacher(given: Any) -> str:
    return "an API" if isinstance(given, ApiTeacherSpec) or (isinstance(given, Mapping) and "api" in given) else "a model"


AnyTeacher = Annotated[
    Annotated[TeacherSpec, Tag("a model")] | Annotated[ApiTeacherSpec, Tag("an API")], Discriminator(_kind_of_teacher)
]
