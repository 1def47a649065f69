"""What the README says is so: its YAML is valid, its commands exist, its tree names every module."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from typer.main import get_command

from factory.cli.commands import app
from factory.config.schema import DomainSpec
from factory.data.sources import load_examples

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_domain_in_full_is_a_valid_domain() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    domain = yaml.safe_load(blocks[0])
    assert DomainSpec.model_validate(domain).name == "veterinary"
    assert set(DomainSpec.model_validate(domain | yaml.safe_load(blocks[1])).gates) == {"kl", "bias_preference_change"}


def test_every_command_is_in_the_readme_and_every_command_there_exists() -> None:
    blocks = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    named = {name for block in blocks for name in re.findall(r"^factory (\w+)", block, re.MULTILINE)}
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert named == commands


def test_the_tree_names_every_module_and_nothing_else() -> None:
    tree = README.partition("## The tree")[2]
    for path in (ROOT / "factory").rglob("*.py"):
        if path.stem != "__init__":
            assert re.search(rf"\b{path.stem}\b", tree), f"{path.stem} is not in the README's tree"
    for name in re.findall(r"^  (\w+\.py)", tree, re.MULTILINE):
        assert (ROOT / "factory" / name).exists(), f"the README's tree has {name}, factory/ has not"


def test_paths_that_the_readme_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_domain_behind_the_figures_loads_is_small_and_has_prompts() -> None:
    text = (ROOT / "scripts" / "veterinary.yaml").read_text(encoding="utf-8")
    domain = DomainSpec.model_validate(yaml.safe_load(text))
    assert len(text.splitlines()) < 40
    assert len(load_examples(domain.sources, root=ROOT, seed=0, count_tokens=len)) == 12 * 24
