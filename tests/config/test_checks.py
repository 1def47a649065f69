"""What a file cannot say of itself: whether what it names exists, and whether it fits the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.specs import POOL, SOURCE, domain, family, load, mistakes, said

from factory.config.schema import DomainSpec

GIANT = {"api": "https://api.example/v1", "model": "big"}


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


def test_a_pool_with_mistakes_of_its_own_is_not_missing(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, general_pool=POOL | {"sources": []})
    assert mistake.startswith("general.pool.yaml:2: sources")


def test_two_students_of_one_name_are_refused(tmp_path: Path) -> None:
    sizes = {"mini": {"layers": 2}, "eu-mini": {"layers": 1}}
    [mistake] = mistakes(tmp_path, small_family=family(sizes=sizes), **{"law-eu": domain(name="law-eu")})
    assert said(tmp_path, mistake) == (
        "law.yaml: name: domain law with size eu-mini and domain law-eu with size mini are both called law-eu-mini; rename one"
    )


def test_a_source_id_used_twice_is_refused(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, law=domain(sources=[SOURCE, SOURCE]))
    assert said(tmp_path, mistake) == "law.yaml: sources: two sources have the id 'prompts'; rename one"


def test_a_source_id_of_a_domain_and_of_a_router_s_pool_is_refused(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(pool=[SOURCE]))
    assert said(tmp_path, mistake) == "law.yaml: sources.0.id: a source in the pool of family small has this id; rename one"


@pytest.mark.parametrize(
    ("step", "hint"),
    [("mnii", "did you mean mini? "), ("techer", "did you mean teacher? "), ("huge", "")],
)
def test_an_unknown_step_of_a_cascade_suggests_the_closest(tmp_path: Path, step: str, hint: str) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(serve={"cascade": ["mini", step]}))
    where, _, message = mistake.partition(": serve.cascade.1: ")
    assert message == f"no size {step!r}; {hint}sizes here: mini; the last step may be teacher"
    assert (tmp_path / "small.family.yaml").read_text().splitlines()[int(where.partition(":")[2]) - 1].endswith(f"- {step}")


def test_a_model_elsewhere_may_be_the_last_step_and_no_name_means_two_things(tmp_path: Path) -> None:
    load(tmp_path, small_family=family(models={"giant": GIANT}, serve={"cascade": ["mini", "giant"]}))
    [mistake] = mistakes(tmp_path, small_family=family(models={"giant": GIANT}, serve={"cascade": ["mini", "gaint"]}))
    assert mistake.endswith("no size 'gaint'; did you mean giant? sizes here: mini; the last step may be teacher or giant")
    for name, what in (("mini", "a size"), ("law", "a domain"), ("law-mini", "a student"), ("auto", "reserved")):
        [mistake] = mistakes(tmp_path, small_family=family(models={name: GIANT}))
        assert said(tmp_path, mistake) == f"small.family.yaml: models.{name}: {name} is {what}, too; rename one"


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        ({"cascade": ["mini", "giant", "teacher"]}, "cascade.1: giant is a model elsewhere, the last to be asked; move it"),
        (
            {"cascade": ["mini", "giant"], "abstain": "Ask."},
            "abstain: abstain has no effect after giant, whose answer is always",
        ),
        (
            {"fallback": "giant"},
            "fallback: giant is a model elsewhere, which only a cascade may end with; name teacher, refuse",
        ),
    ],
)
def test_a_model_elsewhere_does_nothing_but_end_a_cascade(tmp_path: Path, serve: dict[str, Any], expected: str) -> None:
    [mistake] = mistakes(tmp_path, small_family=family(models={"giant": GIANT}, serve=serve))
    assert f": serve.{expected}" in mistake


def test_a_domain_called_as_a_student_is_refused_where_domains_have_cascades(tmp_path: Path) -> None:
    both = {"law-mini": domain(name="law-mini", sources=[SOURCE | {"id": "others"}])}
    load(tmp_path, **both)
    [mistake] = mistakes(tmp_path, small_family=family(serve={"cascade": ["mini", "teacher"]}), **both)
    assert said(tmp_path, mistake) == (
        "law-mini.yaml: name: law-mini is the student of domain law with size mini, and would be the cascade of this domain, "
        "too; rename one"
    )


# ------------------------------------------------------------------------------------------------------ files that are named


@pytest.mark.parametrize("key", ["law", "small_family", "general_pool"])
def test_a_source_without_its_file_or_folder_is_refused(tmp_path: Path, key: str) -> None:
    rows = {"id": "rows", "kind": "file", "license": "CC0-1.0", "path": "data/rows.jsonl"}
    content, where = {"law": (domain(), "sources"), "small_family": (family(), "pool"), "general_pool": (POOL, "sources")}[key]
    files = {key: content | {where: [rows, LETTERS]}}
    found = [mistake.replace(f"{tmp_path}/", "").partition(": ")[2] for mistake in mistakes(tmp_path, **files)]
    assert found == [
        f"{where}.0.path: no file data/rows.jsonl; paths are relative to {tmp_path}",
        f"{where}.1.path: no folder or document letters; paths are relative to {tmp_path}",
    ]
    (tmp_path / "data" / "rows.jsonl").mkdir(parents=True)  # a folder is no file, and a file no folder
    (tmp_path / "letters").touch()
    assert len(mistakes(tmp_path, **files)) == 2
    (tmp_path / "data" / "rows.jsonl").rmdir()
    (tmp_path / "data" / "rows.jsonl").touch()
    (tmp_path / "letters").unlink()
    (tmp_path / "letters").mkdir()
    assert load(tmp_path, **files)


def test_a_pattern_or_a_home_is_looked_for_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    rows = {"id": "rows", "kind": "file", "license": "CC0-1.0", "path": "data/*.jsonl"}
    law = domain(sources=[rows, LETTERS | {"path": "~/letters/*.txt"}])
    (tmp_path / "data" / "a.jsonl").mkdir(parents=True)  # a folder is no file
    where = f"paths are relative to {tmp_path}"
    assert mistakes(tmp_path, law=law) == [
        f"law.yaml:7: sources.0.path: no file matches data/*.jsonl; {where}",
        f"law.yaml:11: sources.1.path: no folder or document matches me/letters/*.txt; {where}",
    ]
    (tmp_path / "data" / "b.jsonl").touch()
    (tmp_path / "me" / "letters").mkdir(parents=True)
    (tmp_path / "me" / "letters" / "a.txt").touch()
    assert load(tmp_path, law=law)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "law.yaml/x"], ids=["too long", "NUL", "below a file"])
def test_a_name_that_no_file_can_have_is_that_of_a_missing_one(tmp_path: Path, name: str) -> None:
    rows = {"id": "rows", "kind": "file", "license": "CC0-1.0", "path": name}
    found = mistakes(tmp_path, law=domain(sources=[rows, LETTERS | {"path": name}], golden_set=name, tasks=[f"{name}.yaml"]))
    keys = [mistake.partition(": ")[2].partition(": ")[0] for mistake in found]
    assert keys == ["sources.0.path", "sources.1.path", "tasks", "golden_set"]


@pytest.mark.parametrize("task", ["none.yaml", "evals/none.yml", "evals/none"])
def test_a_task_file_that_is_not_there_is_refused(tmp_path: Path, task: str) -> None:
    [mistake] = mistakes(tmp_path, law=domain(tasks=["gsm8k", task]))
    assert f": tasks: no file {task}; paths are relative to" in mistake


def test_a_task_file_with_a_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "quiz.yaml").write_text("task: quiz\nrepeats: 1\nrepeats: 2\n")
    [mistake] = mistakes(tmp_path, law=domain(tasks=["evals/quiz.yaml"]))
    assert said(tmp_path, mistake) == (
        "law.yaml: tasks: evals/quiz.yaml:3: repeats: this key is in line 2, too; remove one of them"
    )
    (tmp_path / "evals" / "quiz.yaml").write_text("task: quiz")
    assert load(tmp_path, law=domain(tasks=["evals/quiz.yaml"]))


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
    (tmp_path / "letters").mkdir()
    [mistake] = mistakes(tmp_path, **files)
    assert said(tmp_path, mistake) == expected
