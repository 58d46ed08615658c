"""Claimed windows from the only agent that holds the blob: the torrent of the blob, of which nothing else is wanted.

Where one agent alone has a blob that several fetch, the board hands out its windows by claims, as it does
those of upstream: each is fetched from the holder by one agent, and traded by all as window torrents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from swarm.peer.session import Torrent

FIRST = 6
"""libtorrent's priority of the window that was claimed first; of later ones one less each, 1 at least."""


class Exit(Protocol):
    """By which a torrent leaves the session (swarm/peer/session.py)."""

    async def retire(self, torrent: Torrent) -> None:
        """It leaves; returns once nothing of it is left to be written."""

    def remove(self, torrent: Torrent) -> None:
        """It leaves at once: nothing of it is left to be written."""


class SoleSeed:
    """See the module. *add* makes the torrent, these pieces wanted, or None if it cannot be had yet."""

    def __init__(self, add: Callable[[Collection[int]], Awaitable[Torrent | None]], exit_: Exit) -> None:
        self.torrent: Torrent | None = None
        self._add = add
        self._exit = exit_
        self._asked: set[int] = set()
        """Pieces that were wanted of it and have not arrived."""
        self._lock = asyncio.Lock()

    async def want(self, windows: Callable[[], Sequence[Collection[int]]]) -> None:
        """Want what *windows* says then: the missing pieces of each claimed window, first claimed first.

        A piece that is not wanted any more may have been asked for: what comes of it is written, verified or not.
        So the torrent leaves then, and comes back without.
        """
        async with self._lock:
            if self.torrent is not None and not self._asked <= _all(windows()):
                await self._leave()
            wanted = windows()
            every, before, new = _all(wanted), self._asked, self.torrent is None
            self._asked = set(every)
            if new and every:
                self.torrent = await self._add(every)
            if self.torrent is None:
                self._asked.clear()
                return
            self.torrent.want((p, max(1, FIRST - place)) for place, pieces in enumerate(wanted) for p in pieces)
            if not new and not every <= before:
                self.torrent.reannounce()  # it may have let go of its peer

    async def leave(self) -> None:
        """The torrent leaves the session; nothing of it is left to write then."""
        async with self._lock:
            await self._leave()

    async def _leave(self) -> None:
        torrent, self.torrent, asked, self._asked = self.torrent, None, self._asked, set()
        if torrent is not None and asked:
            await self._exit.retire(torrent)
        elif torrent is not None:
            self._exit.remove(torrent)

    def arrived(self, piece: int) -> None:
        """*piece* is here."""
        self._asked.discard(piece)


def _all(windows: Sequence[Collection[int]]) -> set[int]:
    return set().union(*windows)
