"""Rights follow the content: an upstream's yes counts only if it shows that it has the very bytes.

Without it, whoever runs a registry of his own could say yes to any digest, and would be handed what other nodes
pulled with their credentials. A few bytes at places that he cannot foresee are asked of him, and compared.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Hashable
from contextlib import aclosing
from typing import cast

from cachetools import LRUCache

from mirror.front.blobs import Blob, Node, Span
from mirror.front.passthrough import ranged
from mirror.front.sending import read_span
from swarm.blob.digest import Digest
from swarm.blob.errors import SourceRefused
from swarm.upstream.source import Source

PLACES = 4
"""Places that are compared. Who knows nine tenths of a file passes two times in three; who knows none of it never."""

SHOWN = 32
"""Bytes at each place: more than anybody guesses."""

_KNOWN = 16384


class Possession:
    """Which origins have shown which content. A *key* stands for registry and repository, or a reader's URL."""

    def __init__(self) -> None:
        self._shown: LRUCache[Hashable, None] = LRUCache(_KNOWN)

    async def prove(self, key: Hashable, digest: Digest, source: Source, swarm: Node, origin: str = "") -> None:
        """Raises SourceRefused if *source* does not show bytes of *digest*; SourceError, SwarmError otherwise.

        *origin*: of what it sends. Who showed them once need only say yes from then on: a digest's bytes never change.
        """
        async with source.open(0, 1) as body:
            size = body.total
        if (key, digest) in self._shown:
            return
        places = {secrets.randbelow(max(1, size - SHOWN + 1)) for _ in range(PLACES)}
        told = await asyncio.gather(*(_told(source, size, place) for place in places))
        async with swarm.open(digest, source, whole=False, origin=origin) as blob:
            if blob.size != size:
                raise SourceRefused("upstream has another file than the one that is asked for", status=404)
            for place, content in zip(places, told, strict=True):
                if await _held(blob, place) != content:
                    raise SourceRefused("upstream did not show the bytes that the digest names", status=404)
        self._shown[key, digest] = None


async def _told(source: Source, size: int, place: int) -> bytes:
    stop = min(place + SHOWN, size)
    async with source.open(place, stop) as body:
        if body.total != size:
            raise SourceRefused("upstream changes its mind about the size", status=404)
        return b"".join([chunk async for chunk in ranged(body, place, stop)])


async def _held(blob: Blob, place: int) -> bytes:
    reading = cast("AsyncGenerator[Span, None]", blob.read(place, min(place + SHOWN, blob.size)))
    async with aclosing(reading) as spans:
        return b"".join([await read_span(span) async for span in spans])
