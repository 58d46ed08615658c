"""Which proxy stands between the agent and a host: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY. Pure.

The rules are those of Go's net/http, which containerd, kubelet and Docker obey, so that one environment means the
same to all of them (golang.org/x/net/http/httpproxy).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from yarl import URL

from mirror.errors import ProxyInvalid

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Proxies:
    """The proxies of one agent; an immutable value."""

    http: URL | None = field(default=None, repr=False)
    """For http URLs; user and password inside are for the proxy alone."""

    https: URL | None = field(default=None, repr=False)
    """For https URLs, by CONNECT."""

    bypass: tuple[str, ...] = ()
    """The entries of NO_PROXY, in lower case."""

    def find(self, url: URL) -> URL | None:
        """The proxy for *url*; None: go there directly."""
        proxy = self.https if url.scheme == "https" else self.http
        return None if proxy is None or self._is_direct(url) else proxy

    def _is_direct(self, url: URL) -> bool:
        host = (url.host or "").rstrip(".").lower()
        if host == "localhost":
            return True
        address = _address(host)
        if address is not None and address.is_loopback:
            return True
        return any(_covers(entry, host, url.port, address) for entry in self.bypass)

    def __bool__(self) -> bool:
        return self.http is not None or self.https is not None

    @property
    def places(self) -> list[str]:
        """Scheme, host and port of each, for the log."""
        known = {str(url.with_user(None).with_path("")) for url in (self.http, self.https) if url is not None}
        return sorted(known)


def from_environment(environment: Mapping[str, str]) -> Proxies:
    """The proxies that *environment* names, in lower or upper case. Raises ProxyInvalid.

    In a CGI program HTTP_PROXY is a header that a client sent ("httpoxy"); an agent is none.
    """

    def named(*names: str) -> URL | None:
        for name in names:
            for spelling in (name, name.lower()):
                if text := environment.get(spelling, "").strip():
                    return _proxy(spelling, text)
        return None

    text = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    bypass = tuple(entry for part in text.lower().split(",") if (entry := part.strip()))
    return Proxies(named("HTTP_PROXY", "ALL_PROXY"), named("HTTPS_PROXY", "ALL_PROXY"), bypass)


def _proxy(name: str, text: str) -> URL:
    try:
        url = URL(text if "://" in text else f"http://{text}")
        port = url.port
    except ValueError:
        raise ProxyInvalid(f"{name} is no proxy; write http://HOST:PORT") from None
    if url.scheme not in ("http", "https") or not url.host or not port:
        raise ProxyInvalid(f"{name} is no proxy that can be spoken to; write http://HOST:PORT or https://HOST:PORT")
    return url


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _covers(
    entry: str, host: str, port: int | None, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
) -> bool:
    """Whether NO_PROXY's *entry* names *host*: `*`, a CIDR, an address, a name and all below it, each with a port."""
    if entry == "*":
        return True
    if "/" in entry:
        try:
            network: _Network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
        return address is not None and address in network
    name, colon, number = entry.rpartition(":")
    if not colon or not number.isdigit() or (":" in name and not name.endswith("]")):
        name, number = entry, ""
    if number and port != int(number):
        return False
    if (literal := _address(name)) is not None:
        return address == literal
    if name.startswith("*."):
        name = name[1:]
    if name.startswith("."):
        return host.endswith(name)
    return host == name or host.endswith(f".{name}")
