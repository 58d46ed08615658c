"""The windows that this node brings in by claim: each by a request, or out of one body that holds all.

Owns the claims, the bytes that came for each, what upstream refused, and the sequential body. Knows
nothing of boards and peers: what it needs done it asks of its Host. A direct stream (direct.py) that
comes to a window takes the work of its claim over (`covering`); the claim stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
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

RECENT = 4
"""Windows brought in last, by which it is judged how long upstream takes for one."""

REFUSED_FOR = 30.0
"""Seconds for which this agent does not ask upstream again for a blob that was refused."""


class Origin(Protocol):
    """Where claimed windows come from, if not from upstream."""

    async def bring(self, window: int) -> None:
        """Returns when *window* is here."""

    def arriving(self, window: int) -> int:
        """Bytes of *window* that have come by what is under way, of whole pieces or not, as far as that is known."""


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

    def may_skip(self, window: int) -> bool:
        """Whether what upstream sends before *window* may be thrown away: nobody else brings in any of that."""

    def unable(self, window: int, failure: Failure, error: SourceError | None) -> None:
        """A claim is given back: it did not succeed, or there is nowhere to ask."""

    def resized(self, error: SizeChanged) -> None:
        """Upstream told another size than the one that is known."""

    def broken(self, error: BaseException) -> None:
        """Something else than upstream failed: the fetch cannot go on."""

    def trace(self, event: str, window: int, **fields: Any) -> None:
        """Tell who looks at timelines."""


class Claims:
    """See the module. *spawn* starts a task that ends with the fetch.

    Above the bound of methods: five of them are questions of one line about how the claims fare.
    """

    def __init__(
        self,
        host: Host,
        pool: ThreadPoolExecutor,
        spawn: Callable[..., asyncio.Task[None]],
        begun: Begun,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._pool = pool
        self._spawn = spawn
        self._begun = begun
        self._clock = clock
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._covered: dict[int, bool] = {}
        """Window that a direct stream brings in -> whether there is a claim on it."""
        self._covering: dict[int, asyncio.Lock] = {}
        self._closed = False
        self._returning: set[int] = set()
        """Windows whose claims are on their way back to the board."""
        self._done: dict[int, int] = {}
        self._since: dict[int, float] = {}
        """Window -> when its claim began."""
        self._moved: dict[int, float] = {}
        """Window -> when bytes of it came last; it is not there before the first."""
        self._took: deque[float] = deque(maxlen=RECENT)
        self._rates: deque[float] = deque(maxlen=RECENT)
        self._origin: Origin | None = None
        self._sequential: asyncio.Task[None] | None = None
        """Reads a body that upstream sends whole, and brings in every window from it."""
        self._reading: int | None = None
        """The window that it is in."""
        self._read_at = 0.0
        """When bytes of it came last; 0: none have."""
        self._refusal: SourceError | None = None
        self._refused_until = 0.0

    # -- what is known ----------------------------------------------------------------------------

    @property
    def windows(self) -> tuple[int, ...]:
        """The windows claimed, in order."""
        covered = {window for window, claimed in self._covered.items() if claimed}
        return tuple(sorted(self._tasks.keys() | covered))

    @property
    def direct(self) -> tuple[int, ...]:
        """The windows that come by a direct stream without a claim, in order."""
        return tuple(sorted(window for window, claimed in self._covered.items() if not claimed))

    @property
    def elsewhere(self) -> frozenset[int]:
        """Windows that come from here: not to be fetched from peers."""
        return frozenset(self._tasks.keys() | self._covered.keys())

    @property
    def done(self) -> dict[int, int]:
        """Window -> bytes that have arrived for the claim on it."""
        if (origin := self._origin) is None:
            return dict(self._done)
        return {window: max(done, origin.arriving(window)) for window, done in self._done.items()}

    def waiting(self) -> dict[int, float]:
        """Window -> seconds since its claim began, where upstream has not sent a byte."""
        now = self._clock()
        if self._origin is not None:
            return {}
        return {window: now - self._since[window] for window in self._tasks if window not in self._moved}

    def moved(self, window: int) -> float | None:
        """When bytes of a window came from upstream last; 0: none have; None: it is not brought in here."""
        if window == self._reading and window not in self._covered:
            return self._read_at
        claimed = window in self._tasks and self._origin is None
        if not claimed and window not in self._covered:
            return None
        return self._moved.get(window, 0.0)

    def takes(self) -> float | None:
        """Seconds that upstream takes for a window: what it took of late, and what it has taken by now."""
        now = self._clock()
        known = [sum(self._took) / len(self._took)] if self._took else []
        known += [now - self._since[window] for window in self._tasks] if self._origin is None else []
        return max(known, default=None)

    def rate(self) -> float | None:
        """Bytes per second of one claim of this node, of late: of the quickest, while some are under way."""
        now = self._clock()
        known = list(self._rates)
        if self._origin is None:
            known += [self._done.get(w, 0) / max(0.001, now - self._since[w]) for w in self._tasks if w in self._moved]
        return max(known, default=None)

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
        mine = set(windows) - self._returning  # an answer that is older than that lists them still
        for window in [w for w in self._tasks if w not in mine]:
            self._tasks.pop(window).cancel()
            self._forget(window)
        for window in self._covered:
            self._covered[window] = window in mine
        for window in sorted(mine - self._tasks.keys() - self._covered.keys() - set(but)):
            self._start(window)

    def returned(self, window: int) -> None:
        """The board has been told that this node was unable to bring *window* in: it may give it again."""
        self._returning.discard(window)

    def let_go(self, window: int) -> None:
        """A body that is read whole stands still in *window*, and others have that: it is left to them."""
        if self._sequential is not None and window == self._reading:
            self._sequential.cancel()

    def drop(self) -> None:
        """All claims end."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._done.clear()
        self._moved.clear()
        for window in self._covered:
            self._covered[window] = False
        self._origin = None

    def restart(self) -> None:
        """The board began again: all claims end, and the sequential body with them."""
        self.drop()
        self._begun.clear()
        if self._sequential is not None:
            self._sequential.cancel()

    def arrived(self, window: int, count: int) -> None:
        """*count* bytes of a window that is claimed from elsewhere than upstream came."""
        if self._origin is not None and window in self._tasks:
            self._arrived(window, count)

    async def close(self) -> None:
        """Nothing of it runs any more."""
        self._closed = True
        tasks = [*self._tasks.values()]
        self.drop()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def covering(self, window: int) -> AsyncIterator[None]:
        """While entered, somebody else brings *window* in. A claim on it goes on, and its own work stops."""
        async with self._covering.setdefault(window, asyncio.Lock()):
            task = self._tasks.pop(window, None)
            self._covered[window] = task is not None
            self._moved[window] = self._clock()
            try:
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])
                yield
            finally:
                claimed, place = self._covered.pop(window, False), self._host.place
                self._moved.pop(window, None)
                if claimed and not self._closed:
                    self._start(window)
                elif place is not None and place.pieces.holds(place.layout.windows[window]):
                    self._host.brought(window)

    def covered(self, window: int, count: int) -> None:
        """*count* bytes of a window came by another way than its claim's own."""
        if window in self._covered:
            self._moved[window] = self._clock()
            if self._covered[window]:
                self._done[window] = self._done.get(window, 0) + count

    # -- inside -----------------------------------------------------------------------------------

    def _start(self, window: int) -> None:
        """A claim on *window* was granted."""
        place = self._host.place
        if place is not None and place.pieces.holds(place.layout.windows[window]):
            self._forget(window)
            self._host.brought(window)  # it was here already: the claim ends with its hashes
        elif self._origin is not None:
            self._begin(window, self._origin.bring(window))
        elif (source := self._source(window)) is not None:
            self._begin(window, self._bring(window, source))
        else:
            self._unable(window, Failure.HANDED_OVER, None)

    def _forget(self, window: int) -> None:
        for known in (self._done, self._since, self._moved):
            known.pop(window, None)

    def _arrived(self, window: int, count: int) -> None:
        self._done[window] = self._done.get(window, 0) + count
        self._moved[window] = self._clock()

    def _begin(self, window: int, work: Coroutine[Any, Any, None]) -> None:
        self._done.setdefault(window, 0)
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
            self._read_at = 0.0
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
                    self._reading = window.index
                    await self._bring_into(place, window.index, source, body.part(window.end))
                    self._host.brought(window.index)
            except SourceError as error:
                # Whoever has claims on the rest goes on, and gives them back if it is no better.
                log.warning("body-broken", extra={"fields": {"error": str(error)}})
            finally:
                self._sequential = self._reading = None

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
            if part.index == self._reading:
                self._read_at = self._clock()
            for claim in self._tasks if self._sequential is not None else self._tasks.keys() & {part.index}:
                self._arrived(claim, count)

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
            may_skip=lambda: self._host.may_skip(part.index),
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
            if not task.cancelled() and task.exception() is None and self._origin is None:
                took = self._clock() - self._since[index]
                self._took.append(took)
                self._rates.append(self._done.get(index, 0) / max(0.001, took))
            self._forget(index)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            if mine:
                self._host.brought(index)
        elif isinstance(error, SizeChanged):
            self._host.resized(error)
        elif isinstance(error, SourceError):
            self._unable(index, self._failure(error), error)
        else:
            self._host.broken(error)

    def _unable(self, window: int, failure: Failure, error: SourceError | None) -> None:
        self._returning.add(window)
        self._host.unable(window, failure, error)

    def _failure(self, error: SourceError) -> Failure:
        if isinstance(error, SourceRefused):
            self._refusal, self._refused_until = error, time.monotonic() + REFUSED_FOR
            return Failure.REFUSED
        return Failure.BUSY if isinstance(error, SourceBusy) else Failure.BROKEN
