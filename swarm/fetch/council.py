"""What a fetch does about what its board says: each event is acted on here, by one `match`.

Also the other direction: what a poll says of this node.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from swarm.blob.errors import BlobCorrupt, BlobUnavailable
from swarm.fetch.course import Course
from swarm.fetch.demand import Demand, demand_of
from swarm.fetch.events import (
    ClaimsChanged,
    Event,
    HoldersNamed,
    Hopeless,
    ModeChanged,
    PeersChanged,
    Poisoned,
    Published,
    Restarted,
    SizeConflict,
    Sized,
)
from swarm.fetch.modes import Holding, Mode, is_over, next_mode
from swarm.fetch.standing import Standing
from swarm.protocol import wire
from swarm.protocol.board import MAX_CLAIMS, MAX_GENERATIONS

log = logging.getLogger("shoal.swarm")


class Council:
    """See the module: the Node of a Follower. *here*: a window became complete.

    *learn*: the size is known (bytes, whether others told it).
    """

    def __init__(
        self, course: Course, learn: Callable[[int, bool], Awaitable[None]], here: Callable[[int], None]
    ) -> None:
        self._course = course
        self._learn = learn
        self._here = here
        self._holding = Holding()
        self._turning = True
        """Whether claims on windows of a sole seed are wanted."""
        self._rejections = 0
        self._size_from_disk = False
        """A former fetch knew the size, and nobody has confirmed it."""
        self._stale = False

    @property
    def stale(self) -> bool:
        """Whether what is on disk is of no use."""
        return self._stale

    # -- Node of the follower -------------------------------------------------------------------------

    async def handle(self, event: Event) -> None:
        """Act on one piece of news. Raises SwarmError: the fetch has failed."""
        course = self._course
        match event:
            case Sized(size):
                await self._learn(size, True)
            case SizeConflict(size):
                await self._conflict(size)
            case Restarted():
                self._restart()
            case Published(windows):
                self._confirm(windows)
            case HoldersNamed() | ModeChanged():
                self._hear(event)
            case ClaimsChanged(windows, sole):
                course.claims.set(windows, course.transfers if sole else None, but=course.follower.publishing)
            case PeersChanged(_, more):
                if more and course.transfers is not None and not course.is_verified:
                    course.transfers.reannounce()
            case Hopeless():
                self._despair()
            case Poisoned():
                pass  # the follower goes on alone

    async def applied(self) -> None:
        """An answer was applied whole: publish what the board lacks, fetch what it has."""
        course = self._course
        self.look_at_entering()
        if course.partial is None or course.transfers is None:
            return
        for window in course.partial.layout.windows:
            if not course.partial.have >> window.index & 1 or course.follower.publish(window.index):
                continue
            if course.follower.shared and course.transfers.may_offer(window.index):
                # It was on disk already: the board tells others that we hold it, so we must offer it.
                course.tasks.spawn(self.offer(window.index))
        course.want()

    def standing(self) -> Standing:
        """What a poll says of this node."""
        course, wait = self._course, wire.MAX_WAIT
        here = course.partial
        if here is None and not course.claims.windows:
            wait = max(0.05, course.started + course.parts.settings.unpublished_wait - time.monotonic())
        return Standing(
            self._demand(),
            size=here.layout.size if here is not None and not self._rejections else None,
            claims=course.claims.windows,
            have=here.have if here is not None else 0,
            stalled=course.stalls.windows,
            direct=course.claims.direct,
            coming=tuple(course.transfers.windows) if course.transfers is not None else (),
            wait=wait,
        )

    def sums(self, window: int) -> bytes | None:
        """The piece hashes of a window that is here."""
        return self._course.partial.sums(window) if self._course.partial is not None else None

    def origin(self) -> str:
        """Of which origin the windows are that are here."""
        return self._course.origin or ""

    async def offer(self, window: int) -> None:
        """Offer a window that is here to peers."""
        course, hashes = self._course, self.sums(window)
        if hashes is not None and course.partial is not None and course.transfers is not None:
            await course.transfers.seed(course.partial.layout.windows[window], hashes)

    # -- for the fetch ----------------------------------------------------------------------------------

    async def remember(self, size: int) -> None:
        """A former fetch knew the size: what it left is served whoever else is down."""
        self._size_from_disk = True
        await self._learn(size, False)

    def look_at_entering(self) -> None:
        """Bring `enters` up to date: the other blobs of this node take a smaller share of upstream meanwhile."""
        course = self._course
        windows = len(course.partial.layout.windows) if course.partial is not None else 0
        much = windows - len(course.follower.hashes) > MAX_CLAIMS
        enters = much and course.readers.bulk and not course.closing
        if enters != course.enters:
            course.enters = enters
            course.home.entering_changed()

    async def look_at_stalls(self) -> None:
        """Notice that peers deliver nothing: then missing windows are asked from upstream."""
        course = self._course
        if course.transfers is None or course.partial is None:
            return
        stalls, waiting = course.stalls, () if course.is_verified else course.transfers.waiting()
        now = time.monotonic()
        if not waiting or course.transfers.checking:
            stalls.moved(now)  # nothing to wait for, or our own disk is what we wait for
        if stalls.restless(now):
            more = stalls.received(await course.transfers.received(), now)
            comes = self._holding.sole is not None and more
            several = len(course.partial.layout.windows) > 1
            if self._is_sealed() and course.transfers.mode is not Mode.WHOLE and not comes and several:
                self._turn_whole()  # who has all of the blob may offer its windows no more
        if stalls.look(waiting, time.monotonic(), course.transfers.lost if waiting else ()):
            if stalls.windows:
                log.warning(
                    "swarm-stalled", extra={"fields": {"digest": course.digest, "windows": list(stalls.windows)}}
                )
                course.parts.metrics.stalls.inc()
            course.follower.poll()

    async def reject(self, reason: str) -> None:
        """What the board describes is wrong: say so. The board begins again. Raises BlobCorrupt."""
        course = self._course
        self._rejections += 1
        fields = {"digest": course.digest, "why": reason, "time": self._rejections}
        log.error("blob-rejected", extra={"fields": fields})
        course.parts.metrics.rejections.inc()
        upstreams = self._is_upstreams()
        if self._rejections > 2 * MAX_GENERATIONS or (upstreams and self._rejections >= MAX_GENERATIONS):
            raise BlobCorrupt(f"the bytes do not match {course.digest}: {reason}")
        if course.partial is not None:
            course.partial.doubt()
        await course.follower.reject(reason, leave=upstreams)

    # -- inside -----------------------------------------------------------------------------------------

    def _is_upstreams(self) -> bool:
        """Whether all that is here came from upstream, and nobody else takes part who might have a better line to it.

        Then it is between this node and upstream: a board that has heard of such a rejection before does not begin anew
        for one member, and was left after four seconds only.
        """
        here, peers = self._course.partial, self._course.follower.peers
        pieces = here.pieces if here is not None else None
        return (
            not peers
            and pieces is not None
            and all(piece in pieces and pieces.origin(piece) == "upstream" for piece in range(pieces.layout.pieces))
        )

    async def _conflict(self, size: int) -> None:
        digest, here = self._course.digest, self._course.partial
        if self._size_from_disk:
            self._stale = True
            raise BlobUnavailable(f"what was kept of {digest} is of another size")
        await self.reject(f"size: {size} on the board, {here.layout.size if here is not None else 'none'} here")

    def _restart(self) -> None:
        """Another generation of the board: what we hold counts only where its hashes say the same."""
        course = self._course
        course.claims.restart()
        self._holding = Holding()
        if course.transfers is not None:
            course.transfers.restart()
        if course.partial is not None:
            course.partial.restart()

    def _confirm(self, windows: tuple[int, ...]) -> None:
        course = self._course
        for window in windows if course.partial is not None else ():
            course.trace("window-known", window)
            for done in course.partial.confirm(window, course.follower.hashes[window]) if course.partial else ():
                self._here(done.index)

    def _hear(self, event: HoldersNamed | ModeChanged) -> None:
        if isinstance(event, ModeChanged):
            self._hold(Holding(event.sealed, event.sole, event.available))
        elif self._course.transfers is not None:
            self._course.transfers.named(event)

    def _hold(self, now: Holding) -> None:
        """The others hold the blob otherwise than before: fetch it accordingly."""
        course = self._course
        before, self._holding = self._holding, now
        if course.partial is None or course.transfers is None:
            return
        every = len(course.partial.layout.windows)
        if now.sole != before.sole:
            course.trace("sole-seed", 0, peer=str(now.sole))
            course.claims.drop()  # they mean another thing from now on
        if is_over(before, now, missing=((1 << every) - 1) & ~course.partial.pieces.have):
            self._turn_whole()
            return
        known = len(course.follower.hashes) == every
        after = next_mode(course.transfers.mode, now, known=known, idle=course.transfers.idle)
        course.transfers.set_mode(after, now.sole, now.available)

    def _turn_whole(self) -> None:
        """From the torrents of windows that are not here to one of the whole blob, whatever a sole seed could do."""
        course = self._course
        self._turning = False
        course.follower.prefer_all_peers()
        if self._holding.sole is not None:
            course.claims.drop()
        self._holding = Holding(sealed=True)
        if course.transfers is not None:
            course.transfers.set_mode(Mode.WHOLE, None, None)

    def _is_sealed(self) -> bool:
        course = self._course
        sealed = self._holding.sealed or self._holding.sole is not None
        return (
            sealed and course.partial is not None and len(course.follower.hashes) == len(course.partial.layout.windows)
        )

    def _despair(self) -> None:
        """The board has no hope. Without a reader there is nothing to hope for: others may need what is here."""
        course = self._course
        complete = course.partial is not None and course.partial.complete
        if complete or course.is_verified or not course.readers:
            return
        if self._may_claim() and not course.claims.refusal:
            return
        patience = course.started + course.parts.settings.unpublished_wait - time.monotonic()
        if course.follower.tracker is None or patience <= 0.05:
            raise BlobUnavailable(f"nobody can bring in {course.digest}", cause=course.claims.refusal)

    def _may_claim(self) -> bool:
        course = self._course
        return not course.is_verified and course.claims.may_ask() and course.readers.source() is not None

    def _demand(self) -> Demand:
        course = self._course
        by_window = course.partial is not None and course.partial.by_window
        return demand_of(
            course.readers,
            sized=course.partial is not None,
            claims=course.parts.settings.claims if self._may_claim() else 0,
            turning=self._turning and not by_window and not course.is_verified,
            concurrent=course.home.entering() - course.enters,
        )
