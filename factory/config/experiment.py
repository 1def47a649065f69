"""What a researcher writes to compare methods of distillation: ``factory experiment methods.yaml``. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from factory.config.settings import PLAIN, DistillConfig
from factory.config.sources import Strict

NOT_A_METHOD = {
    "steps": "a run ends with its budget",
    "checks": "a run ends with its budget",
    "on_policy": "a run ends with its budget",
    "learning_rate": "`learning_rates` lists those to try",
}
# What stays as in PLAIN: where the answers themselves are the targets, and in trl's trainer, which has the response alone.
HARD_KEEPS = ("loss", "beta", "temperature", "lmbda", "ground_truth")
TRL_KEEPS = ("loss", "response", "ground_truth", "feature", "relation")


class MethodSpec(Strict):
    """A way to train an adapter; by default KL(teacher ‖ student) on the stored answers, without any other term."""

    name: str = Field(min_length=1, description="In tables. The first method is what the others are compared with.")
    trainer: Literal["factory", "trl_gkd"] = Field(
        default="factory", description="This project's trainer, or trl's own GKDTrainer as it is."
    )
    targets: Literal["soft", "hard"] = Field(
        default="soft",
        description="The teacher's distributions, or the answers themselves by cross-entropy: those that the data set has (a "
        "source's own, otherwise the teacher's), or fresh samples of the teacher with `seq_kd`.",
    )
    teacher_context: bool = Field(default=True, description="Whether the teacher is shown the contexts of domain and sources.")
    distill: dict[str, Any] = Field(
        default={}, description="Keys of [`distill`](domains.md#distill); the optimiser's and the adapter's are the family's."
    )

    @field_validator("distill")
    @classmethod
    def budget_and_rates_are_not_a_method_s(cls, distill: dict[str, Any]) -> dict[str, Any]:
        for key, why in NOT_A_METHOD.items():
            if key in distill:
                raise ValueError(f"{key} is the same for all methods: {why}")
        return distill

    @model_validator(mode="after")
    def settings_have_an_effect(self) -> MethodSpec:
        if self.trainer == "trl_gkd":
            if self.targets == "hard" or self.teacher_context:
                raise ValueError("trainer: trl_gkd needs targets: soft and teacher_context: false, as trl's trainer is made")
            self._refuse_changes("trainer: trl_gkd", TRL_KEEPS)
        if self.targets == "hard":
            self._refuse_changes("targets: hard", HARD_KEEPS)
        return self

    def _refuse_changes(self, why: str, kept: tuple[str, ...]) -> None:
        changed = [key for key in kept if self.distill.get(key, PLAIN[key]) != PLAIN[key]]
        if changed:
            raise ValueError(f"with {why}, {' and '.join(changed)} would have no effect; leave out of distill")

    def config(self, settings: DistillConfig) -> DistillConfig:
        """``method.config(settings.distill)``: the family's settings with this method's objective.

        Raises: pydantic's ValidationError for a key that does not fit.
        """
        return DistillConfig.model_validate(settings.model_dump() | PLAIN | self.distill)


class ExperimentSpec(Strict):
    """Methods of distillation, and what each of their runs may spend."""

    minutes: float = Field(gt=0, description="Wall-clock minutes of training per run.")
    teacher_tokens: int = Field(
        ge=1,
        description="Answer tokens with the teacher's signal per run; one that is read again counts again. A run ends when its "
        "minutes or its tokens are spent.",
    )
    learning_rates: tuple[float, ...] = Field(
        min_length=1, description="Each method is trained with all of them, and keeps the best by KL on the validation split."
    )
    methods: tuple[MethodSpec, ...] = Field(min_length=2, description="At least two; see below.")

    @field_validator("learning_rates")
    @classmethod
    def rates_are_positive_and_different(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if min(rates) <= 0 or len(set(rates)) < len(rates):
            raise ValueError("learning rates must be above 0 and differ")
        return tuple(sorted(rates))

    @field_validator("methods")
    @classmethod
    def names_differ(cls, methods: tuple[MethodSpec, ...]) -> tuple[MethodSpec, ...]:
        names = [method.name for method in methods]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two methods have the name {', '.join(sorted(twice))}; rename one")
        return methods
