"""A node without peers: a session without libtorrent, whose torrents note what they are told, and nothing held."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from swarm.peer.owner import Owner
from swarm.peer.session import Torrent
from swarm.protocol import wire
from swarm.tracking.trackers import Link


class NotedTorrent(Torrent):
    """A torrent that libtorrent has never seen: what it is told is noted."""

    def __init__(self, have: Iterable[int], wanted: Iterable[int], owner: Owner) -> None:
        super().__init__(b"", "", owner)
        self.had = set(have)
        self.wants = set(wanted) - self.had

    def want(self, pieces: Iterable[tuple[int, int]]) -> None:
        for piece, priority in pieces:
            (self.wants.add if priority else self.wants.discard)(piece)

    def give(self, piece: int, data: bytes) -> None:
        self.had.add(piece)

    def reannounce(self) -> None:
        return None

    async def have(self) -> list[bool]:
        return [piece in self.had for piece in range(64)]


class NotedSession:
    """A session without libtorrent. *flushed*: set while a torrent that leaves has nothing left to write."""

    def __init__(self) -> None:
        self.torrents: list[NotedTorrent] = []
        """In the session now."""
        self.leaving: list[NotedTorrent] = []
        self.added = 0
        self.flushed = asyncio.Event()
        self.flushed.set()

    async def add(
        self,
        info: bytes,
        *,
        have: Iterable[int],
        wanted: Iterable[int],
        owner: Owner,
        **_others: Any,
    ) -> Torrent:
        torrent = NotedTorrent(have, wanted, owner)
        self.torrents.append(torrent)
        self.added += 1
        return torrent

    async def retire(self, torrent: Torrent) -> None:
        assert isinstance(torrent, NotedTorrent)
        self.leaving.append(torrent)
        await self.flushed.wait()
        self.leaving.remove(torrent)
        self.remove(torrent)

    def remove(self, torrent: Torrent) -> None:
        assert isinstance(torrent, NotedTorrent)
        self.torrents.remove(torrent)

    def wants(self) -> set[int]:
        """The pieces that any of them fetches."""
        return set().union(*(torrent.wants for torrent in self.torrents))


class Nobody:
    """An agent that holds no blob."""

    def held_blobs(self) -> Iterable[wire.CompleteBlob]:
        return ()

    def known_names(self) -> Iterable[wire.Name]:
        return ()

    def kept(self) -> tuple[wire.Kept, ...]:
        return ()

    def stats(self) -> dict[str, float]:
        return {}

    async def on_answer(self, link: Link, answer: wire.AgentAnswer) -> None:
        return None
