"""Upstream's bytes to one client, past the store: what does not fit onto this node."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from swarm.blob.digest import Digest, hex_of
from swarm.blob.errors import BlobCorrupt, SourceBroken
from swarm.upstream.source import Body, Source

HELD_BACK = 64 * 1024
"""Bytes of a whole blob that wait until its sha256 matched, so that a wrong body is never a complete one."""

_HASH_IN_THREAD = 256 * 1024


async def ranged(body: Body, start: int, stop: int) -> AsyncIterator[bytes]:
    """Bytes [start, stop) of *body*, which may begin earlier and end later. Raises SourceBroken if it ends early."""
    place = body.offset
    if place > start:
        raise SourceBroken("upstream's body begins too late")
    # Every body's chunks are a generator; closing it here ends the reading at once.
    async with aclosing(cast("AsyncGenerator[bytes, None]", body.chunks())) as chunks:
        async for chunk in chunks:
            begin, place = place, place + len(chunk)
            piece = chunk[max(0, start - begin) : max(0, stop - begin)]
            if piece:
                yield piece
            if place >= stop:
                return
    if place < stop:
        raise SourceBroken("upstream's body ended early")


async def part(source: Source, size: int, start: int, stop: int) -> AsyncIterator[bytes]:
    """Bytes [start, stop) as upstream sends them. Raises SourceError."""
    async with source.open(start, stop) as body:
        if body.total != size:
            raise SourceBroken(f"{source.upstream} now says {body.total} bytes instead of {size}")
        async for chunk in ranged(body, start, stop):
            yield chunk


async def verified(source: Source, digest: Digest, size: int, start: int) -> AsyncIterator[bytes]:
    """Bytes [start, size) of the blob, read from its beginning so that its sha256 can be checked before the last.

    Raises BlobCorrupt with the tail still held back, SourceError.
    """
    sha256 = hashlib.sha256()
    tail = bytearray()
    async with source.open(0, None) as body:
        if body.total != size:
            raise SourceBroken(f"{source.upstream} now says {body.total} bytes instead of {size}")
        place = 0
        async for chunk in ranged(body, 0, size):
            if len(chunk) >= _HASH_IN_THREAD:
                await asyncio.to_thread(sha256.update, chunk)
            else:
                sha256.update(chunk)
            begin, place = place, place + len(chunk)
            if place <= start:
                continue
            tail += chunk[max(0, start - begin) :]
            if len(tail) > HELD_BACK:
                yield bytes(tail[:-HELD_BACK])
                del tail[:-HELD_BACK]
    if sha256.hexdigest() != hex_of(digest):
        raise BlobCorrupt(f"{source.upstream} sent bytes that do not match the digest")
    if tail:
        yield bytes(tail)


async def size_of(source: Source) -> int:
    """Bytes of the whole blob, as upstream says. Raises SourceError."""
    async with source.open(0, 1) as body:
        return body.total
