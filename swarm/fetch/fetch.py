"""One blob on its way to this node: the phase it is in, its readers, and the owners of everything else.

A Fetch lives while somebody on this node reads the blob (and a little longer, for the others in the
cluster). It coordinates, and holds no state of its owners:

    partial    what is here            follower    what the board says
    claims     what upstream sends     transfers   what peers send
    stalls     since when nothing came verifier    whether the sha256 matches

SIZING -> FILLING (a generation of the board) -> VERIFIED -> KEPT -> CLOSED, and FAILED from any.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from swarm.blob.digest import Digest
from swarm.blob.errors import BlobCorrupt, BlobUnavailable, SourceError, StoreFull, SwarmError, TrackerError
from swarm.blob.geometry import Window
from swarm.fetch import stalls
from swarm.fetch.claims import Claims
from swarm.fetch.demand import Demand, Wanted, demand_of, wanted_of
from swarm.fetch.events import (
    ClaimsChanged,
    Event,
    Hopeless,
    ModeChanged,
    PeersChanged,
    Poisoned,
    Published,
    Restarted,
    SizeConflict,
    Sized,
)
from swarm.fetch.follower import Follower, Standing
from swarm.fetch.modes import Holding, Mode, is_over, next_mode
from swarm.fetch.partial import Partial
from swarm.fetch.readers import Reader, Readers
from swarm.fetch.reading import Span, spans
from swarm.fetch.stalls import Stalls
from swarm.fetch.tasks import Tasks
from swarm.fetch.transfers import Transfers
from swarm.fetch.verifier import Matched, verify
from swarm.metrics import SwarmMetrics
from swarm.peer.peers import PeerAddress
from swarm.peer.session import Session
from swarm.protocol import wire
from swarm.protocol.board import MAX_CLAIMS, MAX_GENERATIONS, Failure
from swarm.settings import SwarmSettings
from swarm.storage.store import Store
from swarm.tracking.trackers import Trackers
from swarm.upstream.download import SizeChanged
from swarm.upstream.source import Source

log = logging.getLogger("shoal.swarm")

REPORT = 1.0
"""Seconds between two reports of progress on claims."""

IDLE = 1.0
"""Seconds that a fetch goes on without a reader: containerd's parallel ranges come and go."""

RANGE_LINGER = 300.0
"""Seconds that a blob which is read in ranges stays offered after its last reader: the other nodes start the same
image minutes later, and what is not on the board they would take from upstream again."""

DEMANDED_WINDOWS = 8
"""Windows of which a range reader demands pieces at once: as many as a board hands out claims."""

HEDGE = 8.0
"""Seconds after which a range reader asks upstream itself for a piece whose window is not published (where it is,
peers that deliver nothing are noticed by STALL). A lease of 5 s has run out by then, and of the 30 s that overlaybd
gives a read most are left. With 5 s, for all windows, 16 agents on two cores asked for 1.5 copies."""


class Phase(Enum):
    """Where a fetch stands."""

    SIZING = "sizing"
    """The size is not known."""
    FILLING = "filling"
    """Pieces come."""
    VERIFIED = "verified"
    """The sha256 matched."""
    KEPT = "kept"
    """The blob is complete in the store."""
    CLOSED = "closed"
    """Nothing that the fetch started runs any more."""
    FAILED = "failed"
    """It cannot go on; `error` says why."""


@dataclass(eq=False)
class Context:
    """The parts of the agent that every fetch works with."""

    settings: SwarmSettings
    session: Session
    store: Store
    trackers: Trackers
    pool: ThreadPoolExecutor
    metrics: SwarmMetrics
    on_finished: Callable[[Fetch], None]
    on_closed: Callable[[Fetch], None]
    entering: Callable[[], int]
    """Blobs that enter the cluster for readers on this node (`Fetch.enters`)."""
    on_entering: Callable[[], None]
    """There are more of those, or fewer."""
    on_full: Callable[[], Awaitable[bool]]
    """The store has no room: close what nobody reads. Whether there was anything."""


class Fetch:
    """See the module. Created by the node; `join` before anything else, `part` at the end."""

    def __init__(self, digest: Digest, context: Context, after: asyncio.Event | None = None) -> None:
        """*after*: set once an earlier fetch of the same blob is closed; this one begins then."""
        self.digest = digest
        self.phase = Phase.SIZING
        self.error: SwarmError | None = None
        self.readers = Readers()
        self.enters = False
        """Much of it is still to be brought into the cluster, for those who read all of it."""
        self.closing = False
        self.closed = asyncio.Event()
        self._context = context
        self._after = after
        self._started = time.monotonic()
        self._tasks = Tasks(self._task_failed)
        self._sized = asyncio.Event()
        self._settled = asyncio.Event()
        """Verified, or failed."""
        self._learning = asyncio.Lock()
        self._restarted = asyncio.Event()
        self._partial: Partial | None = None
        self._transfers: Transfers | None = None
        self._follower = Follower(digest, context.trackers, self, self._tasks.spawn)
        self._claims = Claims(self, context.pool, self._tasks.spawn)
        self._stalls = Stalls(self._started)
        self._holding = Holding()
        self._turning = True
        """Whether claims on windows of a sole seed are wanted."""
        self._size_from_disk = False
        """A former fetch knew the size, and nobody has confirmed it."""
        self._keep = True
        self._rejections = 0
        self._ranged = False
        """Ranges of it were read on this node."""
        self._main: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._left = 0.0

    # -- readers ----------------------------------------------------------------------------------

    def join(self, whole: bool, source: Source | None, *, low: bool = False) -> Reader:
        """A new reader; *low*: one that every other comes before. The fetch starts with the first."""
        reader = Reader(whole, source, late=self.is_verified, low=low)
        self.readers.add(reader)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if source is not None:
            self._claims.ask_again()
        if not whole:
            self._ranged = True
            if self._partial is not None:
                self._partial.expect_ranges()
        if self._main is None:
            self._main = asyncio.create_task(self._run())
        self._look_at_entering()
        self._follower.tell()
        return reader

    def part(self, reader: Reader) -> None:
        """*reader* is gone; what was done for it alone stops."""
        self.readers.discard(reader)
        self._look_at_entering()
        self._follower.tell()
        if not self.readers and not self.closing and self._idle is None:
            self._left = time.monotonic()
            self._idle = asyncio.get_running_loop().call_later(self._lingers(), self._idle_over)

    async def sized(self) -> int:
        """Size of the blob in bytes, once known. Raises SwarmError."""
        await self._sized.wait()
        if self._partial is None:
            assert self.error is not None
            raise self.error
        return self._partial.layout.size

    async def read(self, reader: Reader, start: int, stop: int) -> AsyncGenerator[Span, None]:
        """Bytes [start, stop) in order, as they become readable. Raises SwarmError; see swarm/fetch/reading.py."""
        await self.sized()
        assert self._partial is not None
        async with contextlib.aclosing(spans(self._partial, self, reader, start, stop)) as found:
            async for span in found:
                yield span

    @property
    def is_verified(self) -> bool:
        """Whether the whole blob is here, and its sha256 matched."""
        return self.phase in (Phase.VERIFIED, Phase.KEPT) or (self.phase is Phase.CLOSED and self.error is None)

    @property
    def is_kept(self) -> bool:
        """Whether the store has it."""
        return self.phase is Phase.KEPT

    @property
    def size(self) -> int | None:
        """Bytes of the blob, once known."""
        return self._partial.layout.size if self._partial is not None else None

    async def wait_verified(self) -> None:
        """Until the sha256 matched. Raises SwarmError."""
        await self._settled.wait()
        if self.error is not None:
            raise self.error

    def need(self, reader: Reader, position: int, stop: int) -> None:
        """*reader*, if it reads a range, needs the pieces of [position, stop) that are not here."""
        if reader.whole or self._partial is None:
            return
        layout, held = self._partial.layout, self._partial.pieces
        first, last = position // layout.piece_length, (stop - 1) // layout.piece_length
        needed = {
            w.index: [p for p in held.missing(w) if first <= p <= last]
            for w in layout.windows_of(position, stop)[:DEMANDED_WINDOWS]
            if not held.holds(w)
        }
        pieces = tuple(p for found in needed.values() for p in found)
        if pieces != reader.pieces:
            reader.pieces, reader.windows = pieces, tuple(w for w, found in needed.items() if found)
            self._follower.tell()
            self._want()

    async def hurry(self, reader: Reader, piece: int) -> None:
        """Until *piece* is ready. A range reader asks upstream past all claims if nobody brings it in time.

        Its window may be long, and come slowly to whoever has the claim. What this costs upstream is the piece.
        """
        assert self._partial is not None
        pieces = self._partial.pieces
        if reader.whole or reader.low:
            await pieces.wait(piece)
            return
        window = self._partial.window_of(piece).index
        while piece not in pieces:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEDGE):
                    await pieces.wait(piece)
                    return
            if reader.source is not None and window not in self._follower.hashes and not self._claims.hedging(piece):
                await self._claims.hedge(piece, reader.source)
                self._want()

    def status(self) -> dict[str, Any]:
        """For the agent's status page."""
        here = self._partial
        return {
            "digest": self.digest,
            "phase": self.phase.value,
            "size": self.size,
            "pieces": here.layout.pieces if here else None,
            "ready": here.pieces.count if here else 0,
            "claims": list(self._claims.windows),
            "readers": len(self.readers),
            "peers": len(self._follower.peers),
            "tracker": self._follower.tracker,
            "verified": self.is_verified,
            "seconds": round(time.monotonic() - self._started, 3),
        }

    def tell_wish(self) -> None:
        """How many other blobs enter the cluster has changed."""
        self._follower.tell()

    # -- life -------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop: claims are handed over, torrents leave the session, the partial file stays."""
        if not self.closing:
            self.closing = True
            await self._close()

    async def _run(self) -> None:
        if self._after is not None:
            await self._after.wait()
        try:
            if (size := self._context.store.partial_size(self.digest)) is not None:
                self._size_from_disk = True
                await self.learn(size)  # what is here is served whoever else is down
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follower.follow())
                group.create_task(self._follower.apply())
                group.create_task(self._verify())
                group.create_task(self._report())
                group.create_task(self._watch())
        except* SwarmError as errors:
            error = errors.exceptions[0]
            self._fail(error if isinstance(error, SwarmError) else BlobUnavailable(str(error)))
        except* OSError as errors:
            fields = {"digest": self.digest, "error": str(errors.exceptions[0])}
            log.error("fetch-failed", extra={"fields": fields})  # noqa: TRY400  # the disk's fault, not the code's
            self._fail(BlobUnavailable(f"local input/output error: {errors.exceptions[0]}"))

    def _task_failed(self, error: BaseException) -> None:
        """A task of this fetch ended with an error."""
        if not isinstance(error, SwarmError):  # those are told by fetch-ended; a registry that is down is no defect
            fields = {"digest": self.digest, "error": repr(error)}
            log.error("fetch-task-failed", extra={"fields": fields}, exc_info=error)
        self._fail(error if isinstance(error, SwarmError) else BlobUnavailable(repr(error)))

    def _fail(self, error: SwarmError) -> None:
        self._end(error)
        self._close_soon()

    def _end(self, error: SwarmError) -> None:
        """Nobody gets anything more of it, unless it is verified."""
        if self.error is None and not self.is_verified:
            self.error, self.phase = error, Phase.FAILED
            log.info("fetch-ended", extra={"fields": {"digest": self.digest, "why": str(error)}})
        if self._partial is not None:
            self._partial.fail(error)
        self._sized.set()
        self._settled.set()

    def _close_soon(self) -> None:
        self._idle = None
        if not self.closing and (not self.readers or self.error is not None):
            self.closing = True  # now, not when the task begins: whoever comes in between gets a new fetch
            self._tasks.spawn(self._close())

    async def _close(self) -> None:
        self._look_at_entering()
        if self._idle is not None:
            self._idle.cancel()
        claims = self._claims.windows
        self._end(self.error or BlobUnavailable("the agent stops"))
        await self._tasks.close(self._main, self._claims.close)
        with contextlib.suppress(TrackerError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self._follower.leave(claims)
        if self._transfers is not None:
            self._transfers.close()
        if self._partial is not None:
            await self._partial.close(keep=self._keep)
        self.phase = Phase.CLOSED
        self.closed.set()
        self._context.on_closed(self)

    def _lingers(self) -> float:
        """Seconds to go on without a reader."""
        here = self._partial
        if self._ranged and not self.is_verified and here is not None and here.pieces.count:
            return RANGE_LINGER
        useful = bool(self._follower.peers) and here is not None and here.pieces.have != 0
        return self._context.settings.linger if self.is_verified or useful else IDLE

    def _idle_over(self) -> None:
        # A window may have become complete after its reader had all that it wanted: others count on it now.
        left = self._left + self._lingers() - time.monotonic()
        if left > 0:
            self._idle = asyncio.get_running_loop().call_later(left, self._idle_over)
        else:
            self._close_soon()

    # -- what the board says (Node of the follower) -------------------------------------------------

    async def handle(self, event: Event) -> None:
        """Act on one piece of news. Raises SwarmError: the fetch has failed."""
        match event:
            case Sized(size):
                await self.learn(size)
            case SizeConflict(size):
                await self._conflict(size)
            case Restarted():
                self._restart()
            case Published(windows):
                self._confirm(windows)
            case ModeChanged(sealed, sole, available):
                self._hold(Holding(sealed, sole, available))
            case ClaimsChanged(windows, sole):
                self._claims.set(windows, self._transfers if sole else None, but=self._follower.publishing)
            case PeersChanged(_, more):
                if more and self._transfers is not None and not self.is_verified:
                    self._transfers.reannounce()
            case Hopeless():
                self._despair()
            case Poisoned():
                pass  # the follower goes on alone

    async def applied(self) -> None:
        """An answer was applied whole: publish what the board lacks, fetch what it has."""
        self._look_at_entering()
        if self._partial is None or self._transfers is None:
            return
        for window in self._partial.layout.windows:
            if not self._partial.have >> window.index & 1 or self._follower.publish(window.index):
                continue
            if self._follower.shared and self._transfers.may_offer(window.index):
                # It was on disk already: the board tells others that we hold it, so we must offer it.
                self._tasks.spawn(self.offer(window.index))
        self._want()

    def standing(self) -> Standing:
        """What a poll says of this node."""
        wait = wire.MAX_WAIT
        if self._partial is None and not self._claims.windows:
            wait = max(0.05, self._started + self._context.settings.unpublished_wait - time.monotonic())
        return Standing(
            self._demand(),
            size=None if self._rejections else self.size,
            claims=self._claims.windows,
            have=self._partial.have if self._partial is not None else 0,
            stalled=self._stalls.windows,
            coming=tuple(self._transfers.windows) if self._transfers is not None else (),
            wait=wait,
        )

    def sums(self, window: int) -> bytes | None:
        """The piece hashes of a window that is here."""
        return self._partial.sums(window) if self._partial is not None else None

    async def offer(self, window: int) -> None:
        """Offer a window that is here to peers."""
        hashes = self.sums(window)
        if hashes is not None and self._partial is not None and self._transfers is not None:
            await self._transfers.seed(self._partial.layout.windows[window], hashes)

    async def _conflict(self, size: int) -> None:
        if self._size_from_disk:
            self._keep = False
            raise BlobUnavailable(f"what was kept of {self.digest} is of another size")
        await self._reject(f"size: {size} on the board, {self.size} here")

    def _restart(self) -> None:
        """Another generation of the board: what we hold counts only where its hashes say the same."""
        self._claims.restart()
        self._holding = Holding()
        if self._transfers is not None:
            self._transfers.restart()
        if self._partial is not None:
            self._partial.restart()
        self._restarted.set()

    def _confirm(self, windows: tuple[int, ...]) -> None:
        if self._partial is None:
            return
        for window in windows:
            self.trace("window-known", window)
            for done in self._partial.confirm(window, self._follower.hashes[window]):
                self._window_here(done)

    def _hold(self, now: Holding) -> None:
        """The others hold the blob otherwise than before: fetch it accordingly."""
        before, self._holding = self._holding, now
        if self._partial is None or self._transfers is None:
            return
        layout, mode = self._partial.layout, self._transfers.mode
        missing = ((1 << len(layout.windows)) - 1) & ~self._partial.pieces.have
        if now.sole != before.sole:
            self.trace("sole-seed", 0, peer=str(now.sole))
            self._claims.drop()  # they mean another thing from now on
        if is_over(before, now, missing):
            self._turn_whole()
            return
        known = len(self._follower.hashes) == len(layout.windows)
        after = next_mode(mode, now, known=known, idle=self._transfers.idle)
        self._transfers.set_mode(after, now.sole, now.available)

    def _turn_whole(self) -> None:
        """From the torrents of windows that are not here to one of the whole blob, whatever a sole seed could do."""
        assert self._transfers is not None
        self._turning = False
        self._follower.prefer_all_peers()
        if self._holding.sole is not None:
            self._claims.drop()
        self._holding = Holding(sealed=True)
        self._transfers.set_mode(Mode.WHOLE, None, None)

    def _despair(self) -> None:
        """The board has no hope. Without a reader there is nothing to hope for: others may need what is here."""
        complete = self._partial is not None and self._partial.complete
        if complete or self.is_verified or not self.readers:
            return
        if self._may_claim() and not self._claims.refusal:
            return
        patience = self._started + self._context.settings.unpublished_wait - time.monotonic()
        if self._follower.tracker is None or patience <= 0.05:
            raise BlobUnavailable(f"nobody can bring in {self.digest}", cause=self._claims.refusal)

    # -- what upstream and peers send (Host of claims and transfers) ---------------------------------

    @property
    def place(self) -> Partial | None:
        """Where the bytes go; None: the size is not known."""
        return self._partial

    def source(self, window: int | None = None) -> Source | None:
        """Upstream, as a reader of *window* asks it."""
        return self.readers.source(window)

    def wanted(self) -> Wanted:
        """What the readers want of peers."""
        return wanted_of(self.readers, self._claims.elsewhere)

    def peers(self) -> tuple[PeerAddress, ...]:
        """Other agents that take part."""
        return self._follower.peers

    def me(self) -> str:
        """Under which name this node stands among them."""
        return self._context.trackers.address or self._context.trackers.session

    async def learn(self, size: int) -> None:
        """The size is known: make room for the blob."""
        async with self._learning:
            if self._partial is not None:
                return
            context = self._context
            # Ranges touch a part of a blob, which may be larger than the store: room is made window by window.
            by_window = not self.readers.whole
            here = await Partial.open(
                self.digest, size, context.store, context.on_full, self._tasks.spawn, by_window=by_window
            )
            if self._ranged:
                here.expect_ranges()
            self._transfers = Transfers(
                self.digest, here, self, self._follower.hashes, context.session, context.pool, context.metrics,
                self._tasks.spawn, time.monotonic,
            )  # fmt: skip
            self._partial = here
            self._follower.sized(size)
            if self.phase is Phase.SIZING:
                self.phase = Phase.FILLING
            self._sized.set()
            self._look_at_entering()

    async def learned(self) -> None:
        """Until the size is known."""
        await self._sized.wait()

    def writing(self, window: Window) -> AbstractAsyncContextManager[None]:
        """Entered before anything is written into *window*: then nobody else writes there."""
        assert self._transfers is not None
        return self._transfers.writing(window)

    def received(self, count: int) -> None:
        """Bytes arrived from upstream."""
        self._context.metrics.bytes_in.labels("upstream").inc(count)

    def came(self, piece: int, sha1: bytes) -> None:
        """*piece* came from upstream."""
        self._ready(piece, sha1, "upstream")
        if self._transfers is not None:
            self._transfers.brought(piece)

    def came_from_peer(self, piece: int, sha1: bytes) -> None:
        """*piece* came from a peer, and its hash is what the board says."""
        assert self._partial is not None
        self._stalls.moved(time.monotonic())
        length = self._partial.layout.piece_span(piece)[1]
        self._context.metrics.bytes_in.labels("peer").inc(length)
        self._claims.arrived(self._partial.window_of(piece).index, length)
        self._ready(piece, sha1, "peer")

    def moved(self) -> None:
        """Something is on its way from peers."""
        self._stalls.moved(time.monotonic())

    def banned(self, peer: PeerAddress) -> None:
        """*peer* sent wrong bytes."""
        self._follower.ban(peer)

    def brought(self, window: int) -> None:
        """A claimed window is here: the claim ends with its hashes."""
        self._follower.publish(window, again=True)

    def unable(self, window: int, failure: Failure, error: SourceError | None) -> None:
        """A claim is given back."""
        if error is not None:
            self._context.metrics.source_failures.labels(type(error).__name__).inc()
            fields = {"digest": self.digest, "window": window, "error": str(error)}
            log.warning("claim-failed", extra={"fields": fields})
        self._tasks.spawn(self._give_back(window, failure, error))

    def resized(self, error: SizeChanged) -> None:
        """Upstream told another size than the one that is known."""
        self._tasks.spawn(self._reject(f"size: {error}"))

    def broken(self, error: BaseException) -> None:
        """Something else than upstream failed."""
        self._fail(error if isinstance(error, SwarmError) else BlobUnavailable(repr(error)))

    def trace(self, event: str, window: int, **fields: Any) -> None:
        """What happens to a window, for `bench.timeline`."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug(event, extra={"fields": {"digest": self.digest, "window": window, **fields}})

    def _ready(self, piece: int, sha1: bytes, origin: str) -> None:
        assert self._partial is not None
        done = self._partial.ready(piece, sha1, origin)
        if done is not None:
            self.trace("window-here", done.index, origin=origin)
            self._window_here(done)

    def _window_here(self, window: Window) -> None:
        assert self._transfers is not None
        self._transfers.arrived(window)
        if self._transfers.mode is not Mode.WHOLE:
            self._want()

    async def _give_back(self, window: int, failure: Failure, error: SourceError | None) -> None:
        hope = await self._follower.release((window,), failure, error.retry_after if error is not None else None)
        if not hope and error is not None:
            raise BlobUnavailable(f"nobody can bring in {self.digest}", cause=error)

    # -- what the readers want ----------------------------------------------------------------------

    def _may_claim(self) -> bool:
        return not self.is_verified and self._claims.may_ask() and self.readers.source() is not None

    def _demand(self) -> Demand:
        by_window = self._partial is not None and self._partial.by_window
        return demand_of(
            self.readers,
            sized=self._partial is not None,
            claims=self._context.settings.claims if self._may_claim() else 0,
            turning=self._turning and not by_window and not self.is_verified,
            concurrent=self._context.entering() - self.enters,
        )

    def _want(self) -> None:
        """Fetch from peers what the readers want now."""
        if self._transfers is None or self.is_verified or self.closing:
            return
        if self._transfers.mode is Mode.WHOLE or self._follower.shared:
            self._transfers.want()

    def _look_at_entering(self) -> None:
        """Bring `enters` up to date: the other blobs of this node take a smaller share of upstream meanwhile."""
        windows = len(self._partial.layout.windows) if self._partial is not None else 0
        known = len(self._follower.hashes)
        much = windows - known > MAX_CLAIMS
        enters = much and self.readers.bulk and not self.closing
        if enters != self.enters:
            self.enters = enters
            self._context.on_entering()

    # -- tasks --------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Keep the claims alive while bytes move."""
        told: dict[int, int] = {}
        while True:
            await asyncio.sleep(REPORT)
            now = self._claims.done
            if now and now != told:
                await self._follower.progress(now)
            told = now

    async def _watch(self) -> None:
        """Notice that peers deliver nothing, and ask for the missing windows from upstream."""
        while True:
            await asyncio.sleep(stalls.STALL / 4)
            if self._transfers is None or self._partial is None:
                continue
            await self._transfers.tidy()
            waiting = () if self.is_verified else self._transfers.waiting()
            now = time.monotonic()
            if not waiting or self._transfers.checking:
                self._stalls.moved(now)  # nothing to wait for, or our own disk is what we wait for
            if self._stalls.restless(now):
                more = self._stalls.received(await self._transfers.received(), now)
                comes = self._holding.sole is not None and more
                several = len(self._partial.layout.windows) > 1
                if self._is_sealed() and self._transfers.mode is not Mode.WHOLE and not comes and several:
                    self._turn_whole()  # who has all of the blob may offer its windows no more
            if self._stalls.look(waiting, time.monotonic()):
                if self._stalls.windows:
                    fields = {"digest": self.digest, "windows": list(self._stalls.windows)}
                    log.warning("swarm-stalled", extra={"fields": fields})
                    self._context.metrics.stalls.inc()
                self._follower.poll()

    def _is_sealed(self) -> bool:
        assert self._partial is not None
        sealed = self._holding.sealed or self._holding.sole is not None
        return sealed and len(self._follower.hashes) == len(self._partial.layout.windows)

    async def _verify(self) -> None:
        """Compute the sha256 over the pieces in order; finish or reject."""
        await self._sized.wait()
        if (here := self._partial) is None:
            return
        while True:
            result = await verify(
                self.digest, here.layout, here.pieces, here.file.fd, self._context.pool, lambda: here.epoch
            )
            if isinstance(result, Matched):
                await self._finish(here)
                return
            self._restarted.clear()
            await self._reject("sha256")
            if here.epoch == result.epoch:
                await self._restarted.wait()

    async def _finish(self, here: Partial) -> None:
        self.phase = Phase.VERIFIED
        here.verified()
        self._settled.set()
        seconds = round(time.monotonic() - self._started, 3)
        fields = {"digest": self.digest, "size": here.layout.size, "seconds": seconds}
        log.info("blob-verified", extra={"fields": fields})
        assert self._transfers is not None
        await self._transfers.verified()  # the blob is offered as a seed from now on
        for window in here.layout.windows:
            self._follower.publish(window.index)
        await self._follower.seal()
        try:
            await here.finish()
            self.phase = Phase.KEPT
        except StoreFull as error:
            log.warning("blob-not-kept", extra={"fields": {"digest": self.digest, "error": str(error)}})
        self._context.on_finished(self)
        self._follower.poll()
        if not self.readers and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self._context.settings.linger, self._close_soon)

    async def _reject(self, reason: str) -> None:
        """What the board describes is wrong: say so. The board begins again."""
        self._rejections += 1
        log.error("blob-rejected", extra={"fields": {"digest": self.digest, "why": reason, "time": self._rejections}})
        self._context.metrics.rejections.inc()
        if self._rejections > 2 * MAX_GENERATIONS:
            raise BlobCorrupt(f"the bytes do not match {self.digest}: {reason}")
        if self._partial is not None:
            self._partial.doubt()
        await self._follower.reject(reason)
