"""What a fetch does with what upstream and peers send: it takes pieces in, and tells the owners that must know."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from swarm.blob.errors import BlobUnavailable, SizeChanged, SourceError, SwarmError
from swarm.blob.geometry import Window
from swarm.fetch.course import Course, Phase
from swarm.fetch.demand import Wanted, wanted_of
from swarm.fetch.modes import Mode
from swarm.fetch.partial import Partial
from swarm.fetch.transfers import Transfers
from swarm.peer.peers import PeerAddress
from swarm.protocol.board import Failure
from swarm.upstream.source import Source

log = logging.getLogger("shoal.swarm")

TELL_WITHIN = 0.25
"""Seconds after which the board is told of windows that have come from peers. Not of pieces: it knows no pieces, and a
session of range readers asked it four times a second for each of 32 blobs."""

FLOWING = 3.0
"""Seconds since bytes came from upstream, within which a failed claim is not the end of all hope."""


class Intake:
    """See the module: the Host of Claims and of Transfers. *fail*: the fetch cannot go on. *reject*: see Council."""

    def __init__(
        self, course: Course, fail: Callable[[SwarmError], None], reject: Callable[[str], Awaitable[None]]
    ) -> None:
        self._course = course
        self._fail = fail
        self._reject = reject
        self._learning = asyncio.Lock()
        self._telling: asyncio.TimerHandle | None = None

    # -- the size ---------------------------------------------------------------------------------------

    @property
    def place(self) -> Partial | None:
        """Where the bytes go; None: the size is not known."""
        return self._course.partial

    async def learn(self, size: int, shared: bool = False) -> None:
        """The size is known: make room for the blob. *shared*: others told it. Raises StoreFull."""
        course, parts = self._course, self._course.parts
        async with self._learning:
            if course.partial is not None:
                return
            # Ranges touch a part of a blob, which may be larger than the store: room is made window by window.
            by_window = not course.readers.whole
            here = await Partial.open(
                course.digest, size, parts.store, course.home.make_room, course.tasks.spawn,
                by_window=by_window, shared=shared, origin=course.origin or "",
            )  # fmt: skip
            course.origin = here.origin
            if course.ranged:
                here.expect_ranges()
            course.transfers = Transfers(
                course.digest, here, self, course.follower.hashes, parts.session, parts.lane, parts.pool,
                parts.metrics, course.tasks.spawn, time.monotonic,
            )  # fmt: skip
            course.partial = here
            course.follower.sized(size)
            if course.phase is Phase.SIZING:
                course.phase = Phase.FILLING
            course.sized.set()

    async def learned(self) -> None:
        """Until the size is known."""
        await self._course.sized.wait()

    # -- what is asked ----------------------------------------------------------------------------------

    def source(self, window: int | None = None) -> Source | None:
        """Upstream, as a reader of *window* asks it."""
        source = self._course.readers.source(window)
        return self._course.line.watched(source) if source is not None else None

    def wanted(self) -> Wanted:
        """What the readers want of peers."""
        return wanted_of(self._course.readers, self._course.claims.elsewhere)

    def peers(self) -> tuple[PeerAddress, ...]:
        """Other agents that take part."""
        return self._course.follower.peers

    def me(self) -> str:
        """Under which name this node stands among them."""
        trackers = self._course.parts.trackers
        return trackers.address or trackers.session

    def writing(self, window: Window) -> AbstractAsyncContextManager[None]:
        """Entered before anything is written into *window*: then nobody else writes there."""
        assert self._course.transfers is not None, "the size is known before anything is written"
        return self._course.transfers.writing(window)

    # -- what comes from upstream -----------------------------------------------------------------------

    def received(self, count: int) -> None:
        """Bytes arrived from upstream."""
        self._course.line.received()
        self._course.parts.metrics.bytes_in.labels("upstream").inc(count)

    @contextlib.asynccontextmanager
    async def covering(self, window: int) -> AsyncIterator[None]:
        """Entered before a direct stream brings *window* in: a claim on it is fulfilled by this."""
        course = self._course
        async with course.claims.covering(window):
            if window in course.claims.direct and course.follower.shared:
                course.follower.poll()  # the board may give us the claim, so that nobody else brings the same bytes in
            yield

    def covered(self, window: int, count: int) -> None:
        """Bytes of such a window arrived."""
        self._course.claims.covered(window, count)

    def came(self, piece: int, sha1: bytes) -> None:
        """*piece* came from upstream."""
        self._ready(piece, sha1, "upstream")
        if self._course.transfers is not None:
            self._course.transfers.brought(piece)

    def brought(self, window: int) -> None:
        """A claimed window is here: the claim ends with its hashes."""
        self._course.follower.publish(window, again=True)

    def may_skip(self, window: int) -> bool:
        """Whether what upstream sends before *window* may be thrown away: nobody else brings in any of that.

        Where it ignores ranges, each of several agents read all of the blob, and kept the last of it.
        """
        coming = self._course.follower.others.windows(time.monotonic())
        return min(coming, default=window) >= window

    def unable(self, window: int, failure: Failure, error: SourceError | None) -> None:
        """A claim is given back."""
        if error is not None:
            self._course.parts.metrics.source_failures.labels(type(error).__name__).inc()
            fields = {"digest": self._course.digest, "window": window, "error": str(error)}
            log.warning("claim-failed", extra={"fields": fields})
        self._course.tasks.spawn(self._give_back(window, failure, error))

    def resized(self, error: SizeChanged) -> None:
        """Upstream told another size than the one that is known."""
        self._course.tasks.spawn(self._tell_size(error))

    def broken(self, error: BaseException) -> None:
        """Something else than upstream failed."""
        self._fail(error if isinstance(error, SwarmError) else BlobUnavailable(repr(error)))

    # -- what comes from peers --------------------------------------------------------------------------

    def came_from_peer(self, piece: int, sha1: bytes) -> None:
        """*piece* came from a peer, and its hash is what the board says."""
        course = self._course
        assert course.partial is not None, "the size is known before anything comes"
        course.stalls.moved(time.monotonic())
        if not course.heard_peers:
            course.heard_peers = True
            course.parts.silence.broken(course.follower.peers)
        window = course.partial.window_of(piece).index
        if not course.follower.sealed and course.follower.origins.get(window, "") != course.origin:
            course.mixed()  # who reads the blob whole takes what others asked of other places
        length = course.partial.layout.piece_span(piece)[1]
        course.parts.metrics.bytes_in.labels("peer").inc(length)
        course.claims.arrived(window, length)
        self._ready(piece, sha1, "peer")

    def moved(self) -> None:
        """Something is on its way from peers."""
        self._course.stalls.moved(time.monotonic())

    def banned(self, peer: PeerAddress) -> None:
        """*peer* sent wrong bytes."""
        self._course.follower.ban(peer)

    def wrong(self, peer: PeerAddress) -> None:
        """*peer* sent a wrong piece over the lane: nothing is asked of it any more, and the tracker hears of it."""
        self._course.parts.metrics.bad_pieces.inc()
        self._course.follower.ban(peer)
        self._course.parts.on_wrong(self._course.digest, peer)

    def here(self, window: int) -> None:
        """*window* is complete, from wherever."""
        course = self._course
        assert course.partial is not None and course.transfers is not None, "the size is known before anything comes"
        course.transfers.arrived(course.partial.layout.windows[window])
        if course.transfers.mode is not Mode.WHOLE:
            course.want()

    def trace(self, event: str, window: int, **fields: Any) -> None:
        """Tell who looks at timelines."""
        self._course.trace(event, window, **fields)

    # -- inside -----------------------------------------------------------------------------------------

    def _tell_soon(self) -> None:
        """Others may have a window from here now, and while the board has no news nobody would tell it so."""
        if self._telling is None and self._course.follower.shared and not self._course.closing:
            self._telling = asyncio.get_running_loop().call_later(TELL_WITHIN, self._tell)

    def _tell(self) -> None:
        self._telling = None
        if not self._course.closing:
            self._course.follower.poll()

    def _ready(self, piece: int, sha1: bytes, origin: str) -> None:
        assert self._course.partial is not None, "the size is known before anything comes"
        self._course.piece_at = time.monotonic()
        done = self._course.partial.ready(piece, sha1, origin)
        if done is not None:
            self.trace("window-here", done.index, origin=origin)
            self.here(done.index)
            if origin == "peer" and self._course.parts.lane.port:
                self._tell_soon()

    async def _give_back(self, window: int, failure: Failure, error: SourceError | None) -> None:
        retry_after = error.retry_after if error is not None else None
        try:
            hope = await self._course.follower.release((window,), failure, retry_after)
        finally:
            self._course.claims.returned(window)
        flowing = time.monotonic() - self._course.line.moved < FLOWING
        if not hope and error is not None and not flowing:
            raise BlobUnavailable(f"nobody can bring in {self._course.digest}", cause=error)

    async def _tell_size(self, error: SizeChanged) -> None:
        await self._reject(f"size: {error}")
