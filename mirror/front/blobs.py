"""What the front end needs from the swarm below it: only shapes.

`swarm.node.Node` fulfils them, and so does the small real swarm of the tests, which reads files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from swarm.blob.digest import Digest
from swarm.fetch.proof import Proof
from swarm.fetch.reading import Span
from swarm.tracking.tags import Meaning, Resolved
from swarm.upstream.source import Source

__all__ = ["Blob", "Node", "Span", "Tags"]


class Blob(Protocol):
    """One blob while somebody reads it. *size* in bytes."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, stop: int) -> AsyncIterator[Span]:
        """The bytes [start, stop) in order, as spans. Raises SwarmError in the middle: break the body off."""


class Tags(Protocol):
    """What tags mean in this cluster."""

    async def resolve(self, name: str, ttl: float, ask: Callable[[], Awaitable[Meaning]]) -> Resolved:
        """What *name* means, at most *ttl* seconds old, or stale. Raises SourceError if nobody knows."""


class Node(Protocol):
    """The blobs that this node can read."""

    @property
    def names(self) -> Tags: ...

    @property
    def ready(self) -> bool: ...

    @property
    def room(self) -> int:
        """Bytes that can be kept without giving anything up."""

    def open(
        self,
        digest: Digest,
        source: Source | None,
        *,
        whole: bool = True,
        low: bool = False,
        origin: str = "",
        proof: Proof = Proof.NONE,
    ) -> AbstractAsyncContextManager[Blob]:
        """Entering returns once the size is known. *low*: what is read comes after what everybody else reads.

        *origin*: of what *source* sends; *proof*: what the reader asks of the bytes (swarm/fetch/proof.py).
        Raises BlobUnavailable within a second, StoreFull, Unproven.
        """

    def held(self, digest: Digest) -> int | None:
        """Size in bytes if this node has the whole blob."""

    def status(self) -> dict[str, Any]:
        """What this node holds and does, as JSON values."""
