"""Which names a request may call this server by, and which web pages may send it requests.

check_host(scope, frozenset({"127.0.0.1", "factory.example"}))
check_origin(scope)

A page of any site can make its own name point to this machine (DNS rebinding) and then read what the server answers. The
request's ``Host`` gives it away. A page that posts here without having tricked DNS is given away by its ``Origin``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Set
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from factory.serve.limits import APIError

SHOWN = 100  # characters of a header in a message


def is_loopback(host: str) -> bool:
    """``is_loopback("127.0.0.1")``: whether only this machine can connect to the host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(authority: str) -> str:
    """``host_name("[::1]:8000")`` → "::1": lower case, without the port; "" where there is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:  # brackets that do not close
        return ""


def check_host(scope: Scope, allowed: Set[str]) -> None:
    """Raises: APIError 403 unless the host is this machine, the address that was connected to, or one of ``allowed``."""
    given = Headers(scope=scope).get("host", "")
    name, address = host_name(given), (scope.get("server") or ("",))[0]
    if not (is_loopback(name) or (name and name == address) or name in allowed):
        message = f"host {given[:SHOWN]!r} is not a name of this server; restart it with --allowed-host NAME if it should be"
        raise APIError(403, message, code="host_not_allowed")


def check_origin(scope: Scope) -> None:
    """Raises: APIError 403 for a request that another site's page sends; this server's own page has its host as origin."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is not None and _netloc(origin) != headers.get("host", "").lower():
        message = f"origin {origin[:SHOWN]!r} is not this server's own page; other sites' pages may not call it"
        raise APIError(403, message, code="origin_not_allowed")


def _netloc(origin: str) -> str | None:
    """``_netloc("http://127.0.0.1:8000")`` → "127.0.0.1:8000"; None for "null" and anything that is not a URL."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
