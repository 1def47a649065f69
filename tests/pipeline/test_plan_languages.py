"""What a plan says of prompts in a language that the teacher or the encoder does not know."""

from __future__ import annotations

from support.workplace import Workplace

from factory.pipeline.plan import plan


def said(place: Workplace, german: int, english: int = 20) -> list[tuple[str, str]]:
    """Of plants.yaml with a file of so many questions."""
    rows = [f"Wie schnell wächst eine Eiche in {number} Jahren?" for number in range(german)]
    rows += [f"how fast does an oak grow in {number} years?" for number in range(english)]
    (place.domains / "plants.csv").write_text("question\n" + "".join(f'"{row}"\n' for row in rows))
    source = {"id": "plants-file", "kind": "file", "license": "mit", "path": "plants.csv"}
    place.write("plants.yaml", {"name": "plants", "description": "plants", "sources": [source]})
    steps = plan(place.context(), ["plants"], "mini")
    return [(step.state, step.detail) for step in steps if step.what == "prompts of plants"]


def test_a_share_of_prompts_in_a_language_that_is_not_known_is_a_warning(with_models: Workplace) -> None:
    assert said(with_models, german=60) == [
        ("warning", "60 of 80 (75.0%) seem to be in de (60), which the encoder (en) and the teacher (en) do not know")
    ]
    assert "seem to be in de" in " ".join(with_models.run("plan", "plants").stdout.split())


def test_a_teacher_that_knows_it_leaves_the_encoder(with_models: Workplace) -> None:
    teacher = with_models.family["teacher"] | {"languages": ["de", "en"]}
    with_models.write("default.family.yaml", with_models.family | {"teacher": teacher})
    [(_, detail)] = said(with_models, german=20)
    assert detail.endswith("seem to be in de (20), which the encoder (en) does not know")


def test_english_prompts_a_single_other_one_and_models_that_state_nothing_are_no_warning(with_models: Workplace) -> None:
    assert said(with_models, german=0) == said(with_models, german=1, english=200) == []
    stated = {name: {"model": f"path:./{name}", "license": "mit"} for name in ("teacher", "encoder")}
    with_models.write("default.family.yaml", with_models.family | stated)
    assert said(with_models, german=20) == []
