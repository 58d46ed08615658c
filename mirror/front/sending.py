"""Puts the spans of a blob onto a client's connection: from file to socket in the kernel where that pays."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from aiohttp import web

from mirror.front.blobs import Span

SMALL = 64 * 1024
"""Bytes. Below, one read and one write cost less than turning the transport over to sendfile and back."""

STEP = 4 * 1024 * 1024
"""Bytes per sendfile call. A reader as fast as we are would otherwise keep the loop in one call for the whole
blob: 4 MiB are 2-4 ms on loopback, and the cost of a call (about 60 us) disappears in it."""


_CANNOT_TELL = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""What file systems without RWF_NOWAIT say. Anything else is about the file: a thread is to find out."""


FIRST_STEP = 512 * 1024
"""Bytes of the first call of a body. A socket never keeps sendfile waiting, but a disk may, whatever the page cache
seemed to have: a call that took longer than SLOW is followed by a shorter one, a quick one by a longer one."""

SLOW = 0.05
"""Seconds in one call that the loop can spare."""


class _Pace:
    """How much one body asks of sendfile at once."""

    def __init__(self) -> None:
        self.step = FIRST_STEP

    def begins(self, loop: asyncio.AbstractEventLoop) -> None:
        """A call begins. What the loop runs next, it runs once the call has left the file: that was its time."""
        began = loop.time()
        loop.call_soon(lambda: self._took(loop.time() - began))

    def _took(self, seconds: float) -> None:
        self.step = max(SMALL, self.step // 4) if seconds > SLOW else min(STEP, self.step * 2)


class _File:
    """What loop.sendfile wants: something with a descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


async def send_spans(
    request: web.Request,
    response: web.StreamResponse,
    spans: AsyncIterator[Span],
    count: Callable[[str, int], None],
) -> None:
    """Send all of *spans* as the body of *response*, which has been prepared. *count*(origin, bytes) as they leave.

    Raises what *spans* raises, ConnectionError if the client went away, and another OSError if the file cannot be
    read: what was counted has left, and is right.
    """
    async with aclosing(spans) as reading:  # type: ignore[type-var]  # every reader is a generator
        pace = _Pace()
        async for span in reading:
            await _send(request, response, span, count, pace)


async def _send(
    request: web.Request,
    response: web.StreamResponse,
    span: Span,
    count: Callable[[str, int], None],
    pace: _Pace,
) -> None:
    if span.count < SMALL:
        await response.write(await read_span(span))
        count(span.origin, span.count)
        return
    loop = asyncio.get_running_loop()
    file = _File(span.fd)
    done = 0
    while done < span.count:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client went away")
        step = min(pace.step, span.count - done)
        if not _is_cached(span.fd, span.offset + done, step):
            await asyncio.to_thread(_warm, span.fd, span.offset + done, step)
        try:
            pace.begins(loop)
            sent = await loop.sendfile(transport, file, span.offset + done, step, fallback=False)  # type: ignore[arg-type]
        except asyncio.SendfileNotAvailableError as error:
            # asyncio says this of any failure before the first byte, the file's and the connection's alike.
            await asyncio.to_thread(os.pread, span.fd, step, span.offset + done)
            raise ConnectionResetError("the client went away") from error
        if not sent:
            raise OSError(f"file is shorter than its {span.count} verified bytes")
        done += sent
        count(span.origin, sent)
        # A call that finished at once did not pass through the loop: others want their turn.
        await asyncio.sleep(0)


async def read_span(span: Span) -> bytes:
    """The bytes of *span*, without blocking the loop where the disk must be asked. Raises OSError."""
    content = _read_now(span.fd, span.count, span.offset)
    if content is None:
        content = await asyncio.to_thread(os.pread, span.fd, span.count, span.offset)
    if len(content) != span.count:
        raise OSError(f"file is shorter than its {span.count} verified bytes")
    return content


def _read_now(fd: int, count: int, offset: int) -> bytes | None:
    """Bytes that are in the page cache; None: they are not, or this file system cannot tell."""
    content = bytearray(count)
    try:
        done = os.preadv(fd, [content], offset, os.RWF_NOWAIT)
    except (BlockingIOError, OSError):
        return None
    return bytes(content) if done == count else None


def _is_cached(fd: int, offset: int, count: int) -> bool:
    """Whether both ends of a run of bytes are in the page cache: then sendfile does not wait for the disk."""
    try:
        return all(os.preadv(fd, [bytearray(1)], place, os.RWF_NOWAIT) for place in (offset, offset + count - 1))
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in _CANNOT_TELL


def _warm(fd: int, offset: int, count: int) -> None:
    """Bring bytes into the page cache. Blocks."""
    os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)
    os.pread(fd, 1, offset + count - 1)
