"""A board as an agent uses it: at a tracker over HTTP, or, without one, in this process.

Both fulfil the same contract, and tests/swarm/tracking/test_boards.py holds both to it. All methods raise
TrackerError; the in-process board never does.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

from swarm.blob.digest import Digest
from swarm.blob.errors import TrackerError, TrackerRefused
from swarm.protocol import wire
from swarm.protocol.board import Board, Failure
from swarm.protocol.standing import Trust
from swarm.tracking.link import Link


class BoardLink(Protocol):
    """Where a fetch reads and writes the board of its blob."""

    shared: bool
    """Whether others see it too."""

    async def poll(self, message: wire.BoardPoll) -> wire.BoardAnswer:
        """Take part; returns when there is something new."""

    async def publish(self, message: wire.Publish) -> wire.BoardAnswer:
        """Tell the hashes of a window."""

    async def progress(self, message: wire.Progress) -> wire.BoardAnswer:
        """Keep the claims alive."""

    async def release(self, message: wire.Release) -> wire.BoardAnswer:
        """Give claims back."""

    async def seal(self, message: wire.Seal) -> None:
        """The sha256 matched."""

    async def reject(self, message: wire.Reject) -> None:
        """The sha256 did not match."""

    async def leave(self, message: wire.Leave) -> None:
        """No longer interested."""


class RemoteBoard:
    """The board of one digest at the tracker behind *link*."""

    shared = True

    def __init__(self, link: Link) -> None:
        self.link = link

    async def poll(self, message: wire.BoardPoll) -> wire.BoardAnswer:
        async with self._judged(message.digest):
            if not message.incarnation:  # somebody waits for the first answer
                return await self.link.ask("/v1/board", message, wire.BoardAnswer, message.wait)
            if not message.wait:
                return await self.link.tell("/v1/board", message, wire.BoardAnswer)
            return await self.link.call("/v1/board", message, wire.BoardAnswer, message.wait)

    async def publish(self, message: wire.Publish) -> wire.BoardAnswer:
        async with self._judged(message.digest):
            return await self.link.tell("/v1/publish", message, wire.BoardAnswer)

    async def progress(self, message: wire.Progress) -> wire.BoardAnswer:
        return await self.link.tell("/v1/progress", message, wire.BoardAnswer)

    async def release(self, message: wire.Release) -> wire.BoardAnswer:
        async with self._judged(message.digest):
            return await self.link.call("/v1/release", message, wire.BoardAnswer)

    async def seal(self, message: wire.Seal) -> None:
        await self.link.call("/v1/seal", message, wire.Ok)

    async def reject(self, message: wire.Reject) -> None:
        async with self._judged(message.digest):
            await self.link.call("/v1/reject", message, wire.Ok)

    async def leave(self, message: wire.Leave) -> None:
        await self.link.call("/v1/leave", message, wire.Ok)

    @asynccontextmanager
    async def _judged(self, digest: str) -> AsyncIterator[None]:
        """Without these verbs a board is of no use: where one fails, the blob's board is kept elsewhere for a while."""
        try:
            yield
        except TrackerRefused:
            raise  # an answer: it is there, and says why not
        except TrackerError:
            self.link.failed(digest)
            raise


_ME = "self"
_OTHERS = "others"


class LocalBoard:
    """A board for this agent alone, in this process."""

    shared = False

    def __init__(self, digest: Digest) -> None:
        self._board = Board(digest, trust=Trust(alone=True))
        self._incarnation = f"local-{secrets.token_hex(4)}"
        self._changed = asyncio.Event()
        self._serial = 0

    def others_hold(self, size: int, hashes: Mapping[int, bytes], origins: Mapping[int, str]) -> None:
        """Peers that we know of hold the windows in *hashes*: no need to go upstream for them while they deliver."""
        for window, told in hashes.items():
            self._board.publish(
                _OTHERS, time.monotonic(), generation=0, size=size, window=window, hashes=told,
                origin=origins.get(window, ""),
            )  # fmt: skip

    async def poll(self, message: wire.BoardPoll) -> wire.BoardAnswer:
        deadline = time.monotonic() + message.wait
        same = message.incarnation == self._incarnation
        while True:
            self._changed.clear()
            now = time.monotonic()
            self._board.join(
                _ME,
                now,
                size=message.size,
                want=message.want,
                prefer=message.prefer,
                only_preferred=message.only_preferred,
                have=wire.from_bitmap(message.have),
                generation=message.generation if same else None,
                stalled=message.stalled,
                turns=message.turns,
                concurrent=message.concurrent,
                direct=message.direct if same else (),
            )
            answer = self._answer(message.since if same else 0, message.generation if same else None)
            new = not same or answer.version > message.since or answer.claims != message.claims
            if new or now >= deadline or answer.generation != message.generation:
                return answer
            due = min(deadline, self._board.next_deadline() or deadline)
            try:
                async with asyncio.timeout(max(0.01, due - now)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def publish(self, message: wire.Publish) -> wire.BoardAnswer:
        self._board.publish(
            _ME,
            time.monotonic(),
            generation=message.generation,
            size=message.size,
            window=message.window,
            hashes=message.hashes,
            origin=message.origin,
        )
        self._changed.set()
        return self._answer(message.since, message.generation)

    async def progress(self, message: wire.Progress) -> wire.BoardAnswer:
        self._board.progress(
            _ME, time.monotonic(), message.done, waiting=message.waiting, timeout=message.upstream_timeout
        )
        return self._answer(None, None)

    async def release(self, message: wire.Release) -> wire.BoardAnswer:
        failure = Failure(message.failure)
        self._board.release(_ME, time.monotonic(), message.windows, failure, message.retry_after)
        self._changed.set()
        return self._answer(None, None)

    async def seal(self, message: wire.Seal) -> None:
        self._board.seal(_ME, message.generation)
        self._changed.set()

    async def reject(self, message: wire.Reject) -> None:
        self._board.reject(_ME, message.generation)
        self._changed.set()

    async def leave(self, message: wire.Leave) -> None:
        self._board.leave(_ME)

    def _answer(self, since: int | None, generation: int | None) -> wire.BoardAnswer:
        """*since* None: without the news."""
        self._board.assign(time.monotonic())
        view = self._board.view(_ME, self._board.version if since is None else since, generation)
        self._serial += 1
        return wire.BoardAnswer(
            incarnation=self._incarnation,
            version=view.version if since is not None else 0,
            generation=view.generation,
            serial=self._serial,
            size=view.size,
            sealed=view.sealed,
            published=view.published,
            origins={origin: wire.bitmap(windows) for origin, windows in view.origins.items()},
            claims=view.claims,
            hope=view.hope,
            poisoned=view.poisoned,
        )
