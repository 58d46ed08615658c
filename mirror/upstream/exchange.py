"""How upstream is asked: one request with all that it takes — authorization, redirects, a signed URL that ran
out — under the guard's eyes. What an answer means is decided in mirror/upstream/answers.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import aiohttp
from cachetools import TTLCache
from yarl import URL

from mirror.upstream.answers import refusal
from mirror.upstream.auth import Authorizer, Credentials, Grant, challenges
from mirror.upstream.guard import Guard, Ticket
from mirror.upstream.registries import Registries, RegistriesInvalid, Registry, Tls, place_of
from mirror.upstream.transport import Transport, translated
from mirror.upstream.urlrules import UrlRules
from swarm.blob.errors import SourceBroken, SourceBusy, SourceRefused

LOG = logging.getLogger("shoal.mirror")

REDIRECT_LIFE = 60.0
"""Seconds for which a redirect is used again: windows of one blob follow each other faster, and the shortest
signed URLs known to us live five minutes. One that is refused earlier is asked for anew."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_EXPIRED = frozenset({400, 401, 403, 404, 410})
_DISCARD = 64 << 10


@dataclass(frozen=True)
class Target:
    """What is asked for, and with whose rights."""

    url: URL = field(repr=False)
    registry: Registry | None
    """Whose credentials of ours are used; None: the caller's URL, none of ours."""

    repository: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent to the URL's own host only."""

    urgent: bool = True
    """Whether somebody waits for a few bytes: not behind bulk downloads."""

    @property
    def name(self) -> str:
        """Host and port for logs and metrics."""
        return place_of(self.url) if self.registry is None else self.registry.host


@dataclass
class Answer:
    """An HTTP answer whose body is still to come."""

    response: aiohttp.ClientResponse
    host: str
    own: bool
    """Whether the agent's own credentials were sent."""

    elsewhere: URL | None = field(repr=False)
    """The URL of another host that answered in the end."""

    ticket: Ticket
    """What tells the guard how it ended."""


class Exchanges:
    """Connections, tokens and redirects of one agent. Made, used and closed inside one event loop."""

    def __init__(
        self,
        registries: Registries,
        credentials: Credentials,
        guard: Guard,
        url_rules: UrlRules,
        private: Transport,
        public: Transport,
        clock: Callable[[], float],
    ) -> None:
        """*private*: for registries and for hosts that *url_rules* name; *public*: for other URLs."""
        self.registries = registries
        self.guard = guard
        self.url_rules = url_rules
        self._private = private
        self._public = public
        self._authorizer = Authorizer(self._ask_realm, credentials, clock)
        # Bounded: URLs come from clients.
        self._redirects: TTLCache[tuple[str, str, str], URL] = TTLCache(4096, REDIRECT_LIFE, timer=clock)
        self._contexts: dict[Tls, tuple[tuple[object, ...], ssl.SSLContext]] = {}

    @contextlib.asynccontextmanager
    async def ask(self, target: Target, method: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """One request with everything it takes: authorization, redirects, a signed URL that ran out."""
        key = (method, str(target.url), target.headers.get("Authorization", ""))
        for attempt in (1, 2):
            async with AsyncExitStack() as stack:
                try:
                    answer = await self._follow(stack, target, self._redirects.get(key), method, headers)
                except SourceBroken:
                    self._redirects.pop(key, None)
                    raise
                if answer.elsewhere is not None:
                    if answer.response.status in _EXPIRED and attempt == 1:
                        self._redirects.pop(key, None)
                        continue
                    if answer.response.status < 300:
                        self._redirects[key] = answer.elsewhere
                yield answer
                return

    async def _follow(
        self, stack: AsyncExitStack, target: Target, cached: URL | None, method: str, headers: Mapping[str, str]
    ) -> Answer:
        url = target.url if cached is None else cached
        grant: Grant | None = None
        challenged = False
        for _ in range(_MOST_REDIRECTS + 2):
            home = _origin(url) == _origin(target.url)
            sent = dict(headers)
            if "Accept" in target.headers:
                sent["Accept"] = target.headers["Accept"]
            if home:
                # RFC 9110, 15.4: what opens one host is not shown to another.
                sent |= target.headers
                if target.registry is not None:
                    grant = grant or await self._authorizer.known(target.registry.host, target.repository)
                    if grant is not None:
                        sent["Authorization"] = grant.header
            async with AsyncExitStack() as hop:
                response, ticket = await hop.enter_async_context(self._exchange(target, method, url, sent, home))
                if response.status == 401 and home and target.registry is not None and not challenged:
                    challenged = True
                    offered = challenges(response.headers.getall("WWW-Authenticate", []))
                    await discard(response, place_of(url))
                    grant = await self._authorizer.answer(offered, target.registry.host, target.repository, grant)
                    if grant is not None:
                        continue
                if response.status in _REDIRECTS and "Location" in response.headers:
                    await discard(response, place_of(url))
                    url = self._next(url, response.headers["Location"])
                    continue
                stack.push_async_exit(hop.pop_all())
                own = grant is not None and grant.own
                return Answer(response, place_of(url), own, None if home else url, ticket)
        raise SourceBroken(f"{target.name} redirects without end")

    @contextlib.asynccontextmanager
    async def _exchange(
        self, target: Target, method: str, url: URL, headers: Mapping[str, str], home: bool
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, Ticket]]:
        """One hop, guarded: the guard hears how the host does, also when the body breaks later."""
        trusted = target.registry is not None or self.url_rules.is_named(url)
        transport = self._private if trusted else self._public
        host = target.name if home else place_of(url)
        tls = await self._tls(url)
        async with self.guard.enter(host, urgent=target.urgent) as ticket:
            try:
                async with transport.exchange(method, url, headers, tls=tls) as response:
                    if response.status == 429 or response.status >= 500:
                        ticket.failed(refusal(response.status, response.headers, host))
                    else:
                        ticket.headers()
                    yield response, ticket
            except SourceBroken as error:
                ticket.failed(error)
                raise
            ticket.answered()

    def _next(self, url: URL, location: str) -> URL:
        host = place_of(url)
        following = usable_url(location, url)
        if following is None:
            raise SourceBroken(f"{host} redirects to something that is no URL")
        if url.scheme == "https" and following.scheme == "http" and not self.registries.is_plain(place_of(following)):
            raise SourceBroken(f"{host} redirects from https to http")
        return following

    async def _tls(self, url: URL) -> ssl.SSLContext | None:
        """The context for *url*'s host; a client certificate is shown to the host it was configured for only."""
        if url.scheme != "https":
            return None
        if self.registries.certs is None and not self.registries.configured:
            return None
        tls, stamp = await asyncio.to_thread(self._files, place_of(url))
        if tls == Tls():
            return None
        known = self._contexts.get(tls)
        if known is None or known[0] != stamp:
            try:
                known = stamp, await asyncio.to_thread(tls.context)
            except RegistriesInvalid as error:
                if known is None:
                    raise SourceBroken(f"{place_of(url)}: its certificate files cannot be used") from None
                # Half-written, or gone for a moment: what was good before is better than nothing.
                LOG.warning("certificates_kept", extra={"fields": {"reason": str(error)}})
            self._contexts[tls] = stamp, known[1]
        return known[1]

    def _files(self, host: str) -> tuple[Tls, tuple[object, ...]]:
        tls = self.registries.tls(host)
        return tls, tls.stamp()

    async def _ask_realm(
        self,
        host: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        authorization: str | None = None,
    ) -> tuple[int, bytes]:
        realm = usable_url(url)
        if realm is None:
            raise SourceBroken(f"{host} names a token service that is no URL")
        if realm.scheme == "http" and not (
            self.registries.is_plain(place_of(realm)) or self.registries.registry(host).url.startswith("http:")
        ):
            raise SourceBroken(f"{host} names a token service without encryption")
        headers = {"Accept": "application/json"}
        if authorization is not None:
            headers["Authorization"] = authorization
        method = "GET" if form is None else "POST"
        where = realm.extend_query(query or {})
        at = place_of(realm)
        tls = await self._tls(realm)
        async with self.guard.enter(at, urgent=True) as ticket:
            try:
                async with self._private.exchange(method, where, headers, tls=tls, data=form) as response:
                    if response.status == 429 or response.status >= 500:
                        raise refusal(response.status, response.headers, at)
                    content = await bounded(response, 1 << 20, at)
            except (SourceBroken, SourceBusy) as error:
                ticket.failed(error)
                raise
            ticket.answered()
            return response.status, content

    async def close(self) -> None:
        """Close every connection; what is still open breaks."""
        await self._authorizer.close()
        await self._private.close()
        await self._public.close()


def usable_url(text: str, base: URL | None = None) -> URL | None:
    """The http or https URL that *text* is (relative to *base*, if given), without fragment; None: it is none.

    User and password in a URL are refused: they would show where only the host is meant to be seen.
    """
    if not text.isprintable() or " " in text:
        return None  # a line break would end the request's first line
    try:
        url = URL(text, encoded=True)
        url = (url if base is None else base.join(url)).with_fragment(None)
        url.port  # noqa: B018  (raises if it is no port)
    except ValueError:
        return None
    return url if url.scheme in ("http", "https") and url.host and url.user is None and url.password is None else None


async def bounded(response: aiohttp.ClientResponse, limit: int, host: str) -> bytes:
    """The whole body of *response* if it has at most *limit* bytes. Raises SourceBroken, SourceRefused."""
    parts: list[bytes] = []
    size = 0
    with translated(host):
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > limit:
                raise SourceRefused(f"{host} sent more than {limit} bytes where less was expected")
            parts.append(chunk)
    return b"".join(parts)


async def discard(response: aiohttp.ClientResponse, host: str) -> None:
    """Read away a short body, so that the connection can be used again."""
    left = _DISCARD
    with contextlib.suppress(SourceBroken), translated(host):
        while left > 0 and (chunk := await response.content.readany()):
            left -= len(chunk)


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port  # not URL.origin(), which keeps capitals in a host
