"""The windows that this node brings in from upstream: by claim, by hedge, or out of one body that holds all.

Owns the claims, the bytes that came for each, the hedges, what upstream refused, and the sequential
body. Knows nothing of boards and peers: what it needs done it asks of its Host.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from swarm.blob.errors import SizeChanged, SourceBroken, SourceBusy, SourceError, SourceRefused
from swarm.blob.geometry import FIRST_WINDOW, Window
from swarm.fetch.demand import Wanted
from swarm.fetch.place import Place
from swarm.protocol.board import Failure
from swarm.upstream.download import Begun, download_window
from swarm.upstream.sequential import Sequential
from swarm.upstream.source import Source

log = logging.getLogger("shoal.swarm")

STEP = 1024 * 1024
"""Bytes of one upstream request while only range readers wait: between two, whoever waits may come first."""

HEDGE_DEADLINE = 15.0
"""Seconds that a piece which is asked past all claims may take."""

REFUSED_FOR = 30.0
"""Seconds for which this agent does not ask upstream again for a blob that was refused."""


class Origin(Protocol):
    """Where claimed windows come from, if not from upstream."""

    async def bring(self, window: int) -> None:
        """Returns when *window* is here."""


class Host(Protocol):
    """What claims ask of the fetch, and tell it."""

    @property
    def place(self) -> Place | None:
        """None: the size is not known."""

    def source(self, window: int | None = None) -> Source | None:
        """Upstream, as a reader of *window* asks it."""

    def wanted(self) -> Wanted:
        """What the readers want."""

    async def learn(self, size: int) -> None:
        """Upstream told the size in bytes."""

    async def learned(self) -> None:
        """Until the size is known."""

    def writing(self, window: Window) -> AbstractAsyncContextManager[None]:
        """Entered before anything is written into *window*: then nobody else writes there."""

    def came(self, piece: int, sha1: bytes) -> None:
        """*piece* is in the file."""

    def received(self, count: int) -> None:
        """Bytes arrived from upstream."""

    def brought(self, window: int) -> None:
        """*window* is here."""

    def unable(self, window: int, failure: Failure, error: SourceError | None) -> None:
        """A claim is given back: it did not succeed, or there is nowhere to ask."""

    def resized(self, error: SizeChanged) -> None:
        """Upstream told another size than the one that is known."""

    def broken(self, error: BaseException) -> None:
        """Something else than upstream failed: the fetch cannot go on."""

    def trace(self, event: str, window: int, **fields: Any) -> None:
        """Tell who looks at timelines."""


class Claims:
    """See the module. *spawn* starts a task that ends with the fetch."""

    def __init__(
        self,
        host: Host,
        pool: ThreadPoolExecutor,
        spawn: Callable[..., asyncio.Task[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._clock = clock
        self._begun = Begun()
        self._pool = pool
        self._spawn = spawn
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._done: dict[int, int] = {}
        self._since: dict[int, float] = {}
        """Window -> when its claim began."""
        self._origin: Origin | None = None
        self._hedged: dict[int, int] = {}
        """Piece -> window, of pieces that are asked from upstream past all claims."""
        self._sequential: asyncio.Task[None] | None = None
        """Reads a body that upstream sends whole, and brings in every window from it."""
        self._refusal: SourceError | None = None
        self._refused_until = 0.0

    # -- what is known ----------------------------------------------------------------------------

    @property
    def windows(self) -> tuple[int, ...]:
        """The windows claimed, in order."""
        return tuple(sorted(self._tasks))

    @property
    def elsewhere(self) -> frozenset[int]:
        """Windows that come from here: not to be fetched from peers."""
        return frozenset(self._tasks.keys() | set(self._hedged.values()))

    @property
    def done(self) -> dict[int, int]:
        """Window -> bytes that have arrived for the claim on it."""
        return dict(self._done)

    def waiting(self) -> dict[int, float]:
        """Window -> seconds since its claim began, where upstream has not sent a byte."""
        if self._origin is not None:
            return {}
        now = self._clock()
        return {window: now - self._since[window] for window in self._tasks if not self._done.get(window)}

    @property
    def refusal(self) -> SourceError | None:
        """What upstream said when it refused the blob."""
        return self._refusal

    def may_ask(self) -> bool:
        """Whether upstream has not refused lately."""
        return self._refusal is None or time.monotonic() >= self._refused_until

    def ask_again(self) -> None:
        """A new reader has a source of its own: a refusal that is over is forgotten."""
        if self.may_ask():
            self._refusal = None

    # -- claims -----------------------------------------------------------------------------------

    def set(self, windows: Iterable[int], origin: Origin | None = None, but: Iterable[int] = ()) -> None:
        """These are all claims now. *origin*: None for upstream. *but*: claims that are over."""
        if origin is not self._origin:
            self.drop()
            self._origin = origin
        mine = set(windows)
        for window in [w for w in self._tasks if w not in mine]:
            self._tasks.pop(window).cancel()
            self._done.pop(window, None)
        place = self._host.place
        for window in sorted(mine - self._tasks.keys() - set(but)):
            if place is not None and place.pieces.holds(place.layout.windows[window]):
                self._host.brought(window)  # it was here already: the claim ends with its hashes
                continue
            if origin is not None:
                self._begin(window, origin.bring(window))
            elif (source := self._source(window)) is not None:
                self._begin(window, self._bring(window, source))
            else:
                self._host.unable(window, Failure.HANDED_OVER, None)

    def drop(self) -> None:
        """All claims end."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._done.clear()
        self._origin = None

    def restart(self) -> None:
        """The board began again: all claims end, and the sequential body with them."""
        self.drop()
        self._begun.clear()
        if self._sequential is not None:
            self._sequential.cancel()

    def arrived(self, window: int, count: int) -> None:
        """*count* bytes of a window that is claimed from elsewhere than upstream came."""
        if self._origin is not None and window in self._done:
            self._done[window] += count

    async def close(self) -> None:
        """Nothing of it runs any more."""
        tasks = [*self._tasks.values()]
        self.drop()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def hedge(self, piece: int, source: Source) -> None:
        """Ask upstream for *piece*, past all claims. It may fail: others bring it in too."""
        place = self._host.place
        if place is None or piece in self._hedged or not self.may_ask():
            return
        window = place.window_of(piece)
        offset, length = place.layout.piece_span(piece)
        part = replace(window, offset=offset, length=length, first_piece=piece, pieces=1)
        self._hedged[piece] = window.index
        try:
            async with asyncio.timeout(HEDGE_DEADLINE):
                await place.reserve(window)
                await self._download(place, part, source, None)
        except (SourceError, TimeoutError) as error:
            log.info("hedge-failed", extra={"fields": {"piece": piece, "error": str(error)}})
        finally:
            del self._hedged[piece]

    def hedging(self, piece: int) -> bool:
        """Whether *piece* is being asked past all claims."""
        return piece in self._hedged

    # -- inside -----------------------------------------------------------------------------------

    def _begin(self, window: int, work: Coroutine[Any, Any, None]) -> None:
        self._done[window] = 0
        self._since[window] = self._clock()
        self._host.trace("window-claimed", window)
        task = self._tasks[window] = asyncio.create_task(work)
        task.add_done_callback(partial(self._ended, window))

    def _source(self, window: int) -> Source | None:
        return self._host.source(window) if self.may_ask() else None

    async def _bring(self, index: int, source: Source) -> None:
        began = time.monotonic()
        place = self._host.place
        if place is None:
            await self._bring_first(index, source)
        elif self._sequential is None or not await self._came_with(index, self._sequential):
            await self._bring_into(place, index, source, None)
        self._host.trace("window-brought", index, seconds=round(time.monotonic() - began, 4))

    async def _bring_first(self, index: int, source: Source) -> None:
        async with contextlib.AsyncExitStack() as stack:
            body = await stack.enter_async_context(source.open(0, FIRST_WINDOW))
            if body.total <= 0:
                raise SourceBroken("upstream sent an empty body")
            if body.whole and body.total > FIRST_WINDOW:
                # It ignores ranges. Asked for each window it would send all that lies before it each time.
                self._sequential = self._spawn(self._read_through(source, Sequential(body), stack.pop_all()))
                await self._came_with(index, self._sequential)
            else:
                await self._host.learn(body.total)
                assert self._host.place is not None
                await self._bring_into(self._host.place, index, source, body)

    async def _read_through(self, source: Source, body: Sequential, opened: contextlib.AsyncExitStack) -> None:
        """Bring in every window from one body, or a few: each begins at the first byte of the blob again."""
        async with opened:
            try:
                await self._host.learn(body.total)
                place = self._host.place
                assert place is not None
                for window in place.layout.windows:
                    if place.pieces.holds(window):
                        continue
                    if body.broken:
                        await opened.aclose()
                        body = Sequential(await opened.enter_async_context(source.open(0, None)))
                    await self._bring_into(place, window.index, source, body.part(window))
                    self._host.brought(window.index)
            except SourceError as error:
                # Whoever has claims on the rest goes on, and gives them back if it is no better.
                log.warning("body-broken", extra={"fields": {"error": str(error)}})
            finally:
                self._sequential = None

    async def _came_with(self, index: int, sequential: asyncio.Task[None]) -> bool:
        """Wait for a window that is to come with the one body; whether it did."""
        waiting = asyncio.ensure_future(self._host_has(index))
        try:
            await asyncio.wait((sequential, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        place = self._host.place
        return place is not None and place.pieces.holds(place.layout.windows[index])

    async def _host_has(self, index: int) -> None:
        await self._host.learned()
        place = self._host.place
        if place is not None:
            for piece in place.layout.windows[index].span:
                await place.pieces.wait(piece)

    async def _bring_into(self, place: Place, index: int, source: Source, first: Any) -> None:
        window = place.layout.windows[index]
        await place.reserve(window)
        async with self._host.writing(window):
            while (part := self._next_part(place, window)) is not None:
                await self._download(place, part if first is None else window, source, first)
                first = None

    async def _download(self, place: Place, part: Window, source: Source, first: Any) -> None:
        """Fetch pieces of one window, from upstream."""

        def on_bytes(count: int) -> None:
            self._host.received(count)
            for claim in self._tasks if self._sequential is not None else self._tasks.keys() & {part.index}:
                self._done[claim] = self._done.get(claim, 0) + count

        await download_window(
            source,
            place.layout,
            part,
            place.staged,
            self._pool,
            ready=place.pieces.__contains__,
            on_bytes=on_bytes,
            on_piece=self._host.came,
            begun=self._begun,
            first=first,
        )

    def _next_part(self, place: Place, window: Window) -> Window | None:
        """What of *window* to ask from upstream next: all that is missing, or from what a range reader waits for on.

        None: nothing is missing.
        """
        layout, pieces = place.layout, place.pieces
        missing = list(pieces.missing(window))
        if not missing:
            return None
        wanted = self._host.wanted()
        start = next((piece for piece in missing if piece in wanted.urgent), missing[0])
        stop = window.last_piece + 1
        if wanted.urgent and not wanted.whole:
            stop = min(stop, start + max(1, STEP // layout.piece_length))
        stop = next((piece for piece in range(start, stop) if piece in pieces), stop)
        offset = start * layout.piece_length
        return replace(
            window, offset=offset, length=min(window.end, stop * layout.piece_length) - offset,
            first_piece=start, pieces=stop - start,
        )  # fmt: skip

    def _ended(self, index: int, task: asyncio.Task[None]) -> None:
        """A claim's work ended: the window is here, or the claim is given back."""
        mine = self._tasks.get(index) is task
        if mine:
            del self._tasks[index]
            self._done.pop(index, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            if mine:
                self._host.brought(index)
        elif isinstance(error, SizeChanged):
            self._host.resized(error)
        elif isinstance(error, SourceError):
            self._host.unable(index, self._failure(error), error)
        else:
            self._host.broken(error)

    def _failure(self, error: SourceError) -> Failure:
        if isinstance(error, SourceRefused):
            self._refusal, self._refused_until = error, time.monotonic() + REFUSED_FOR
            return Failure.REFUSED
        return Failure.BUSY if isinstance(error, SourceBusy) else Failure.BROKEN
