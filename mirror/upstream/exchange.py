"""How upstream is asked: one request with all that it takes — authorization, redirects, a signed URL that ran
out — under the guard's eyes. What an answer means is decided in mirror/upstream/answers.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import aiohttp
from cachetools import TTLCache
from yarl import URL

from mirror.errors import Forbidden, NotAsAsked, RegistriesInvalid, Unreachable
from mirror.upstream.answers import refusal
from mirror.upstream.auth import MOST_CREDENTIALS, Authorizer, Credentials, Grant, challenges
from mirror.upstream.bodies import bounded, discard
from mirror.upstream.guard import Guard, Ticket
from mirror.upstream.pouring import Pouring
from mirror.upstream.reach import Reach
from mirror.upstream.registries import Registries, Registry, Tls, canonical, place_of
from mirror.upstream.transport import Request, Transport
from mirror.upstream.ways import Counted, Known, learned, poured
from swarm.base.pace import Pace
from swarm.blob.errors import SourceBroken, SourceBusy, SourceError, SourceSilent
from swarm.upstream.source import Sink

LOG = logging.getLogger("shoal.mirror")

REDIRECT_LIFE = 60.0
"""Seconds for which a redirect is used again: windows of one blob follow each other faster, and the shortest
signed URLs known to us live five minutes. One that is refused earlier is asked for anew."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_EXPIRED = frozenset({400, 401, 403, 404, 410})
_REFUSED = frozenset({401, 403, 404})
"""What a registry answers to credentials that do not open it; 404 where it hides that there is something."""

_REGISTRY_PATH = re.compile(r"/v2/(?P<repository>[^?]+)/(?:blobs|manifests|tags|referrers)/")

SHORTEST_MEMORY = 3.0
"""Seconds that a remembered place has for its first byte at least; then the registry is asked for another one."""


@dataclass(frozen=True)
class Target:
    """What is asked for, and with whose rights."""

    url: URL = field(repr=False)
    registry: Registry | None
    """Whose credentials of ours are used; None: the caller's URL, none of ours."""

    repository: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent to the URL's own host only."""

    is_file: bool = True
    """Whether it is a file: a page in HTML in place of one is a failure of whoever sent it."""

    urgent: bool = True
    """Whether somebody waits for a few bytes: not behind bulk downloads."""

    low: bool = False
    """Whether nobody waits for it: where the rate is bounded, everybody else comes first."""

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

    transport: Transport = field(repr=False)
    request: Request = field(repr=False)
    """What was asked in the end, and by which connections."""


@dataclass(frozen=True)
class _Remembered:
    """A redirect that led to an answer. *seconds*: how long its first byte took then."""

    url: URL = field(repr=False)
    seconds: float


class Exchanges:
    """Connections, tokens and redirects of one agent. Made, used and closed inside one event loop."""

    def __init__(
        self,
        registries: Registries,
        credentials: Credentials,
        guard: Guard,
        reach: Reach,
        clock: Callable[[], float],
        pace: Pace | None = None,
    ) -> None:
        self.pace = pace or Pace()
        """What bodies keep to, all together."""
        self.registries = registries
        self.guard = guard
        self._reach = reach
        self._clock = clock
        self._authorizer = Authorizer(self._ask_realm, credentials, clock)
        # Bounded: URLs come from clients.
        self._redirects: TTLCache[tuple[str, str, str], _Remembered] = TTLCache(4096, REDIRECT_LIFE, timer=clock)
        self._without_ranges: TTLCache[str, bool] = TTLCache(1024, REDIRECT_LIFE, timer=clock)
        self._ways: TTLCache[tuple[str, str, str], Known] = TTLCache(4096, REDIRECT_LIFE, timer=clock)
        self._pouring = Pouring()
        self._contexts: dict[Tls, tuple[tuple[object, ...], ssl.SSLContext]] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}

    def takes_ranges(self, target: Target) -> bool:
        """Whether *target*'s registry (or host) is not known to refuse ranges."""
        return not self._without_ranges.get(target.name, False)

    def refuses_ranges(self, target: Target) -> None:
        """A request without a range was answered where one with it was refused."""
        self._without_ranges[target.name] = True

    @contextlib.asynccontextmanager
    async def ask(self, target: Target, method: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """One request with everything it takes: authorization, redirects, a remembered redirect that went bad."""
        key = _key(method, target)
        cached = self._redirects.get(key)
        began = self._clock()
        async with AsyncExitStack() as stack:
            answer: Answer | None = None
            if cached is not None:
                answer = await self._by_memory(stack, target, cached, method, headers)
                if answer is None:
                    self._redirects.pop(key, None)
                    began = self._clock()
            if answer is None:
                answer = await self._follow(stack, target, None, method, headers)
            if answer.elsewhere is not None and answer.response.status < 300:
                self._redirects[key] = _Remembered(answer.elsewhere, self._clock() - began)
            try:
                yield answer
            except SourceError:
                self._redirects.pop(key, None)  # whatever it was: the registry may name a better place
                raise

    def learn(self, target: Target, answer: Answer) -> None:
        """*answer* was just the range of a file that was asked for: threads may ask for others."""
        key = _key("GET", target)
        redirect = self._redirects.get(key) if answer.elsewhere is not None else None
        first_byte = None if redirect is None else max(SHORTEST_MEMORY, 3 * redirect.seconds)
        if (known := learned(answer.transport, answer.request, answer.response, first_byte)) is not None:
            self._ways[key] = known

    async def pour(
        self, target: Target, start: int, stop: int, total: int, sink: Sink, begun: Callable[[], None]
    ) -> bool:
        """Give bytes [start, stop) of *target*, a file of *total* bytes, to *sink* past the loop.

        False: that cannot be done now, and `ask` is to be asked; *sink* got nothing. *begun*: the answer has begun.
        Raises SourceBusy, SourceBroken, and what *sink* raises.
        """
        key = _key("GET", target)
        known = self._ways.get(key)
        if known is None or self.pace.rate or not self._pouring.is_free:
            return False
        request = known.request
        home = _origin(request.url) == _origin(target.url)
        host = target.name if home else known.way.host
        counted = Counted(sink)
        async with self.guard.enter(host, urgent=target.urgent) as ticket:

            def answered() -> None:
                ticket.headers()
                begun()

            try:
                with self._told(ticket, host, known.transport, request):
                    try:
                        await poured(self._pouring, known, start, stop, total, counted, answered)
                    finally:
                        ticket.bytes(counted.count)
            except (NotAsAsked, OSError) as error:
                self._ways.pop(key, None)
                door = self._door(target, request.url, home)
                if door is not None and isinstance(error, NotAsAsked) and error.status == 401:
                    self._authorizer.refused(*door, request.headers.get("Authorization", ""))
                return False
            except SourceError as error:
                self._ways.pop(key, None)
                if isinstance(error, SourceSilent) and request.first_byte is not None:
                    self._redirects.pop(key, None)  # the registry may name a better place
                    return False
                raise
            ticket.answered()
        return True

    async def _by_memory(
        self, stack: AsyncExitStack, target: Target, cached: _Remembered, method: str, headers: Mapping[str, str]
    ) -> Answer | None:
        """What the place of a former redirect answers; None: nothing good, the registry is to be asked again."""
        async with AsyncExitStack() as trial:
            try:
                answer = await self._follow(trial, target, cached, method, headers)
            except SourceError:
                return None
            status = answer.response.status
            page = answer.response.content_type == "text/html" and target.is_file
            if page or status in _EXPIRED or status == 429 or status >= 500:
                return None
            stack.push_async_exit(trial.pop_all())
            return answer

    async def _follow(
        self,
        stack: AsyncExitStack,
        target: Target,
        cached: _Remembered | None,
        method: str,
        headers: Mapping[str, str],
    ) -> Answer:
        url = target.url if cached is None else cached.url
        transport = self._reach.first(target.url, trusted=target.registry is not None)
        if cached is not None:
            transport = self._reach.hop(target.url, transport, url, trusted=target.registry is not None)
        first_byte = None if cached is None else max(SHORTEST_MEMORY, 3 * cached.seconds)
        hops = 0
        rejected: list[Grant] = []
        grant: Grant | None = None
        while True:
            home = _origin(url) == _origin(target.url)
            door = self._door(target, url, home)
            sent = dict(headers)
            if "Accept" in target.headers:
                sent["Accept"] = target.headers["Accept"]
            if home:
                # RFC 9110, 15.4: what opens one host is not shown to another.
                sent |= target.headers
            if door is not None:
                grant = grant or await self._authorizer.known(*door)
                if grant is not None:
                    sent["Authorization"] = grant.header
            async with AsyncExitStack() as hop:
                tls = await self._tls(url)
                request = Request(method, url, sent, tls=tls, proxy=self._reach.proxy(url), first_byte=first_byte)
                response, ticket = await hop.enter_async_context(self._exchange(target, transport, request, home))
                following = None if door is None else await self._unlocked(door, response, grant, rejected)
                if following is not None:
                    await discard(response, place_of(url))
                    grant = following
                    continue
                if response.status in _REDIRECTS and "Location" in response.headers:
                    hops += 1
                    if hops > _MOST_REDIRECTS:
                        raise SourceBroken(f"{target.name} redirects without end")
                    await discard(response, place_of(url))
                    before, url = url, self._next(url, response.headers["Location"])
                    transport = self._reach.hop(before, transport, url, trusted=target.registry is not None)
                    if _origin(before) != _origin(url):
                        grant, rejected = None, []
                    continue
                stack.push_async_exit(hop.pop_all())
                own = grant is not None and grant.own
                return Answer(response, place_of(url), own, None if home else url, ticket, transport, request)

    async def _unlocked(
        self, door: tuple[str, str], response: aiohttp.ClientResponse, grant: Grant | None, rejected: list[Grant]
    ) -> Grant | None:
        """What to try after *response*, which *grant* did not open; None: it is the answer. Notes it in *rejected*."""
        own = grant is not None and grant.own
        if response.status != 401 and not (own and response.status in _REFUSED):
            return None
        if grant is not None:
            # A 401 to a token from before may only mean that it ran out; anything else is about the credential.
            rejected.append(replace(grant, fresh=grant.fresh or response.status != 401))
        if len(rejected) > MOST_CREDENTIALS:
            return None
        offered = challenges(response.headers.getall("WWW-Authenticate", []))
        return await self._authorizer.answer(offered, *door, rejected)

    def _door(self, target: Target, url: URL, home: bool) -> tuple[str, str] | None:
        """Whose credentials open *url*: registry and repository. None: nobody's.

        A redirect may lead to another registry, which has a token service of its own. What is shown there are the
        credentials that were configured for that registry, or none.
        """
        if target.registry is None:
            return None
        if home:
            return target.registry.host, target.repository
        match = _REGISTRY_PATH.search(url.path)
        if match is None:
            return None
        with contextlib.suppress(Forbidden):
            return canonical(place_of(url)), match["repository"]
        return None

    @contextlib.asynccontextmanager
    async def _exchange(
        self, target: Target, transport: Transport, request: Request, home: bool
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, Ticket]]:
        """One hop, guarded: the guard hears how the host does, also when the body breaks later."""
        host = target.name if home else place_of(request.url)
        async with self.guard.enter(host, urgent=target.urgent) as ticket:
            with self._told(ticket, host, transport, request):
                async with transport.exchange(request) as response:
                    if response.status == 429 or (response.status >= 500 and response.status != 501):
                        ticket.failed(refusal(response.status, response.headers, host))
                    else:
                        ticket.headers()
                    yield response, ticket
            ticket.answered()

    @contextlib.contextmanager
    def _told(self, ticket: Ticket, host: str, transport: Transport, request: Request) -> Iterator[None]:
        """The guard hears what goes wrong with *host*."""
        try:
            yield
        except Unreachable as error:
            ticket.failed(error)
            self._watch(host, transport, request)
            raise
        except SourceBroken as error:
            ticket.failed(error)
            raise

    def _watch(self, host: str, transport: Transport, request: Request) -> None:
        """Let nobody wait for *host*, which answers nothing, until it does; find out about that ourselves."""
        if host not in self._watching:
            self.guard.darken(host)
            self._watching[host] = asyncio.create_task(self.guard.watch(host, lambda: transport.ping(request)))
            self._watching[host].add_done_callback(lambda _: self._watching.pop(host, None))

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
        registry = URL(self.registries.registry(host).url)
        named = self._reach.first(registry, trusted=True)
        transport = self._reach.hop(registry, named, realm, trusted=True)
        request = Request(method, where, headers, tls=tls, form=form, proxy=self._reach.proxy(where))
        async with self.guard.enter(at, urgent=True) as ticket:
            try:
                async with transport.exchange(request) as response:
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
        watching = list(self._watching.values())
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await self._authorizer.close()
        await self._reach.close()
        await self._pouring.close()


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


def _key(method: str, target: Target) -> tuple[str, str, str]:
    """What an answer's place is remembered by: also whose it is."""
    return method, str(target.url), target.headers.get("Authorization", "")


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port  # not URL.origin(), which keeps capitals in a host
