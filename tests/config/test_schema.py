"""What users write: every mistake of every file at once, each with file, line, field and what would be right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.specs import FAMILY, POOL, SOURCE, domain, family, load, mistakes, said

from factory.config import default_domains
from factory.config.load import load_specs
from factory.config.names import RESERVED
from factory.config.schema import (
    DistillConfig,
    DomainSpec,
    EmbedConfig,
    FamilySpec,
    Gate,
    HealConfig,
    OnPolicyConfig,
    SizeSpec,
)
from factory.config.settings import PRIVATE_GATES
from factory.errors import SpecError

DOMAINS = Path(__file__).parents[2] / "domains"


def test_families_domains_and_pools_are_told_apart_by_file_name(tmp_path: Path) -> None:
    specs = load(tmp_path)
    assert (list(specs.families), list(specs.domains), list(specs.pools)) == (["small"], ["law"], ["general"])
    assert specs.root == tmp_path
    assert isinstance(specs.family("small"), FamilySpec) and isinstance(specs.domain("law"), DomainSpec)


# ----------------------------------------------------------------------------------------------------- single mistakes


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"law": domain(descripton="x")}, "law.yaml: descripton: unknown key; did you mean description?"),
        (
            {"small_family": family(distill={"steps": 1, "learning_rate": 1.0, "lambda": 0.1})},
            "small.family.yaml: distill.lambda: unknown key; did you mean lmbda?",
        ),
        (
            {"law": domain(sources=[SOURCE, SOURCE | {"id": "more", "slot": {}}])},
            "law.yaml: sources.1.slot: unknown key; did you mean slots?",
        ),
        (
            {"small_family": family(profiles={"demo": {"evalute": {}}})},
            "small.family.yaml: profiles.demo.evalute: unknown key; did you mean evaluate?",
        ),
        (
            {"small_family": family(sizes={"mini": {"layer": 2}})},
            "small.family.yaml: sizes.mini.layer: unknown key; did you mean layers?",
        ),
    ],
)
def test_an_unknown_key_suggests_the_closest(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    assert [said(tmp_path, mistake) for mistake in mistakes(tmp_path, **files)] == [expected]


def test_an_unknown_key_without_a_close_match_lists_the_keys(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, law=domain(teacher_context={"zzzzz": 1}))
    assert said(tmp_path, mistake) == "law.yaml: teacher_context.zzzzz: unknown key; keys here: examples, system"


def test_an_unknown_key_in_a_source_s_context_suggests_the_closest(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, law=domain(sources=[SOURCE | {"teacher_context": {"systm": "be brief"}}]))
    assert said(tmp_path, mistake) == "law.yaml: sources.0.teacher_context.systm: unknown key; did you mean system?"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"templates": []}, "law.yaml: sources.0.templates: must have at least 1 entry"),
        ({"id": "No Name"}, "law.yaml: sources.0.id: must be lower-case letters"),
        ({"limit": 0}, "law.yaml: sources.0.limit: must be at least 1 (found 0)"),
        ({"kind": "magic"}, "law.yaml: sources.0: unknown kind; use one of templates, file, documents"),
        ({"templates": ["is {thing} red"]}, "law.yaml: sources.0: template 'is {thing} red' needs slot 'thing'"),
        ({"slots": {"thing": ["ivy"]}}, "law.yaml: sources.0: no template has the slot thing; use or remove it"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_says_where_and_why(tmp_path: Path, source: dict[str, Any], expected: str) -> None:
    [mistake] = mistakes(tmp_path, law=domain(sources=[SOURCE | source]))
    assert said(tmp_path, mistake).startswith(expected)


@pytest.mark.parametrize("name", RESERVED)
def test_a_domain_s_name_means_nothing_else(tmp_path: Path, name: str) -> None:
    [mistake] = mistakes(tmp_path, **{name: domain(name=name)})
    assert mistake.startswith(f"{name}.yaml:1: name: is reserved, as are ") and f"(found {name!r})" in mistake


def test_a_missing_key_is_named_even_where_a_kind_has_its_name(tmp_path: Path) -> None:
    without = {key: value for key, value in SOURCE.items() if key != "templates"}
    [mistake] = mistakes(tmp_path, law=domain(sources=[without]))
    assert said(tmp_path, mistake) == "law.yaml: sources.0.templates: missing; this key is required"


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    without = {key: value for key, value in FAMILY.items() if key != "heal"}
    assert mistakes(tmp_path, small_family=without) == ["small.family.yaml:1: heal: missing; this key is required"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: [law", "law.yaml:1: not valid YAML"),
        ("name: law\n\tdescription: x", "law.yaml:2: not valid YAML"),
        ("- a\n- b\n", "law.yaml:1: must be keys and values (found list)"),
        ("", "law.yaml:1: must be keys and values (found nothing)"),
    ],
)
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    found = mistakes(tmp_path, law=content)
    assert len(found) == 1 and found[0].startswith(expected)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "law.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"law\.yaml:1: cannot be read: byte 0xff is not UTF-8; save it as UTF-8"):
        load_specs(tmp_path)


def test_a_name_must_be_the_files(tmp_path: Path) -> None:
    found = mistakes(tmp_path, law=domain(name="legal"), small_family=family(name="large"))
    assert "law.yaml:1: name: must be 'law', as the file is called (found 'legal')" in found
    assert "small.family.yaml:1: name: must be 'small', as the file is called (found 'large')" in found


@pytest.mark.parametrize("name", ["../x", "a.b", "A", "a_b", "-a", "a" * 41, ""])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="String should"):
        DomainSpec.model_validate(domain(name=name))


def test_a_relation_needs_pairs(tmp_path: Path) -> None:
    [mistake] = mistakes(
        tmp_path, small_family=family(distill={"steps": 1, "learning_rate": 1.0, "relation": 0.5, "batch": 31})
    )
    assert said(tmp_path, mistake).startswith("small.family.yaml: distill: relation > 0 needs batch >= 32 (a batch of 31 has")
    assert DistillConfig(steps=1, learning_rate=1.0, relation=0.5, batch=32).relation == 0.5


@pytest.mark.parametrize("share", [0.0, 0.09, 0.95, 1.1])
def test_base_and_adapters_both_get_examples(share: float) -> None:
    with pytest.raises(ValueError, match=r"share must be 0\.1 to 0\.9, or 1 to train"):
        HealConfig(steps=1, learning_rate=1.0, share=share)
    assert [HealConfig(steps=1, learning_rate=1.0, share=fine).share for fine in (0.1, 0.9, 1)] == [0.1, 0.9, 1.0]


@pytest.mark.parametrize(
    ("over", "why"),
    [
        ({"general": 0.1}, "general has no effect here: only adapters learn general prompts; set it in distill"),
        ({"checks": 6}, "checks has no effect here: only an adapter's training is checked; set it in distill"),
        (
            {"on_policy": {"steps": 8, "learning_rate": 1e-4}},
            "on_policy has no effect here: only an adapter learns from its own samples after the others; set it in distill",
        ),
    ],
)
def test_a_base_s_healing_has_no_keys_that_are_an_adapter_s_alone(over: dict[str, Any], why: str) -> None:
    settings = {"steps": 1, "batch": 4, "learning_rate": 1e-3, **over}
    assert DistillConfig(**settings).model_dump().items() >= over.items()
    with pytest.raises(ValueError, match=re.escape(why)):
        HealConfig(**settings)


def test_own_samples_follow_with_reverse_kl_alone_at_their_own_rate() -> None:
    settings = DistillConfig(
        steps=60, learning_rate=2e-3, relation=0.05, feature=0.1, ground_truth=1, checks=6, general=0.1, rank=8,
        on_policy=OnPolicyConfig(steps=8, learning_rate=2e-4),
    )  # fmt: skip
    own = settings.own_samples()
    assert own is not None and own.own_samples() is None
    assert (own.steps, own.learning_rate, own.lmbda, own.beta, own.response) == (8, 2e-4, 1, 1, 1)
    assert (own.relation, own.feature, own.ground_truth, own.checks, own.general) == (0, 0, 0, 0, 0)
    assert (own.batch, own.rank) == (settings.batch, 8)
    assert settings.model_copy(update={"on_policy": None}).own_samples() is None


def test_checks_without_a_loss_to_measure_are_refused() -> None:
    with pytest.raises(ValueError, match="checks > 0 needs response > 0: feature and relation are not measured on validation"):
        DistillConfig(steps=1, batch=4, learning_rate=1e-3, checks=6, response=0, feature=1)


def test_a_head_on_a_handful_of_texts_is_refused() -> None:
    assert [EmbedConfig(texts=texts).texts for texts in (0, 100)] == [0, 100]
    with pytest.raises(ValueError, match=r"texts must be 0, for no head, or at least 100 \(99 are too few"):
        EmbedConfig(texts=99)


def test_an_objective_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="response, ground_truth, feature and relation are all 0"):
        DistillConfig(steps=1, learning_rate=1.0, response=0.0)


OTHER = {"model": "path:./x", "license": "mit"}


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ({}, "a size needs `vocabulary` (the teacher with fewer tokens), `layers`"),
        ({"quantization": "q4_1"}, "a size needs `vocabulary`"),
        ({"layers": 2, "base": OTHER}, "a size has either `base` or a part of the teacher (`layers`), not both"),
        ({"intermediate_size": 64, "base": OTHER}, "or a part of the teacher (`intermediate_size`), not both"),
        ({"max_bytes": "60MB", "base": OTHER}, "or a part of the teacher (`max_bytes`), not both"),
        ({"parameters": "80M", "max_bytes": "60MB"}, "a size has either `parameters` or `max_bytes`, not both"),
        ({"parameters": "80M", "layers": 2}, "`parameters` decides what is kept; leave `layers` out"),
        (
            {"max_bytes": "60MB", "layers": 2, "intermediate_size": 64},
            "`max_bytes` decides what is kept; leave `layers` and `intermediate_size` out",
        ),
        ({"intermediate_size": 100}, "intermediate_size: must be a multiple of 32 (found 100)"),
        ({"intermediate_size": 0}, "intermediate_size: must be at least 32 (found 0)"),
        ({"parameters": "80MB"}, "parameters: must be 80M, 0.08B or 80_000_000 (found '80MB')"),
        ({"max_bytes": "80M"}, "max_bytes: must be 600MB, 0.6GB or 600_000_000 (found '80M')"),
    ],
)
def test_a_size_is_of_one_kind(tmp_path: Path, size: dict[str, Any], why: str) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(sizes={"mini": size}))
    assert said(tmp_path, mistake).startswith("small.family.yaml: sizes.mini") and why in mistake


@pytest.mark.parametrize("model", ["gpt2", "hub:org/name", "pypi:package/file", "pypi:a==1/f"])
def test_a_model_is_pinned(tmp_path: Path, model: str) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(teacher={"model": model, "license": "mit"}))
    assert mistake.startswith("small.family.yaml:") and "teacher" in mistake


def test_an_unknown_default_size_lists_the_sizes(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(default_size="huge"))
    assert "default_size 'huge' is not one of the sizes: mini" in mistake


SIZES = {"mini": {"layers": 1}, "midi": {"layers": 2}}


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        ({"cascade": ["mini", "mini"]}, "serve.cascade: mini is there twice; name each step once"),
        ({"cascade": ["teacher", "mini"]}, "serve.cascade: teacher is the last to be asked; move it to the end"),
        ({"cascade": ["mini"]}, "serve: a cascade of mini alone has nobody to pass a question on to; add a step, or abstain"),
        (
            {"cascade": ["mini", "teacher"], "abstain": "Ask."},
            "serve: abstain has no effect after teacher, whose answer is always kept; leave one of them out",
        ),
        (
            {"abstain": "Ask."},
            "serve: abstain has no effect without a cascade; add cascade: [a size, ...] or leave abstain out",
        ),
        ({"cascade": ["mini", "midi"], "keep": 0}, "serve.keep: must be more than 0 (found 0)"),
        ({"cascade": ["mini", "midi"], "keep": 1.5}, "serve.keep: must be at most 1 (found 1.5)"),
        ({"cascade": "mini"}, "serve.cascade: must be a list (found 'mini')"),
    ],
)
def test_a_cascade_that_cannot_be_followed_says_why(tmp_path: Path, serve: dict[str, Any], expected: str) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(sizes=SIZES, serve=serve))
    assert said(tmp_path, mistake).startswith(f"small.family.yaml: {expected}")


@pytest.mark.parametrize(
    "serve",
    [
        {},
        {"cascade": ["mini", "teacher"]},
        {"cascade": ["mini", "midi"], "keep": 1},
        {"cascade": ["mini"], "abstain": "Ask a nurse."},
    ],
)
def test_a_cascade_ends_with_the_teacher_a_student_or_a_text(tmp_path: Path, serve: dict[str, Any]) -> None:
    found = load(tmp_path, small_family=family(sizes=SIZES, serve=serve)).family("small").serve
    assert (found.cascade, found.keep) == (tuple(serve.get("cascade", ())), serve.get("keep", 0.95))


# ------------------------------------------------------------------------------------------------------ many together


def test_all_mistakes_of_all_files_are_reported_one_a_line(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        law=domain(descripton="x", private="perhaps"),
        general_pool=POOL | {"sources": []},
        small_family=family(seed="x", router={"max_per_domain": 1}),
        other="name: [",
    )
    assert len(found) == 6
    for file, field in (
        ("law.yaml:9", "descripton"), ("law.yaml:10", "private"), ("general.pool.yaml:2", "sources"),
        ("small.family.yaml:", "seed"), ("small.family.yaml:", "router.max_per_domain"), ("other.yaml:", "not valid YAML"),
    ):  # fmt: skip
        assert [line for line in found if line.startswith(file) and field in line], (file, field)


def test_a_profile_override_that_does_not_fit_is_reported_with_its_field(tmp_path: Path) -> None:
    found = mistakes(tmp_path, small_family=family(profiles={"demo": {"distill": {"step": 3, "beta": 2}}}))
    assert sorted(said(tmp_path, mistake) for mistake in found) == [
        "small.family.yaml: profiles.demo.distill.beta: must be at most 1 (found 2)",
        "small.family.yaml: profiles.demo.distill.step: unknown key; did you mean steps?",
    ]


def test_a_size_s_own_healing_that_does_not_fit_is_reported_with_its_field(tmp_path: Path) -> None:
    found = mistakes(tmp_path, small_family=family(sizes={"mini": {"layers": 2, "heal": {"step": 3, "beta": 2}}}))
    assert sorted(said(tmp_path, mistake) for mistake in found) == [
        "small.family.yaml: sizes.mini.heal.beta: must be at most 1 (found 2)",
        "small.family.yaml: sizes.mini.heal.step: unknown key; did you mean steps?",
    ]


@pytest.mark.parametrize(
    ("size", "trimmed", "grid"),
    [
        ({"vocabulary": 300}, True, None),
        ({"vocabulary": 300, "quantization": "q5_0"}, True, "q5_0"),
        ({"layers": 2}, False, None),
        ({"intermediate_size": 64}, False, None),
        ({"layers": 2, "intermediate_size": 64, "heal": {"steps": 3}}, False, None),
        ({"parameters": 80_000_000, "heal": {"steps": 3}}, False, None),
        ({"max_bytes": "60MB"}, False, "q4_1"),
        ({"max_bytes": "60MB", "quantization": "q8_0"}, False, "q8_0"),
        ({"base": OTHER}, False, None),
    ],
)
def test_a_size_says_whether_it_is_pruned_and_what_it_is_rounded_to(size: dict[str, Any], trimmed: bool, grid: Any) -> None:
    spec = SizeSpec.model_validate(size)
    assert (spec.trimmed, spec.grid) == (trimmed, grid)


def test_what_decides_a_base_has_newer_keys_only_where_they_are_set() -> None:
    """So that the key of a base that was published before is what it was."""
    older = {"layers": 2, "vocabulary": None, "base": None}
    assert SizeSpec(layers=2, heal={"steps": 3}).dump() == older
    newer = SizeSpec(layers=2, intermediate_size=64, quantization="q4_1")
    assert newer.dump() == older | {"intermediate_size": 64, "quantization": "q4_1"}
    assert SizeSpec(parameters=80_000_000).dump() == older | {"layers": None, "parameters": 80_000_000}


def test_healing_of_a_size_that_is_not_healed_is_refused(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(sizes={"mini": {"vocabulary": 300, "heal": {"steps": 3}}}))
    assert said(tmp_path, mistake).startswith("small.family.yaml: sizes.mini: heal has no effect on a size with all")


# ---------------------------------------------------------------------------------------------------------- settings


def test_profiles_override_domains_and_domains_override_families(tmp_path: Path) -> None:
    specs = load(tmp_path, law=domain(distill={"beta": 0.9, "steps": 99}, data={"max_examples": 70, "test": 0.2}))
    small, law = specs.family("small"), specs.domain("law")
    plain = small.settings("default")
    assert (plain.distill.steps, plain.distill.beta, plain.data.max_examples) == (20, 0.5, 500)
    own = small.settings("default", law)
    assert (own.distill.steps, own.distill.beta, own.data.max_examples, own.data.test) == (99, 0.9, 70, 0.2)
    demo = small.settings("demo", law)
    assert (demo.distill.steps, demo.distill.beta, demo.data.max_examples, demo.data.test) == (3, 0.9, 50, 0.2)
    assert (demo.distill.learning_rate, demo.heal, demo.profile) == (2e-3, small.heal, "demo")


def test_a_size_s_own_healing_overrides_the_family_s_and_profiles_override_both(tmp_path: Path) -> None:
    sizes = {"mini": {"layers": 2}, "nano": {"layers": 1, "heal": {"steps": 30, "learning_rate": 5e-4}}}
    short = {"demo": {"heal": {"steps": 4}}}
    small = load(tmp_path, small_family=family(sizes=sizes, profiles=short)).family("small")
    assert small.of_size("mini").settings("default").heal == small.heal
    healed = [small.of_size("nano").settings(profile).heal for profile in ("default", "demo")]
    assert [(one.steps, one.learning_rate) for one in healed] == [(30, 5e-4), (4, 5e-4)]


def test_an_unknown_profile_names_the_profiles(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown profile 'dmo': family small has default, demo"):
        load(tmp_path).family("small").settings("dmo")


def test_an_unknown_family_domain_or_size_lists_what_exists(tmp_path: Path) -> None:
    specs = load(tmp_path)
    with pytest.raises(SpecError, match=r"unknown domain 'lw': did you mean law\? .* has law"):
        specs.domain("lw")
    with pytest.raises(SpecError, match=r"unknown family 'zzz': .* has small"):
        specs.family("zzz")
    with pytest.raises(SpecError, match=r"unknown size 'maxi': .* has mini \(small\)"):
        specs.family_of_size("maxi")
    assert specs.family_of_size("mini").name == "small"


def test_a_private_domain_is_judged_by_what_it_repeats_whatever_its_family_says(tmp_path: Path) -> None:
    loose = {"kl": {"at_most": 1}, "canaries_extracted": {"at_most": 0.5, "required": False}}
    specs = load(tmp_path, small_family=family(gates=loose), law=domain(private=True, gates={"kl": {"at_most": 2}}))
    gates = specs.family("small").gates_of(specs.domain("law"))
    assert gates == {"kl": Gate(at_most=2)} | PRIVATE_GATES
    assert all(gate.required for gate in gates.values())


def test_a_private_domain_s_own_gates_come_last_and_a_public_one_has_only_its_family_s(tmp_path: Path) -> None:
    private = domain(private=True, gates={"canaries_extracted": {"at_most": 0.1}, "verbatim_extraction_change": None})
    specs = load(tmp_path, law=private, public=domain(name="public"))
    gates = specs.family("small").gates_of(specs.domain("law"))
    assert set(gates) == {"canary_exposure_above_chance", "canaries_extracted"}
    assert gates["canaries_extracted"] == Gate(at_most=0.1)
    assert specs.family("small").gates_of(specs.domain("public")) == {}


def test_specs_are_frozen(tmp_path: Path) -> None:
    specs = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        specs.domain("law").name = "x"


# ------------------------------------------------------------------------------------------------------------ shipped

SHIPPED = load_specs(DOMAINS)
SHIPPED_DOMAINS = ["education", "healthcare", "legal"]  # a user's own may lie beside them, and be smaller


def test_without_a_domains_folder_the_shipped_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(load_specs(default_domains()).domains) == set(SHIPPED.domains)
    (tmp_path / "domains").mkdir()
    assert default_domains() == Path("domains")


def test_the_shipped_specs_are_there() -> None:
    assert set(SHIPPED.domains) >= set(SHIPPED_DOMAINS)
    assert set(SHIPPED.families) >= {"default", "gemma"} and "general" in SHIPPED.pools
    for one in SHIPPED.families.values():
        for profile in ("default", *one.profiles):
            for chosen in SHIPPED.domains.values():
                assert one.settings(profile, chosen).distill.steps >= 1


@pytest.mark.parametrize("name", SHIPPED_DOMAINS)
def test_a_shipped_domain_has_enough_distinct_prompts_and_a_description(name: str) -> None:
    from factory.data.sources import load_examples

    spec = SHIPPED.domain(name)
    assert spec.description and all(source.license for source in spec.sources)
    examples = load_examples(spec.sources, root=DOMAINS, seed=0, count_tokens=lambda text: len(text.split()))
    prompts = {example.prompt for example in examples}
    assert len(prompts) >= 800 and not any("{" in prompt or "}" in prompt for prompt in prompts)


def test_the_shipped_general_pool_has_prompts_of_its_own() -> None:
    from factory.data.sources import load_examples

    def prompts(sources: Any) -> set[str]:
        loaded = load_examples(sources, root=DOMAINS, seed=0, count_tokens=len)
        return {example.prompt.casefold() for example in loaded}

    general = prompts(SHIPPED.pools["general"].sources)
    assert len(general) >= 500
    for spec in SHIPPED.domains.values():
        assert not general & prompts(spec.sources)


def test_reading_specs_loads_no_torch() -> None:
    code = "import sys, factory.config.load; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=DOMAINS.parent, check=True)
    assert done.stdout.split() == ["False", "False"]
