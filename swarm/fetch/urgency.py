"""Sees to it that no reader waits for the cluster for longer than patience.py says, and starts direct streams."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace

from swarm.blob.errors import BlobUnavailable, SourceError
from swarm.fetch.claims import STEP
from swarm.fetch.course import Course
from swarm.fetch.direct import Direct, Host
from swarm.fetch.modes import Mode
from swarm.fetch.patience import (
    AHEAD,
    COMING,
    FORESEEN,
    QUIET,
    STOPPED,
    Awaited,
    Waiting,
    comes_anyway,
    due,
    is_idle,
    is_over,
)
from swarm.fetch.readers import Reader
from swarm.fetch.trial import Trial
from swarm.protocol.board import MAX_CLAIMS
from swarm.upstream.source import Source

log = logging.getLogger("shoal.swarm")

TICK = 0.5
"""Seconds between two looks while a reader waits: what it waits for may have changed."""

TOGETHER = 4
"""Windows that a direct stream vacates at once where one torrent holds all: that leaves and comes back each time."""

STREAMS = 4
"""Direct streams of one blob at once: readers of ranges at as many places."""

MOST_STREAMS = 8
"""The same of all blobs on this node."""

NEAR = 16
"""Pieces within which a direct stream is about to reach a reader: it gets none of its own."""

AHEAD_AGAIN = 10.0
"""Seconds between two requests that run ahead of the claims on one blob."""

RETRY = 2.0
"""Seconds until upstream is asked directly again after it failed; twice as many after the next failure."""


@dataclass(eq=False)
class _Plight:
    """How one reader fares."""

    left_at: float = float("-inf")
    """When a direct stream had to be started for it last."""
    fed: bool = False
    """Something was given to it."""


class Urgency:
    """See the module. *host*: where direct streams bring their pieces."""

    def __init__(self, course: Course, host: Host) -> None:
        self._course = course
        self._host = host
        self._plights: dict[Reader, _Plight] = {}
        self._streams: dict[Direct, asyncio.Task[None]] = {}
        self._ahead: Direct | None = None
        self._ahead_at = float("-inf")
        """When the last one was started."""
        self._trial: Trial | None = None
        self._not_before = float("-inf")
        self._failures = 0
        self._coming_at = float("-inf")
        """When somebody else brought in what is waited for."""

    @property
    def streams(self) -> int:
        """Direct streams now."""
        return len(self._streams)

    async def sized(self) -> None:
        """Until the size is known, or the fetch has failed. Raises BlobUnavailable when nobody tells it in time."""
        course, began = self._course, time.monotonic()
        while not course.sized.is_set():
            now = time.monotonic()
            mine = course.claims.moved(0)
            whole = course.readers.whole
            waiting = Waiting(
                began, Awaited.OTHERS, ranges=not whole, unheard=not course.follower.others.heard, busy=self._busy()
            )
            if mine is None and whole:
                waiting = self._believe(waiting, 0)
            elif mine is not None:
                waiting = replace(waiting, awaited=Awaited.MINE, moved=mine, begun=mine > 0)
                if whole and self._is_late(waiting, now):
                    self._run_ahead(0)
            if due(waiting) <= now:
                self._go(0, None if whole else 1, Awaited.OTHERS.value)
            self._give_up_if_over(waiting, now, first=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await course.sized.wait()

    async def bring(self, reader: Reader, piece: int) -> None:
        """Until *piece* is ready, whatever it takes. Raises SwarmError."""
        here = self._course.partial
        assert here is not None, "the size is known before anything is read"
        if piece in here.pieces:
            return
        if reader.low:
            await here.pieces.wait(piece)
            return
        plight = self._plights.setdefault(reader, _Plight())
        began = time.monotonic()
        received: int | None = None
        moved = began
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FORESEEN):
                await here.pieces.wait(piece)
        while piece not in here.pieces:
            now = time.monotonic()
            waiting = self._look(reader, plight, piece, began, moved)
            if waiting.awaited is Awaited.TRADED and self._course.transfers is not None:
                count = await self._course.transfers.received()
                moved = time.monotonic() if received is not None and count > received else moved
                received = count
                waiting = replace(waiting, moved=max(waiting.moved, moved))
            elif waiting.awaited is Awaited.MINE and is_idle(waiting, now):
                self._let_go(here.window_of(piece).index)
            at = due(waiting)
            if at <= now:
                self._leave_cluster(reader, plight, piece, waiting.awaited, now)
            elif waiting.awaited is Awaited.MINE and reader.whole and self._is_late(waiting, now):
                self._run_ahead(piece)
            self._give_up_if_over(waiting, now, first=not plight.fed and reader.whole)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(TICK, max(0.05, at - now)) if at > now else TICK):
                    await here.pieces.wait(piece)
        plight.fed = True

    def _let_go(self, window: int) -> None:
        """This node brings *window* in, and nothing of it comes: others have it, so it comes from them."""
        here = self._course.partial
        if here is None or window not in self._course.follower.hashes:
            return
        self._course.claims.let_go(window)
        for stream, task in self._streams.items():
            if here.window_of(stream.at).index == window:
                task.cancel()

    def left(self, reader: Reader) -> None:
        """*reader* is gone; without another one nothing is brought directly."""
        self._plights.pop(reader, None)
        for stream, task in self._streams.items():
            if not self._course.readers or (stream.endless and not self._course.readers.whole):
                task.cancel()

    # -- inside -----------------------------------------------------------------------------------

    def _look(self, reader: Reader, plight: _Plight, piece: int, began: float, moved: float) -> Waiting:
        """What *reader* waits for."""
        course = self._course
        assert course.partial is not None
        window = course.partial.window_of(piece).index
        waiting = Waiting(
            began, Awaited.OTHERS, ranges=not reader.whole, takes=course.claims.takes(), left_at=plight.left_at,
            busy=self._busy(), failed=course.line.refused,
        )  # fmt: skip
        mine = course.claims.moved(window)
        if mine is not None:
            return replace(waiting, awaited=Awaited.MINE, moved=mine, begun=mine > 0)
        if window in course.follower.hashes:
            lost = self._is_lost(window)
            foreseen = (lost and not plight.fed) or course.parts.silence.is_foreseen(
                course.follower.peers, time.monotonic()
            )
            checking = course.transfers is not None and course.transfers.checking
            moved = time.monotonic() if checking else moved
            return replace(waiting, awaited=Awaited.TRADED, moved=moved, foreseen=foreseen, lost=lost)
        return self._believe(waiting, window) if reader.whole else waiting

    def _is_lost(self, window: int) -> bool:
        """Whether who holds *window* does not answer this node, whatever comes from others."""
        return self._course.transfers is not None and window in self._course.transfers.lost

    @staticmethod
    def _is_late(waiting: Waiting, now: float) -> bool:
        """Whether upstream has been asked by this node for a while, and sends nothing to it, of whatever blob."""
        return not waiting.begun and now - max(waiting.since, waiting.busy) >= AHEAD

    def _believe(self, waiting: Waiting, window: int) -> Waiting:
        """*waiting*, with what the board says of who brings *window* in, and what upstream says to this node."""
        now = time.monotonic()
        if now - waiting.since >= AHEAD:
            self._course.follower.ask_of_others()
        coming = self._course.follower.others.pace(window, now)
        waiting = replace(waiting, coming=coming)
        if coming is None or now - waiting.since < (AHEAD if now - waiting.busy >= QUIET else 3 * AHEAD):
            return waiting
        if (rate := self._course.claims.rate()) is not None:  # this node's own claims have tried it
            return replace(waiting, tried=waiting.since, rate=rate)
        if self._trial is None and (source := self._course.readers.source()) is not None:
            self._trial = Trial(self._course.line.watched(source), self._offset(window), time.monotonic)
            self._course.tasks.spawn(self._trial.run())
        if self._trial is not None:
            waiting = replace(waiting, tried=self._trial.answered, rate=self._trial.rate)
        return waiting

    def _offset(self, window: int) -> int:
        here = self._course.partial
        return here.layout.windows[window].offset if here is not None else 0

    def _busy(self) -> float:
        """When this node got bytes from the blob's upstream last, for whatever blob."""
        source = self._course.readers.source()
        return self._course.parts.traffic.moved(source.upstream) if source is not None else float("-inf")

    def _leave_cluster(self, reader: Reader, plight: _Plight, piece: int, awaited: Awaited, now: float) -> None:
        """Bring *piece* and what follows directly."""
        course = self._course
        if self._go(piece, self._end(reader, piece), awaited.value):
            plight.left_at = now
            if awaited is Awaited.TRADED and not course.heard_peers:
                course.parts.silence.noted(course.follower.peers, now)

    def _end(self, reader: Reader, piece: int) -> int | None:
        """The piece before which a direct stream for *reader* ends."""
        if reader.whole:
            return None
        assert self._course.partial is not None, "the size is known before anything is read"
        most = max(1, STEP // self._course.partial.layout.piece_length)
        return min(max((*reader.pieces, piece)) + 1, piece + most)

    def _left_to_cluster(self, window: int, rate: float) -> bool:
        """Whether *window* comes without the stream: peers hold it, or somebody brings it in and not much slower."""
        course, now = self._course, time.monotonic()
        if (moved := course.claims.moved(window)) is not None and moved and now - moved < STOPPED:
            return True  # another request of this node brings it
        given = window in course.follower.hashes and course.heard_peers and not self._is_lost(window)
        return comes_anyway(given, course.follower.others.pace(window, now), rate, MAX_CLAIMS)

    def _go(self, piece: int, stop: int | None, why: str) -> bool:
        """Start a direct stream, unless there is one, or upstream cannot be asked. Whether one runs for *piece*."""
        now, course = time.monotonic(), self._course
        if any(stream is not self._ahead and stream.at <= piece < stream.at + NEAR for stream in self._streams):
            return True
        source = self._askable(now)
        if source is None or self._are_enough():
            return False
        fields = {"digest": course.digest, "piece": piece, "why": why, "upstream": source.upstream}
        log.warning("went-direct", extra={"fields": fields})
        course.parts.metrics.direct.labels(why).inc()
        self._begin(self._stream(source, piece, stop))
        return True

    def _are_enough(self) -> bool:
        """Whether there are as many direct streams as may be."""
        return len(self._streams) >= STREAMS or self._course.parts.traffic.streams >= MOST_STREAMS

    def _run_ahead(self, piece: int) -> None:
        """Upstream takes long to answer: have one request run ahead of the claims, for what they would ask next."""
        course = self._course
        here, source = course.partial, course.readers.source()
        if self._ahead is not None or source is None or not course.claims.may_ask() or self._are_enough():
            return
        now = time.monotonic()
        if now - self._ahead_at < AHEAD_AGAIN:
            return
        course.follower.ask_of_others()
        coming = course.follower.others.windows(now)
        if coming and min(coming) < min(course.claims.windows, default=0):
            return  # one is enough: whoever brings in the first of the windows that come does so
        first = 0
        if here is not None:
            taken = course.claims.elsewhere | set(coming) | course.follower.hashes.keys()
            free = (w for w in here.layout.windows[here.window_of(piece).index :] if w.index not in taken)
            window = next((w for w in free if not here.pieces.holds(w)), None)
            if window is None:
                return
            first = window.first_piece
        log.info("runs-ahead", extra={"fields": {"digest": course.digest, "piece": first}})
        course.parts.metrics.direct.labels("ahead").inc()
        self._ahead_at = now
        self._ahead = self._stream(source, first, None, ahead=True)
        self._begin(self._ahead)

    def _stream(self, source: Source, piece: int, stop: int | None, *, ahead: bool = False) -> Direct:
        course = self._course
        whole = course.transfers is not None and course.transfers.mode is Mode.WHOLE
        return Direct(
            self._host,
            course.line.watched(source),
            course.parts.pool,
            course.begun,
            piece,
            stop,
            ahead=ahead,
            together=TOGETHER if whole else 1,
            leaves=self._left_to_cluster,
            clock=time.monotonic,
        )

    def _begin(self, stream: Direct) -> None:
        task = self._course.tasks.spawn(self._run(stream))
        self._streams[stream] = task
        self._course.parts.traffic.streams += 1
        task.add_done_callback(lambda _: self._ended(stream))

    def _ended(self, stream: Direct) -> None:
        self._streams.pop(stream, None)
        self._course.parts.traffic.streams -= 1
        if stream is self._ahead:
            self._ahead = None

    async def _run(self, stream: Direct) -> None:
        try:
            await stream.run()
            self._failures = 0
        except SourceError as error:
            if stream is not self._ahead:  # there may be nothing where that one began
                self._failures += 1
                pause = max(error.retry_after or 0.0, RETRY * 2 ** min(self._failures - 1, 4))
                self._not_before = time.monotonic() + pause
            fields = {"digest": self._course.digest, "error": str(error)}
            log.info("direct-failed", extra={"fields": fields})
        finally:
            self._course.want()

    def _give_up_if_over(self, waiting: Waiting, now: float, *, first: bool) -> None:
        """Raises BlobUnavailable if nothing comes from anywhere, upstream asked by this node itself included."""
        course = self._course
        alive = max(waiting.since, waiting.moved, course.alive)
        coming = waiting.coming is not None and (
            waiting.coming > 0 or (now - waiting.since < COMING and not course.line.failed_since(alive))
        )
        asking = course.line.asking(alive) or coming
        if coming and waiting.coming:
            self._coming_at = now
        alive = max(alive, self._coming_at)  # what came to others is to come from them now
        refused = course.line.refused or self._askable(now) is None
        if is_over(now, alive, first=first, asking=asking, refused=refused):
            raise BlobUnavailable(f"nothing of {course.digest} came in time", cause=course.claims.refusal)

    def _askable(self, now: float) -> Source | None:
        """What to ask of upstream directly; None: this node does not know how, or was refused a moment ago."""
        return self._course.readers.source() if self._course.claims.may_ask() and now >= self._not_before else None
