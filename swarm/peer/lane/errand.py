"""A run of pieces to bring from other agents: what is wanted, from whom, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from typing import Protocol

from swarm.base.link import Link
from swarm.blob.digest import Digest
from swarm.blob.errors import Cancelled
from swarm.blob.geometry import Geometry
from swarm.peer.lane.holders import Address
from swarm.storage.intake import Intake


class Left(Enum):
    """Why a holder was left."""

    LACKING = auto()
    """It has not what it was asked for."""
    BUSY = auto()
    FAILED = auto()
    """Silent, slow, or no HTTP."""
    UNREACHED = auto()
    """It could not be connected to: the kernel has tried twice by then."""
    MIXED = auto()
    """A piece that came from several did not match: it comes again, whole, from one."""
    WRONG = auto()
    """A piece that came whole from it did not match."""


class Owner(Protocol):
    """What an errand tells its owner, on the event loop. Who derives from it needs only what it has a use for."""

    def came(self, errand: Errand, piece: int, sha1: bytes) -> None:
        """*piece* is in the file, and right."""
        return

    def blamed(self, holder: Address) -> None:
        """A piece that came whole from *holder* is wrong."""
        return

    def refused(self, holder: Address, pieces: int) -> None:
        """*holder* gives nothing of what it was asked for. Bit p of *pieces*: it has piece p."""
        return


class Errand:
    """Pieces *first* to *last* of a blob, to be brought into the file *fd*. *fd* must stay open until it ended.

    *rank*: less is more urgent; below 0: somebody waits for just these bytes.
    """

    def __init__(
        self,
        digest: Digest,
        layout: Geometry,
        fd: int,
        first: int,
        last: int,
        *,
        owner: Owner,
        holders: Sequence[Address],
        expected: Mapping[int, bytes],
        rank: int = 0,
    ) -> None:
        """*expected*: piece -> SHA-1."""
        self.digest = digest
        self.owner = owner
        self.holders = tuple(holders)
        """Replaced whole by the event loop when there are others."""
        self.named: frozenset[Address] = frozenset()
        """Those of them that the tracker names as holders of it."""
        self.rank = rank
        self.moved = 0
        """Bytes that came, wrong ones too."""
        self.heard: float | None = None
        """When a byte came last, or the holder that is asked now was asked; None: no thread works on it. Monotonic."""
        self.muted = 0.0
        """Seconds for which holders that were asked before had sent nothing, since a byte came last."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when no thread works on it any more. Raises Unserved, Cancelled, StoreFull, Unwritable."""
        self.intake = Intake(layout, fd, first, last, expected=expected.get, on_piece=self._piece)
        self.tell: Callable[[Callable[[], object]], None] = lambda _call: None
        """How to reach the event loop: set by who takes the errand."""
        self.useless: dict[Address, Left] = {}
        """Holders that have not what is asked, or sent wrong bytes."""
        self.givers: set[Address] = set()
        """Who sent bytes of the piece under way."""
        self.tries = 0
        """Failures since the last byte that came."""
        self.unanswered = False
        """It ended because holders do not answer, not because they lack it."""
        self.gone = False
        """Nobody listens any more where it was asked for: that process has ended, and the tracker hears of it, too."""
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._cancelled = False

    @property
    def candidates(self) -> tuple[Address, ...]:
        """Holders that may have it."""
        return tuple(address for address in self.holders if address not in self.useless)

    def forget_lacking(self) -> None:
        """Those of `named` that lacked it have come to have it. On the event loop."""
        for holder in self.named:
            if self.useless.get(holder) is Left.LACKING:
                self.useless.pop(holder, None)

    def silence(self, now: float) -> float:
        """Seconds for which whoever was asked has sent nothing. To wait for one who is busy is not counted."""
        heard = self.heard
        return self.muted + (now - heard if heard is not None else 0.0)

    @property
    def cancelled(self) -> bool:
        """Whether it is not wanted any more."""
        return self._cancelled

    def cancel(self) -> None:
        """Not wanted any more: `ended` comes at once, with Cancelled. On the event loop."""
        with self._lock:
            self._cancelled = True
            if self._link is not None:
                self._link.cut()

    def use(self, link: Link | None) -> None:
        """The connection on which its thread waits. Raises Cancelled."""
        with self._lock:
            self._link = link
            if self._cancelled and link is not None:
                raise Cancelled("not wanted any more")

    def _piece(self, piece: int, sha1: bytes) -> None:
        self.givers.clear()
        self.tell(partial(self.owner.came, self, piece, sha1))

    def end(self, error: BaseException | None) -> None:
        """No thread works on it any more."""
        self.tell(lambda: self._settle(error))

    def _settle(self, error: BaseException | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
            self.ended.exception()  # who waits is told; nobody need wait
