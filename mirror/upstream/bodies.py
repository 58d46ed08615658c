"""Bodies of answers that are read here and now: whole and bounded, without a coding, or only to be rid of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import aiohttp

from mirror.errors import CodingInvalid
from mirror.upstream.coding import decoder, is_identity
from mirror.upstream.transport import translated
from swarm.blob.errors import SourceBroken, SourceRefused

_DISCARD = 64 << 10


async def bounded(response: aiohttp.ClientResponse, limit: int, host: str) -> bytes:
    """The whole body of *response*, its coding undone, if that has at most *limit* bytes.

    Raises SourceBroken, SourceRefused.
    """
    parts: list[bytes] = []
    size = 0
    async for chunk in plain(response, host):
        size += len(chunk)
        if size > limit:
            raise SourceRefused(f"{host} sent more than {limit} bytes where less was expected")
        parts.append(chunk)
    return b"".join(parts)


async def plain(response: aiohttp.ClientResponse, host: str) -> AsyncIterator[bytes]:
    """The body of *response*, without the coding that somebody put on although none was asked for.

    Raises SourceBroken.
    """
    coding = response.headers.get("Content-Encoding")
    try:
        undo = None if is_identity(coding) else decoder(coding or "")
        while True:
            with translated(host):
                chunk = await response.content.readany()
            if not chunk:
                break
            for part in [chunk] if undo is None else undo.feed(chunk):
                yield part
        if undo is not None and (left := undo.end()):
            yield left
    except CodingInvalid as error:
        raise SourceBroken(f"{host} sent a body {error}") from None


async def discard(response: aiohttp.ClientResponse, host: str) -> None:
    """Read away a short body, so that the connection can be used again."""
    left = _DISCARD
    with contextlib.suppress(SourceBroken), translated(host):
        while left > 0 and (chunk := await response.content.readany()):
            left -= len(chunk)
