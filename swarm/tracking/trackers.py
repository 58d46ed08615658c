"""The trackers as this agent sees them: found by URL or DNS, spoken to over HTTP (swarm.protocol.wire).

One long-poll per tracker, the agent's channel, tells it what this node holds and keeps both sides
aware of each other. A tracker is *up* while its channel answers, so no request ever waits for a
dead one. A digest belongs to the tracker that wins rendezvous hashing among those that are up.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import secrets
import socket
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol, TypedDict
from urllib.parse import urlsplit

import aiohttp

from swarm.base.flags import tracker_urls
from swarm.base.seldom import Seldom
from swarm.blob.errors import NotAMember, TrackerError, TrackerRefused
from swarm.protocol import wire
from swarm.tracking.caller import Caller
from swarm.tracking.doubts import Doubts
from swarm.tracking.images import Images
from swarm.tracking.link import CALL_DEADLINE, LAST_DEADLINE, Link

__all__ = ["CALL_DEADLINE", "LAST_DEADLINE", "TELL_EVERY", "Holdings", "Link", "Me", "Trackers", "rendezvous"]

log = logging.getLogger("shoal.swarm")

TELL_EVERY = 5.0
"""Seconds between two tellings of the counters while something is fetched: the page draws them."""

_ALIVE = (1, 1, 2)
"""Seconds without a word, seconds between probes, probes: a long-poll to a tracker whose node vanished without closing
its connections ends after three seconds, not after 25. The kernels do it, at one small packet a second."""

_RESOLVE_EVERY = 5.0
_RESOLVE_DEADLINE = 3.0
_RETRY_FIRST, _RETRY_LONGEST = 0.1, 2.0

_HANGS = 0.3
"""Seconds without an answer after which a try that hangs is given up for another: a SYN that was lost is not sent again
before one second is over."""


class Holdings(Protocol):
    """What the agent tells its trackers about itself."""

    def held_blobs(self) -> Iterable[wire.CompleteBlob]:
        """All complete blobs."""

    def known_names(self) -> Iterable[wire.Name]:
        """All known meanings of tags."""

    def kept(self) -> tuple[wire.Kept, ...]:
        """All images that it keeps."""

    def stats(self) -> dict[str, float]:
        """Counters for the tracker's page."""

    async def on_answer(self, link: Link, answer: wire.AgentAnswer) -> None:
        """A tracker said something on the agent's channel."""


def rendezvous(digest: str, urls: Iterable[str]) -> list[str]:
    """*urls* in the order in which they are responsible for *digest* (highest random weight)."""
    return sorted(urls, key=lambda url: hashlib.blake2b(f"{url}\n{digest}".encode(), digest_size=8).digest())


class Me(TypedDict):
    """The fields of wire.Me."""

    node: str
    port: int
    session: str
    lane: int


class Trackers:
    """All trackers of the cluster. *urls*: see SwarmSettings.trackers."""

    def __init__(self, urls: Iterable[str], name: str, holdings: Holdings, caller: Caller | None = None) -> None:
        """*caller*: who this agent is, beside its name."""
        self._caller = caller or Caller()
        self.name = name
        self.port = 0
        self.lane = 0
        """Port of this agent's window lane; 0: none. Trackers are told with whatever is said next."""
        self.session = secrets.token_hex(8)
        self.address = ""
        """`ip:port` under which trackers know this agent and hand it to others; "" until one has said so."""
        self._urls = tuple(self._caller.url(url) for url in urls)
        self._holdings = holdings
        self._links: dict[str, Link] = {}
        self._channels: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._http: aiohttp.ClientSession | None = None
        self._listeners: set[Callable[[], None]] = set()
        self._seldom = Seldom()
        self._doubts = Doubts()
        self._images = Images()
        self._looking: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        """Set while some tracker is up: this agent is a member of the cluster."""

    def me(self) -> Me:
        """How this agent names itself in every message."""
        return {"node": self.name, "port": self.port, "session": self.session, "lane": self.lane}

    async def start(self, port: int) -> None:
        """Begin to look for trackers. *port*: this agent's swarm port."""
        self.port = port
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0, socket_factory=_socket)
        self._http = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        for url in self._urls:
            if url.startswith("dns+"):
                self._tasks.append(asyncio.create_task(self._follow(url)))
            else:
                self._add(url.rstrip("/"))

    async def close(self) -> None:
        """Say goodbye to every tracker that is up, and stop."""
        tasks = [*self._tasks, *self._channels.values()]
        if self._looking is not None:
            tasks.append(self._looking)
        for task in tasks:
            task.cancel()
        gone = wire.Gone(**self.me())
        ups = [link for link in self._links.values() if link.up]
        for link in self._links.values():
            link.up = False
        await asyncio.gather(*(link.call("/v1/gone", gone, wire.Ok) for link in ups), return_exceptions=True)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def links(self) -> list[Link]:
        """All trackers, up or not."""
        return list(self._links.values())

    def up(self) -> list[Link]:
        """The trackers that answer."""
        return [link for link in self._links.values() if link.up]

    def pick(self, digest: str) -> Link | None:
        """The tracker responsible for *digest* now; None: none is up, or its board cannot be kept at any."""
        ups = {link.url: link for link in self._links.values() if self.may_ask(link, digest)}
        order = rendezvous(digest, ups)
        return ups[order[0]] if order else None

    def may_ask(self, link: Link, digest: str) -> bool:
        """Whether *link* answers, and has not failed about *digest* a moment ago."""
        return link.up and not self._doubts.shuns(link.url, digest, asyncio.get_running_loop().time())

    def is_doubted(self, link: Link, digest: str) -> bool:
        """Whether the board of *digest* could not be kept at *link* before: what is there instead is kept meanwhile."""
        return self._doubts.failed_before(link.url, digest, asyncio.get_running_loop().time())

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call *listener* when a tracker comes up or goes down; returns how to stop that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def failed(self, link: Link, digest: str = "") -> None:
        """A call to *link* about *digest* failed: it is not asked about that for a while.

        Whether the tracker itself is down is found out by asking it.
        """
        loop = asyncio.get_running_loop()
        if digest:
            until = self._doubts.failed(link.url, digest, loop.time())
            loop.call_at(until, self._tell_listeners)
        if link.up:
            self._look()
        self._tell_listeners()

    def tell(self, digest: str, size: int | None) -> None:
        """This node holds *digest* now (or, *size* None, no longer)."""
        for link in self._links.values():
            link.changes[digest] = size
            link.news.set()

    def tell_image(self, image: wire.Image) -> None:
        """A manifest went by on this node: trackers name its blobs by it."""
        if self._images.saw(image):
            for link in self._links.values():
                link.images[image.manifest] = image
                link.news.set()

    def tell_kept(self) -> None:
        """What this node keeps has changed."""
        for link in self._links.values():
            link.kept = True
            link.news.set()

    def stir(self) -> None:
        """Something begins to move: tell the counters now, where that is not already done every TELL_EVERY seconds.

        A tracker that is down may be back: it is tried now, for a blob that begins without it comes twice.
        """
        for link in self._links.values():
            if not link.up:
                link.again.set()
            elif link.wait > TELL_EVERY:
                link.news.set()

    async def silent(self) -> None:
        """A call has waited for long: find out whether the trackers are alive."""
        await asyncio.shield(self._look())

    # -- inside -----------------------------------------------------------------------------------

    def _look(self) -> asyncio.Task[None]:
        """All trackers that are up are asked at once for a sign of life: often they are cut off together."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_at_all())
        return self._looking

    async def _look_at_all(self) -> None:
        ups = self.up()
        for link, alive in zip(ups, await asyncio.gather(*(link.alive() for link in ups)), strict=True):
            if not alive:
                self._down(link, "does not answer")

    def _down(self, link: Link, why: str) -> None:
        """*link* is down until its channel answers again."""
        if link.up:
            log.warning("tracker-down", extra={"fields": {"tracker": link.url, "error": why}})
            link.up, link.hold = False, wire.MAX_WAIT
            channel = self._channels.get(link.url)
            if channel is not None and channel is not asyncio.current_task():
                channel.cancel()
                self._channels[link.url] = asyncio.create_task(self._channel(link))
            self._changed()

    def _tell_listeners(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _changed(self) -> None:
        ups = self.up()
        (self.ready.set if ups else self.ready.clear)()
        for link in self._links.values():
            link.patience = CALL_DEADLINE if len(ups) > 1 else LAST_DEADLINE
        self._tell_listeners()

    def _add(self, url: str) -> None:
        assert self._http is not None
        link = self._links[url] = Link(url, self._http, self, self._caller)
        self._channels[url] = asyncio.create_task(self._channel(link))

    async def _follow(self, url: str) -> None:
        parts = urlsplit(url.removeprefix("dns+"))
        host, port = parts.hostname or "", parts.port or 6969
        loop = asyncio.get_running_loop()
        followed: set[str] = set()
        while True:
            found: set[str] | None = None
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_RESOLVE_DEADLINE):
                    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found = set(tracker_urls(url, (str(info[4][0]) for info in infos)))
            if found is not None:
                for gone in [known for known in followed - found if not self._links[known].up]:
                    self._channels.pop(gone).cancel()
                    del self._links[gone]
                    followed.discard(gone)
                for new in found - self._links.keys():
                    self._add(new)
                    followed.add(new)
            await asyncio.sleep(_RESOLVE_EVERY * random.uniform(0.8, 1.2))

    async def _channel(self, link: Link) -> None:
        pause = _RETRY_FIRST
        link.full = True
        while True:
            try:
                await self._poll(link)
                pause = _RETRY_FIRST
            except TrackerError as error:
                self._trouble(link, error)
                self._down(link, str(error))
                link.full = True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):
                        await link.again.wait()
                pause = min(_RETRY_LONGEST, pause * 2)

    def _trouble(self, link: Link, error: TrackerError) -> None:
        """Say that a tracker refuses, or does not answer: an agent that is alone looks healthy otherwise."""
        link.refused = str(error) if isinstance(error, TrackerRefused) else ""
        before = self._seldom.due((link.url, type(error)), asyncio.get_running_loop().time())
        if before is not None:
            fields = {"tracker": link.url, "reason": str(error), "session": self.session, "held_back": before}
            log.warning("tracker-refuses" if link.refused else "tracker-silent", extra={"fields": fields})

    async def _poll(self, link: Link) -> None:
        full, link.full = link.full, False
        changes, link.changes = link.changes, {}
        images, link.images = link.images, {}
        keeps, link.kept = full or link.kept, False
        link.news.clear()
        if full:
            held = (blob for blob in self._holdings.held_blobs() if blob.size <= wire.MAX_SIZE)
            add = tuple(islice(held, wire.MAX_HELD))
            remove: tuple[str, ...] = ()
        else:
            here = {d: s for d, s in changes.items() if s is not None and s <= wire.MAX_SIZE}
            add = tuple(wire.CompleteBlob(digest=d, size=s) for d, s in here.items())
            remove = tuple(d for d, s in changes.items() if s is None)
        stats = self._holdings.stats()
        told = self._images.all() if full else tuple(islice(images.values(), wire.MAX_IMAGES))
        longest = TELL_EVERY if stats.get("fetches") else link.hold
        wait = link.wait = longest if link.up and not (full or add or remove or told or keeps) else 0.0
        poll = wire.AgentPoll(
            **self.me(),
            full=full,
            add=add,
            remove=remove,
            names=tuple(islice(self._holdings.known_names(), wire.MAX_NAMES)) if full else (),
            images=told,
            kept=self._holdings.kept() if keeps else None,
            wait=wait,
            stats=stats,
        )
        link.again.clear()
        call = asyncio.ensure_future(link.call("/v1/agent", poll, wire.AgentAnswer, wait))
        # A poll that is held ends with news; one that is not is given up only where the tracker is down.
        enough = asyncio.ensure_future(link.news.wait() if wait else _hangs(link))
        try:
            await asyncio.wait((call, enough), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                link.full = link.full or not link.up
                return
            try:
                answer = call.result()
            except TrackerError:
                link.changes = {**changes, **link.changes}
                link.images = {**images, **link.images}
                link.kept = link.kept or keeps
                raise
        finally:
            for task in (call, enough):
                if not task.done():
                    task.cancel()
            await asyncio.gather(call, enough, return_exceptions=True)
        if answer.resend:
            link.full = True
        self.address = answer.you or self.address
        link.hold = min(max(wire.MAX_WAIT, answer.hold), wire.LONGEST_HOLD)
        link.refused = ""
        if not link.up and not answer.resend:
            link.up = True
            for kind in (TrackerError, TrackerRefused, NotAMember):
                self._seldom.forget((link.url, kind))
            log.info("tracker-up", extra={"fields": {"tracker": link.url}})
            self._changed()
        await self._holdings.on_answer(link, answer)


async def _hangs(link: Link) -> None:
    """Until a try of *link* that began now has taken long, and another one is wanted."""
    await asyncio.sleep(_HANGS)
    await link.again.wait()


def _socket(address: Any) -> socket.socket:
    """A TCP socket that notices when the other side is gone."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in zip((socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT), _ALIVE, strict=True):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
