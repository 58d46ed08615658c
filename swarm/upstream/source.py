"""Where a blob can be brought in from: the small contract that an upstream client fulfils."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Body(Protocol):
    """An answer from upstream whose bytes are still to come."""

    @property
    def total(self) -> int:
        """Size of the whole blob in bytes, as upstream says."""

    @property
    def offset(self) -> int:
        """Offset in the blob of the first byte that will come: 0 if upstream ignored the range."""

    @property
    def whole(self) -> bool:
        """Whether all of the blob comes, although a range was asked for."""

    @property
    def etag(self) -> str:
        """What upstream calls these bytes (RFC 9110, 8.8.3); "" if it does not say."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes in order, in chunks of any size.

        Ends when the range is complete. Raises SourceBroken if the body is cut short or stalls,
        SourceRefused or SourceBusy where upstream changed its mind; what came before is good.
        """


class Source(Protocol):
    """One blob at one upstream, with whatever credentials and URLs are needed to read it."""

    @property
    def upstream(self) -> str:
        """Host (and port) for logs and metrics; never a URL, never a secret."""

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[Body]:
        """Ask for bytes [start, stop) (None: to the end; a stop past the end is cut).

        Entering raises SourceRefused, SourceBusy or SourceBroken, each within a deadline. Leaving
        before the end closes the connection at once.
        """
