"""The other trackers of the cluster: found by URL or DNS, asked for their part of a view.

A tracker that finds itself behind the name leaves itself out. One that does not answer costs a view at most
ASK_WITHIN seconds, and is then left alone for AGAIN seconds; the view says that it is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from swarm.base import bounded
from swarm.base.flags import tracker_urls
from swarm.identity.name import Role
from swarm.identity.tls import Identity
from tracker.page.ask import LISTS, Ask
from tracker.page.views import (
    AgentsView,
    AgentView,
    AnyView,
    ClusterView,
    ImagesView,
    ImageView,
    Replica,
    SearchView,
    SwarmsView,
    SwarmView,
)

ASK_WITHIN = 1.0
"""Seconds for another tracker to answer: it has all of it in memory."""

AGAIN = 5.0
"""Seconds for which a tracker that did not answer is not asked, and for which addresses are remembered."""

MOST = 16
"""Trackers asked at most: each agent keeps a channel to every one, so there are never many."""

MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of an answer at most: 1,000 rows take 400 KiB."""

KINDS: dict[str, type[AnyView]] = {
    "cluster": ClusterView,
    "search": SearchView,
    "swarms": SwarmsView,
    "swarm": SwarmView,
    "images": ImagesView,
    "image": ImageView,
    "agents": AgentsView,
    "agent": AgentView,
}


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one tracker answers another: who it is, and what it alone knows. Without *view*: nothing of that name."""

    replica: Replica
    view: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Replicas:
    """All trackers but this one. *urls*: `http://host:port`, or `dns+http://name:port` for all addresses of a name."""

    def __init__(
        self, urls: Iterable[str], incarnation: str, *, identity: Identity | None = None, token: str = ""
    ) -> None:
        """*identity*: the others are asked by TLS, and are trackers. *token*: what readers show there."""
        self._identity = identity
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        secure = ((url.replace("http://", "https://", 1) if identity else url) for url in urls)
        self._urls = tuple(dict.fromkeys(secure))
        self._incarnation = incarnation
        self._http: aiohttp.ClientSession | None = None
        self._own: set[str] = set()
        """URLs behind which this tracker found itself."""
        self._found: dict[str, tuple[float, tuple[str, ...]]] = {}
        """dns+ URL -> when it was resolved, and to what."""
        self._down: dict[str, tuple[float, str]] = {}
        """URL -> when to ask again, and why not before."""

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    async def ask(self, ask: Ask) -> tuple[dict[str, Replica], list[AnyView]]:
        """All other trackers by URL, and the views of those that answered with one."""
        if not self._urls:
            return {}, []
        urls = [url for url in await self._addresses() if url not in self._own][:MOST]
        answers = await asyncio.gather(*(self._one(url, ask) for url in urls))
        replicas: dict[str, Replica] = {}
        found: list[AnyView] = []
        for url, (replica, view) in zip(urls, answers, strict=True):
            if replica.incarnation == self._incarnation:
                self._own.add(url)
                continue
            replicas[url] = replica
            if view is not None:
                found.append(view)
        return replicas, found

    async def _one(self, url: str, ask: Ask) -> tuple[Replica, AnyView | None]:
        now = asyncio.get_running_loop().time()
        until, error = self._down.get(url, (0.0, ""))
        if until > now:
            return Replica(error=error), None
        try:
            part = msgspec.json.decode(await self._get(url + _path(ask)), type=Part)
            view = msgspec.json.decode(part.view, type=KINDS[ask.kind]) if part.view is not msgspec.UNSET else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            self._down[url] = (now + AGAIN, _why(problem))
            return Replica(error=_why(problem)), None
        self._down.pop(url, None)
        return part.replica, view

    async def _get(self, url: str) -> bytes:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=ASK_WITHIN)
            self._http = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        secure: dict[str, Any] = {}
        if self._identity is not None:
            secure = {"ssl": self._identity.client_context(), "server_hostname": Role.TRACKER.host}
        async with self._http.get(url, allow_redirects=False, headers=self._headers, **secure) as answer:
            answer.raise_for_status()
            return await bounded.read(answer, MAX_ANSWER)

    async def _addresses(self) -> list[str]:
        found = await asyncio.gather(*(self._resolve(url) for url in self._urls))
        return list(dict.fromkeys(url for urls in found for url in urls))

    async def _resolve(self, url: str) -> tuple[str, ...]:
        if not url.startswith("dns+"):
            return (url.rstrip("/"),)
        loop = asyncio.get_running_loop()
        at, known = self._found.get(url, (float("-inf"), ()))
        if loop.time() - at < AGAIN:
            return known
        parts = urlsplit(url.removeprefix("dns+"))
        port = parts.port or 6969
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(ASK_WITHIN):
                infos = await loop.getaddrinfo(parts.hostname or "", port, type=socket.SOCK_STREAM)
            known = tracker_urls(url, (str(info[4][0]) for info in infos))
        self._found[url] = (loop.time(), known)  # a name that does not resolve keeps its last addresses
        return known


def _path(ask: Ask) -> str:
    """Each part is asked for from row 0: only together the rows have an order."""
    lists = ask.kind in LISTS
    return ask.path(offset=0 if lists else None, limit=ask.offset + ask.limit if lists else None, part=True)


def _why(problem: Exception) -> str:
    match problem:
        case aiohttp.ClientResponseError():
            return f"it answered with HTTP {problem.status}"
        case TimeoutError():
            return f"no answer within {ASK_WITHIN:g} s"
        case ValueError():
            return "it answered something else: is it of another version?"
        case _:
            return "it cannot be reached"
