"""Agents' front ends inside the test's own loop: the whole agent, or the front end over a swarm that reads files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from prometheus_client import CollectorRegistry
from yarl import URL

from mirror.front.app import Front, make_app
from mirror.front.blobs import Span
from mirror.metrics import FrontMetrics
from mirror.serve import front_of, listening, running
from mirror.settings import MirrorSettings
from mirror.upstream.auth import Credentials
from mirror.upstream.client import Upstream
from mirror.upstream.registries import Registries
from mirror.upstream.urlrules import UrlRules
from swarm.base.flags import Endpoint
from swarm.blob.digest import Digest, parse
from swarm.blob.errors import BlobUnavailable, SourceBroken, SourceBusy, SourceError, SwarmError
from swarm.fetch.proof import Proof
from swarm.tracking.tags import Meaning, Resolved
from swarm.upstream.source import Source
from tests.parts.procs import free_port


@dataclass
class Agent:
    """A front end that listens; *front* is its inside."""

    port: int
    front: Front
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self.port}"

    async def ask(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, data: bytes | None = None
    ) -> tuple[int, CIMultiDictProxy[str], bytes]:
        """(status, headers, body)."""
        async with (
            asyncio.timeout(30),
            self.session.request(method, URL(f"{self.url}{path}", encoded=True), headers=headers, data=data) as answer,
        ):
            return answer.status, answer.headers, await answer.read()

    async def idle(self) -> None:
        """Until no request is under way."""
        async with asyncio.timeout(10):
            while self.front.under_way:  # noqa: ASYNC110  # its end is nobody's event
                await asyncio.sleep(0.005)


@asynccontextmanager
async def agent(directory: Path, **settings: Any) -> AsyncIterator[Agent]:
    """A whole agent with its store under *directory*, alone (no tracker) unless *settings* say otherwise."""
    port = free_port()
    chosen: dict[str, Any] = {
        "listen": Endpoint("127.0.0.1", port),
        "metrics_listen": Endpoint("127.0.0.1", 0),
        "swarm_listen": Endpoint("127.0.0.1", 0),
        "store": directory / "store",
        "blob_host": ("127.0.0.1:*",),
    } | settings
    async with running(MirrorSettings(**chosen)) as front, aiohttp.ClientSession(auto_decompress=False) as session:
        yield Agent(port, front, session)


# -- a swarm that reads files ----------------------------------------------------------------------


@dataclass
class FileBlob:
    """A file as a blob. *failure* is raised at byte *fails_at*; with *gate* set, reading stops there until it opens."""

    path: Path
    fails_at: int = -1
    failure: SwarmError | None = None
    gate: asyncio.Event | None = None
    span: int = 256 * 1024
    readers: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    async def read(self, start: int, stop: int) -> AsyncIterator[Span]:
        """Spans of the file."""
        self.readers += 1
        try:
            with self.path.open("rb") as file:
                while start < stop:
                    if start == self.fails_at:
                        if self.gate is not None:
                            await self.gate.wait()
                        if self.failure is not None:
                            raise self.failure
                    end = min(stop, start + self.span)
                    if start < self.fails_at < end:
                        end = self.fails_at
                    yield Span(file.fileno(), start, end - start, "disk")
                    start = end
        finally:
            self.readers -= 1


@dataclass
class FileNames:
    """Meanings of tags, kept for ever."""

    known: dict[str, Meaning] = field(default_factory=dict)

    async def resolve(self, name: str, ttl: float, ask: Callable[[], Awaitable[Meaning]]) -> Resolved:
        """As swarm.tracking.tags, without a cluster and without time."""
        try:
            self.known[name] = await ask()
        except (SourceBusy, SourceBroken):
            if name not in self.known:
                raise
            return Resolved(self.known[name], stale=True, age=42.0)
        return Resolved(self.known[name], stale=False, age=0.0)


@dataclass
class FileSwarm:
    """The blobs of one directory. *refuse* is raised instead of opening, as long as it is set."""

    directory: Path
    blobs: dict[Digest, FileBlob] = field(default_factory=dict)
    names: FileNames = field(default_factory=FileNames)
    refuse: SwarmError | None = None
    ready: bool = True
    room: int = 1 << 40
    opened: int = 0
    open_now: int = 0

    def add(self, content: bytes) -> Digest:
        """Keep *content* as a blob."""
        digest = parse(f"sha256:{hashlib.sha256(content).hexdigest()}")
        path = self.directory / digest.removeprefix("sha256:")
        path.write_bytes(content)
        self.blobs[digest] = FileBlob(path)
        return digest

    @asynccontextmanager
    async def open(
        self,
        digest: Digest,
        source: Source | None,
        *,
        size: int | None = None,
        whole: bool = True,
        low: bool = False,
        origin: str = "",
        proof: Proof = Proof.NONE,
    ) -> AsyncIterator[FileBlob]:
        """The blob, or what upstream has of it, taken whole."""
        self.opened += 1
        if self.refuse is not None:
            raise self.refuse
        if digest not in self.blobs:
            await self._fetch(digest, source)
        self.open_now += 1
        try:
            yield self.blobs[digest]
        finally:
            self.open_now -= 1

    async def _fetch(self, digest: Digest, source: Source | None) -> None:
        if source is None:
            raise BlobUnavailable("not here")
        try:
            async with source.open(0, None) as body:
                content = b"".join([chunk async for chunk in body.chunks()])
        except SourceError as error:
            raise BlobUnavailable("nobody has it", cause=error) from None
        if self.add(content) != digest:
            raise BlobUnavailable("wrong bytes")

    def held(self, digest: Digest) -> int | None:
        """Size if it is here."""
        return self.blobs[digest].size if digest in self.blobs else None

    def status(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}


@asynccontextmanager
async def file_agent(
    directory: Path,
    *,
    registries: Registries | None = None,
    credentials: Credentials | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[Agent, FileSwarm]]:
    """The front end over files in *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    swarm = FileSwarm(directory)
    metrics = FrontMetrics(CollectorRegistry())
    port = free_port()
    chosen = MirrorSettings(**({"store": directory} | settings))
    async with AsyncExitStack() as stack:
        rules = UrlRules(named=("127.0.0.1:*",))
        upstream = await stack.enter_async_context(Upstream(registries, credentials=credentials, url_rules=rules))
        front = front_of(chosen, swarm, upstream, metrics, stack)
        await stack.enter_async_context(listening(make_app(front), Endpoint("127.0.0.1", port), grace=1.0))
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        yield Agent(port, front, session), swarm
