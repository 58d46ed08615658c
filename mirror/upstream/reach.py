"""How far a request may reach: which addresses each hop of it may go to, and by which proxy.

What a registry says (a redirect, a token service) may lead no further inside than the registry itself is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from dataclasses import replace

from cachetools import LRUCache
from yarl import URL

from mirror.errors import Forbidden
from mirror.upstream.addresses import LOOPBACK, NODE_SERVICES, AddressRules, Place, place_of_address
from mirror.upstream.proxies import Proxies
from mirror.upstream.registries import Registries, place_of
from mirror.upstream.transport import Deadlines, Transport
from mirror.upstream.urlrules import UrlRules

LOG = logging.getLogger("shoal.mirror")

_HOSTS = 4096
"""Hosts whose place is remembered: names come from clients."""


class Reach:
    """The connections of one agent by what they may reach. Made, used and closed inside one event loop.

    *private*: the rules for registries and for hosts that somebody named; *public*: for other URLs.
    """

    def __init__(
        self,
        registries: Registries,
        url_rules: UrlRules,
        private: AddressRules,
        public: AddressRules,
        deadlines: Deadlines,
        proxies: Proxies,
    ) -> None:
        self._registries = registries
        self._url_rules = url_rules
        self._rules = private
        self._public_rules = public
        self._proxies = proxies
        self._places: LRUCache[str, Place] = LRUCache(_HOSTS)

        def transport(rules: AddressRules) -> Transport:
            return Transport(rules, deadlines, self._places)

        self._named = transport(private)
        self._public = transport(public)
        self._inside = transport(replace(private, refused=(*private.refused, *LOOPBACK)))
        self._here = transport(replace(private, refused=(*private.refused, *NODE_SERVICES)))
        # The proxy's own address is the operator's word; what is behind it, the proxy decides.
        self._proxied = transport(AddressRules(private=True, own=private.own))

    def proxy(self, url: URL) -> URL | None:
        """The proxy by which *url* is asked."""
        return self._proxies.find(url)

    def first(self, url: URL, *, trusted: bool) -> Transport:
        """What asks *url*, which a client meant. *trusted*: a registry that is mirrored. Raises Forbidden."""
        return self._by_proxy(url, trusted) or (self._named if trusted or self._is_named(url) else self._public)

    def hop(self, before: URL, used: Transport, url: URL, *, trusted: bool) -> Transport:
        """What asks *url*, which the answer of *before* (asked by *used*) named. Raises Forbidden."""
        if _origin(before) == _origin(url):
            return used
        if (proxied := self._by_proxy(url, trusted)) is not None:
            return proxied
        if self._is_named(url):
            return self._named
        if not trusted:
            return self._public
        return {Place.PUBLIC: self._public, Place.PRIVATE: self._inside, Place.LOOPBACK: self._here}[self._at(before)]

    def _by_proxy(self, url: URL, trusted: bool) -> Transport | None:
        """Behind a proxy only addresses can be judged, not names: the proxy is what asks DNS."""
        if self._proxies.find(url) is None:
            return None
        rules = self._rules if trusted or self._is_named(url) else self._public_rules
        with contextlib.suppress(ValueError):
            if not rules.allow(str(ipaddress.ip_address(url.host or "")), url.port or 0):
                raise Forbidden(f"{place_of(url)} has an address that is not contacted")
        return self._proxied

    def _is_named(self, url: URL) -> bool:
        return self._url_rules.is_named(url) or self._registries.is_named(place_of(url))

    def _at(self, url: URL) -> Place:
        host = (url.host or "").lower()
        with contextlib.suppress(ValueError):
            return place_of_address(str(ipaddress.ip_address(host)))
        return self._places.get(host, Place.PUBLIC)

    async def close(self) -> None:
        """Close every connection."""
        for transport in (self._named, self._public, self._inside, self._here, self._proxied):
            await transport.close()


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port  # not URL.origin(), which keeps capitals in a host
