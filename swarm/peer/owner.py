"""Who has a torrent in the session."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from swarm.peer.peers import PeerAddress


class Owner(Protocol):
    """What the session asks of a torrent's owner, and tells it, on the event loop.

    Who derives from it needs only what it has a use for: it dials nobody, and hears of nothing.
    """

    def dialled(self) -> Iterable[PeerAddress]:
        """Whom to dial, asked when the torrent is added and when the session announces."""
        return ()

    def arrived(self, piece: int) -> None:
        """A piece came and its hash matched. Its bytes may not be in the file yet (docs/engine.md)."""
        return

    def mismatched(self, piece: int) -> None:
        """A piece came and its hash did not match."""
        return

    def spoiled(self, peer: PeerAddress) -> None:
        """*peer* was banned because it sent wrong bytes; the session's own `on_bad_peer` was told before."""
        return

    def failed(self, text: str) -> None:
        """The torrent met an error, as libtorrent words it."""
        return
