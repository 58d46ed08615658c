"""One blob on its way to this node: the phase it is in, its readers, its beginning and its end.

A Fetch lives while somebody on this node reads the blob (and a little longer, for the others in the
cluster). Its owners hold the state, each its own, and four coordinators act on what they report:

    partial    what is here              fetch     readers, phases, life
    follower   what the board says       council   acts on what the board says
    claims     what upstream sends       intake    takes what upstream and peers send
    transfers  what peers send
    stalls     since when nothing came   urgency   has what does not come in time brought past the cluster
    line       what this node asks of upstream; direct and trial: two ways past the claims

SIZING -> FILLING (a generation of the board) -> VERIFIED -> KEPT -> CLOSED, and FAILED from any.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from swarm.blob.digest import Digest
from swarm.blob.errors import BlobUnavailable, StoreFull, SwarmError, TrackerError, Unproven
from swarm.blob.metainfo import HASH_LENGTH
from swarm.fetch import stalls
from swarm.fetch.claims import Claims
from swarm.fetch.council import Council
from swarm.fetch.course import Course, Home, Parts, Phase
from swarm.fetch.follower import Follower
from swarm.fetch.intake import Intake
from swarm.fetch.partial import Partial
from swarm.fetch.proof import Proof, suffices
from swarm.fetch.readers import Reader, Readers
from swarm.fetch.reading import Span, spans
from swarm.fetch.tasks import Tasks
from swarm.fetch.urgency import Urgency
from swarm.fetch.verifier import Matched, verify
from swarm.storage.errnos import translate
from swarm.upstream.source import Source

log = logging.getLogger("shoal.swarm")

REPORT = 1.0
"""Seconds between two reports of progress on claims."""

UNREAD = 10.0
"""Seconds between two looks after what only time brings about, while nobody reads: 96 blobs that lingered took 2 % of a
core of each of 16 agents."""

IDLE = 1.0
"""Seconds that a fetch goes on without a reader: containerd's parallel ranges come and go."""

RANGE_LINGER = 300.0
"""Seconds that a blob which is read in ranges stays offered after its last reader: the other nodes start the same
image minutes later, and what is not on the board they would take from upstream again."""

DEMANDED_WINDOWS = 8
"""Windows of which a range reader demands pieces at once: as many as a board hands out claims."""


class Fetch:
    """See the module. Created by the node; `join` before anything else, `part` at the end.

    Above the bound of methods: readers ask it alone, and each question is a method of one line.
    """

    def __init__(self, digest: Digest, parts: Parts, home: Home, after: asyncio.Event | None = None) -> None:
        """*after*: set once an earlier fetch of the same blob is closed; this one begins then."""
        self.digest = digest
        self.closed = asyncio.Event()
        self._parts = parts
        self._home = home
        self._after = after
        self._course = course = Course(digest, parts, home, Tasks(self._task_failed))
        self._intake = Intake(course, self._fail, self._reject)
        self._council = Council(course, self._intake.learn, self._intake.here)
        course.follower = Follower(digest, parts.trackers, self._council, course.tasks.spawn)
        course.claims = Claims(self._intake, parts.pool, course.tasks.spawn, course.begun)
        self._urgency = Urgency(course, self._intake)
        self._settled = asyncio.Event()
        """Verified, or failed."""
        self._main: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._left = 0.0
        self._joined = asyncio.Event()
        """A reader has come since the last look after what time brings about."""

    # -- what is known ----------------------------------------------------------------------------

    @property
    def readers(self) -> Readers:
        """Who reads the blob on this node."""
        return self._course.readers

    @property
    def error(self) -> SwarmError | None:
        """Why the fetch has failed."""
        return self._course.error

    @property
    def closing(self) -> bool:
        """Whether it is of no use for another reader."""
        return self._course.closing

    @property
    def enters(self) -> bool:
        """Whether much of the blob is still to be brought into the cluster, for those who read all of it."""
        return self._course.enters

    @property
    def is_verified(self) -> bool:
        """Whether the whole blob is here, and its sha256 matched."""
        return self._course.is_verified

    @property
    def is_kept(self) -> bool:
        """Whether the store has it."""
        return self._course.phase is Phase.KEPT

    @property
    def is_lost(self) -> bool:
        """Whether what it brought in was found to be wrong since."""
        return self._course.partial is not None and self._course.partial.lost

    @property
    def size(self) -> int | None:
        """Bytes of the blob, once known."""
        here = self._course.partial
        return here.layout.size if here is not None else None

    def status(self) -> dict[str, Any]:
        """For the agent's status page."""
        course, here = self._course, self._course.partial
        return {
            "digest": self.digest,
            "phase": course.phase.value,
            "size": self.size,
            "pieces": here.layout.pieces if here is not None else None,
            "ready": here.pieces.count if here is not None else 0,
            "claims": list(course.claims.windows),
            "direct": self._urgency.streams,
            "readers": len(course.readers),
            "peers": len(course.follower.peers),
            "tracker": course.follower.tracker,
            "verified": self.is_verified,
            "seconds": round(time.monotonic() - course.started, 3),
        }

    # -- readers ----------------------------------------------------------------------------------

    def join(
        self,
        whole: bool,
        source: Source | None,
        *,
        low: bool = False,
        origin: str = "",
        proof: Proof = Proof.NONE,
    ) -> Reader:
        """A new reader; *low*: one that every other comes before. The fetch starts with the first.

        *origin*: of what *source* sends. Raises Unproven if *proof* asks for more than this fetch will have.
        """
        course = self._course
        if course.origin is None:
            course.origin = origin
        elif origin != course.origin and not self.is_verified:
            if proof is not Proof.NONE and not course.follower.sealed:
                raise Unproven(f"{self.digest} is asked of another place on this node")
            if source is not None:
                course.mixed()
        reader = Reader(whole, source, late=self.is_verified, low=low, origin=origin, proof=proof)
        self._course.readers.add(reader)
        self._joined.set()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if source is not None:
            self._course.claims.ask_again()
        if not whole:
            self._course.ranged = True
            if self._course.partial is not None:
                self._course.partial.expect_ranges()
        if self._main is None:
            self._main = asyncio.create_task(self._run())
        self._council.look_at_entering()
        self._course.follower.tell()
        return reader

    def part(self, reader: Reader) -> None:
        """*reader* is gone; what was done for it alone stops."""
        self._course.readers.discard(reader)
        self._urgency.left(reader)
        self._council.look_at_entering()
        self._course.follower.tell()
        if not self._course.readers and not self.closing and self._idle is None:
            self._left = time.monotonic()
            self._idle = asyncio.get_running_loop().call_later(self._lingers(), self._idle_over)

    async def sized(self) -> int:
        """Size of the blob in bytes, once known. Raises SwarmError."""
        await self._urgency.sized()
        if self._course.partial is None:
            assert self.error is not None
            raise self.error
        return self._course.partial.layout.size

    async def read(self, reader: Reader, start: int, stop: int) -> AsyncGenerator[Span, None]:
        """Bytes [start, stop) in order, as they become readable. Raises SwarmError; see swarm/fetch/reading.py."""
        await self.sized()
        assert self._course.partial is not None
        async with contextlib.aclosing(spans(self._course.partial, self, reader, start, stop)) as found:
            async for span in found:
                yield span

    async def wait_verified(self) -> None:
        """Until the sha256 matched. Raises SwarmError."""
        await self._settled.wait()
        if self.error is not None:
            raise self.error

    def need(self, reader: Reader, position: int, stop: int) -> None:
        """*reader*, if it reads a range, needs the pieces of [position, stop) that are not here."""
        if reader.whole or self._course.partial is None:
            return
        layout, held = self._course.partial.layout, self._course.partial.pieces
        first, last = position // layout.piece_length, (stop - 1) // layout.piece_length
        needed = {
            w.index: [p for p in held.missing(w) if first <= p <= last and self.suffices(reader, p)]
            for w in layout.windows_of(position, stop)[:DEMANDED_WINDOWS]
            if not held.holds(w)
        }
        pieces = tuple(p for found in needed.values() for p in found)
        if pieces != reader.pieces:
            reader.pieces, reader.windows = pieces, tuple(w for w, found in needed.items() if found)
            self._course.follower.tell()
            self._course.want()

    def suffices(self, reader: Reader, piece: int) -> bool:
        """Whether *reader* may be given *piece*, or wait for it: see swarm/fetch/proof.py."""
        course, here = self._course, self._course.partial
        if reader.proof is Proof.NONE or course.is_verified or here is None:
            return True
        had = here.pieces.origin(piece) if piece in here.pieces else None
        window, board = here.window_of(piece), course.follower
        told: str | None = None
        if (hashes := board.hashes.get(window.index)) is not None:
            at = (piece - window.first_piece) * HASH_LENGTH
            if had is None or here.pieces.sum(piece) == hashes[at : at + HASH_LENGTH]:
                told = board.origins.get(window.index, "")
        return suffices(
            reader.proof, reader.origin, mine=course.origin or "", had=had, told=told, sealed=board.sealed,
            vouched=board.vouched,
        )  # fmt: skip

    async def hurry(self, reader: Reader, piece: int) -> None:
        """Until *piece* is ready, whatever it takes. Raises SwarmError."""
        await self._urgency.bring(reader, piece)

    def tell_wish(self) -> None:
        """How many other blobs enter the cluster has changed."""
        self._course.follower.tell()

    # -- life -------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop: claims are handed over, torrents leave the session, the partial file stays."""
        if not self.closing:
            self._course.closing = True
            await self._close()

    async def _run(self) -> None:
        if self._after is not None:
            await self._after.wait()
        try:
            if (size := self._parts.store.partial_size(self.digest)) is not None:
                await self._council.remember(size)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._course.follower.follow())
                group.create_task(self._course.follower.apply())
                group.create_task(self._verify())
                group.create_task(self._report())
                group.create_task(self._watch())
        except* SwarmError as errors:
            error = errors.exceptions[0]
            self._fail(error if isinstance(error, SwarmError) else BlobUnavailable(str(error)))
        except* OSError as errors:
            fields = {"digest": self.digest, "error": str(errors.exceptions[0])}
            log.error("fetch-failed", extra={"fields": fields})  # noqa: TRY400  # the disk's fault, not the code's
            self._fail(_told(errors.exceptions[0]))

    def _task_failed(self, error: BaseException) -> None:
        """A task of this fetch ended with an error."""
        if not isinstance(error, SwarmError):  # those are told by fetch-ended; a registry that is down is no defect
            fields = {"digest": self.digest, "error": repr(error)}
            log.error("fetch-task-failed", extra={"fields": fields}, exc_info=error)
        self._fail(_told(error))

    def _fail(self, error: SwarmError) -> None:
        self._end(error)
        self._close_soon()

    def _end(self, error: SwarmError) -> None:
        """Nobody gets anything more of it, unless it is verified."""
        if self.error is None and not self.is_verified:
            self._course.error, self._course.phase = error, Phase.FAILED
            log.info("fetch-ended", extra={"fields": {"digest": self.digest, "why": str(error)}})
        if self._course.partial is not None:
            self._course.partial.fail(error)
        self._course.sized.set()
        self._settled.set()

    def _close_soon(self) -> None:
        self._idle = None
        if not self.closing and (not self.readers or self.error is not None):
            self._course.closing = True  # now, not when the task begins: whoever comes in between gets a new fetch
            self._course.tasks.spawn(self._close())

    async def _close(self) -> None:
        self._council.look_at_entering()
        if self._idle is not None:
            self._idle.cancel()
        claims = self._course.claims.windows
        self._end(self.error or BlobUnavailable("the agent stops"))
        await self._course.tasks.close(self._main, self._course.claims.close)
        with contextlib.suppress(TrackerError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self._course.follower.leave(claims)
        if self._course.transfers is not None:
            await self._course.transfers.close()
        if self._course.partial is not None:
            await self._course.partial.close(keep=not self._council.stale)
        self._course.phase = Phase.CLOSED
        self.closed.set()
        self._home.closed(self)

    def _lingers(self) -> float:
        """Seconds to go on without a reader."""
        here = self._course.partial
        if self._course.ranged and not self.is_verified and here is not None and here.pieces.count:
            return RANGE_LINGER
        if here is not None and not here.kept:
            return IDLE  # in memory: the next reader may find room on the disk
        useful = bool(self._course.follower.peers) and here is not None and here.pieces.have != 0
        return self._parts.settings.linger if self.is_verified or useful else IDLE

    def _idle_over(self) -> None:
        # A window may have become complete after its reader had all that it wanted: others count on it now.
        left = self._left + self._lingers() - time.monotonic()
        if left > 0:
            self._idle = asyncio.get_running_loop().call_later(left, self._idle_over)
        else:
            self._close_soon()

    # -- tasks --------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Keep the claims alive while bytes move, or upstream has not had its time."""
        told: dict[int, int] = {}
        while True:
            await asyncio.sleep(REPORT)
            done, waiting = self._course.claims.done, self._course.claims.waiting()
            if done and (done != told or waiting):
                await self._course.follower.progress(done, waiting, self._parts.settings.upstream_timeout)
            told = done

    async def _watch(self) -> None:
        """Look after what only time brings about."""
        while True:
            await asyncio.sleep(stalls.STALL / 4)
            if not self._course.readers:
                self._joined.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(UNREAD):
                        await self._joined.wait()
            if self._course.transfers is not None:
                await self._course.transfers.tidy()
                await self._council.look_at_stalls()

    async def _verify(self) -> None:
        """Compute the sha256 over the pieces in order; finish or reject."""
        await self._course.sized.wait()
        if (here := self._course.partial) is None:
            return
        while True:
            result = await verify(
                self.digest, here.layout, here.pieces, here.file.fd, self._parts.pool, lambda: here.epoch
            )
            if isinstance(result, Matched):
                await self._finish(here)
                return
            await self._reject("sha256")
            await here.restarted(result.epoch)

    async def _finish(self, here: Partial) -> None:
        self._course.phase = Phase.VERIFIED
        here.verified()
        self._settled.set()
        seconds = round(time.monotonic() - self._course.started, 3)
        fields = {"digest": self.digest, "size": here.layout.size, "seconds": seconds}
        log.info("blob-verified", extra={"fields": fields})
        assert self._course.transfers is not None
        await self._course.transfers.verified()  # the blob is offered as a seed from now on
        for window in here.layout.windows:
            self._course.follower.publish(window.index)
        try:
            await here.finish()
            self._course.phase = Phase.KEPT
        except StoreFull as error:
            log.warning("blob-not-kept", extra={"fields": {"digest": self.digest, "error": str(error)}})
        # Before others hear that it is here whole: who dials too early comes back in a second or two.
        await self._home.finished(self)
        await self._course.follower.seal()
        log.info("blob-sealed", extra={"fields": {"digest": self.digest}})
        self._course.follower.poll()
        if not self.readers and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self._parts.settings.linger, self._close_soon)

    async def _reject(self, reason: str) -> None:
        await self._council.reject(reason)


def _told(error: BaseException) -> SwarmError:
    """What readers are told of *error*. A disk that can be neither written nor read: the blob passes through."""
    if isinstance(error, OSError):
        error = translate(error)
    return error if isinstance(error, SwarmError) else BlobUnavailable(repr(error))
