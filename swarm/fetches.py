"""The fetches under way on this node: one for each blob, which all its readers join."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from swarm.blob.digest import Digest
from swarm.copies import Copies
from swarm.fetch.course import Parts
from swarm.fetch.fetch import Fetch
from swarm.fetch.proof import Proof
from swarm.fetch.readers import Reader
from swarm.upstream.source import Source


class Fetches:
    """See the module: the Home of each of them. *parts*: what they work with. *spawn* starts a task."""

    def __init__(self, parts: Parts, copies: Copies, spawn: Callable[[Coroutine[Any, Any, Any]], None]) -> None:
        self._parts = parts
        self._copies = copies
        self._spawn = spawn
        self._fetches: dict[Digest, Fetch] = {}
        self._closing = False

    def __len__(self) -> int:
        return len(self._fetches)

    def status(self) -> list[dict[str, Any]]:
        """What each of them does, as JSON values."""
        return [fetch.status() for fetch in self._fetches.values()]

    def join(
        self, digest: Digest, source: Source | None, whole: bool, low: bool, origin: str, proof: Proof
    ) -> tuple[Fetch, Reader]:
        """A new reader of a blob, and the fetch that it reads from; see Fetch.join. Raises Unproven."""
        fetch = self._fetches.get(digest)
        if fetch is None or fetch.error is not None or fetch.closing or fetch.is_lost:
            old, fetch = fetch, Fetch(digest, self._parts, self, after=fetch.closed if fetch is not None else None)
            if old is not None and old.is_lost:
                self._spawn(old.close())
            self._fetches[digest] = fetch
            self._parts.metrics.fetches.set(len(self._fetches))
            self._parts.trackers.stir()
        return fetch, fetch.join(whole, source, low=low, origin=origin, proof=proof)

    async def close(self) -> None:
        """Stop all of them: claims are handed over, partial files stay."""
        self._closing = True
        await asyncio.gather(*(fetch.close() for fetch in list(self._fetches.values())), return_exceptions=True)

    # -- Home -------------------------------------------------------------------------------------

    async def finished(self, fetch: Fetch) -> None:
        """See Home."""
        if fetch.is_kept and fetch.size is not None:
            await self._copies.found(fetch.digest, fetch.size)

    def closed(self, fetch: Fetch) -> None:
        """See Home."""
        if self._fetches.get(fetch.digest) is fetch:
            del self._fetches[fetch.digest]
        self._parts.metrics.fetches.set(len(self._fetches))
        if fetch.is_verified and not self._closing:
            self._spawn(self._copies.offer(fetch.digest))  # a blob of one window was offered by the fetch until now

    def entering(self) -> int:
        """See Home."""
        return sum(fetch.enters for fetch in self._fetches.values())

    def entering_changed(self) -> None:
        """See Home."""
        for fetch in self._fetches.values():
            fetch.tell_wish()

    async def make_room(self) -> bool:
        """See Home. What was read in ranges and has no reader now is closed: its windows may go then. After these, one
        by one, blobs that are complete, and of which the fetch lingers: they were pinned, and a node that pulled more
        than its store within a linger got each layer alone.
        """
        idle = [fetch for fetch in self._fetches.values() if not fetch.readers]
        over = [fetch for fetch in idle if not fetch.is_verified] or [fetch for fetch in idle if fetch.is_kept][:1]
        await asyncio.gather(*(fetch.close() for fetch in over))
        return bool(over)
