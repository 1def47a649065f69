"""``factory new``: the YAML is valid for any name, and large enough to split, train and test on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from factory.config.load import load_specs
from factory.config.new_domain import MAX_NAME, new_domain
from factory.config.schema import DataConfig, DomainSpec, TemplateSource
from factory.data.sources import load_examples
from factory.data.splitting import split_examples
from factory.errors import FactoryError, RegistryError, SpecError

NAMES = ["veterinary", "home-brewing", "no", "null", "a1", "x" * MAX_NAME]


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_valid_for_any_name(name: str, tmp_path: Path) -> None:
    path = new_domain(name, tmp_path / "domains")
    spec = DomainSpec.model_validate(yaml.safe_load(path.read_text()))
    assert (spec.name, path.name) == (name, f"{name}.yaml")


def test_it_has_enough_templates_and_values_and_stays_short(tmp_path: Path) -> None:
    text = new_domain("veterinary", tmp_path).read_text()
    assert len(text.splitlines()) < 60
    source = DomainSpec.model_validate(yaml.safe_load(text)).sources[0]
    assert isinstance(source, TemplateSource)
    assert len(source.templates) >= 10
    assert len(source.slots["aspect"]) >= 12
    assert text.count("# replace") >= 3


def test_its_prompts_can_be_split(tmp_path: Path) -> None:
    spec = DomainSpec.model_validate(yaml.safe_load(new_domain("veterinary", tmp_path).read_text()))
    examples = load_examples(spec.sources, root=tmp_path, seed=0, count_tokens=lambda text: len(text.split()))
    split = split_examples(examples, DataConfig(), 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (112, 6, 15)


def test_a_folder_that_does_not_exist_is_filled_with_the_shipped_families(tmp_path: Path) -> None:
    new_domain("veterinary", tmp_path / "domains")
    specs = load_specs(tmp_path / "domains")
    assert {"default", "gemma"} <= set(specs.families) and {"healthcare", "veterinary"} <= set(specs.domains)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "legal.yaml").write_text("mine")
    with pytest.raises(SpecError, match="exists; edit it"):
        new_domain("legal", tmp_path)
    assert (tmp_path / "legal.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "Vet", "a b", "", "a_b", "default.family", "teacher", "none", "x" * (MAX_NAME + 1)])
def test_a_bad_name_is_refused_and_writes_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(FactoryError) as caught:
        new_domain(name, tmp_path)
    assert isinstance(caught.value, RegistryError | SpecError)
    assert list(tmp_path.iterdir()) == []
