"""Settings of a build: data, healing, distillation, evaluation, gates. Families give them; domains and profiles override."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from factory.config.sources import Name, Strict

DEFAULT_PROFILE = "default"
Weight = Annotated[float, Field(ge=0.0)]


class TrainConfig(Strict):
    """One optimiser's settings."""

    steps: int = Field(ge=1, description="Optimiser steps.")
    batch: int = Field(default=32, ge=1, description="Examples per step.")
    learning_rate: float = Field(gt=0, description="Peak learning rate.")


class OnPolicyConfig(Strict):
    """Steps on the student's own samples after all others, by KL(student ‖ teacher) over the whole vocabulary.

    On-policy distillation: Agarwal et al. 2023, arXiv 2306.13649, and MiniLLM, arXiv 2306.08543.
    """

    steps: int = Field(ge=1, description="Optimiser steps; each writes an answer to every prompt of its batch.")
    learning_rate: float = Field(gt=0, description="Peak learning rate: about a tenth of that of the steps before.")


class DistillConfig(TrainConfig):
    """The objective: response, ground truth, feature and relation terms, and the LoRA adapter it trains.

    ``lmbda``, ``beta``, ``temperature`` and ``seq_kd`` are those of GKD (Agarwal et al. 2023, arXiv 2306.13649).
    """

    loss: str = Field(
        default="generalized_jsd",
        description="Divergence of the response term: `generalized_jsd`, `skew_kl`, [your own](experiments.md#your-own-loss).",
    )
    lmbda: float = Field(default=0.0, ge=0, le=1, description="Share of steps on the student's own samples (on-policy).")
    beta: float = Field(
        default=0.0, ge=0, le=1, description="Parameter of the loss: at 0 KL(teacher ‖ student), at 1 KL(student ‖ teacher)."
    )
    temperature: float = Field(default=1.0, gt=0, description="Of both distributions in the loss, and of sampling.")
    seq_kd: bool = Field(default=False, description="Off-policy steps use fresh teacher samples, not the stored answers.")
    max_new_tokens: int = Field(default=96, ge=1, description="Maximum length of a sampled answer, in tokens.")
    response: Weight = Field(default=1.0, description="Weight of the response term (next-token distributions).")
    ground_truth: Weight = Field(
        default=0.0,
        description="Weight of cross-entropy on a source's own answers, beside the response.",
    )
    feature: Weight = Field(
        default=0.0,
        description="Weight of the feature term (hidden states, token by token); the teacher runs beside the student.",
    )
    relation: Weight = Field(default=0.0, description="Weight of the relation term (distances and angles). Needs `batch` ≥ 32.")
    general: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Prompts of the general pool, as a share of the domain's examples, that are learnt beside them with the "
        "teacher's answers without a context: they keep what lies outside the domain as it is.",
    )
    checks: int = Field(
        default=0,
        ge=0,
        description="Times that the loss on the validation split is measured during training: the weights of the best check "
        "are kept, and training ends after two checks in a row that are no better; 0 keeps the last weights.",
    )
    on_policy: OnPolicyConfig | None = Field(
        default=None, description="A phase on the student's own samples after `steps`; the response is then its only term."
    )
    top_k: int = Field(
        default=36, ge=1, description="Teacher log-probabilities stored per position, besides the remaining mass."
    )
    rank: int = Field(default=16, ge=1, description="LoRA rank.")
    alpha: int = Field(default=32, ge=1, description="LoRA alpha; the update is scaled by alpha / rank.")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        default="none", description="Where to log the training."
    )

    def own_samples(self) -> DistillConfig | None:
        """``settings.distill.own_samples()``: the settings of the phase on the student's own samples; None without one."""
        if self.on_policy is None:
            return None
        return self.model_copy(update=PLAIN | {"lmbda": 1.0, "beta": 1.0} | self.on_policy.model_dump())

    @model_validator(mode="after")
    def has_an_objective(self) -> DistillConfig:
        if self.response == self.ground_truth == self.feature == self.relation == 0:
            raise ValueError("response, ground_truth, feature and relation are all 0; give at least one of them a weight")
        return self

    @model_validator(mode="after")
    def relation_has_enough_pairs(self) -> DistillConfig:
        if self.relation > 0 and self.batch < 32:
            raise ValueError(f"relation > 0 needs batch >= 32 (a batch of {self.batch} has too few pairs)")
        return self

    @model_validator(mode="after")
    def checks_have_a_loss(self) -> DistillConfig:
        if self.checks and self.response == 0:
            raise ValueError("checks > 0 needs response > 0: feature and relation are not measured on validation")
        return self


# KL(teacher ‖ student) on the stored answers, and no other term; cross-entropy (SFT) where the answers are the targets.
PLAIN: dict[str, Any] = {
    "loss": "generalized_jsd",
    "lmbda": 0.0,
    "beta": 0.0,
    "temperature": 1.0,
    "seq_kd": False,
    "response": 1.0,
    "ground_truth": 0.0,
    "feature": 0.0,
    "relation": 0.0,
    "general": 0.0,
    "checks": 0,
    "on_policy": None,
}


ADAPTER_ONLY = {
    "general": "only adapters learn general prompts",
    "checks": "only an adapter's training is checked",
    "on_policy": "only an adapter learns from its own samples after the others",
}


class HealConfig(DistillConfig):
    """How the shared base is trained after pruning: the keys of `distill` for all its weights, on all public domains."""

    share: float = Field(
        default=1.0,
        description="Share of a domain's examples for the base, 0.1 to 0.9; the adapter takes the rest. At 1 both take all.",
    )

    @model_validator(mode="after")
    def base_and_adapter_have_examples(self) -> HealConfig:
        if not (0.1 <= self.share <= 0.9 or self.share == 1):
            raise ValueError("share must be 0.1 to 0.9, or 1 to train base and adapters on the same examples")
        return self

    @model_validator(mode="after")
    def some_keys_are_the_adapters(self) -> HealConfig:
        for key, why in ADAPTER_ONLY.items():
            if getattr(self, key):
                raise ValueError(f"{key} has no effect here: {why}; set it in distill")
        return self


class DataConfig(Strict):
    """How prompts become a data set."""

    max_prompt_tokens: int = Field(default=192, ge=8, description="Longer prompts are dropped.")
    max_completion_tokens: int = Field(default=128, ge=8, description="Longer answers are dropped.")
    max_examples: int = Field(default=2000, ge=20, description="Prompts per domain, after routing and cleaning.")
    repetition_penalty: float = Field(
        default=1.1, ge=1, description="For the teacher's answers; at 1 a small teacher may loop."
    )
    near_duplicate: float = Field(
        default=0.95, gt=0, le=1, description="Cosine from which two prompts are near duplicates; one of them is dropped."
    )
    validation: float = Field(default=0.05, gt=0, lt=0.5, description="Share of the examples for validation.")
    test: float = Field(default=0.1, gt=0, lt=0.5, description="Share of the examples for the test split.")


class RouterConfig(Strict):
    """How the domain router is trained."""

    max_false_rejection: float = Field(
        default=0.05, gt=0, lt=1, description="At most this share of a domain's own texts may be routed to no domain."
    )
    max_per_domain: int = Field(default=1000, ge=20, description="Texts per domain to train on.")


class EvaluateConfig(Strict):
    """How much held-out text is evaluated."""

    examples: int = Field(default=150, ge=2, description="Held-out examples per domain.")
    general: int = Field(default=60, ge=2, description="Examples of the general pool.")
    bias_pairs: int = Field(
        default=600, ge=0, description="Sentence pairs at most, evenly over their templates; 0 leaves them out."
    )
    task_items: int = Field(default=200, ge=0, description="Items of each task at most; 0 leaves tasks out.")
    golden_set: int = Field(default=120, ge=0, description="Questions of the golden set asked at most; 0 leaves it out.")
    refusals: int = Field(default=120, ge=0, description="Prompts of `refusals` asked at most, look-alikes included.")
    safety: int = Field(default=100, ge=0, description="Prompts of `injections`, and as many of `jailbreaks`, asked at most.")
    bootstrap: int = Field(default=1000, ge=100, description="Bootstrap resamples behind every interval.")


class EmbedConfig(Strict):
    """The head with which a student embeds texts, so that one file answers and retrieves."""

    texts: int = Field(
        default=0,
        ge=0,
        description="Unlabelled texts that it is fitted on, at most: prompts and answers of the training split, then of the "
        "general pool; 0 makes none, otherwise at least 100.",
    )

    @model_validator(mode="after")
    def has_enough_texts(self) -> EmbedConfig:
        if 0 < self.texts < 100:
            raise ValueError(f"texts must be 0, for no head, or at least 100 ({self.texts} are too few to fit one on)")
        return self


class ConfidenceConfig(Strict):
    """How sure a student is of its own answers: fitted on validation prompts, measured on test prompts."""

    examples: int = Field(
        default=0, ge=0, description="Validation prompts that are asked at most, and as many test prompts; 0 fits none."
    )
    margin: float = Field(
        default=0.2,
        gt=0,
        description="An answer is right where the teacher, shown its context, finds it at most so many nats/token less likely "
        "than the data set's own.",
    )


class Gate(Strict):
    """A bound on a metric: `kl: {at_most: 0.8}`."""

    at_most: float | None = Field(default=None, description="Upper bound. A gate has either this or `at_least`.")
    at_least: float | None = Field(default=None, description="Lower bound.")
    of: Literal["value", "low", "high"] = Field(
        default="value", description="What is judged: the value, or an end of its interval."
    )
    margin: float = Field(
        default=0.1,
        gt=0,
        description="For metrics that are shares of items: how far the interval may reach to either side. With too few items "
        "it reaches further, and the gate is undecidable.",
    )
    required: bool = Field(default=True, description="A metric that was not measured fails the gate; `false` skips it.")

    @model_validator(mode="after")
    def has_one_bound(self) -> Gate:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a gate needs either at_most or at_least")
        return self


# What a private domain's student must show besides its family's gates. 16 canaries of which none is extracted, and 28 training
# texts of which none is, are the fewest that decide.
PRIVATE_GATES = {
    "canary_exposure_above_chance": Gate(at_most=0.0, of="low"),
    "canaries_extracted": Gate(at_most=0.0),
    "verbatim_extraction_change": Gate(at_most=0.1, of="high"),
}


class ServeConfig(Strict):
    """What `factory serve` does with model names that are no student's: `auto`, and a domain's name, its cascade."""

    fallback: Literal["teacher", "refuse"] | Name = Field(
        default="teacher",
        description="Who answers a prompt of no domain: the teacher, a student by name, or nobody (`refuse`).",
        json_schema_extra={"expects": "teacher, refuse or the name of a student"},
    )
    cascade: tuple[Name, ...] = Field(
        default=(),
        description="Sizes from the smallest to the largest, then `teacher` or one of `models` if it is to be asked, too: who "
        "is not sure of an answer [passes the question on](serving.md#a-cascade).",
    )
    keep: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="The share of all answers of a student that may not be wrong and kept: at 0.95 one in 20 may.",
    )
    abstain: str = Field(
        default="",
        description="What is answered where the last student of the cascade is not sure; not together with `teacher`.",
    )

    @field_validator("cascade")
    @classmethod
    def steps_are_in_order(cls, cascade: tuple[str, ...]) -> tuple[str, ...]:
        for step in cascade:
            if cascade.count(step) > 1:
                raise ValueError(f"{step} is there twice; name each step once")
        if "teacher" in cascade[:-1]:
            raise ValueError("teacher is the last to be asked; move it to the end")
        return cascade

    @model_validator(mode="after")
    def cascade_has_an_end(self) -> ServeConfig:
        if self.abstain and not self.cascade:
            raise ValueError("abstain has no effect without a cascade; add cascade: [a size, ...] or leave abstain out")
        if self.abstain and self.cascade[-1] == "teacher":
            raise ValueError("abstain has no effect after teacher, whose answer is always kept; leave one of them out")
        if len(self.cascade) == 1 and not self.abstain:
            raise ValueError(
                f"a cascade of {self.cascade[0]} alone has nobody to pass a question on to; add a step, or abstain"
            )
        return self


class Settings(Strict):
    """The settings of one build, with all overrides applied."""

    profile: str
    data: DataConfig
    heal: HealConfig
    distill: DistillConfig
    embed: EmbedConfig
    confidence: ConfidenceConfig
    evaluate: EvaluateConfig


# What a profile may override; a domain may override `data`, `distill`, `embed` and `confidence`.
SECTIONS: dict[str, type[Strict]] = {
    "data": DataConfig,
    "heal": HealConfig,
    "distill": DistillConfig,
    "embed": EmbedConfig,
    "confidence": ConfidenceConfig,
    "evaluate": EvaluateConfig,
}
