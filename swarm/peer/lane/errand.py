"""A run of pieces to bring from other agents: what is wanted, from whom, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

from swarm.blob.digest import Digest
from swarm.blob.errors import Cancelled
from swarm.blob.geometry import Geometry
from swarm.peer.lane.holders import Address
from swarm.peer.lane.intake import Intake
from swarm.peer.lane.link import Link


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


class Errand:
    """Pieces *first* to *last* of a blob, to be brought into the file *fd*. *fd* must stay open until it ended.

    *rank*: less is more urgent; below 0: somebody waits for just these bytes. The callbacks run on the event loop.
    """

    def __init__(
        self,
        digest: Digest,
        layout: Geometry,
        fd: int,
        first: int,
        last: int,
        *,
        holders: Sequence[Address],
        expected: Mapping[int, bytes],
        on_piece: Callable[[int, bytes], None],
        on_wrong: Callable[[Address], None] = lambda _address: None,
        on_lacking: Callable[[Address, int], None] = lambda _address, _pieces: None,
        rank: int = 0,
    ) -> None:
        """*expected*: piece -> SHA-1. *on_wrong*: a piece that came whole from this holder is wrong.

        *on_lacking*: this holder gives nothing of it; bit p: it has piece p.
        """
        self.digest = digest
        self.holders = tuple(holders)
        """Replaced whole by the event loop when there are others."""
        self.named: frozenset[Address] = frozenset()
        """Those of them that the tracker names as holders of it."""
        self.rank = rank
        self.moved = 0
        """Bytes that came, wrong ones too."""
        self.on_piece, self.on_wrong, self.on_lacking = on_piece, on_wrong, on_lacking
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
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._cancelled = False

    @property
    def candidates(self) -> tuple[Address, ...]:
        """Holders that may have it."""
        return tuple(address for address in self.holders if address not in self.useless)

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
        self.tell(lambda: self.on_piece(piece, sha1))

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
