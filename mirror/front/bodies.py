"""A blob, or a range of it, as the body of an HTTP response: from the swarm, past it where it does not fit.

Before the first byte every failure is an answer. After it there is only one honest thing left: to cut the
connection, so that no client takes a wrong or short body for a complete one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web

from mirror.errors import BodyAborted, RangeUnsatisfiable
from mirror.front import passthrough
from mirror.front.access import AuthCache, Standing
from mirror.front.blobs import Blob, Node, Span
from mirror.front.ranges import ContentRange, Range, resolve
from mirror.front.requestlog import REQUEST_LOG, RequestLog
from mirror.front.sending import send_spans
from swarm.blob.digest import Digest
from swarm.blob.errors import BlobUnavailable, SourceBusy, SourceRefused, StoreFull, SwarmError, Unproven
from swarm.fetch.proof import Proof
from swarm.upstream.source import Source

log = logging.getLogger("shoal.mirror")

BEGUN_FOR = 600.0
"""Seconds for which a blob that was once answered must go on being answered: a layer takes no longer to pull, and
containerd's parallel fetcher gives the whole pull up over one 404 (docs/contract.md)."""

PERSIST = 20.0
"""Seconds to try again for a blob that was begun, before the answer is 503. Below the 30 s of a range reader."""

FIRST_BYTE = 22.0
"""Seconds after which a range reader for whom nothing came is told so: with the door's tries before, it still hears
of it within its 30 s."""

RETRY = 0.5
"""Seconds between two of those tries; each waits for board and upstream by itself."""


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """What a client wants of one blob, and how it is to be answered."""

    request: web.Request
    digest: Digest
    source: Source | None
    """Where it can be brought in from; None: only from this node and its peers."""

    range: Range | None
    headers: dict[str, str]
    """Sent with every answer that has a body; ETag is among them."""

    whole: bool
    """Whether the blob as a whole is to be kept."""

    origin: str = ""
    """Of what *source* sends (swarm/fetch/proof.py)."""

    proof: Proof = Proof.ORIGIN
    """What a reader of a range asks of the bytes."""

    size: int | None = None
    """Bytes of the blob, where upstream has just said so."""

    patient: bool = False
    """The client forgives PERSIST seconds and no failure (overlaybd): what fails is tried again, also in mid-body."""

    @property
    def log(self) -> RequestLog:
        """What is noted about the request."""
        return self.request[REQUEST_LOG]


@dataclass
class Bodies:
    """What it takes to answer with a blob's bytes. *begun*: the digests that were answered a while ago."""

    swarm: Node
    begun: AuthCache = field(default_factory=lambda: AuthCache(BEGUN_FOR, bound=16384))

    async def answer(self, asked: BlobRequest) -> web.StreamResponse:
        """Answer GET or HEAD. Raises BlobUnavailable and SourceError, both before the first byte."""
        deadline = time.monotonic() + PERSIST
        while True:
            try:
                async with self._open(asked, whole=asked.whole) as blob:
                    return await self._from_swarm(asked, blob)
            except (StoreFull, Unproven) as error:
                if asked.source is None:
                    raise
                full = isinstance(error, StoreFull)
                asked.log.note = f"passed through: {'the store is full' if full else error}"
                return await self._past_store(asked, asked.source)
            except BlobUnavailable as error:
                # Nothing was sent, or it would be a BodyAborted. Bytes of this blob may have been promised, though.
                now = time.monotonic()
                begun = asked.patient or self.begun.standing(asked.digest, now) is Standing.FRESH
                if not begun or now > deadline or _is_told(error, asked.patient):
                    raise
            await asyncio.sleep(RETRY)

    def _open(self, asked: BlobRequest, *, whole: bool) -> AbstractAsyncContextManager[Blob]:
        # Who reads all of it is told by its sha256.
        proof = Proof.NONE if whole else asked.proof
        return self.swarm.open(asked.digest, asked.source, whole=whole, origin=asked.origin, proof=proof)

    async def _past_store(self, asked: BlobRequest, source: Source) -> web.StreamResponse:
        place = _head(asked, await passthrough.size_of(source) if asked.size is None else asked.size)
        if isinstance(place, web.StreamResponse):
            return await _empty(asked, place)
        chunks = passing(source, asked.digest, place)
        # Upstream's first bytes before our first byte: it may yet refuse, and then the answer is no 200.
        first = await anext(chunks, b"")
        response = await self._begun(asked, place)
        await complete(asked.request, response, asked.log, send_chunks(response, chunks, asked.log, first))
        return response

    async def _from_swarm(self, asked: BlobRequest, blob: Blob) -> web.StreamResponse:
        place = _head(asked, blob.size)
        if isinstance(place, web.StreamResponse):
            return await _empty(asked, place)
        reading = self._patiently(asked, blob, place) if asked.patient else blob.read(place.start, place.stop)
        async with aclosing(cast("AsyncGenerator[Span, None]", reading)) as spans:
            # As above: a size is known long before it is known whether anybody still has the bytes.
            try:
                async with asyncio.timeout(FIRST_BYTE if asked.patient else None):
                    first_span = await anext(spans)
            except TimeoutError:
                raise BlobUnavailable("nothing came in time") from None
            response = await self._begun(asked, place)
            sending = _send(asked, response, place, _chained(first_span, spans))
            await complete(asked.request, response, asked.log, sending)
        return response

    async def _begun(self, asked: BlobRequest, place: ContentRange) -> web.StreamResponse:
        response = head_of(place, asked.headers)
        await response.prepare(asked.request)
        self.begun.note(asked.digest, time.monotonic())
        return response

    async def _patiently(self, asked: BlobRequest, blob: Blob, place: ContentRange) -> AsyncGenerator[Span, None]:
        """The spans of *place*; what fails is opened again where it failed, until PERSIST seconds brought nothing.

        Raises BlobUnavailable, StoreFull, BlobCorrupt.
        """
        at, deadline, again = place.start, time.monotonic() + PERSIST, False
        while True:
            try:
                async with AsyncExitStack() as stack:
                    if again:
                        blob = await stack.enter_async_context(self._open(asked, whole=False))
                    reading = cast("AsyncGenerator[Span, None]", blob.read(at, place.stop))
                    async for span in await stack.enter_async_context(aclosing(reading)):
                        yield span
                        at, deadline = span.offset + span.count, time.monotonic() + PERSIST
                return
            except BlobUnavailable as error:
                if time.monotonic() > deadline or _is_told(error, True):
                    raise
            again = True
            await asyncio.sleep(RETRY)


def _is_told(error: BlobUnavailable, patient: bool) -> bool:
    """Whether upstream said something that its client must hear, instead of a further try."""
    return isinstance(error.cause, SourceRefused) or (patient and isinstance(error.cause, SourceBusy))


def _head(asked: BlobRequest, size: int) -> ContentRange | web.StreamResponse:
    """Which bytes are to be sent, or the answer where there are none to send."""
    if is_known(asked.request, asked.headers["ETag"]):
        return web.Response(status=304, headers={"ETag": asked.headers["ETag"]})
    try:
        place = resolve(asked.range if asked.request.method == "GET" else None, size)
    except RangeUnsatisfiable as error:
        return unsatisfiable(error, asked.headers)
    if asked.request.method == "HEAD" or not place.length:
        return head_of(place, asked.headers)
    return place


async def _empty(asked: BlobRequest, response: web.StreamResponse) -> web.StreamResponse:
    if not isinstance(response, web.Response):
        await response.prepare(asked.request)
    return response


async def _chained(first: Span, rest: AsyncGenerator[Span, None]) -> AsyncGenerator[Span, None]:
    yield first
    async for span in rest:
        yield span


def is_known(request: web.Request, etag: str) -> bool:
    """Whether If-None-Match names *etag* (RFC 9110, 13.1.2: weak comparison): the client has it already."""
    header = request.headers.get("If-None-Match")
    if header is None:
        return False
    listed = [item.strip().removeprefix("W/") for item in header.split(",")]
    return etag in listed or "*" in listed


def head_of(place: ContentRange, headers: dict[str, str]) -> web.StreamResponse:
    """The response to a range, as far as its size tells."""
    response = web.StreamResponse(status=206 if place.partial else 200, headers=headers)
    response.content_length = place.length
    response.headers["Accept-Ranges"] = "bytes"
    if place.partial:
        response.headers["Content-Range"] = place.content_range
    return response


def unsatisfiable(error: RangeUnsatisfiable, headers: dict[str, str]) -> web.Response:
    """416 (RFC 9110, 15.5.17). The text of *error* is the Content-Range."""
    kept = {name: value for name, value in headers.items() if name not in ("Content-Type", "ETag")}
    return web.Response(status=416, headers={**kept, "Content-Range": str(error), "Accept-Ranges": "bytes"})


async def _send(
    asked: BlobRequest, response: web.StreamResponse, place: ContentRange, spans: AsyncGenerator[Span, None]
) -> None:
    before = asked.log.origins.total()
    try:
        await send_spans(asked.request, response, spans, asked.log.sent)
        return
    except StoreFull:
        # The disk filled up under the fetch.
        if asked.source is None:
            raise
        asked.log.note = "the store filled up: passed through from there"
    except Unproven as error:
        if asked.source is None:
            raise
        asked.log.note = f"passed through from there: {error}"
    except OSError as error:
        if asked.source is None or isinstance(error, ConnectionError):
            raise
        asked.log.note = f"the copy cannot be read ({os.strerror(error.errno or 0)}): passed through from there"
    # What was sent was verified; the rest comes past the store.
    at = place.start + asked.log.origins.total() - before
    rest = ContentRange(at, place.stop, place.size, place.partial)
    await send_chunks(response, passing(asked.source, asked.digest, rest), asked.log)


def passing(source: Source, digest: Digest, place: ContentRange) -> AsyncGenerator[bytes, None]:
    """The bytes of *place* straight from upstream; checked where they reach to the blob's end as a whole."""
    if place.partial:
        return unchecked(source, place.size, place.start, place.stop)
    return cast("AsyncGenerator[bytes, None]", passthrough.verified(source, digest, place.size, place.start))


def unchecked(source: Source, size: int, start: int, stop: int) -> AsyncGenerator[bytes, None]:
    """Bytes [start, stop) straight from upstream: a range, which no digest is of."""
    return cast("AsyncGenerator[bytes, None]", passthrough.part(source, size, start, stop))


async def send_chunks(
    response: web.StreamResponse, chunks: AsyncGenerator[bytes, None], account: RequestLog, first: bytes = b""
) -> None:
    """Send *first* and then *chunks* as the body. Raises SwarmError, ConnectionError."""
    async with aclosing(chunks):
        if first:
            await response.write(first)
            account.sent("upstream", len(first))
        async for chunk in chunks:
            await response.write(chunk)
            account.sent("upstream", len(chunk))


async def complete(
    request: web.Request, response: web.StreamResponse, account: RequestLog, sending: Coroutine[Any, Any, None]
) -> None:
    """Run *sending* to the end of the body; if it fails, cut the connection so that the body is visibly short."""
    try:
        await sending
        await response.write_eof()
    except (ConnectionError, asyncio.CancelledError):
        account.outcome = "left"
        _abort(request)
        raise
    except (SwarmError, OSError) as error:
        account.outcome, account.note = "broken", f"{type(error).__name__}: {error}"
        _abort(request)
        raise BodyAborted from error


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
