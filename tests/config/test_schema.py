"""What users write: every mistake of every file at once, each with file, line, field and what would be right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.config import default_domains
from factory.config.load import load_specs
from factory.config.schema import DistillConfig, DomainSpec, FamilySpec, Gate, HealConfig, Specs
from factory.config.settings import PRIVATE_GATES
from factory.errors import SpecError

DOMAINS = Path(__file__).parents[2] / "domains"
SOURCE: dict[str, Any] = {"id": "prompts", "kind": "templates", "license": "CC0-1.0", "templates": ["what is light"]}
FAMILY: dict[str, Any] = {
    "name": "small",
    "teacher": {"model": "path:./teacher", "license": "apache-2.0"},
    "encoder": {"model": "path:./encoder", "license": "apache-2.0"},
    "sizes": {"mini": {"layers": 2}},
    "default_size": "mini",
    "general": "general",
    "data": {"max_examples": 500},
    "heal": {"steps": 10, "learning_rate": 1e-3},
    "distill": {"steps": 20, "learning_rate": 2e-3, "beta": 0.5},
    "profiles": {"demo": {"distill": {"steps": 3}, "data": {"max_examples": 50}}},
}
DOMAIN: dict[str, Any] = {"name": "law", "description": "questions on law", "sources": [SOURCE]}
POOL: dict[str, Any] = {"name": "general", "sources": [SOURCE]}


def family(**over: Any) -> dict[str, Any]:
    return FAMILY | over


def domain(**over: Any) -> dict[str, Any]:
    return DOMAIN | over


def load(folder: Path, **files: Any) -> Specs:
    """``load(tmp_path, law=domain())``: a family, a domain and a pool, with these files instead or beside them."""
    whole = {"small.family": FAMILY, "law": DOMAIN, "general.pool": POOL} | {k.replace("_", "."): v for k, v in files.items()}
    for name, content in whole.items():
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_specs(folder)


def mistakes(folder: Path, **files: Any) -> list[str]:
    with pytest.raises(SpecError) as raised:
        load(folder, **files)
    return str(raised.value).replace(f"{folder}/", "").splitlines()


def test_families_domains_and_pools_are_told_apart_by_file_name(tmp_path: Path) -> None:
    specs = load(tmp_path)
    assert (list(specs.families), list(specs.domains), list(specs.pools)) == (["small"], ["law"], ["general"])
    assert specs.root == tmp_path
    assert isinstance(specs.family("small"), FamilySpec) and isinstance(specs.domain("law"), DomainSpec)


def said(folder: Path, mistake: str) -> str:
    """The mistake without its line number, after a look that the line is the one that it is about."""
    file, number, field, message = mistake.split(":", 3)
    line = (folder / file).read_text().splitlines()[int(number) - 1]
    named = [part for part in field.strip().split(".") if not part.isdigit()]
    assert any(f"{part}:" in line for part in named) or line.startswith("- id:"), (mistake, line)
    return f"{file}:{field}:{message}"


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
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_says_where_and_why(tmp_path: Path, source: dict[str, Any], expected: str) -> None:
    [mistake] = mistakes(tmp_path, law=domain(sources=[SOURCE | source]))
    assert said(tmp_path, mistake).startswith(expected)


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
    with pytest.raises(SpecError, match=r"law\.yaml: cannot be read"):
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


def test_only_adapters_learn_general_prompts() -> None:
    assert DistillConfig(steps=1, batch=4, learning_rate=1e-3, general=0.1).general == 0.1
    with pytest.raises(ValueError, match="general has no effect here: only adapters learn general prompts; set it in distill"):
        HealConfig(steps=1, batch=4, learning_rate=1e-3, general=0.1)


def test_only_an_adapter_s_training_is_checked() -> None:
    assert DistillConfig(steps=1, batch=4, learning_rate=1e-3, checks=6).checks == 6
    with pytest.raises(ValueError, match="checks has no effect here: only an adapter's training is checked; set it in distill"):
        HealConfig(steps=1, batch=4, learning_rate=1e-3, checks=6)


def test_checks_without_a_loss_to_measure_are_refused() -> None:
    with pytest.raises(ValueError, match="checks > 0 needs response > 0: feature and relation are not measured on validation"):
        DistillConfig(steps=1, batch=4, learning_rate=1e-3, checks=6, response=0, feature=1)


def test_an_objective_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="response, ground_truth, feature and relation are all 0"):
        DistillConfig(steps=1, learning_rate=1.0, response=0.0)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ({}, "a size needs `vocabulary` (the teacher with fewer tokens), `layers`"),
        ({"layers": 2, "base": {"model": "path:./x", "license": "mit"}}, "a size has either `layers`"),
    ],
)
def test_a_size_is_pruned_or_named(tmp_path: Path, size: dict[str, Any], why: str) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(sizes={"mini": size}))
    assert said(tmp_path, mistake).startswith("small.family.yaml: sizes.mini: ") and why in mistake


@pytest.mark.parametrize("model", ["gpt2", "hub:org/name", "pypi:package/file", "pypi:a==1/f"])
def test_a_model_is_pinned(tmp_path: Path, model: str) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(teacher={"model": model, "license": "mit"}))
    assert mistake.startswith("small.family.yaml:") and "teacher" in mistake


def test_an_unknown_default_size_lists_the_sizes(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(default_size="huge"))
    assert "default_size 'huge' is not one of the sizes: mini" in mistake


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


def test_healing_of_a_size_that_is_not_healed_is_refused(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(sizes={"mini": {"vocabulary": 300, "heal": {"steps": 3}}}))
    assert said(tmp_path, mistake).startswith("small.family.yaml: sizes.mini: heal has no effect on a size with all")


def test_a_domain_override_that_does_not_fit_is_reported_with_its_family(tmp_path: Path) -> None:
    found = mistakes(tmp_path, law=domain(distill={"lambda": 0.1}, data={"test": 0.9}))
    assert sorted(said(tmp_path, mistake) for mistake in found) == [  # not once more for every profile
        "law.yaml: data.test: must be less than 0.5 (found 0.9) (with family small)",
        "law.yaml: distill.lambda: unknown key; did you mean lmbda? (with family small)",
    ]


def test_a_domain_override_that_fits_all_but_one_profile_names_the_profile(tmp_path: Path) -> None:
    few = family(profiles={"demo": {"distill": {"batch": 8}}})
    [mistake] = mistakes(tmp_path, small_family=few, law=domain(distill={"relation": 1.0}))
    assert said(tmp_path, mistake).startswith("law.yaml: distill: relation > 0 needs batch >= 32")
    assert mistake.endswith("(with family small, profile demo)")


def test_a_size_of_two_families_is_refused(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, other_family=family(name="other"))
    assert said(tmp_path, mistake) == "small.family.yaml: sizes.mini: family other has this size, too; rename one"


def test_a_missing_general_pool_lists_the_pools(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(general="generel"))
    assert said(tmp_path, mistake) == "small.family.yaml: general: no generel.pool.yaml; pools here: general"


def test_a_source_id_used_twice_is_refused(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, law=domain(sources=[SOURCE, SOURCE]))
    assert said(tmp_path, mistake) == "law.yaml: sources: two sources have the id 'prompts'; rename one"


def test_a_source_id_of_a_domain_and_of_a_router_s_pool_is_refused(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(pool=[SOURCE]))
    assert said(tmp_path, mistake) == "law.yaml: sources.0.id: a source in the pool of family small has this id; rename one"


# ---------------------------------------------------------------------------------------------------- contexts of sources

BRIEF: dict[str, Any] = {"teacher_context": {"system": "be brief"}}
LETTERS = {"id": "letters", "kind": "documents", "license": "CC0-1.0", "path": "letters"}


def test_a_source_s_context_stands_in_for_the_domain_s_and_an_empty_one_shows_nothing(tmp_path: Path) -> None:
    sources = [SOURCE | BRIEF, SOURCE | {"id": "bare", "teacher_context": {}}, SOURCE | {"id": "other"}]
    law = load(tmp_path, law=domain(sources=sources, teacher_context={"system": "be long"})).domain("law")
    shown = {source: law.contexts.of(source).system for source in ("prompts", "bare", "other", None)}
    assert shown == {"prompts": "be brief", "bare": "", "other": "be long", None: "be long"}
    assert [context.system for context in law.contexts.all] == ["be long", "be brief", ""]


def test_a_domain_without_contexts_of_sources_is_dumped_as_before_there_were_any(tmp_path: Path) -> None:
    law = load(tmp_path).domain("law")
    assert "teacher_context" not in law.model_dump()["sources"][0]
    assert law.contexts.dump() == law.teacher_context.model_dump()
    shown = domain(sources=[SOURCE | BRIEF])
    assert DomainSpec.model_validate(DomainSpec.model_validate(shown).model_dump()).contexts.of("prompts").system == "be brief"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"general_pool": POOL | {"sources": [SOURCE | BRIEF]}},
         "general.pool.yaml: sources.0.teacher_context: the teacher answers a pool's prompts without a context; remove it"),
        ({"small_family": family(pool=[SOURCE | BRIEF | {"id": "unsorted"}])},
         "small.family.yaml: pool.0.teacher_context: the teacher is shown the context of the domain that a text is sent to; "
         "remove it"),
        ({"law": domain(sources=[SOURCE, LETTERS | BRIEF])},
         "law.yaml: sources.1.teacher_context: documents have no prompts that a context could precede; remove it"),
    ],
    ids=["general pool", "router's pool", "documents"],
)  # fmt: skip
def test_a_context_that_no_teacher_would_be_shown_is_refused(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    [mistake] = mistakes(tmp_path, **files)
    assert said(tmp_path, mistake) == expected


def test_an_empty_folder_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no \*\.yaml in .*; name another folder with --domains"):
        load_specs(tmp_path)


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


# ------------------------------------------------------------------------------------------------------------ renamed


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"law": domain(acceptance="law.jsonl")}, "law.yaml: acceptance: `acceptance` is now `golden_set`"),
        ({"law": domain(pairs=["law.yaml"])}, "law.yaml: pairs: `pairs` is now `bias_pairs`"),
        ({"small_family": family(cascade="auto")}, "small.family.yaml: cascade: `cascade` is now `path`"),
    ],
)
def test_an_old_key_names_the_new_one_and_the_command_that_renames_it(tmp_path: Path, files: Any, expected: str) -> None:
    [mistake] = mistakes(tmp_path, **files)
    assert said(tmp_path, mistake) == f"{expected}; `factory validate --fix` renames it"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": "x"}, "seed: must be a whole number (found 'x')"),
        ({"seed": 1.5}, "seed: must be a whole number (found 1.5)"),
        ({"heal": {"steps": 1, "learning_rate": "fast"}}, "heal.learning_rate: must be a number (found 'fast')"),
        ({"heal": 3}, "heal: must be keys and values (found 3)"),
        ({"pool": "texts"}, "pool: must be a list (found 'texts')"),
        ({"description": 3}, "description: must be text; put it in quotes (found 3)"),
        ({"description": True}, "description: must be text; put it in quotes (found true: also an unquoted yes or on)"),
        ({"description": None}, "description: must be text; put it in quotes (found null: also an empty value)"),
        ({"sizes": {"Mini": {"layers": 2}, "mini": {"layers": 2}}}, "sizes.Mini: must be lower-case letters"),
        ({"gates": {"kl": {"at_most": 1, "of": "mean"}}}, "gates.kl.of: must be 'value', 'low' or 'high' (found 'mean')"),
        ({"encoder": {"model": "gpt2", "license": "mit"}}, "encoder.model: must be hub:org/name@revision, pypi:"),
        ({"encoder": {"model": "path:x", "license": "mit", "sha256": "1"}}, "encoder.sha256: must be 64 hexadecimal digits"),
    ],
)
def test_mistakes_are_said_in_plain_english(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(**changes))
    assert said(tmp_path, mistake).startswith(f"small.family.yaml: {expected}")


def test_a_key_of_several_types_has_one_message(tmp_path: Path) -> None:
    [path] = mistakes(tmp_path, small_family=family(path="always"))
    assert said(tmp_path, path) == "small.family.yaml: path: must be auto, none or a list of sizes (found 'always')"
    [fallback] = mistakes(tmp_path, small_family=family(serve={"fallback": "No One"}))
    assert "serve.fallback: must be teacher, refuse or the name of a student" in fallback


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
