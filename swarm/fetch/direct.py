"""A reader's own stream from upstream, from its own position on: past claims, board and peers.

What it brings becomes pieces like any others. It ends when what follows is here already, when it
comes to its end, or when nobody reads any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from swarm.blob.errors import SourceBroken, SourceSilent
from swarm.blob.geometry import FIRST_WINDOW, Window
from swarm.fetch.place import Place
from swarm.upstream.download import ATTEMPTS, Begun, take
from swarm.upstream.sequential import Sequential
from swarm.upstream.source import Source

ENOUGH = 2 * 1024 * 1024
"""Bytes that are here in one run, after which the cluster is trusted to go on."""


class Host(Protocol):
    """What a direct stream asks of the fetch, and tells it."""

    @property
    def place(self) -> Place | None:
        """None: the size is not known."""

    async def learn(self, size: int) -> None:
        """Upstream told the size in bytes."""

    def covering(self, window: int) -> AbstractAsyncContextManager[None]:
        """Entered before *window* is brought in: a claim on it is fulfilled by this."""

    def writing(self, window: Window) -> AbstractAsyncContextManager[None]:
        """Entered before anything is written into *window*: then nobody else writes there."""

    def came(self, piece: int, sha1: bytes) -> None:
        """*piece* is in the file."""

    def received(self, count: int) -> None:
        """Bytes arrived from upstream."""

    def covered(self, window: int, count: int) -> None:
        """Bytes of a window that is covered arrived."""


class Direct:
    """See the module. *first*: the piece to begin with; *stop*: the piece to end before, None for the blob's end.

    *ahead*: nobody waits for its first window yet. It is left as well; it is the second while the size is not known.
    """

    def __init__(
        self,
        host: Host,
        source: Source,
        pool: ThreadPoolExecutor,
        begun: Begun,
        first: int,
        stop: int | None = None,
        *,
        ahead: bool = False,
        together: int = 1,
        leaves: Callable[[int, float], bool] = lambda _window, _rate: False,
        clock: Callable[[], float],
    ) -> None:
        """*together*: windows that are vacated at once. *leaves*: whether a window is left to the cluster, where this
        stream brings so many bytes per second; its first one never is, unless it runs ahead."""
        self._host = host
        self._source = source
        self._pool = pool
        self._begun = begun
        self._at = first
        self._stop = stop
        self._ahead = ahead
        self._together = together
        self._leaves = leaves
        self._over = False
        self._clock = clock
        self._started: float | None = None
        self._count = 0

    @property
    def at(self) -> int:
        """The piece that it brings now."""
        return self._at

    @property
    def endless(self) -> bool:
        """Whether it goes on to the blob's end."""
        return self._stop is None

    @property
    def rate(self) -> float:
        """Bytes per second since the first one; 0 before."""
        if self._started is None:
            return 0.0
        return self._count / max(0.001, self._clock() - self._started)

    async def run(self) -> None:
        """Bring pieces in. Raises SourceError, StoreFull."""
        failures = 0
        while not self._is_done():
            before = self._count
            try:
                await self._body()
            except SourceSilent:
                raise
            except SourceBroken:
                failures = failures + 1 if self._count == before else 0
                if failures >= ATTEMPTS:
                    raise

    # -- inside -----------------------------------------------------------------------------------

    def _is_done(self) -> bool:
        """Whether the end is reached, or what follows is here."""
        place = self._host.place
        if place is None or self._over:
            return self._over
        layout = place.layout
        end = layout.pieces if self._stop is None else min(self._stop, layout.pieces)
        run = 0
        while self._at < end and self._at in place.pieces:
            run += layout.piece_length
            if run >= ENOUGH:
                return True
            self._at += 1
        return self._at >= end

    async def _body(self) -> None:
        """One request, read for as long as it is of use."""
        place = self._host.place
        if place is not None:
            offset = self._at * place.layout.piece_length + self._begun.length(self._at)
        else:
            offset = FIRST_WINDOW if self._ahead else 0
        async with self._source.open(offset, None) as opened:
            body = Sequential(opened, everything=False)
            if place is None:
                await self._host.learn(body.total)
                place = self._host.place
                assert place is not None, "the size was just learned"
                self._at = offset // place.layout.piece_length
            if body.offset > offset or (opened.whole and self._ahead):
                raise SourceBroken("upstream sends something else than it was asked for")
            while not self._is_done():
                await self._batch(place, body)

    async def _batch(self, place: Place, body: Sequential) -> None:
        """Some windows, vacated together."""
        first = place.window_of(self._at).index
        if (self._count or self._ahead) and self._leaves(first, self.rate):
            self._over = True
            return
        async with contextlib.AsyncExitStack() as stack:
            windows = [place.layout.windows[first]]
            for window in place.layout.windows[first + 1 : first + self._together]:
                if self._leaves(window.index, self.rate):
                    break
                windows.append(window)
            for window in windows:
                await place.reserve(window)
                await stack.enter_async_context(self._host.covering(window.index))
                await stack.enter_async_context(self._host.writing(window))
            while not self._is_done() and self._at <= windows[-1].last_piece:
                await self._run_of_missing(place, body, windows[-1].last_piece)

    async def _run_of_missing(self, place: Place, body: Sequential, last: int) -> None:
        """The pieces from here on that are not ready, up to *last*."""
        layout = place.layout
        end = last if self._stop is None else min(last, self._stop - 1)
        upto = self._at
        while upto < end and upto + 1 not in place.pieces:
            upto += 1
        offset, length = layout.piece_span(upto)
        part = body.part(offset + length)
        await take(part, layout, (self._at, upto), place.staged, self._pool, self._received, self._came, self._begun)
        self._at = upto + 1

    def _received(self, count: int) -> None:
        self._started = self._started if self._started is not None else self._clock()
        self._count += count
        self._host.received(count)
        if (place := self._host.place) is not None:
            self._host.covered(place.window_of(self._at).index, count)

    def _came(self, piece: int, sha1: bytes) -> None:
        self._at = max(self._at, piece)
        self._host.came(piece, sha1)
