"""What a browser is kept from: pages of other sites, names that were bent to this address, content that it could run.

No client of a mirror is a browser, but one may run on the same machine, beside `shoal up` or a port-forward. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Sent with every answer: whatever upstream wrote does nothing in a browser that shows it."""

_AT_HOME = frozenset({"none", "same-origin"})
"""Sec-Fetch-Site of what a person typed, and of a page of our own."""

_RUNS = re.compile(
    r"application/(?:.*[+/.-])?(?:xml|xhtml|javascript|ecmascript|pdf|wasm|x-shockwave-flash)(?:[+;].*)?"
)


def foreign(host: str, headers: Mapping[str, str], names: Collection[str]) -> str | None:
    """Why a request with Host *host* is one of a foreign web page; None: it is not.

    *names*: by which this server may be called, beside addresses and `localhost`. A page can bend its own name to
    our address (DNS rebinding), but neither an address nor our names.
    """
    if not is_ours(host, names):
        return "this server is not called by that name"
    if headers.get("Sec-Fetch-Site", "none") not in _AT_HOME:
        return "pages of other sites are not answered"
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != host:
        return "pages of other sites are not answered"
    return None


def is_ours(host: str, names: Collection[str]) -> bool:
    """Whether the Host header *host* is an address, `localhost`, or one of *names*; HTTP/1.0 may send none."""
    name = re.sub(r":\d*$", "", host.strip()).rstrip(".").lower()
    if not name or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name in {known.lower() for known in names}
    return True


def content_type(told: str) -> str:
    """Upstream's Content-Type *told*, but for types that a browser runs or renders: those become plain bytes."""
    kind = told.strip().lower()
    if not kind.startswith("application/") or _RUNS.fullmatch(kind):
        return "application/octet-stream"
    return told
