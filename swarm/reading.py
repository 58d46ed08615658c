"""A blob that is open for reading: complete on this node, or on its way, and from elsewhere where a copy fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, cast

from swarm.blob.digest import Digest
from swarm.blob.errors import BlobUnreadable
from swarm.fetch.fetch import Fetch
from swarm.fetch.readers import Reader
from swarm.fetch.reading import Span
from swarm.storage.held import BlobHandle

log = logging.getLogger("shoal.swarm")


class Blob(Protocol):
    """A blob that is open for reading."""

    digest: Digest
    size: int

    def read(self, start: int, stop: int) -> AsyncIterator[Span]:
        """Verified bytes [start, stop) in order."""


class HeldBlob:
    """A blob that is complete on this node. *again* opens it anew, once this copy turned out to be of no use."""

    def __init__(
        self,
        digest: Digest,
        size: int,
        held: BlobHandle | None,
        again: Callable[[], AbstractAsyncContextManager[Blob]],
    ) -> None:
        self.digest = digest
        self.size = size
        self._held = held
        self._again = again

    async def read(self, start: int, stop: int) -> AsyncIterator[Span]:
        """Spans of the open file, each proven; from where the copy rotted or cannot be read, from elsewhere.

        Raises BlobUnavailable if there is no elsewhere.
        """
        if self._held is None:
            return
        fd, origin = self._held.fd, self._held.origin
        try:
            async with contextlib.aclosing(self._held.runs(start, stop)) as runs:
                async for offset, count in runs:
                    start = offset + count
                    yield Span(fd, offset, count, origin)
        except BlobUnreadable as error:
            log.warning("read-elsewhere", extra={"fields": {"digest": self.digest, "at": start, "error": str(error)}})
            async with self._again() as blob, contextlib.aclosing(_generator(blob, start, stop)) as spans:
                async for span in spans:
                    yield span


class FetchedBlob:
    """A blob on its way to this node."""

    def __init__(
        self,
        digest: Digest,
        size: int,
        fetch: Fetch,
        reader: Reader,
        again: Callable[[], AbstractAsyncContextManager[Blob]],
    ) -> None:
        self.digest = digest
        self.size = size
        self._fetch = fetch
        self._reader = reader
        self._again = again

    async def read(self, start: int, stop: int) -> AsyncIterator[Span]:
        """Verified bytes, as they become readable; from elsewhere once the copy made of them is found wrong."""
        async with contextlib.aclosing(self._fetch.read(self._reader, start, stop)) as spans:
            async for span in spans:
                if self._fetch.is_lost:
                    break
                start = span.offset + span.count
                yield span
        if start < stop:
            async with self._again() as blob, contextlib.aclosing(_generator(blob, start, stop)) as rest:
                async for span in rest:
                    yield span


def _generator(blob: Blob, start: int, stop: int) -> AsyncGenerator[Span, None]:
    return cast("AsyncGenerator[Span, None]", blob.read(start, stop))  # every reader is one
