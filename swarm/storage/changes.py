"""How a store tells that a blob is complete on this node, or is no longer."""

from __future__ import annotations

from collections.abc import Callable

from swarm.blob.digest import Digest

Listener = Callable[[Digest, int | None], None]
"""Called on the event loop with the digest of a blob, and its size in bytes. None: it is gone, or found to be wrong;
said before its file is taken away. It must not block."""


class Changes:
    """Who wants to know."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        """Tell *listener* from now on."""
        self._listeners.append(listener)

    def tell(self, digest: Digest, size: int | None) -> None:
        """The blob is here with *size* bytes; None: it is not any more."""
        for listener in self._listeners:
            listener(digest, size)
