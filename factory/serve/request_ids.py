"""Every request's id: in its answer, in each line that is logged for it, and in what a client is told of a failure.

REQUEST_ID.set(request_id(headers.get(HEADER)))
logging.basicConfig(handlers=[handler_with_ids()])
"""

from __future__ import annotations

import logging
import re
import uuid
from contextvars import ContextVar

HEADER = "x-request-id"
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")  # of the request that is worked on, in its tasks and threads
TOKEN = re.compile("[A-Za-z0-9._-]{1,64}")
FORMAT = "%(levelname)s %(name)s%(of_request)s: %(message)s"


def request_id(given: str | None) -> str:
    """``request_id(headers.get(HEADER))``: the client's own where it is a short token, else a new one."""
    return given if given is not None and TOKEN.fullmatch(given) else uuid.uuid4().hex


def in_log(message: str) -> str:
    """``in_log("internal server error; the server's log says where it happened")``: with the id to look for."""
    current = REQUEST_ID.get()
    return f"{message} (request {current})" if current else message


def handler_with_ids() -> logging.Handler:
    """A log on stderr: ``ERROR factory.serve [request 4f1c…]: request failed: KeyError``."""
    handler = logging.StreamHandler()
    handler.addFilter(_add_request)
    handler.setFormatter(logging.Formatter(FORMAT))
    return handler


def _add_request(record: logging.LogRecord) -> bool:
    current = REQUEST_ID.get()
    record.of_request = f" [request {current}]" if current else ""
    return True
