"""Where the bytes of a blob go: what those who bring them in need of a Partial (swarm/fetch/partial.py)."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

from swarm.blob.geometry import Geometry, Window
from swarm.fetch.pieces import Pieces
from swarm.storage.held import BlobHandle
from swarm.storage.staged import Staged


class Place(Protocol):
    """See the module. *pieces* is for reading and waiting: a piece becomes ready through its owner alone."""

    layout: Geometry
    pieces: Pieces

    @property
    def path(self) -> Path:
        """Where libtorrent writes."""

    @property
    def staged(self) -> Staged:
        """The file, for writing."""

    @property
    def file(self) -> BlobHandle:
        """The file, for reading."""

    @property
    def by_window(self) -> bool:
        """Whether room is made window by window."""

    def window_of(self, piece: int) -> Window:
        """The window that *piece* lies in."""

    def unreserved(self, pieces: Iterable[int]) -> list[Window]:
        """The windows of *pieces* for which there is no room yet."""

    async def reserve(self, window: Window) -> None:
        """Make room for *window*. Raises StoreFull."""

    async def read(self, piece: int, pool: Executor) -> bytes:
        """The bytes of a ready piece."""
