"""One blob on its way to this node: follows its board, brings claimed windows in, trades the rest.

A Fetch lives while somebody on this node reads the blob (and a little longer, for the others in the
cluster). Three things run beside each other: the board is followed, arrived pieces are read back
and checked, and the sha256 is computed over the pieces in order. When it matches, the blob is
finished in the store and sealed on the board; when it does not, the board begins again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from swarm.blob.digest import Digest
from swarm.blob.errors import (
    BadHashes,
    BlobCorrupt,
    BlobUnavailable,
    NotAMember,
    SourceBroken,
    SourceBusy,
    SourceError,
    SourceRefused,
    StoreFull,
    SwarmError,
    TrackerError,
    TrackerRefused,
)
from swarm.blob.geometry import FIRST_WINDOW, Geometry, Window, geometry
from swarm.blob.metainfo import HASH_LENGTH, sealed_info, window_info
from swarm.fetch.pieces import Pieces
from swarm.fetch.readers import Reader, Readers
from swarm.metrics import SwarmMetrics
from swarm.peer.arrivals import Arrivals
from swarm.peer.peers import PeerAddress, successors
from swarm.peer.session import Session, SessionError, Torrent
from swarm.peer.sole_seed import LoneHolder
from swarm.protocol import wire
from swarm.protocol.board import MAX_CLAIMS, MAX_GENERATIONS, Failure
from swarm.settings import SwarmSettings
from swarm.storage.held import Held
from swarm.storage.staged import Staged
from swarm.storage.store import Store
from swarm.tracking.boards import BoardLink, LocalBoard, RemoteBoard
from swarm.tracking.trackers import Link, Trackers
from swarm.upstream.download import SizeChanged, bring_window
from swarm.upstream.sequential import Through
from swarm.upstream.source import Source

log = logging.getLogger("shoal.swarm")

T = TypeVar("T")

STALL = 4.0
"""Seconds without a byte from any peer after which missing windows are asked from upstream again."""

REPORT = 1.0
"""Seconds between two reports of progress on claims."""

LAST_WINDOWS = 2
"""Missing windows at the end of a blob whose torrents may be in their end game."""

MOST_DIALLED = 2
"""Peers that a window's torrent dials, the next ones on a ring: everybody has twice as many connections."""

MOST_JOINED = 32 * 1024 * 1024
"""Bytes of windows that are fetched from peers at once, beside those that a reader waits for: sixteen of the usual
length, four of a blob of 2 GiB. More are no faster, and each has blocks, buffers and connections of its own: three
agents of such a blob grew to 270-400 MiB on a busy machine."""

MOST_REBUILT = 8
"""Torrents of one blob that begin anew because a peer sent wrong bytes."""

LONGEST_PAUSE = 2.0
"""Seconds between two tries to join a board whose tracker refuses what this agent tells."""

IDLE = 1.0
"""Seconds that a fetch goes on without a reader: containerd's parallel ranges come and go."""

RANGE_LINGER = 300.0
"""Seconds that a blob which is read in ranges stays offered after its last reader: the other nodes start the same
image minutes later, and what is not on the board they would take from upstream again."""

DEMANDED_WINDOWS = 8
"""Windows of which a range reader demands pieces at once: as many as a board hands out claims."""

SPARE = 16 * 1024 * 1024
"""Bytes to have free when a partial blob is taken up again to read ranges of it: some windows at once, so that a full
store does not close and open the blob for every read."""

HEDGE = 8.0
"""Seconds after which a range reader asks upstream itself for a piece whose window is not published (where it is,
peers that deliver nothing are noticed by STALL). A lease of 5 s has run out by then, and of the 30 s that overlaybd
gives a read most are left. With 5 s, for all windows, 16 agents on two cores asked for 1.5 copies."""

HEDGE_DEADLINE = 15.0
"""Seconds that this may take."""

TURNS = 2
"""Windows that are fetched at once from a lone holder: one comes, and the next is there to be asked for."""

URGENT_CLAIMS = 2
"""Claims beyond the usual ones while a range reader waits: it need not wait until one of a bulk pull ends."""

TORRENT_IDLE = 10.0
"""Seconds for which the torrent of a window of which only some pieces were wanted stays, with its connections: the
next read of the window comes soon or not at all. Adding it again costs 5-10 ms."""

BRING_STEP = 1024 * 1024
"""Bytes of one upstream request while only range readers wait: between two, whoever waits may come first."""

FINISH_DEADLINE = 5.0
"""Seconds that an agent which stops waits for the disk to take a blob that is complete."""

NOTE_EVERY = 0.25
"""Seconds between two notes in the log of a partial blob of what is there."""

HASH_RUN = 4 * 1024 * 1024
"""Bytes that are hashed in one thread job; also the most that one Span covers while a blob arrives."""

REFUSED_FOR = 30.0
"""Seconds for which this agent does not ask upstream again for a blob that was refused."""


@dataclass(frozen=True, slots=True)
class Span:
    """Verified bytes: [offset, offset+count) of the open file *fd*."""

    fd: int
    offset: int
    count: int
    origin: str
    """"disk", "containerd", "peer" or "upstream"."""


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


class Wish(NamedTuple):
    """What a board is told of the readers here."""

    want: int
    """Claims."""
    prefer: tuple[int, ...]
    """Windows that are waited for, most urgent first."""
    only_preferred: bool
    turns: int
    """Windows to fetch at once from a lone holder."""
    beside: int
    """Other blobs that enter the cluster at the same time."""


class Fetch:
    """See the module. Created by the engine; `join` before anything else, `part` at the end."""

    def __init__(self, digest: Digest, context: Context) -> None:
        self.digest = digest
        self.started = time.monotonic()
        self.cut: Geometry | None = None
        self.pieces: Pieces | None = None
        self.held: Held | None = None
        self.error: SwarmError | None = None
        self.verified = asyncio.Event()
        self._settled = asyncio.Event()
        """Verified, or failed."""
        self._new_era = asyncio.Event()
        self.readers = Readers()
        self._context = context
        self._sized = asyncio.Event()
        self._learning = asyncio.Lock()
        self._staged: Staged | None = None
        self._size_from_disk = False
        """A former fetch knew the size, and nobody has confirmed it."""
        self._stale = False
        """What is on disk is of no use."""
        self._reserved: set[int] | None = None
        """Windows for which the store made room; None: for all."""
        self._finishing: asyncio.Task[Held] | None = None
        self._file: Held | None = None
        self._nudge = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._left = 0.0
        self._ranged = False
        """Ranges of it were read on this node."""
        self.enters = False
        """Much of it is still to be brought into the cluster, for those who read all of it."""
        self.closing = False
        self.closed = asyncio.Event()
        self.after: asyncio.Event | None = None
        """An earlier fetch of the same blob must be closed before this one begins."""
        # the board
        self._board: BoardLink = LocalBoard(digest)
        self._link: Link | None = None
        self._shunned: set[Link] = set()
        self._alone = False
        self._incarnation = ""
        self._generation = 0
        self._since = 0
        self._serial = 0
        self._hashes: dict[int, bytes] = {}
        self._told: set[int] = set()
        self._peers: tuple[PeerAddress, ...] = ()
        self._others = 0
        self._hope = True
        self._told_wish: Wish | None = None
        self._rejections = 0
        self._suspect: set[int] = set()
        self._eras: list[Pieces] = []
        # claims
        self._claims: dict[int, asyncio.Task[None]] = {}
        self._hedged: dict[int, int] = {}
        """Piece -> window, of pieces that are asked from upstream past all claims."""
        self._done: dict[int, int] = {}
        self._publishing: set[int] = set()
        self._nothing_under_way = asyncio.Event()
        """No publication is on its way to the board."""
        self._nothing_under_way.set()
        self._refusal: SourceError | None = None
        self._refused_until = 0.0
        self._through: asyncio.Task[None] | None = None
        """Reads a body that upstream sends whole, and brings in every window from it."""
        # the swarm
        self._torrents: dict[int, Torrent] = {}
        self._whole: Torrent | None = None
        self._as_whole = False
        """The board was sealed when we came: one torrent for all instead of one per window."""
        self._sealed = False
        self._lone: PeerAddress | None = None
        """The only holder of the blob: claims are on windows to fetch from it."""
        self._spread: int | None = None
        """Bit w is set if peers hold window w, where not all that are published do."""
        self._from_lone = LoneHolder(self._add_lone, context.session.retire, context.session.remove)
        self._lone_leaving: asyncio.Task[None] | None = None
        """Its torrent on its way out, after the board began again."""
        self._turning = True
        """Whether claims on windows of a lone holder are wanted."""
        self._wanted: set[int] = set()
        """Pieces that torrents were told to fetch."""
        self._hurried: set[int] = set()
        """Those of them that come before others."""
        self._partly: set[int] = set()
        """Windows of whose pieces their torrent was told to fetch only some."""
        self._asked: dict[int, float] = {}
        """When pieces of such a window were wanted last."""
        self._banned: set[PeerAddress] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        """Torrents on their way out: until then, libtorrent may still write into the file."""
        self._switching = asyncio.Lock()
        """Held while the torrent of the whole blob comes or goes."""
        self._rebuilt = 0
        self._joining: dict[int, asyncio.Task[None]] = {}
        self._stalled: tuple[int, ...] = ()
        self._moved = time.monotonic()
        self._arrivals: Arrivals | None = None
        self._offered: dict[int, Torrent] = {}
        """Pieces that were offered to a torrent (`_offer`) and are not known to be in it."""
        self._unnoted: dict[int, bytes] = {}
        """Pieces that are here, and that a restart would not find yet."""
        self._noting: asyncio.TimerHandle | None = None

    # -- readers ----------------------------------------------------------------------------------

    def join(self, whole: bool, source: Source | None, *, low: bool = False) -> Reader:
        """A new reader; *low*: one that every other comes before. The fetch starts with the first."""
        reader = Reader(whole, source, late=self.verified.is_set(), low=low)
        self.readers.add(reader)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if source is not None and (self._refusal is None or time.monotonic() >= self._refused_until):
            self._refusal = None
        if not whole:
            self._ranged = True
        if self._main is None:
            self._main = asyncio.create_task(self._run())
        self._look_at_entering()
        self.tell_wish()
        return reader

    def part(self, reader: Reader) -> None:
        """*reader* is gone; what was done for it alone stops."""
        self.readers.discard(reader)
        self._look_at_entering()
        self.tell_wish()
        if not self.readers and not self.closing and self._idle is None:
            self._left = time.monotonic()
            self._idle = asyncio.get_running_loop().call_later(self._lingers(), self._idle_over)

    def _lingers(self) -> float:
        """Seconds to go on without a reader."""
        if self._ranged and not self.verified.is_set() and self.pieces is not None and self.pieces.count:
            return RANGE_LINGER
        return self._context.settings.linger if self.verified.is_set() or self._useful() else IDLE

    def _idle_over(self) -> None:
        # A window may have become complete after its reader had all that it wanted: others count on it now.
        left = self._left + self._lingers() - time.monotonic()
        if left > 0:
            self._idle = asyncio.get_running_loop().call_later(left, self._idle_over)
        else:
            self._close_soon()

    async def sized(self) -> int:
        """Size of the blob in bytes, once known. Raises SwarmError."""
        await self._sized.wait()
        if self.error is not None and self.cut is None:
            raise self.error
        assert self.cut is not None
        return self.cut.size

    async def read(self, reader: Reader, start: int, stop: int) -> AsyncIterator[Span]:
        """Bytes [start, stop) in order, as they become readable; the blob's last piece only when its sha256 matched.

        Raises BlobCorrupt if bytes that were given out turned out to be wrong.
        """
        await self.sized()
        assert self._file is not None
        # A span names a descriptor: it stays open until this reader is done, however the fetch ends.
        with self._file.share():
            async with contextlib.aclosing(self._spans(reader, start, stop)) as spans:
                async for span in spans:
                    yield span

    async def _spans(self, reader: Reader, start: int, stop: int) -> AsyncGenerator[Span, None]:
        assert self.cut is not None and self.pieces is not None and self._file is not None
        cut, position, era = self.cut, start, len(self._eras)
        first = start // cut.piece_length
        run = max(1, HASH_RUN // cut.piece_length)
        while position < stop:
            piece = position // cut.piece_length
            if not reader.whole:
                self._demand(reader, position, stop)
                if not reader.low:
                    await self._urgently(reader, piece)
            await self.pieces.wait(piece)
            if piece == cut.pieces - 1 and (reader.whole or start == 0):
                await self._wait_verified()
            if era != len(self._eras):
                era = await self._same_bytes(era, first, piece)
                continue
            count = self.pieces.run(piece, run)
            if not count:
                continue
            if (
                piece + count == cut.pieces
                and not self.verified.is_set()
                and (reader.whole or start == 0)
                and count > 1
            ):
                count -= 1
            end = min(stop, (piece + count) * cut.piece_length)
            origin = "disk" if reader.late else self.pieces.origin(piece)
            reader.counts[origin] = reader.counts.get(origin, 0) + end - position
            if self._ranged and self._staged is not None:
                self._staged.touch(position, end)
            yield Span(self._file.fd, position, end - position, origin)
            position = end

    async def close(self, keep: bool = True) -> None:
        """Stop: claims are handed over, torrents leave the session, the partial file stays (*keep*)."""
        if self.closing:
            return
        self.closing = True
        await self._close(keep)

    async def _close(self, keep: bool = True) -> None:
        self._look_at_entering()
        self._stop_timers()
        if self.error is None:
            self._fail(BlobUnavailable("the agent stops"))
        claims, ended = tuple(self._claims), {asyncio.current_task()}
        # What ends may have begun something else meanwhile: nothing of it may outlast this.
        while under_way := {*self._claims.values(), *self._tasks, *([self._main] if self._main else [])} - ended:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            ended |= under_way
        with contextlib.suppress(TrackerError, TimeoutError):
            async with asyncio.timeout(2.0):
                if claims:
                    await self._board.release(self._release(claims, Failure.HANDED_OVER))
                await self._board.leave(wire.Leave(**self._me()))
        for torrent in self._all_torrents():
            self._context.session.remove(torrent)
        self._torrents.clear()
        if self._staged is not None:
            if self._finishing is not None and self.held is None:
                with contextlib.suppress(StoreFull, TimeoutError):
                    async with asyncio.timeout(FINISH_DEADLINE):
                        self.held = await asyncio.shield(self._finishing)  # it is whole and right: keep it
            if self.held is not None:
                self._staged.forget()
                self.held.close()
            else:
                if self._unnoted:
                    await self._staged.note(self._unnoted)
                # After a rejection nobody can tell which of it is right.
                await self._staged.abandon(keep=keep and not self._stale and not self._rejections)
        if self._file is not None:
            self._file.close()
        self.closed.set()
        self._context.on_closed(self)

    def _stop_timers(self) -> None:
        for timer in (self._idle, self._noting):
            if timer is not None:
                timer.cancel()

    def status(self) -> dict[str, Any]:
        """For the agent's status page."""
        return {
            "digest": self.digest,
            "size": self.cut.size if self.cut else None,
            "pieces": self.cut.pieces if self.cut else None,
            "ready": self.pieces.count if self.pieces else 0,
            "claims": sorted(self._claims),
            "readers": len(self.readers),
            "peers": len(self._peers),
            "tracker": self._link.url if self._link else None,
            "verified": self.verified.is_set(),
            "seconds": round(time.monotonic() - self.started, 3),
        }

    # -- life -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        if self.after is not None:
            await self.after.wait()
        try:
            if (size := self._context.store.partial_size(self.digest)) is not None:
                self._size_from_disk = True
                await self._learn(size)  # what is here is served whoever else is down
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(self._hash_in_order())
                group.create_task(self._report())
                group.create_task(self._watch())
        except* SwarmError as errors:
            error = errors.exceptions[0]
            self._fail(error if isinstance(error, SwarmError) else BlobUnavailable(str(error)))
            self._close_soon()
        except* OSError as errors:
            fields = {"digest": self.digest, "error": str(errors.exceptions[0])}
            log.error("fetch-failed", extra={"fields": fields})  # noqa: TRY400  # the disk's fault, not the code's
            self._fail(BlobUnavailable(f"local input/output error: {errors.exceptions[0]}"))
            self._close_soon()

    def _fail(self, error: SwarmError) -> None:
        if self.error is None and not self.verified.is_set():
            self.error = error
            log.info("fetch-ended", extra={"fields": {"digest": self.digest, "why": str(error)}})
        if self.pieces is not None:
            self.pieces.fail(error)
        self._sized.set()
        self._settled.set()

    def _close_soon(self) -> None:
        self._idle = None
        if not self.closing and (not self.readers or self.error is not None):
            self.closing = True  # now, not when the task begins: whoever comes in between gets a new fetch
            self._spawn(self._close())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)
        return task

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, SwarmError):  # those are told by fetch-ended; a registry that is down is no defect
            fields = {"digest": self.digest, "error": repr(error)}
            log.error("fetch-task-failed", extra={"fields": fields}, exc_info=error)
        self._fail(error if isinstance(error, SwarmError) else BlobUnavailable(repr(error)))
        self._close_soon()

    def _useful(self) -> bool:
        """Whether others in the cluster get something from this fetch although nobody here reads."""
        return self._others > 0 and self.pieces is not None and self.pieces.have != 0

    # -- the board --------------------------------------------------------------------------------

    def _me(self) -> dict[str, Any]:
        return {**self._context.trackers.me(), "digest": self.digest}

    def _source(self, window: int | None = None) -> Source | None:
        """Where to ask upstream, unless that has refused; see `Readers.source`."""
        if self._refusal is not None and time.monotonic() < self._refused_until:
            return None
        return self.readers.source(window)

    def _want(self) -> int:
        if self.verified.is_set() or self._source() is None:
            return 0
        return self._context.settings.claims + (URGENT_CLAIMS if self.readers.waiting else 0)

    def _demand(self, reader: Reader, position: int, stop: int) -> None:
        """A range reader needs the pieces of [position, stop) that are not here."""
        assert self.cut is not None and self.pieces is not None
        windows = self.cut.windows_of(position, stop)[:DEMANDED_WINDOWS]
        first, last = position // self.cut.piece_length, (stop - 1) // self.cut.piece_length
        needed = {
            w.index: [p for p in self.pieces.missing(w) if first <= p <= last]
            for w in windows
            if not self.pieces.holds(w)
        }
        pieces = tuple(p for found in needed.values() for p in found)
        if pieces != reader.pieces:
            reader.pieces, reader.windows = pieces, tuple(w for w, found in needed.items() if found)
            self.tell_wish()
            self._join_published()

    async def _urgently(self, reader: Reader, piece: int) -> None:
        """Wait for *piece*, which nobody may bring within a range reader's patience: then ask upstream past all claims.

        Its window may be long, and come slowly to whoever has the claim. What this costs upstream is the piece.
        """
        assert self.cut is not None and self.pieces is not None and self._staged is not None
        window = self.cut.window_at(piece * self.cut.piece_length)
        while piece not in self.pieces:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEDGE):
                    await self.pieces.wait(piece)
                    return
            source = reader.source if time.monotonic() >= self._refused_until else None
            if source is None or piece in self._hedged or window.index in self._hashes:
                continue
            offset, length = self.cut.piece_span(piece)
            part = replace(window, offset=offset, length=length, first_piece=piece, pieces=1)
            self._hedged[piece] = window.index
            try:
                async with asyncio.timeout(HEDGE_DEADLINE):
                    await self._reserve(window)
                    await self._bring_part(part, source, None)
            except (SourceError, TimeoutError) as error:
                log.info("hedge-failed", extra={"fields": {"digest": self.digest, "piece": piece, "error": str(error)}})
            finally:
                del self._hedged[piece]
                self._join_published()

    def _wish(self) -> Wish:
        """What the board must know of the readers."""
        prefer, only = self.readers.preferred(), not self.readers.whole
        asking = self.cut is None or prefer or not only
        beside = self._context.entering() - self.enters
        return Wish(self._want() if asking else 0, prefer, only, self._turns(), beside)

    def _look_at_entering(self) -> None:
        """Bring `enters` up to date: the other blobs of this node take a smaller share of upstream meanwhile."""
        cut = self.cut
        much = cut is not None and len(cut.windows) - len(self._hashes) > MAX_CLAIMS
        enters = much and self.readers.bulk and not self._sealed and not self.closing
        if enters != self.enters:
            self.enters = enters
            self._context.on_entering()

    def tell_wish(self) -> None:
        """Poll the board if it does not know our wish: a read of what is here costs no question."""
        if not self._hope or self._wish() != self._told_wish:
            self._nudge.set()

    def _turns(self) -> int:
        """Windows to fetch at once from a lone holder, by claim."""
        return (
            TURNS
            if self.readers.bulk and self._turning and self._reserved is None and not self.verified.is_set()
            else 0
        )

    async def _follow(self) -> None:
        """Follow the board at whichever tracker is responsible, or one of our own."""
        trackers = self._context.trackers
        unsubscribe = trackers.on_change(self._nudge.set)
        refusals = 0
        try:
            while True:
                link = None if self._alone else trackers.pick(self.digest)
                if link in self._shunned:
                    link = None
                self._link = link
                self._board = RemoteBoard(link) if link is not None else self._own_board()
                self._incarnation, self._since, self._told = "", 0, set()
                joined = time.monotonic()
                try:
                    await self._use(link)
                except NotAMember as error:
                    assert link is not None
                    log.warning("not-a-member", extra={"fields": {"tracker": link.url, "error": str(error)}})
                    self._shunned.add(link)
                except TrackerRefused as error:
                    # It is there: join again, at once at first, as after its restart.
                    refusals = refusals + 1 if time.monotonic() - joined < LONGEST_PAUSE else 0
                    log.info("board-refused", extra={"fields": {"digest": self.digest, "error": str(error)}})
                    await asyncio.sleep(min(LONGEST_PAUSE, 0.05 * (2**refusals - 1)))
                except TrackerError as error:
                    log.info("board-lost", extra={"fields": {"digest": self.digest, "error": str(error)}})
                    if link is not None:
                        trackers.failed(link)
        finally:
            unsubscribe()

    def _own_board(self) -> LocalBoard:
        """A board of our own; windows that peers are sending us need not come from upstream."""
        board = LocalBoard(self.digest)
        if self.cut is not None and not self._alone:
            board.others_hold(self.cut.size, {w: self._hashes[w] for w in self._torrents if w in self._hashes})
        return board

    async def _use(self, link: Link | None) -> None:
        """Poll one board until another one is responsible."""
        trackers = self._context.trackers
        while True:
            if self._alone and link is not None:
                return
            if not self._alone:
                picked = trackers.pick(self.digest)
                if picked is not link and (picked is None or picked not in self._shunned):
                    return
            self._nudge.clear()
            poll = asyncio.ensure_future(self._board.poll(self._poll()))
            nudge = asyncio.ensure_future(self._nudge.wait())
            try:
                await asyncio.wait((poll, nudge), return_when=asyncio.FIRST_COMPLETED)
                answer = poll.result() if poll.done() else None
            finally:
                for task in (poll, nudge):
                    task.cancel()
                await asyncio.gather(poll, nudge, return_exceptions=True)
            if answer is not None:
                await self._apply(answer)

    def _poll(self) -> wire.BoardPoll:
        wish = self._told_wish = self._wish()
        wait = wire.MAX_WAIT if self._incarnation else 0.0
        if wait and self.cut is None and not self._claims:
            wait = max(0.05, self.started + self._context.settings.unpublished_wait - time.monotonic())
        return wire.BoardPoll(
            **self._me(),
            incarnation=self._incarnation,
            generation=self._generation,
            since=self._since,
            wait=wait,
            size=self.cut.size if self.cut and not self._rejections else None,
            want=self._want(),
            prefer=wish.prefer,
            only_preferred=wish.only_preferred,
            claims=tuple(sorted(self._claims)),
            have=self._have(),
            stalled=self._stalled,
            turns=wish.turns,
            beside=wish.beside,
        )

    def _have(self) -> bytes:
        if self.pieces is None:
            return b""
        have = self.pieces.have
        for window in self._suspect:
            have &= ~(1 << window)
        return wire.bitmap(have)

    async def _apply(self, answer: wire.BoardAnswer, claims: bool = True) -> None:
        if answer.lone is not None and not self._turning:  # asked before this fetch turned to all peers
            answer = msgspec.structs.replace(answer, lone=None, spread=None, claims=(), sealed=True)
        if answer.incarnation != self._incarnation:
            self._serial = answer.serial
            if self._incarnation:
                self._since, self._told = 0, set()
            self._incarnation = answer.incarnation
            self._generation = answer.generation
        elif answer.serial < self._serial:
            return
        elif answer.generation > self._generation:
            self._begin_again(answer.generation, forget=True)
        self._serial = answer.serial
        self._since = answer.version
        self._take_peers(answer)
        if answer.poisoned:
            log.error("board-poisoned", extra={"fields": {"digest": self.digest}})
            if not self._board.shared:
                raise BlobCorrupt(f"the bytes do not match {self.digest}, however often they are fetched")
            self._alone = True
            self._nudge.set()
            return
        if answer.size is not None and self.cut is None:
            await self._learn(answer.size)
        if answer.size is not None and self.cut is not None and answer.size != self.cut.size:
            if self._size_from_disk:
                self._stale = True
                raise BlobUnavailable(f"what was kept of {self.digest} is of another size")
            await self._reject(f"size: {answer.size} on the board, {self.cut.size} here")
            return
        await self._take_lone(answer)
        await self._take_hashes(answer)
        if claims:
            self._take_claims(answer.claims)
        await self._publish_held()
        self._check_hope(answer)

    def _take_peers(self, answer: wire.BoardAnswer) -> None:
        """Dial who is new: a holder that came after our torrents were added does not dial us."""
        told = tuple(peer for p in answer.peers if (peer := (p.ip, p.port)) not in self._banned)
        before, self._peers = self._peers, told or self._peers
        self._others = len(self._peers)
        if self.cut is None or self.pieces is None or not set(self._peers) - set(before):
            return
        for index, torrent in self._torrents.items():
            if not self.pieces.holds(self.cut.windows[index]):
                torrent.reannounce()
        if self._whole is not None and not self.verified.is_set():
            self._whole.reannounce()

    async def _take_hashes(self, answer: wire.BoardAnswer) -> None:
        if self.cut is None or self.pieces is None:
            return
        for window, hashes in answer.published.items():
            if not 0 <= window < len(self.cut.windows) or len(hashes) != self.cut.windows[window].pieces * HASH_LENGTH:
                raise TrackerError("the board does not fit the blob")
            place = self.cut.windows[window]
            if self.pieces.holds(place) and window not in self._suspect and self.pieces.sums(place) != hashes:
                continue  # two truths: telling ours makes the board begin again
            if window not in self._hashes:
                self._trace("window-known", window)
            self._hashes[window] = hashes
            self._told.add(window)
            self._confirm(place, hashes)
        self._sealed = (answer.sealed or self._lone is not None) and len(self._hashes) == len(self.cut.windows)
        self._look_at_entering()
        if self._sealed and self._lone is None and not self._torrents and not self._joining and not self._as_whole:
            await self._join_whole()
        else:
            self._join_published()

    async def _take_lone(self, answer: wire.BoardAnswer) -> None:
        """One agent alone holds the blob, or not any more: claims mean another thing from now on."""
        lone = (answer.lone.ip, answer.lone.port) if answer.lone is not None else None
        before, self._spread = self._spread, None if answer.spread is None else wire.from_bitmap(answer.spread)
        if self._as_whole and self._spread is not None:
            await self._leave_whole()  # nobody holds it whole, or one alone
        if lone == self._lone:
            return
        if lone is None and before is not None and answer.sealed and self.cut is not None and self.pieces is not None:
            every = (1 << len(self.cut.windows)) - 1
            if every & ~(self.pieces.have | before):
                await self._turn_whole()  # nobody else has these
                return
        self._trace("lone-holder", 0, peer=str(lone))
        await self._leave_lone(lone)

    async def _leave_lone(self, other: PeerAddress | None = None) -> None:
        """Nothing is to come from the lone holder any more, but from the *other*."""
        if self._lone is not None or other is not None:
            for task in self._claims.values():
                task.cancel()
            self._claims.clear()
            self._done.clear()
        self._lone = other
        await self._from_lone.leave()

    def _confirm(self, window: Window, hashes: bytes) -> None:
        """Pieces of an earlier generation whose hash is what the board says now are good."""
        assert self.pieces is not None
        if not self._eras:
            return
        old = self._eras[-1]
        for place, piece in enumerate(window.span):
            expected = hashes[place * HASH_LENGTH : (place + 1) * HASH_LENGTH]
            if piece in old and piece not in self.pieces and old.sum(piece) == expected:
                self._piece_ready(piece, expected, old.origin(piece))
        if self.pieces.holds(window):
            self._suspect.discard(window.index)

    def _take_claims(self, claims: Iterable[int]) -> None:
        mine = set(claims)
        for window in [w for w in self._claims if w not in mine]:
            self._claims.pop(window).cancel()
            self._done.pop(window, None)
        for window in sorted(mine - self._claims.keys() - self._publishing):
            here = self.cut is not None and self.pieces is not None and self.pieces.holds(self.cut.windows[window])
            if here and window not in self._suspect:
                self._spawn(self._after_claim(window))  # it was here already: the claim ends with its hashes
                continue
            source = self._source(window)
            if source is None and self._lone is None:
                self._spawn(self._give_back(window, Failure.HANDED_OVER, None))
                continue
            self._done[window] = 0
            self._trace("window-claimed", window)
            task = asyncio.create_task(self._bring(window, source if self._lone is None else None))
            self._claims[window] = task
            task.add_done_callback(partial(self._brought, window))

    def _check_hope(self, answer: wire.BoardAnswer) -> None:
        self._hope = answer.hope
        complete = self.cut is not None and self.pieces is not None and self.pieces.count == self.cut.pieces
        if answer.hope or complete or self.verified.is_set() or not self.readers:
            return  # without a reader there is nothing to hope for: others may need what is here
        if self._want() and not self._refusal:
            return
        patience = self.started + self._context.settings.unpublished_wait - time.monotonic()
        if self._link is None or patience <= 0.05:
            cause = self._refusal
            raise BlobUnavailable(f"nobody can bring in {self.digest}", cause=cause)

    def _begin_again(self, generation: int, forget: bool) -> None:
        """Another generation of the board: what we hold counts only where its hashes say the same."""
        self._generation = generation
        self._since = 0
        self._told = set()
        if not forget:
            return
        self._hashes.clear()
        for torrent in self._torrents.values():
            self._send_away(torrent)
        self._torrents.clear()
        if self._whole is not None:
            self._send_away(self._whole)
            self._whole = None
        self._as_whole, self._sealed, self._wanted, self._hurried = False, False, set(), set()
        self._partly.clear()
        self._asked.clear()
        self._joining.clear()
        self._lone, self._spread = None, None
        self._unnoted.clear()
        self._lone_leaving = self._spawn(self._from_lone.leave())
        for task in (*self._claims.values(), *([self._through] if self._through else [])):
            task.cancel()
        self._claims.clear()
        self._done.clear()
        if self.pieces is not None and not self.verified.is_set():
            self._eras.append(self.pieces.forget())
        self._new_era.set()
        self._look_at_entering()

    async def _learn(self, size: int) -> None:
        """The size is known: make room for the blob."""
        async with self._learning:
            if self.cut is None:
                await self._make_room(geometry(size))

    async def _make_room(self, cut: Geometry) -> None:
        # Ranges touch a part of a blob, which may be larger than the store: room is made window by window.
        promise = None if self.readers.whole else 0
        staged = await self._room(lambda: self._stage(cut, promise))
        if promise is not None:
            held = {cut.window_at(cut.piece_span(piece)[0]).index for piece in staged.pieces}
            self._reserved = held
        self.cut, self._staged, self._file, self.pieces = cut, staged, staged.share(), Pieces(cut)
        self._arrivals = Arrivals(
            self.digest, cut, staged, self._file, self._context.pool, self._spawn,
            generation=lambda: self._generation, expected=self._expected, has=self._has, take=self._from_peer,
            late=self._behind,
        )  # fmt: skip
        for piece, sha1 in staged.pieces.items():
            self.pieces.put(piece, sha1, "disk")
        self._sized.set()
        self._look_at_entering()

    async def _room(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What *ask* gets of the store. Is it full, blobs without a reader are closed first: then their windows may go.

        Raises StoreFull.
        """
        try:
            return await ask()
        except StoreFull:
            if not await self._context.on_full():
                raise
        return await ask()

    async def _reserve(self, window: Window) -> None:
        """Make room for *window*, unless there was for the whole blob. Raises StoreFull."""
        if self._reserved is None or window.index in self._reserved:
            return
        assert self.cut is not None and self._staged is not None
        staged, self._reserved = self._staged, self._reserved | {window.index}
        total = sum(self.cut.windows[index].length for index in self._reserved)
        try:
            await self._room(lambda: staged.grow(total))
        except StoreFull:
            self._reserved = self._reserved - {window.index}
            raise  # this fetch ends by it; the next one begins with giving up windows that were not read for longest

    async def _stage(self, cut: Geometry, promise: int | None) -> Staged:
        spare = 0 if promise is None else SPARE
        return await self._context.store.stage(self.digest, cut.size, promise=promise, spare=spare)

    async def _publish_held(self) -> None:
        """Tell the board the windows that are here and that it does not know."""
        if self.cut is None or self.pieces is None:
            return
        for window in self.cut.windows:
            if window.index in self._suspect or not self.pieces.holds(window):
                continue
            if window.index not in self._told:
                await self._publish(window)
            elif window.index not in self._torrents and self._may_offer(window):
                # It was on disk already: the board tells others that we hold it, so we must offer it.
                await self._seed(window, self.pieces.sums(window))

    def _may_offer(self, window: Window) -> bool:
        return self._board.shared and not self._as_whole and window.index not in self._joining

    async def _publish(self, window: Window) -> None:
        assert self.cut is not None and self.pieces is not None
        hashes = self.pieces.sums(window)
        self._trace("window-published", window.index)
        self._told.add(window.index)
        self._hashes.setdefault(window.index, hashes)
        self._publishing.add(window.index)
        self._nothing_under_way.clear()
        try:
            if self._board.shared:
                await self._seed(window, hashes)
            answer = await self._board.publish(
                wire.Publish(
                    **self._me(),
                    incarnation=self._incarnation,
                    generation=self._generation,
                    size=self.cut.size,
                    window=window.index,
                    hashes=hashes,
                    since=self._since,
                )
            )
        except TrackerError:
            self._told.discard(window.index)
            raise
        finally:
            self._publishing.discard(window.index)
            if not self._publishing:
                self._nothing_under_way.set()
        await self._apply(answer)

    # -- claims -----------------------------------------------------------------------------------

    async def _bring(self, index: int, source: Source | None) -> None:
        if source is None:
            await self._bring_from_lone(index)
            return
        began = time.monotonic()
        if self.cut is None:
            await self._bring_first(index, source)
        elif self._through is None or not await self._came_through(index, self._through):
            await self._bring_into(index, source, None)
        self._trace("window-brought", index, seconds=round(time.monotonic() - began, 4))

    async def _bring_from_lone(self, index: int) -> None:
        """Fetch a claimed window from the only holder of the blob."""
        assert self.cut is not None and self.pieces is not None
        window = self.cut.windows[index]
        await self._make_way(window)
        try:
            await self._from_lone.want(self._lone_wants)
            for piece in window.span:
                await self.pieces.wait(piece)
        finally:
            if not self.pieces.holds(window) and not self.closing:
                self._spawn(self._from_lone.want(self._lone_wants))

    def _lone_wants(self) -> list[list[int]]:
        """The missing pieces of each window that is to come from the lone holder."""
        if self.cut is None or self.pieces is None or self._lone is None or self.closing:
            return []
        return [list(self.pieces.missing(self.cut.windows[index])) for index in self._claims]

    async def _add_lone(self, wanted: Iterable[int]) -> Torrent | None:
        assert self.cut is not None and self.pieces is not None
        if len(self._hashes) < len(self.cut.windows):
            return None
        return await self._add_sealed(self._ready(), wanted, 1, lambda: (self._lone,) if self._lone else ())

    async def _bring_first(self, index: int, source: Source) -> None:
        async with contextlib.AsyncExitStack() as stack:
            body = await stack.enter_async_context(source.open(0, FIRST_WINDOW))
            if body.total <= 0:
                raise SourceBroken("upstream sent an empty body")
            if body.whole and body.total > FIRST_WINDOW:
                # It ignores ranges. Asked for each window it would send all that lies before it each time.
                self._through = self._spawn(self._read_through(source, Through(body), stack.pop_all()))
                await self._came_through(index, self._through)
            else:
                await self._learn(body.total)
                await self._bring_into(index, source, body)

    async def _read_through(self, source: Source, body: Through, opened: contextlib.AsyncExitStack) -> None:
        """Bring in every window from one body, or a few: each begins at the first byte of the blob again."""
        async with opened:
            try:
                await self._learn(body.total)
                assert self.cut is not None and self.pieces is not None
                for window in self.cut.windows:
                    if self.pieces.holds(window):
                        continue
                    if body.broken:
                        await opened.aclose()
                        body = Through(await opened.enter_async_context(source.open(0, None)))
                    await self._bring_into(window.index, source, body.part(window))
                    self._spawn(self._after_claim(window.index))
            except SourceError as error:
                # Whoever has claims on the rest goes on, and gives them back if it is no better.
                log.warning("body-broken", extra={"fields": {"digest": self.digest, "error": str(error)}})
            finally:
                self._through = None

    async def _came_through(self, index: int, through: asyncio.Task[None]) -> bool:
        """Wait for a window that is to come with the one body; whether it did."""
        await asyncio.wait((through, sized := asyncio.ensure_future(self._sized.wait())), return_when="FIRST_COMPLETED")
        sized.cancel()
        if self.cut is None or self.pieces is None:
            return False
        window, pieces = self.cut.windows[index], self.pieces

        async def here() -> None:
            for piece in window.span:
                await pieces.wait(piece)

        waiting = asyncio.ensure_future(here())
        try:
            await asyncio.wait((through, waiting), return_when="FIRST_COMPLETED")
        finally:
            waiting.cancel()
        return pieces.holds(window)

    async def _bring_into(self, index: int, source: Source, first: Any) -> None:
        assert self.cut is not None
        window = self.cut.windows[index]
        await self._reserve(window)
        await self._make_way(window)
        while (part := self._next_part(window)) is not None:
            await self._bring_part(part if first is None else window, source, first)
            first = None

    async def _bring_part(self, part: Window, source: Source, first: Any) -> None:
        """Fetch pieces of one window, from upstream."""
        assert self.cut is not None and self.pieces is not None and self._staged is not None
        index, pieces, metrics = part.index, self.pieces, self._context.metrics

        def on_bytes(count: int) -> None:
            metrics.bytes_in.labels("upstream").inc(count)
            for claim in self._claims if self._through is not None else self._claims.keys() & {index}:
                self._done[claim] = self._done.get(claim, 0) + count

        def on_piece(piece: int, sha1: bytes) -> None:
            self._suspect.discard(index)
            self._piece_ready(piece, sha1, "upstream")
            if self._whole is not None:
                self._spawn(self._offer(self._whole, piece))

        await bring_window(
            source,
            self.cut,
            part,
            self._staged,
            self._context.pool,
            ready=pieces.__contains__,
            on_bytes=on_bytes,
            on_piece=on_piece,
            first=first,
        )

    def _next_part(self, window: Window) -> Window | None:
        """What of *window* to ask from upstream next: all that is missing, or from what a range reader waits for on.

        None: nothing is missing.
        """
        assert self.cut is not None and self.pieces is not None
        missing = list(self.pieces.missing(window))
        if not missing:
            return None
        demanded = self.readers.urgent
        start = next((piece for piece in missing if piece in demanded), missing[0])
        stop = window.last_piece + 1
        if demanded and not self.readers.whole:
            stop = min(stop, start + max(1, BRING_STEP // self.cut.piece_length))
        stop = next((piece for piece in range(start, stop) if piece in self.pieces), stop)
        offset = start * self.cut.piece_length
        return replace(
            window, offset=offset, length=min(window.end, stop * self.cut.piece_length) - offset,
            first_piece=start, pieces=stop - start,
        )  # fmt: skip

    def _brought(self, index: int, task: asyncio.Task[None]) -> None:
        """A claim's work ended: publish the window, or give the claim back."""
        mine = self._claims.get(index) is task
        if mine:
            del self._claims[index]
            self._done.pop(index, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            if mine and self.cut is not None:
                self._spawn(self._after_claim(index))
            return
        if isinstance(error, SizeChanged):
            self._spawn(self._reject(f"size: {error}"))
            return
        if isinstance(error, SourceError):
            self._context.metrics.source_failures.labels(type(error).__name__).inc()
            failure = Failure.BROKEN
            if isinstance(error, SourceRefused):
                failure = Failure.REFUSED
                self._refusal, self._refused_until = error, time.monotonic() + REFUSED_FOR
            elif isinstance(error, SourceBusy):
                failure = Failure.BUSY
            fields = {"digest": self.digest, "window": index, "error": str(error)}
            log.warning("claim-failed", extra={"fields": fields})
            self._spawn(self._give_back(index, failure, error.retry_after, error))
            return
        self._fail(error if isinstance(error, SwarmError) else BlobUnavailable(repr(error)))
        self._close_soon()

    async def _after_claim(self, index: int) -> None:
        assert self.cut is not None and self.pieces is not None
        window = self.cut.windows[index]
        with contextlib.suppress(TrackerError):
            await self._publish(window)

    async def _give_back(
        self, index: int, failure: Failure, retry_after: float | None, error: SourceError | None = None
    ) -> None:
        try:
            answer = await self._board.release(self._release((index,), failure, retry_after))
            await self._apply(answer, claims=False)
            if not answer.hope and error is not None:
                raise BlobUnavailable(f"nobody can bring in {self.digest}", cause=error)
        except TrackerError:
            pass
        self._nudge.set()

    def _release(self, windows: tuple[int, ...], failure: Failure, retry_after: float | None = None) -> wire.Release:
        return wire.Release(
            **self._me(),
            incarnation=self._incarnation,
            windows=windows,
            failure=failure.value,
            retry_after=retry_after,
        )

    async def _report(self) -> None:
        """Keep the claims alive while bytes move."""
        told: dict[int, int] = {}
        while True:
            await asyncio.sleep(REPORT)
            now = dict(self._done)
            if now and now != told and self._board.shared:
                with contextlib.suppress(TrackerError):
                    await self._board.progress(
                        wire.Progress(
                            **self._me(),
                            incarnation=self._incarnation,
                            generation=self._generation,
                            done=now,
                            have=self._have(),
                        )
                    )
            told = now

    # -- the swarm --------------------------------------------------------------------------------

    def _join_published(self) -> None:
        """Fetch the published windows that are wanted here from peers."""
        if self.cut is None or self.pieces is None or self.verified.is_set() or self.closing:
            return
        if self._as_whole:
            self._want_of_whole()
            return
        if not self._board.shared:
            return
        every = self.readers.whole
        demanded: dict[int, set[int]] = {}
        for piece in {p for p in self.readers.pieces if p not in self.pieces}:
            demanded.setdefault(self.cut.window_at(piece * self.cut.piece_length).index, set()).add(piece)
        windows, under_way = self.cut.windows, self._torrents.keys() | self._joining.keys()
        for index in (demanded.keys() | (self._partly if every else set())) & self._torrents.keys():
            self._want_more(self._torrents[index], windows[index], demanded.get(index, set()), every)
        free = max(4, MOST_JOINED // max(window.length for window in windows))
        free -= sum(not self.pieces.holds(windows[index]) for index in under_way)
        for index in sorted(self._hashes.keys() - under_way - self._claims.keys() - set(self._hedged.values())):
            if self._spread is not None and not self._spread >> index & 1:
                continue
            first = demanded.get(index, set())
            if not (first or (every and free > 0)) or self.pieces.holds(windows[index]):
                continue
            free -= 1
            work = self._join_window(windows[index], self._hashes[index], first, every)
            self._joining[index] = self._spawn(work)

    def _want_more(self, torrent: Torrent, window: Window, first: set[int], every: bool) -> None:
        """The torrent of *window* is to fetch the pieces *first* before others, and (*every*) all others too."""
        assert self.pieces is not None
        urgent = self.readers.urgent
        new = (set(self.pieces.missing(window)) if every else first) - self._wanted
        new |= (first & urgent) - self._hurried
        if every:
            self._partly.discard(window.index)
        if new:
            self._asked[window.index] = time.monotonic()
            self._wanted |= new
            self._hurried |= new & urgent
            torrent.want((piece, 7 if piece in urgent else 4) for piece in new)
            torrent.reannounce()  # it may have let go of its peers

    async def _join_window(self, window: Window, hashes: bytes, first: set[int], every: bool) -> None:
        """Fetch *window* from peers: the pieces *first*, or (*every*) all of it."""
        assert self.cut is not None and self.pieces is not None
        generation = self._generation
        missing = list(self.pieces.missing(window))
        span = window.span
        wanted = set(missing) if every else first
        urgent = first & self.readers.urgent
        self._wanted |= wanted
        if urgent:
            self._hurried |= wanted
        if not every:
            self._partly.add(window.index)
            self._asked[window.index] = time.monotonic()
        try:
            await self._reserve(window)
            torrent = await self._add(
                window_info(self.digest, self.cut, window, hashes),
                [p for p in span if p not in missing],
                [*(span if every else wanted), *self._beside(window)],
                7 if urgent else 4,
                partial(self._dial, window),
            )
            if self.pieces.holds(window) or self._near_the_end():
                torrent.want((piece, 0) for piece in self._beside(window))
            if generation != self._generation or self.closing:
                await self._context.session.retire(torrent)
                return
            self._torrents[window.index] = torrent
        finally:
            if self._joining.get(window.index) is asyncio.current_task():
                del self._joining[window.index]
        if not every:
            self._join_published()  # other pieces may have been demanded meanwhile

    def _beside(self, window: Window) -> tuple[int, ...]:
        """One piece outside *window*, for its torrent to want in vain until the window is here.

        A torrent whose blocks are all asked for is in its end game: libtorrent asks several peers for the same
        blocks. So small a torrent is always there, and 18-22 % of all bytes came twice; nobody has this piece.
        """
        assert self.cut is not None
        if window.pieces == self.cut.pieces:
            return ()
        return (window.first_piece - 1 if window.first_piece else window.last_piece + 1,)

    def _near_the_end(self) -> bool:
        """Whether so little is missing that asking twice helps more than it costs."""
        assert self.cut is not None and self.pieces is not None
        every = self.readers.whole
        return every and len(self.cut.windows) - self.pieces.have.bit_count() <= LAST_WINDOWS

    def _window_here(self, window: Window) -> None:
        """Its torrent need not want in vain any more; at the end none does."""
        torrents = (
            self._torrents.items() if self._near_the_end() else [(window.index, self._torrents.get(window.index))]
        )
        for index, torrent in torrents:
            if torrent is not None and self.cut is not None:
                torrent.want((piece, 0) for piece in self._beside(self.cut.windows[index]))

    def _dial(self, window: Window) -> tuple[PeerAddress, ...]:
        """Whom to dial for a window: few, and as many dial us.

        All with all is a connection per window and pair of nodes: half as many bytes per wakeup, and more CPU.
        """
        trackers = self._context.trackers
        return successors(self._peers, trackers.address or trackers.session, str(window.index), MOST_DIALLED)

    async def _join_whole(self) -> None:
        """The board is sealed: one torrent for the rest of the blob."""
        self._as_whole = True
        await self._lone_left()
        async with self._switching:
            await self._add_whole()

    async def _add_whole(self) -> None:
        assert self.cut is not None and self.pieces is not None
        ready = self._ready()
        if len(ready) == self.cut.pieces:
            return
        generation = self._generation
        self._wanted = self._wanted_pieces() if self._reserved is None else set()
        torrent = await self._add_sealed(ready, self._wanted, 4, lambda: self._peers)
        if generation != self._generation or self.closing:
            await self._context.session.retire(torrent)
            return
        self._whole = torrent
        for piece in range(self.cut.pieces):
            if piece in self.pieces and piece not in ready:
                self._spawn(self._offer(torrent, piece))  # brought in meanwhile
        self._want_of_whole()

    def _ready(self) -> set[int]:
        assert self.cut is not None and self.pieces is not None
        return {piece for piece in range(self.cut.pieces) if piece in self.pieces}

    async def _add_sealed(
        self, ready: set[int], wanted: Iterable[int], priority: int, peers: Callable[[], Iterable[PeerAddress]]
    ) -> Torrent:
        """Add the torrent of the whole blob. All hashes must be known."""
        assert self.cut is not None
        hashes = b"".join(self._hashes[window.index] for window in self.cut.windows)
        return await self._add(sealed_info(self.digest, self.cut, hashes), ready, ready.union(wanted), priority, peers)

    async def _turn_whole(self) -> None:
        """From the torrents of windows that are not here to one of the whole blob."""
        assert self.cut is not None and self.pieces is not None
        self._as_whole, self._turning = True, False
        self._nudge.set()
        await self._leave_lone()
        for index in [i for i in self._torrents if not self.pieces.holds(self.cut.windows[i])]:
            self._send_away(self._torrents.pop(index))
        await self._join_whole()

    async def _lone_left(self) -> None:
        if self._lone_leaving is not None:
            await asyncio.wait([self._lone_leaving])

    async def _leave_whole(self) -> None:
        """From the torrent of the whole blob to torrents of windows."""
        async with self._switching:
            whole, self._whole, self._as_whole = self._whole, None, False
            self._wanted, self._hurried = set(), set()
            if whole is not None:
                await self._context.session.retire(whole)

    def _send_away(self, torrent: Torrent) -> None:
        """Have *torrent* leave the session."""
        task = self._spawn(self._context.session.retire(torrent))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _make_way(self, window: Window) -> None:
        """Before *window* is brought in, nothing of it may be left for libtorrent to write.

        It writes into the same file what it has not verified yet: wrong bytes of a peer came down on right ones.
        """
        if (joining := self._joining.get(window.index)) is not None:
            await asyncio.wait([joining])
        if (torrent := self._torrents.pop(window.index, None)) is not None:
            self._send_away(torrent)
        await self._lone_left()
        async with self._switching:
            while self._leaving:
                await asyncio.wait(self._leaving)
            if self._whole is not None and not self._wanted.isdisjoint(window.span):
                await self._renew_whole(self._whole)

    async def _renew_whole(self, torrent: Torrent) -> None:
        """The torrent of the blob leaves, and comes back with what is wanted now. Call with `_switching` held."""
        self._whole, generation = None, self._generation
        await self._context.session.retire(torrent)
        if generation == self._generation and not self.closing:
            await self._add_whole()

    def _wanted_pieces(self) -> set[int]:
        """Pieces that the readers here need from peers: all that are missing, or those that range readers wait for."""
        assert self.cut is not None and self.pieces is not None
        pieces: Iterable[int] = range(self.cut.pieces) if self.readers.whole else self.readers.pieces
        coming = self._claims.keys() | self._hedged.values()
        claimed = {piece for index in coming for piece in self.cut.windows[index].span}
        return {piece for piece in pieces if piece not in self.pieces and piece not in claimed}

    def _want_of_whole(self) -> None:
        """Have the torrent of the whole blob fetch what is wanted now; it may have let go of its peers meanwhile."""
        now, urgent = self._wanted_pieces(), self.readers.urgent
        wanted = (now - self._wanted) | ((now & urgent) - self._hurried)
        if self._whole is not None and wanted:
            self._wanted |= wanted
            self._hurried |= wanted & urgent
            if self._reserved is not None and self._unreserved(wanted):
                self._spawn(self._reserve_and_want(wanted))
            else:
                self._fetch_of_whole(wanted)

    def _unreserved(self, pieces: Iterable[int]) -> list[Window]:
        assert self.cut is not None and self._reserved is not None
        windows = {self.cut.window_at(piece * self.cut.piece_length) for piece in pieces}
        return [w for w in sorted(windows, key=lambda w: w.index) if w.index not in self._reserved]

    async def _reserve_and_want(self, pieces: set[int]) -> None:
        for window in self._unreserved(pieces):
            await self._reserve(window)
        self._fetch_of_whole(pieces)

    def _fetch_of_whole(self, wanted: set[int]) -> None:
        if self._whole is not None:
            first = self.readers.urgent
            self._whole.want((piece, 7 if piece in first else 4) for piece in wanted)
            self._whole.reannounce()

    def _spoiled(self, torrent: Torrent, peer: PeerAddress) -> None:
        """*peer* sent wrong bytes: its torrent begins anew, without what it had sent of other pieces.

        libtorrent bans it, but keeps those blocks, and then bans whoever sends the rest of such a piece as well.
        """
        self._banned.add(peer)
        self._peers = tuple(other for other in self._peers if other != peer)
        if self._rebuilt < MOST_REBUILT and not self.closing and not self.verified.is_set():
            self._rebuilt += 1
            self._spawn(self._rebuild(torrent))

    async def _rebuild(self, torrent: Torrent) -> None:
        if torrent is self._whole:
            async with self._switching:
                if torrent is self._whole:
                    await self._renew_whole(torrent)
            return
        window = next((index for index, known in self._torrents.items() if known is torrent), None)
        if window is not None:
            del self._torrents[window]
            self._send_away(torrent)
            self._join_published()

    async def _seed(self, window: Window, hashes: bytes) -> None:
        """Offer a window that is here."""
        if window.index in self._torrents or self.cut is None:
            return
        span = window.span
        with contextlib.suppress(SessionError, BadHashes):
            info = window_info(self.digest, self.cut, window, hashes)
            self._torrents[window.index] = await self._add(info, span, span, 4, partial(self._dial, window))

    async def _offer(self, torrent: Torrent, piece: int) -> None:
        """A piece from upstream in a torrent that waits for it too: its peers may have it from us.

        libtorrent drops it if meanwhile it finds that a peer had sent it wrong bytes of that piece: see `_offer_again`.
        """
        assert self.cut is not None and self._file is not None
        self._offered[piece] = torrent
        offset, length = self.cut.piece_span(piece)
        data = await asyncio.get_running_loop().run_in_executor(
            self._context.pool, os.pread, self._file.fd, length, offset
        )
        torrent.give(piece, data)

    async def _offer_again(self) -> None:
        """Offer what was offered a while ago and is not in its torrent."""
        offered, self._offered = self._offered, {}
        for torrent in set(offered.values()):
            have = await torrent.have()
            for piece in [p for p, to in offered.items() if to is torrent and p < len(have) and not have[p]]:
                await self._offer(torrent, piece)

    async def _add(
        self,
        info: bytes,
        have: Iterable[int],
        wanted: Iterable[int],
        priority: int,
        peers: Callable[[], Iterable[PeerAddress]],
    ) -> Torrent:
        assert self._staged is not None
        while self._leaving:
            await asyncio.wait(self._leaving)  # the session takes a torrent once
        self._moved = time.monotonic()
        torrent: Torrent | None = None

        def on_piece(piece: int) -> None:
            if torrent is not None and self._arrivals is not None:
                self._arrivals.put(torrent, piece)

        early: list[int] = []
        torrent = await self._context.session.add(
            info,
            path=self._staged.path,
            have=have,
            wanted=wanted,
            priority=priority,
            on_piece=lambda piece: on_piece(piece) if torrent is not None else early.append(piece),
            on_bad_piece=lambda _piece: self._context.metrics.bad_pieces.inc(),
            on_error=lambda text: log.error("torrent-error", extra={"fields": {"digest": self.digest, "error": text}}),
            peers=peers,
            on_ban=lambda peer: self._spoiled(torrent, peer) if torrent is not None else None,
        )
        for piece in early:
            on_piece(piece)
        return torrent

    def _from_peer(self, piece: int, sha1: bytes) -> None:
        assert self.pieces is not None and self.cut is not None
        if piece not in self.pieces:
            self._moved = time.monotonic()
            offset, length = self.cut.piece_span(piece)
            self._context.metrics.bytes_in.labels("peer").inc(length)
            self._from_lone.arrived(piece)
            if self._lone is not None and (window := self.cut.window_at(offset).index) in self._claims:
                self._done[window] = self._done.get(window, 0) + length
            self._piece_ready(piece, sha1, "peer")

    def _behind(self) -> None:
        self._moved = time.monotonic()
        self._context.metrics.read_back.inc()

    def _has(self, piece: int) -> bool:
        return self.pieces is not None and piece in self.pieces

    def _expected(self, piece: int) -> bytes | None:
        assert self.cut is not None
        window = self.cut.window_at(piece * self.cut.piece_length)
        hashes = self._hashes.get(window.index)
        if hashes is None:
            return None
        place = (piece - window.first_piece) * HASH_LENGTH
        return hashes[place : place + HASH_LENGTH]

    def _piece_ready(self, piece: int, sha1: bytes, origin: str) -> None:
        assert self.pieces is not None and self._staged is not None and self.cut is not None
        if self.pieces.put(piece, sha1, origin):
            window = self.cut.window_at(piece * self.cut.piece_length)
            self._trace("window-here", window.index, origin=origin)
            self._window_here(window)
            if not self._as_whole:
                self._join_published()
            self._note({p: self.pieces.sum(p) for p in window.span})
        elif self._ranged and origin == "peer":
            self._note({piece: sha1})  # its window may never become complete

    def _note(self, sums: dict[int, bytes]) -> None:
        """Have a restart find those pieces. Not each at once: a job in a thread costs more than the line it writes."""
        self._unnoted.update(sums)
        if self._noting is None and not self.closing and not self.verified.is_set():
            self._noting = asyncio.get_running_loop().call_later(NOTE_EVERY, self._note_now)

    def _note_now(self) -> None:
        self._noting = None
        if self._staged is not None and self._unnoted and not self.verified.is_set():
            sums, self._unnoted = self._unnoted, {}
            self._spawn(self._staged.note(sums))

    def _trace(self, event: str, window: int, **fields: Any) -> None:
        """What happens to a window, for `bench.timeline`."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug(event, extra={"fields": {"digest": self.digest, "window": window, **fields}})

    async def _watch(self) -> None:
        """Notice that peers deliver nothing, and ask for the missing windows from upstream."""
        received: int | None = None
        while True:
            await asyncio.sleep(STALL / 4)
            await self._offer_again()
            self._let_go_of_idle()
            waiting = self._waiting_windows()
            if not waiting or (self._arrivals is not None and self._arrivals.busy):
                self._moved = time.monotonic()  # nothing to wait for, or our own disk is what we wait for
            quiet = time.monotonic() - self._moved
            if quiet < STALL / 2:
                received = None
                if self._stalled:
                    self._stalled = ()
                    self._nudge.set()
                continue
            now = sum([await torrent.received() for torrent in self._all_torrents()])
            comes = self._lone is not None and (received is None or now > received)
            if self._sealed and not self._as_whole and not comes and self.cut is not None and len(self.cut.windows) > 1:
                await self._turn_whole()  # who has all of the blob may offer its windows no more
            if received is not None and now > received:
                self._moved = time.monotonic()  # a piece is long, but its blocks come
            received = now
            if quiet < STALL:
                continue
            if self._stalled != waiting[:8]:
                self._stalled = waiting[:8]
                log.warning("swarm-stalled", extra={"fields": {"digest": self.digest, "windows": list(self._stalled)}})
                self._context.metrics.stalls.inc()
                self._nudge.set()

    def _all_torrents(self) -> list[Torrent]:
        single = [torrent for torrent in (self._whole, self._from_lone.torrent) if torrent is not None]
        return [*self._torrents.values(), *single]

    def _let_go_of_idle(self) -> None:
        """Remove the torrents of windows of which range readers had all that they wanted a while ago."""
        if self.cut is None or self.pieces is None:
            return
        waited_for = self.readers.windows
        for index in list(self._partly - self._joining.keys() - waited_for):
            window = self.cut.windows[index]
            if self.pieces.holds(window) or index not in self._torrents:
                self._partly.discard(index)
            elif time.monotonic() - self._asked.get(index, 0.0) > TORRENT_IDLE:
                self._partly.discard(index)
                # It has asked for nothing for so long: there is nothing left to be written, and nobody need wait.
                self._context.session.remove(self._torrents.pop(index))
                self._wanted -= set(window.span)
                self._hurried -= set(window.span)

    def _waiting_windows(self) -> tuple[int, ...]:
        if self.cut is None or self.pieces is None or self.verified.is_set():
            return ()
        every = self.readers.whole
        urgent = self.readers.windows
        unheld = ~self._spread if self._spread is not None and self._lone is None else 0
        return tuple(
            w
            for w in sorted(self._hashes, key=lambda index: (index not in self._torrents, index))
            if not self.pieces.holds(self.cut.windows[w])
            and w not in self._claims
            and (every or w in urgent)
            and not unheld >> w & 1
        )

    # -- the digest -------------------------------------------------------------------------------

    async def _hash_in_order(self) -> None:
        """Compute the sha256 over the pieces in order; finish or reject."""
        await self._sized.wait()
        if self.cut is None or self.pieces is None or self._file is None:
            return
        loop = asyncio.get_running_loop()
        limit = max(1, HASH_RUN // self.cut.piece_length)
        while not self.verified.is_set():
            era, sha256, piece = len(self._eras), hashlib.sha256(), 0
            while piece < self.cut.pieces and era == len(self._eras):
                await self.pieces.wait(min(piece + limit, self.cut.pieces) - 1)  # few long jobs: pieces come in runs
                await self.pieces.wait(piece)
                count = self.pieces.run(piece, limit)
                offset = piece * self.cut.piece_length
                length = min(count * self.cut.piece_length, self.cut.size - offset)
                await loop.run_in_executor(self._context.pool, _hash_region, sha256, self._file.fd, offset, length)
                piece += count
            if era != len(self._eras):
                continue
            if sha256.hexdigest() == self.digest.removeprefix("sha256:"):
                await self._finish()
            else:
                self._new_era.clear()
                await self._reject("sha256")
                await self._new_era.wait()

    async def _finish(self) -> None:
        assert self.cut is not None and self.pieces is not None and self._staged is not None
        self.verified.set()
        self._settled.set()
        log.info(
            "blob-verified",
            extra={
                "fields": {
                    "digest": self.digest,
                    "size": self.cut.size,
                    "seconds": round(time.monotonic() - self.started, 3),
                }
            },
        )
        await self._from_lone.leave()  # the blob is offered as a seed from now on
        with contextlib.suppress(TrackerError):
            await self._publish_held()
            await self._nothing_under_way.wait()  # a seal that overtakes one comes to an incomplete board, and is void
            await self._board.seal(wire.Seal(**self._me(), incarnation=self._incarnation, generation=self._generation))
        self._finishing = asyncio.create_task(self._staged.finish(self.pieces.sums()))
        try:
            self.held = await asyncio.shield(self._finishing)
        except StoreFull as error:
            log.warning("blob-not-kept", extra={"fields": {"digest": self.digest, "error": str(error)}})
        self._context.on_finished(self)
        self._nudge.set()
        if not self.readers and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self._context.settings.linger, self._close_soon)

    async def _reject(self, reason: str) -> None:
        """What the board describes is wrong: say so. The board begins again."""
        self._rejections += 1
        log.error("blob-rejected", extra={"fields": {"digest": self.digest, "why": reason, "time": self._rejections}})
        self._context.metrics.rejections.inc()
        if self._rejections > 2 * MAX_GENERATIONS:
            raise BlobCorrupt(f"the bytes do not match {self.digest}: {reason}")
        if self.cut is not None:
            self._suspect = set(range(len(self.cut.windows)))
        with contextlib.suppress(TrackerError):
            await self._board.reject(
                wire.Reject(**self._me(), incarnation=self._incarnation, generation=self._generation, reason=reason)
            )
        self._nudge.set()

    async def _wait_verified(self) -> None:
        await self._settled.wait()
        if self.error is not None:
            raise self.error

    async def _same_bytes(self, era: int, first: int, upto: int) -> int:
        """Wait until pieces [first, upto) are there again; BlobCorrupt if they are not what was given out."""
        assert self.pieces is not None
        now = len(self._eras)
        for piece in range(first, upto):
            await self.pieces.wait(piece)
            if now != len(self._eras):
                return await self._same_bytes(era, first, upto)
            if self.pieces.sum(piece) != self._eras[era].sum(piece):
                raise BlobCorrupt(f"bytes of {self.digest} that were given out turned out to be wrong")
        return now


def _hash_region(sha256: Any, fd: int, offset: int, length: int) -> None:
    """Feed bytes of *fd* to *sha256*. Blocks."""
    end = offset + length
    while offset < end:
        data = os.pread(fd, min(1 << 18, end - offset), offset)
        if not data:
            raise OSError("file is shorter than the blob")
        sha256.update(data)
        offset += len(data)
