"""What upstream sends: a Source that gives Bodies (swarm/upstream/source.py), and answers that are only handed on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial

from mirror.errors import TimedOut
from mirror.upstream.answers import ContentRange, content_range, is_range_refused
from mirror.upstream.bodies import bounded, plain
from mirror.upstream.coding import is_identity
from mirror.upstream.exchange import Answer, Exchanges, Target
from mirror.upstream.transport import translated
from swarm.blob.digest import Digest
from swarm.blob.errors import SourceBroken, SourceSilent
from swarm.upstream.source import Sink

UNSIZED_LIMIT = 4 << 20
"""Bytes of a body without Content-Length that are read into memory to learn its size. Manifests come so; blobs
of this size from servers that do not know it are not worth more memory."""

EMPTY = Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


Turn = Callable[[int], Awaitable[None]]


class UpstreamBody:
    """A Body (swarm/upstream/source.py) with what else is known about it."""

    def __init__(
        self, answer: Answer, at: ContentRange, total: int, stop: int | None, read: bytes | None, turn: Turn
    ) -> None:
        """*turn*: waits until so many bytes more may come."""
        self._turn = turn
        self._answer = answer
        self._read = read
        self.total = total
        """Bytes of the whole blob."""
        self.offset = at.offset
        """Offset of the first byte that comes."""
        self.end = total if at.end is None else at.end
        """Offset after the last byte that upstream sends."""
        self.whole = at.whole
        """Whether upstream sends all of the blob (perhaps because it ignores ranges)."""
        self.wanted = total if stop is None else min(stop, total)
        """Offset after the last byte that was asked for."""
        self.own = answer.own
        """Whether the agent's own credentials were used."""
        self.media_type = answer.response.headers.get("Content-Type", "")
        """Content-Type as upstream says, "" if it does not."""
        self.etag = answer.response.headers.get("ETag", "")
        """ETag as upstream says, "" if it does not: a file without a digest is another one when it changes."""

    async def chunks(self, *, everything: bool = False) -> AsyncIterator[bytes]:
        """The bytes up to the end of what was asked; *everything*: to the end of what upstream sends."""
        if self._read is not None:
            yield self._read if everything else self._read[: self.wanted]
            return
        first = left = self.end - self.offset if everything else min(self.wanted, self.end) - self.offset
        missing = 0 if everything else max(self.wanted - self.end, 0)
        # readchunk hands over the buffers as the socket gave them; readany would join (copy) them.
        read, host = self._answer.response.content.readchunk, self._answer.host
        try:
            while left > 0:
                try:
                    with translated(host):
                        chunk, boundary = await read()
                except TimedOut as error:
                    raise error if left < first else SourceSilent(str(error)) from None
                if not chunk:
                    if boundary:
                        continue  # the end of one chunk of the chunked coding, whose bytes were already read
                    raise SourceBroken(f"{host} cut the body short")
                if len(chunk) > left:
                    chunk = chunk[:left]
                left -= len(chunk)
                yield chunk
                await self._turn(len(chunk))  # what is not read fills the connection's buffers, and then upstream waits
        finally:
            self._answer.ticket.bytes(first - left)
        if missing:
            raise SourceBroken(f"{host} sent less than the range that was asked")


class UpstreamSource:
    """A Source (swarm/upstream/source.py): one blob, manifest or URL."""

    def __init__(self, exchanges: Exchanges, target: Target, digest: Digest | None, *, ranges: bool = True) -> None:
        self._exchanges = exchanges
        self._target = target
        self._digest = digest
        self._ranges = ranges
        self.media_type = ""
        """Content-Type of the last answer, "" before one."""

    @property
    def upstream(self) -> str:
        """Host (and port)."""
        return self._target.name

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[UpstreamBody]:
        """Ask for bytes [start, stop). See swarm/upstream/source.py."""
        return self._open(start, stop)

    async def pour(self, start: int, stop: int, total: int, sink: Sink, begun: Callable[[], None]) -> bool:
        """Give bytes [start, stop) to *sink* past the loop. See swarm/upstream/source.py."""
        if not (self._ranges and self._exchanges.takes_ranges(self._target)):
            return False
        return await self._exchanges.pour(self._target, start, stop, total, sink, begun)

    @contextlib.asynccontextmanager
    async def _open(self, start: int, stop: int | None) -> AsyncIterator[UpstreamBody]:
        partial = self._ranges and (start > 0 or stop is not None)
        if partial and self._exchanges.takes_ranges(self._target):
            asked = f"bytes={start}-" if stop is None else f"bytes={start}-{max(stop, start + 1) - 1}"
            async with self._exchanges.ask(self._target, "GET", {"Range": asked}) as answer:
                if not is_range_refused(answer.response.status, answer.response.headers, start):
                    yield await self._body(answer, start, stop)
                    return
            async with self._exchanges.ask(self._target, "GET", {}) as answer:
                body = await self._body(answer, start, stop)
                self._exchanges.refuses_ranges(self._target)
                yield body
            return
        async with self._exchanges.ask(self._target, "GET", {}) as answer:
            yield await self._body(answer, start, stop)

    async def _body(self, answer: Answer, start: int, stop: int | None) -> UpstreamBody:
        response = answer.response
        at = content_range(response.status, response.headers, start, answer.host)
        coded = not is_identity(response.headers.get("Content-Encoding")) and response.status != 416
        if coded and not at.whole:
            raise SourceBroken(f"{answer.host} compressed a range, which cannot be undone")
        read: bytes | None = None
        if at.end == at.offset:
            read = b""
        elif at.whole and (coded or at.total is None):
            read = await bounded(response, UNSIZED_LIMIT, answer.host)
            at = ContentRange(total=len(read), offset=0, end=len(read), whole=True)
        if at.total is None:
            raise SourceBroken(f"{answer.host} does not say how large the blob is")
        if at.total == 0 and self._digest not in (None, EMPTY):
            raise SourceBroken(f"{answer.host} sent an empty body")
        self.media_type = response.headers.get("Content-Type", "")
        if self._ranges and response.status == 206 and not coded and "Content-Length" in response.headers:
            self._exchanges.learn(self._target, answer)
        turn = partial(self._exchanges.pace.take, low=self._target.low)
        return UpstreamBody(answer, at, at.total, stop, read, turn)


@dataclass
class Passed:
    """An answer that is handed on as it is."""

    status: int
    headers: dict[str, str]
    """Those that mean something to a client of a mirror."""

    links: tuple[str, ...]
    """The lines of `Link` as upstream wrote them."""

    url: str = field(repr=False)
    """What answered; links are relative to it."""

    _answer: Answer = field(repr=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, without a coding that nobody asked for. Raises SourceBroken."""
        async for chunk in plain(self._answer.response, self._answer.host):
            yield chunk
