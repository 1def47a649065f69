"""What clients see of failures, and what only the log sees."""

from __future__ import annotations

import logging

import pytest

from factory.errors import FactoryError, ModelResolutionError, RegistryError, ServeError, StorageError
from factory.serve.errors import UNAVAILABLE, as_api_error
from factory.serve.limits import APIError


@pytest.mark.parametrize("kind", [ServeError, RegistryError, ModelResolutionError, StorageError])
def test_a_client_sees_no_path_of_the_server_and_the_log_sees_all(
    kind: type[FactoryError], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "factory.serve"):
        found = as_api_error(kind("cannot write /srv/factory/serve/adapter.gguf"))
    assert (found.status, found.body()["error"]["message"]) == (503, UNAVAILABLE)
    assert "/srv" not in str(found.body()) and "cannot write /srv/factory/serve/adapter.gguf" in caplog.text


def test_what_a_client_can_mend_is_said_to_it() -> None:
    error = APIError(400, "max_tokens is 0; ask for more", code="invalid_value")
    assert as_api_error(error) is error
