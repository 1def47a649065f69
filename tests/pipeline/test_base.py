"""Bases: when a published one is used again, who teaches a small one, and what healing resumes from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.tiny import CPU
from support.workplace import BIRDS, STARS, Workplace, domain, two_contexts

from factory.config.schema import FamilySpec
from factory.errors import TrainingError, UsageError
from factory.models.base import choose_tokens, load_base
from factory.pipeline.base import publish_base
from factory.pipeline.base_choice import choose_base
from factory.pipeline.context import BuildContext, FamilyModels, resolve_models
from factory.pipeline.cutting import cut_base
from factory.pipeline.dataset import make_dataset
from factory.pipeline.healing import cut_larger, direct_path, stepwise_path
from factory.pipeline.plan import plan
from factory.registry.manifest import BaseManifest
from factory.registry.versions import Version

SIZES = {"mini": {"layers": 3, "vocabulary": 350}, "micro": {"layers": 1, "vocabulary": 350}}


def write_family(workplace: Workplace, **changes: Any) -> dict[str, Any]:
    family = workplace.family | {"sizes": SIZES} | changes
    workplace.write("default.family.yaml", family)
    return family


def models_of(context: BuildContext) -> FamilyModels:
    return resolve_models(context.family, context.specs.root, context.device)


def publish(workplace: Workplace, size: str = "mini", **more: Any) -> Version:
    context = workplace.context(**more)
    return publish_base(context, models_of(context), size)


def manifest(version: Version) -> BaseManifest:
    assert version.manifest.kind == "base"
    return version.manifest


def choice(workplace: Workplace, size: str = "mini", **more: Any) -> tuple[str | None, str]:
    context = workplace.context()
    found = choose_base(context, models_of(context).teacher_files.sha256, size, **more)
    return (found.version.reference if found.version else None), found.reason


# ----------------------------------------------------------------------------------------------------- used again, or made


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Workplace:
    """``default-mini-base@1`` in a registry; tests get copies."""
    place = Workplace(tmp_path_factory.mktemp("published"))
    place.write_all()
    shutil.copytree(models_folder, place.domains, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTORY_HOME", str(place.root / "home"))
        assert publish(place).reference == "default-mini-base@1"
    return place


@pytest.fixture
def place(published: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    shutil.copytree(published.root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    return Workplace(tmp_path)


def test_a_base_is_used_again_while_nothing_changes(place: Workplace) -> None:
    assert choice(place) == ("default-mini-base@1", "")


def test_changed_data_of_a_domain_makes_a_new_base_and_says_why(place: Workplace) -> None:
    place.write("stars.yaml", domain("stars", BIRDS))
    reference, reason = choice(place)
    assert reference is None
    assert "the data of stars changed since default-mini-base@1 was made" in reason
    assert "--base default-mini-base@1 keeps the old one" in reason


@pytest.mark.parametrize("key", ["description", "notice", "gates", "distill"])
def test_what_decides_no_rows_leaves_the_base_as_it_is(place: Workplace, key: str) -> None:
    changes = {
        "description": "other words",
        "notice": "Ask somebody.",
        "gates": {"kl": {"at_most": 1}},
        "distill": {"steps": 3},
    }
    place.write(
        "stars.yaml",
        domain("stars", STARS) | {key: changes[key]},
    )
    assert choice(place)[0] == "default-mini-base@1"


def test_a_domain_that_became_private_makes_a_new_base(place: Workplace) -> None:
    place.write(
        "stars.yaml",
        domain("stars", STARS) | {"private": True},
    )
    assert choice(place)[0] is None


def test_a_new_domain_keeps_the_published_base_unless_asked(place: Workplace) -> None:
    place.write("birds.yaml", domain("birds", BIRDS))
    reference, reason = choice(place)
    assert reference == "default-mini-base@1"
    assert "healed without birds" in reason and "--rebuild-base" in reason
    assert choice(place, rebuild=True)[0] is None


def test_other_settings_make_a_new_base_and_say_so(place: Workplace) -> None:
    place.family["heal"]["steps"] = 3
    place.write("default.family.yaml", place.family)
    assert choice(place) == (
        None,
        "default-mini-base@1 was made with other settings: making a new base (--base default-mini-base@1 keeps the old one)",
    )


def test_a_size_s_own_healing_is_its_base_s_alone(place: Workplace) -> None:
    sizes = place.family["sizes"]
    place.family["sizes"] = {"mini": sizes["mini"], "nano": {"layers": 1, "vocabulary": 350, "heal": {"steps": 1}}}
    place.write("default.family.yaml", place.family)
    assert choice(place) == ("default-mini-base@1", "")
    nano = manifest(publish(place, "nano"))
    assert nano.training.config["steps"] == 1 and nano.healing is not None and nano.healing.steps == 1
    assert choice(place, "nano") == ("default-nano-base@1", "")
    place.family["sizes"]["nano"]["heal"] = {"steps": 3}
    place.write("default.family.yaml", place.family)
    assert choice(place, "nano")[0] is None and choice(place)[0] == "default-mini-base@1"


def test_a_pinned_base_is_used_whatever_changed_and_the_line_says_what(place: Workplace) -> None:
    place.write("stars.yaml", domain("stars", BIRDS))
    reference, reason = choice(place, pinned="default-mini-base@1")
    assert reference == "default-mini-base@1"
    assert reason == "using default-mini-base@1 as --base asks, although the data of stars changed since it was made"


def test_a_pin_of_another_size_is_refused_with_what_exists(place: Workplace) -> None:
    write_family(place)
    with pytest.raises(UsageError, match=r"needs a base called default-micro-base; there are: none"):
        choice(place, "micro", pinned="default-mini-base@1")


# --------------------------------------------------------------------------------------------------------- stop and resume


class Stopped(Exception):
    pass


def watching(seen: dict[str, list[int]], stop_at: int | None = None) -> Callable[..., Any]:
    """A progress bar that notes every advance, and stops healing after so many steps."""

    @contextmanager
    def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(steps: int) -> None:
            seen.setdefault(description, []).append(steps)
            if description == "base: healing" and sum(seen[description]) == stop_at:
                raise Stopped

        yield advance

    return bar


def heal(place: Workplace, stop_at: int | None = None) -> int:
    """Steps that were on disk when healing went on; the build is stopped after ``stop_at`` steps."""
    seen: dict[str, list[int]] = {}
    try:
        publish(place, progress=watching(seen, stop_at))
        assert stop_at is None
    except Stopped:
        assert stop_at is not None
    first = seen["base: healing"][0]
    return first if first > 1 else 0


def long_healing(place: Workplace) -> None:
    place.family["heal"]["steps"] = 56  # a checkpoint is written every 50 steps
    place.write("default.family.yaml", place.family)


def test_a_stopped_healing_goes_on_and_after_an_edit_of_the_yaml_it_begins_anew(with_models: Workplace) -> None:
    long_healing(with_models)
    assert heal(with_models, stop_at=53) == 0
    original = (with_models.domains / "stars.yaml").read_text()
    with_models.write("stars.yaml", domain("stars", BIRDS))
    assert heal(with_models, stop_at=2) == 0  # other data: not from the older weights
    (with_models.domains / "stars.yaml").write_text(original)
    assert heal(with_models) == 50


def test_two_checkouts_with_one_home_never_resume_from_each_other(
    with_models: Workplace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Workplace(tmp_path_factory.mktemp("other"))
    shutil.copytree(with_models.domains, other.domains)
    other.write("stars.yaml", domain("stars", BIRDS))
    for place in (with_models, other):
        long_healing(place)
    assert heal(with_models, stop_at=53) == 0
    assert heal(other, stop_at=53) == 0
    assert heal(with_models) == 50
    assert heal(other) == 50


# ------------------------------------------------------------------------------------------------------- paths to a small base


def test_auto_tries_all_paths_and_keeps_another_than_the_direct_one_only_if_it_is_ahead(with_models: Workplace) -> None:
    write_family(with_models, path="auto")
    found = manifest(publish(with_models, "micro", force=True))  # four validation rows cannot tell 3 layers from 4
    choice = found.path_choice
    assert choice is not None and choice.teacher_assistant == "default-mini-base@1"
    assert set(choice.probes) == {"direct", "stepwise", "teacher_assistant"}
    assert all(probe.steps == 1 and probe.after["kl"].n > 0 for probe in choice.probes.values())
    assert choice.ahead is not None and (choice.chosen != "direct") == (choice.ahead.low > 0)
    assert found.path == ("teacher", *(["default-mini-base@1"] if choice.chosen != "direct" else []))
    assert "after 1 steps each" in choice.reason
    assert manifest(with_models.context().registry.resolve("default-mini-base")).path_choice is None  # nothing is larger


@pytest.mark.parametrize(("path", "chosen"), [("assistant", "teacher_assistant"), ("stepwise", "stepwise")])
def test_a_named_path_is_taken_untried_and_the_layers_are_the_original_teacher_s(
    with_models: Workplace, path: str, chosen: str
) -> None:
    write_family(with_models, path=path, sizes=SIZES | {"micro": SIZES["micro"] | {"heal": {"steps": 1}}})
    micro = manifest(publish(with_models, "micro", force=True))
    mini = manifest(with_models.context().registry.resolve("default-mini-base"))
    assert micro.path_choice is not None
    assert micro.path_choice.chosen == chosen and micro.path_choice.probes == {}
    assert micro.path == ("teacher", "default-mini-base@1")
    assert set(micro.layers or ()) < set(mini.layers or ())
    assert micro.vocabulary.kept == mini.vocabulary.kept
    assert micro.training.config["steps"] == 1 and mini.training.config["steps"] == 2
    assert choice(with_models, "micro") == ("default-micro-base@1", "")


def test_a_stepwise_base_is_cut_from_the_larger_one_and_taught_by_the_teacher(with_models: Workplace) -> None:
    write_family(with_models, path="stepwise")
    context = with_models.context(force=True)
    models = models_of(context)
    larger = publish(with_models, "mini", force=True)
    spec = context.family.sizes["micro"]
    datasets = [make_dataset(context, models, one) for one in context.public_domains]
    base = load_base(larger.folder, context.device)
    cut = cut_base(context, models, spec, datasets, base.shape.tokens)
    direct = direct_path(context, models, cut, datasets)
    path = stepwise_path(direct, cut_larger(context, cut, spec, larger))
    assert path.teacher is cut.teacher and path.training_set.examples == direct.training_set.examples
    assert path.base.shape.layers == path.layers and len(path.layers or ()) == 1
    weights, theirs = path.base.model.state_dict(), base.model.state_dict()
    place = (base.shape.layers or ()).index((path.layers or ())[0])
    name = "model.layers.{}.mlp.up_proj.weight"
    torch.testing.assert_close(weights[name.format(0)].float(), theirs[name.format(place)].float())


def test_the_direct_path_makes_no_larger_base(with_models: Workplace) -> None:
    write_family(with_models, path="direct")
    assert manifest(publish(with_models, "micro")).path == ("teacher",)
    assert [one.name for one in with_models.context().registry.versions(kind="base")] == ["default-micro-base"]


@pytest.mark.parametrize(
    ("sizes", "path", "size", "assistant"),
    [
        ({}, "auto", "micro", "mini"),
        ({}, "auto", "mini", None),
        ({}, "direct", "micro", None),
        ({}, "stepwise", "micro", "mini"),
        ({}, "assistant", "mini", None),
        ({"midi": {"layers": 2, "vocabulary": 350}}, "auto", "micro", "midi"),  # the next larger
        ({"midi": {"layers": 2, "vocabulary": 320}}, "auto", "micro", "mini"),  # other tokens
        ({"midi": {"layers": 2, "vocabulary": 350, "intermediate_size": 32}}, "auto", "micro", "mini"),  # fewer neurons
        ({"midi": {"layers": 2, "vocabulary": 350, "intermediate_size": 32}}, "auto", "midi", "mini"),
        ({"wide": {"vocabulary": 350, "intermediate_size": 32}}, "auto", "wide", None),  # states no layers
    ],
)
def test_the_assistant_is_the_next_larger_size_with_as_many_tokens(
    workplace: Workplace, sizes: dict[str, Any], path: Any, size: str, assistant: str | None
) -> None:
    family = FamilySpec.model_validate(write_family(workplace, sizes=SIZES | sizes, path=path))
    assert family.larger_size(size) == assistant


@pytest.mark.parametrize("path", [["mini"], "always", "none"])
def test_another_path_is_refused(workplace: Workplace, path: Any) -> None:
    with pytest.raises(ValidationError, match="path"):
        FamilySpec.model_validate(write_family(workplace, path=path))


# ------------------------------------------------------------------------------------------------- pre-check and warnings


def same_model(workplace: Workplace) -> None:
    """The base is the teacher itself, so that the teacher is ahead of it by nothing."""
    size = {"base": {"model": "path:./teacher", "license": "apache-2.0"}}
    write_family(workplace, sizes={"mini": size})


def test_a_teacher_that_is_not_ahead_of_the_base_is_refused_before_training(with_models: Workplace) -> None:
    same_model(with_models)
    with pytest.raises(TrainingError, match=r"teacher pre-check failed for plants: .*--force builds anyway"):
        publish(with_models)
    assert with_models.context().registry.versions() == []
    assert not (with_models.root / "home" / "heal").exists()  # not a step was trained


def test_a_base_that_healing_made_worse_warns(with_models: Workplace) -> None:
    with_models.family["heal"]["learning_rate"] = 0.3
    with_models.write("default.family.yaml", with_models.family)
    found = manifest(publish(with_models))
    assert found.healing.steps == 2 and found.healing.before["kl"].n > 0
    assert found.healing.after["kl"].value > found.healing.before["kl"].value
    (warning,) = found.warnings
    assert "closer to its teacher" in warning


# ------------------------------------------------------------------------------------------------------------------- kinds


def test_a_base_of_narrower_mlps_says_so_and_loads(with_models: Workplace) -> None:
    write_family(with_models, sizes={"mini": {"vocabulary": 350, "intermediate_size": 32}})
    version = publish(with_models)
    base = manifest(version)
    assert base.layers == (0, 1, 2, 3) and base.intermediate_size == 32 and base.healing is not None
    model: Any = load_base(version.folder, CPU).model
    assert model.config.intermediate_size == model.model.layers[3].mlp.down_proj.in_features == 32
    assert "neurons kept of every MLP" in with_models.run("show", "default-mini-base", "--all-metrics").stdout
    assert choice(with_models) == ("default-mini-base@1", "")


def test_a_budget_of_parameters_is_spent_on_the_depth_and_width_that_lose_least(with_models: Workplace) -> None:
    write_family(with_models, sizes={"mini": {"vocabulary": 350, "parameters": 40_000}})
    base = manifest(publish(with_models, force=True))  # too close to this teacher to be taught by it
    found = base.size_choice
    assert found is not None and base.parameters <= 40_000
    assert [(one.layers, one.intermediate_size) for one in found.candidates] == [(4, 32), (3, 64)]
    best = min(found.candidates, key=lambda one: one.kl)
    assert found.candidates[found.chosen] == best and best.parameters == base.parameters
    assert len(base.layers or ()) == best.layers and best.vocabulary == base.vocabulary.kept
    shown = with_models.run("show", "default-mini-base", "--all-metrics").stdout
    assert "why this size" in shown and "4 layers, 32 neurons" in shown


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ({"layers": 5}, "a student of 5 layers cannot be cut from a teacher of 4 layers"),
        ({"intermediate_size": 64}, "an MLP of 64 neurons cannot be cut from a teacher's of 64; keep fewer"),
        ({"parameters": "1M"}, r"1,000,000 parameters hold the whole teacher with 360 tokens \(48,672\)"),
        (
            {"parameters": 9_000},
            r"9,000 parameters do not hold a layer of the teacher with 360 tokens \(.*\): give more",
        ),
    ],
)
def test_a_size_that_the_teacher_does_not_hold_is_refused_by_plan_and_build(
    size: dict[str, Any], why: str, with_models: Workplace
) -> None:
    write_family(with_models, sizes={"mini": size})
    for refused in (lambda: plan(with_models.context(), ["plants"], "mini"), lambda: publish(with_models)):
        with pytest.raises(TrainingError, match=why):
            refused()
    assert not (with_models.root / "home" / "data").exists()  # nothing was made for it


# ----------------------------------------------------------------------------------------------------------------- trimmed


def trimmed_family(workplace: Workplace, **changes: Any) -> None:
    write_family(workplace, sizes={"full": {"vocabulary": 350}}, default_size="full", **changes)


def test_a_trimmed_base_is_the_teacher_with_fewer_tokens_and_needs_no_answers(with_models: Workplace) -> None:
    trimmed_family(with_models)
    base = manifest(publish(with_models, "full"))
    teacher = models_of(with_models.context()).teacher
    depth = teacher.config.num_hidden_layers
    assert base.layers == tuple(range(depth)) and base.healing is None and base.training.examples == 0
    assert base.parameters == teacher.parameters - (len(teacher.tokenizer) - base.vocabulary.kept) * teacher.config.hidden_size
    assert base.vocabulary.kept <= 350 and 0.5 < base.vocabulary.kept_mass <= 1
    assert not (with_models.root / "home" / "data").exists()  # no data set was made for it


@pytest.mark.parametrize("size", [{"vocabulary": 350}, {"layers": 2, "vocabulary": 350}], ids=["trimmed", "pruned"])
def test_a_base_of_a_quantized_size_is_on_its_grid_and_says_what_that_costs(
    size: dict[str, Any], with_models: Workplace
) -> None:
    sizes = {"plain": size, "small": size | {"quantization": "q4_0"}}
    write_family(with_models, sizes=sizes, default_size="plain", path="direct")
    version = publish(with_models, "small")
    base = manifest(version)
    assert base.quantization == "q4_0" and base.quantization_kl is not None and base.quantization_kl > 0
    model: Any = load_base(version.folder, CPU).model
    blocks = model.model.layers[0].mlp.gate_proj.weight.detach().reshape(-1, 32)
    assert max(len(block.unique()) for block in blocks) <= 16  # 4 bits
    shown = with_models.run("show", "default-small-base", "--all-metrics")
    assert "q4_0; KL" in shown.stdout
    assert choice(with_models, "small") == ("default-small-base@1", "")
    write_family(with_models, sizes=sizes | {"small": size}, default_size="plain", path="direct")
    assert choice(with_models, "small")[0] is None  # another grid, another base


def test_a_build_on_a_trimmed_base_makes_only_the_data_of_its_domain(with_models: Workplace) -> None:
    trimmed_family(with_models)
    built = with_models.run("build", "plants", "--json")
    assert built.exit_code == 0, built.output
    [student] = json.loads(built.stdout)
    assert {path.name.split("-")[0] for path in (with_models.root / "home" / "data").iterdir()} == {"plants"}
    assert student["training"]["examples"] == student["dataset"]["counts"]["train"]
    assert any("the adapter has little to learn" in warning for warning in student["warnings"])  # it has no context
    metrics = student["evaluation"]["metrics"]
    assert metrics["base_kl"]["value"] == pytest.approx(0, abs=2e-3)  # the base is the teacher, which sees no context either
    shown = with_models.run("show", "default-full-base")
    assert shown.exit_code == 0 and "healing" not in shown.stdout


def test_a_trimmed_base_is_used_again_whatever_data_and_healing_settings_become(with_models: Workplace) -> None:
    trimmed_family(with_models)
    publish(with_models, "full")
    trimmed_family(with_models, heal=with_models.family["heal"] | {"steps": 3})
    with_models.write("stars.yaml", domain("stars", STARS) | {"teacher_context": {"system": "be brief"}})
    with_models.write("birds.yaml", domain("birds", BIRDS))
    assert choice(with_models, "full") == ("default-full-base@1", "")
    trimmed_family(with_models, seed=3)
    assert choice(with_models, "full")[0] is None


def test_the_plan_for_a_trimmed_base_has_no_other_domain(with_models: Workplace) -> None:
    trimmed_family(with_models)
    steps = {step.what: step for step in plan(with_models.context(), ["plants"], "full")}
    assert "data set plants" in steps and "data set stars" not in steps
    assert "nothing to heal" in steps["base default-full-base"].detail


@pytest.mark.parametrize("module", ["cutting", "trimmed"])
def test_tokens_are_chosen_by_the_contexts_of_domains_and_of_sources(
    module: str, with_models: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def remember(teacher: Any, chosen_by: list[str], size: Any) -> Any:
        texts.extend(chosen_by)
        return choose_tokens(teacher, chosen_by, size)

    monkeypatch.setattr(f"factory.pipeline.{module}.choose_tokens", remember)
    if module == "trimmed":
        trimmed_family(with_models)
    with_models.write("plants.yaml", two_contexts(teacher_context={"system": "be long"}))
    publish(with_models, "full" if module == "trimmed" else "mini")
    assert (texts.count("be brief"), texts.count("be long")) == (1, 1)
