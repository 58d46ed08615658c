"""Where a blob can be brought in from: the small contract that an upstream client fulfils."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable


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


class Sink(Protocol):
    """Where a thread puts the bytes of a range, in order. For that thread alone."""

    @property
    def room(self) -> int:
        """Bytes that may be put at once, at least one."""

    def put(self, data: memoryview) -> object:
        """The next bytes; *data* is used again afterwards. Raises SwarmError, which ends it."""


@runtime_checkable
class Pours(Protocol):
    """A Source whose bytes may go past the event loop, from a socket into a file in one thread."""

    async def pour(self, start: int, stop: int, total: int, sink: Sink, begun: Callable[[], None]) -> bool:
        """Give bytes [start, stop) of a blob of *total* bytes to *sink*. *begun* is called once they begin to come.

        False: this cannot be done now, `open` is to be asked, and *sink* got nothing. When it returns, or was
        cancelled, no thread touches *sink* any more. Raises as `Source.open` and `Body.chunks`, and what *sink* raises.
        """
