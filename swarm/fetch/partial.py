"""What is here of a blob on its way in: its layout, its file, the pieces that are ready, the room it has.

Made once the size is known. A piece becomes ready only through `ready`, after its hash was computed
while it was written, or checked. A restart begins another epoch: nothing is ready any more, and what
was counts again only where the board names the same hash.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from swarm.blob.digest import Digest
from swarm.blob.errors import BlobCorrupt, StoreFull
from swarm.blob.geometry import Geometry, Window
from swarm.blob.metainfo import HASH_LENGTH
from swarm.fetch.pieces import Pieces
from swarm.storage.held import BlobHandle
from swarm.storage.staged import Staged
from swarm.storage.store import Store

T = TypeVar("T")

SPARE = 16 * 1024 * 1024
"""Bytes to have free when a partial blob is taken up again to read ranges of it: some windows at once, so that a full
store does not close and open the blob for every read."""

NOTE_EVERY = 0.25
"""Seconds between two notes in the log of a partial blob of what is there."""

FINISH_DEADLINE = 5.0
"""Seconds that an agent which stops waits for the disk to take a blob that is complete."""

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
MakeRoom = Callable[[], Awaitable[bool]]
"""The store is full: close what nobody reads. Whether there was anything."""


class Partial:
    """See the module. *by_window*: room is made window by window, for readers of ranges.

    Above the bound of methods: a third of them are properties, so that nobody reads an attribute of another.
    """

    def __init__(self, staged: Staged, make_room: MakeRoom, spawn: Spawn, *, by_window: bool) -> None:
        self.digest: Digest = staged.digest
        self.layout: Geometry = staged.geometry
        self.pieces = Pieces(self.layout)
        """Which pieces are ready: for reading, and for waiting."""
        self._staged = staged
        self._file = staged.share()
        self._make_room = make_room
        self._spawn = spawn
        self._epochs: list[Pieces] = []
        self._restarting = asyncio.Event()
        self._ranges = False
        self._doubted = False
        self._spoiled = False
        self._unnoted: dict[int, bytes] = {}
        self._noting: asyncio.TimerHandle | None = None
        self._finishing: asyncio.Task[BlobHandle] | None = None
        self._held: BlobHandle | None = None
        self._complete = False
        self._reserved: set[int] | None = None
        if by_window:
            self._reserved = {self.window_of(piece).index for piece in staged.pieces}
        for piece, sha1 in staged.pieces.items():
            self.pieces.put(piece, sha1, "disk")

    @classmethod
    async def open(
        cls,
        digest: Digest,
        size: int,
        store: Store,
        make_room: MakeRoom,
        spawn: Spawn,
        *,
        by_window: bool,
        shared: bool = False,
        origin: str = "",
    ) -> Partial:
        """Stage a blob of *size* bytes, with what an earlier fetch left of it. Raises StoreFull.

        *shared*: other agents take part. Then a disk that has no room is no reason to go upstream alone: memory stands
        in for it, as far as there is any. *origin*: of what will come; for ranges, what is left of another is dropped.
        """
        promise, spare = (0, SPARE) if by_window else (None, 0)
        stage = partial(store.stage, digest, size, promise=promise, spare=spare, origin=origin, only=by_window)
        try:
            staged = await _with_room(stage, make_room)
        except StoreFull:
            if by_window or not shared:
                raise
            staged = await store.stage_unkept(digest, size, origin=origin)
        return cls(staged, make_room, spawn, by_window=by_window)

    # -- pieces -----------------------------------------------------------------------------------

    def ready(self, piece: int, sha1: bytes, origin: str) -> Window | None:
        """*piece* is in the file, and *sha1* was computed from its bytes. Its window, if that is complete by it."""
        if self.pieces.put(piece, sha1, origin):
            window = self.window_of(piece)
            self._note({p: self.pieces.sum(p) for p in window.span})
            return window
        if self._ranges and origin == "peer":
            self._note({piece: sha1})  # its window may never become complete
        return None

    def window_of(self, piece: int) -> Window:
        """The window that *piece* lies in."""
        return self.layout.window_at(piece * self.layout.piece_length)

    def sums(self, window: int) -> bytes | None:
        """The piece hashes of a window that is here."""
        place = self.layout.windows[window]
        return self.pieces.sums(place) if self.pieces.holds(place) else None

    @property
    def have(self) -> int:
        """Bit w is set if window w is here, and may be told."""
        return 0 if self._doubted else self.pieces.have

    @property
    def complete(self) -> bool:
        """Whether every piece is ready."""
        return self.pieces.count == self.layout.pieces

    def restart(self) -> None:
        """The board began again: nothing is ready any more, until its hashes say the same."""
        self._unnoted.clear()
        self._doubted = False
        if not self._complete:
            self._epochs.append(self.pieces.forget())
            waiting, self._restarting = self._restarting, asyncio.Event()
            waiting.set()

    def doubt(self) -> None:
        """Something of it is wrong, and nobody knows what: nothing of it may be told, nor kept."""
        self._doubted = self._spoiled = True

    def confirm(self, window: int, hashes: bytes) -> list[Window]:
        """Pieces of the last epoch whose hash is what the board says now are good. The windows complete by that."""
        if not self._epochs:
            return []
        old, found = self._epochs[-1], []
        for place, piece in enumerate(self.layout.windows[window].span):
            expected = hashes[place * HASH_LENGTH : (place + 1) * HASH_LENGTH]
            if piece in old and piece not in self.pieces and old.sum(piece) == expected:
                done = self.ready(piece, expected, old.origin(piece))
                found += [done] if done is not None else []
        return found

    async def restarted(self, epoch: int) -> None:
        """Until there was a restart after *epoch*."""
        while len(self._epochs) <= epoch:
            await self._restarting.wait()

    @property
    def epoch(self) -> int:
        """Counts the restarts."""
        return len(self._epochs)

    async def same_bytes(self, epoch: int, first: int, upto: int) -> int:
        """Wait until pieces [first, upto) are there again; returns the epoch in which they are.

        Raises BlobCorrupt if they are not what was there in *epoch*.
        """
        now, piece = len(self._epochs), first
        while piece < upto:
            await self.pieces.wait(piece)
            if now != len(self._epochs):
                now, piece = len(self._epochs), first
                continue
            if self.pieces.sum(piece) != self._epochs[epoch].sum(piece):
                raise BlobCorrupt(f"bytes of {self.digest} that were given out turned out to be wrong")
            piece += 1
        return now

    @property
    def origin(self) -> str:
        """Of which origin all pieces are; "": of several, or not known."""
        return self._staged.origin

    async def mixed(self) -> None:
        """What comes from now on is of another."""
        await self._staged.mixed()

    def fail(self, error: BaseException) -> None:
        """No further piece will come."""
        self.pieces.fail(error)

    # -- the file ---------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Where libtorrent writes."""
        return self._staged.path

    @property
    def file(self) -> BlobHandle:
        """The open file, for as long as the fetch lives; `share` it to keep it for longer."""
        return self._file

    @property
    def staged(self) -> Staged:
        """The file for those who write into it."""
        return self._staged

    async def read(self, piece: int, pool: Executor) -> bytes:
        """The bytes of a ready piece, read in a thread."""
        offset, length = self.layout.piece_span(piece)
        return await asyncio.get_running_loop().run_in_executor(pool, os.pread, self._file.fd, length, offset)

    def expect_ranges(self) -> None:
        """Ranges are read on this node: pieces are noted although their window may never be complete."""
        self._ranges = True

    def touch(self, start: int, stop: int) -> None:
        """Bytes [start, stop) were read."""
        if self._ranges:
            self._staged.touch(start, stop)

    @property
    def by_window(self) -> bool:
        """Whether room is made window by window."""
        return self._reserved is not None

    def unreserved(self, pieces: Iterable[int]) -> list[Window]:
        """The windows of *pieces* for which there is no room yet, in order."""
        if self._reserved is None:
            return []
        windows = {self.window_of(piece) for piece in pieces}
        return [w for w in sorted(windows, key=lambda w: w.index) if w.index not in self._reserved]

    async def reserve(self, window: Window) -> None:
        """Make room for *window*, unless there was for the whole blob. Raises StoreFull."""
        if self._reserved is None or window.index in self._reserved:
            return
        self._reserved = self._reserved | {window.index}
        total = sum(self.layout.windows[index].length for index in self._reserved)
        try:
            await _with_room(lambda: self._staged.grow(total), self._make_room)
        except StoreFull:
            self._reserved = self._reserved - {window.index}
            raise  # this fetch ends by it; the next one begins with giving up windows that were not read for longest

    # -- the end ----------------------------------------------------------------------------------

    def verified(self) -> None:
        """The sha256 matched: no restart takes anything back any more."""
        self._complete = True
        self._stop_noting()

    async def finish(self) -> BlobHandle:
        """Make it a complete blob of the store, once it is verified. Raises StoreFull."""
        self._finishing = asyncio.create_task(self._staged.finish(self.pieces.sums()))
        self._held = await asyncio.shield(self._finishing)
        return self._held

    @property
    def kept(self) -> bool:
        """Whether it is on the disk; else in memory, for as long as it is read."""
        return self._staged.kept

    @property
    def lost(self) -> bool:
        """Whether the complete blob was found to be wrong since."""
        return self._held is not None and self._held.lost

    async def close(self, keep: bool) -> None:
        """Nobody writes any more. *keep*: what is here stays for a later fetch, unless it is doubted."""
        self._stop_noting()
        if self._finishing is not None and self._held is None:
            try:
                async with asyncio.timeout(FINISH_DEADLINE):
                    self._held = await asyncio.shield(self._finishing)  # it is whole and right: keep it
            except (StoreFull, TimeoutError):
                pass
        if self._held is not None:
            self._staged.forget()
            self._held.close()
        else:
            if self._unnoted:
                await self._staged.note(self._unnoted)
            await self._staged.abandon(keep=keep and not self._spoiled)
        self._file.close()

    def _note(self, sums: dict[int, bytes]) -> None:
        """Have a restart find those pieces. Not each at once: a job in a thread costs more than the line it writes."""
        self._unnoted.update(sums)
        if self._noting is None and not self._complete:
            self._noting = asyncio.get_running_loop().call_later(NOTE_EVERY, self._note_now)

    def _note_now(self) -> None:
        self._noting = None
        if self._unnoted and not self._complete:
            sums, self._unnoted = self._unnoted, {}
            self._spawn(self._staged.note(sums))

    def _stop_noting(self) -> None:
        if self._noting is not None:
            self._noting.cancel()
            self._noting = None


async def _with_room(ask: Callable[[], Awaitable[T]], make_room: MakeRoom) -> T:
    """What *ask* gets of the store. While it is full, blobs without a reader are closed: then they may go.

    Raises StoreFull.
    """
    while True:
        try:
            return await ask()
        except StoreFull:
            if not await make_room():
                raise
