"""What a browser may ask of a service on this machine or in this cluster. Pure.

A browser carries requests of any web page to any address that it can reach. A stranger's page can post to a tracker on
loopback (cross-site request). With a DNS name that suddenly means 127.0.0.1 it can read the answer (DNS rebinding).
Neither containerd nor an agent sends what gives such requests away.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from ipaddress import ip_address

_HOST = re.compile(r"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")

_INSIDE = (".localhost", ".svc", ".cluster.local", ".internal")
"""Names that no public name server gives out (RFC 6761; Kubernetes' own; ICANN keeps `.internal` for private use)."""

SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer."""


def objection(method: str, headers: Mapping[str, str], hosts: Collection[str] = ()) -> str:
    """Why a request is not answered, one line; "": nothing speaks against it. *hosts*: further names of this service.

    *headers* finds names whatever their case.
    """
    host = headers.get("Host", "")
    if host and not known_host(host, hosts):
        return "the Host header is none of this service's names"
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        return "requests of other web sites are not answered"
    if headers.get("Sec-Fetch-Site", "none") in ("cross-site", "same-site"):
        navigates = method in ("GET", "HEAD") and headers.get("Sec-Fetch-Mode") == "navigate"
        if not navigates or headers.get("Sec-Fetch-Dest") not in ("document", None):
            return "requests of other web sites are not answered"
    return ""


def known_host(host: str, hosts: Collection[str] = ()) -> bool:
    """Whether *host* (a Host header: name and port) can name a service inside, and no stranger's domain."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match["name"].lower().rstrip(".")
    if "." not in name or name.endswith(_INSIDE) or name in {known.lower() for known in hosts}:
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def is_json(content_type: str) -> bool:
    """Whether a body is declared to be JSON: a page of another site cannot send that without being allowed to first."""
    return content_type.partition(";")[0].strip().lower() == "application/json"
