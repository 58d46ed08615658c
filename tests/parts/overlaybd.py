"""What overlaybd sends over one image (docs/contract.md, "Streaming"): which ranges, in which order and number."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from swarm.blob.geometry import geometry

AT_ONCE = 16
"""Requests under way on one node."""

BUDGET = 30.0
"""Seconds that overlaybd waits for one read."""

HEADER = 512
"""Bytes of the header at a layer's start, and of the trailer at its end."""

INDEX = 24 * 1024
"""Bytes of the index before the trailer, in layers as small as those of the tests."""

LONGEST = 64 * 1024
"""Bytes of a data read at most."""


@dataclass(frozen=True)
class Layer:
    """One layer at *url*, and what its bytes are."""

    url: str
    content: bytes


@dataclass
class Played:
    """What one node's session saw. *wrong*: one line for every answer that overlaybd could not use."""

    wrong: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """Seconds of every read, in order of their ends."""


def opening(size: int) -> list[tuple[int, int]]:
    """What opening a layer of *size* bytes reads, one after the other: size probe, header, trailer, index."""
    return [(0, 1), (0, HEADER), (size - HEADER, size), (max(0, size - HEADER - INDEX), size - HEADER)]


def data_reads(size: int, count: int, seed: int, *, reach: int) -> list[tuple[int, int]]:
    """*count* unaligned reads of up to 64 KiB within the first *reach* bytes: an image uses a part of its bytes."""
    chance = random.Random(seed)
    reads = []
    for _ in range(count):
        length = chance.randrange(1, LONGEST)
        start = chance.randrange(0, max(1, min(reach, size) - length))
        reads.append((start, start + length))
    return reads


def touched(size: int, reads: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
    """Bytes that *reads* name (each counted once), bytes of the pieces and of the windows that they touch."""
    layout = geometry(size)
    reads = list(reads)
    pieces = {p for a, b in reads for p in range(a // layout.piece_length, (b - 1) // layout.piece_length + 1)}
    windows = {w for a, b in reads for w in layout.windows_of(a, b)}
    named, end = 0, 0
    for start, stop in sorted(reads):
        named += max(0, stop - max(start, end))
        end = max(end, stop)
    return named, sum(layout.piece_span(p)[1] for p in pieces), sum(w.length for w in windows)


async def play(agent: str, layers: Sequence[Layer], reads: Sequence[Sequence[tuple[int, int]]]) -> Played:
    """One node's session against *agent* (URL): all layers opened, then *reads* of each, AT_ONCE at a time."""
    played = Played()
    slots = asyncio.Semaphore(AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=AT_ONCE, force_close=False)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:

        async def one(layer: Layer, start: int, stop: int) -> None:
            async with slots:
                begun = time.monotonic()
                try:
                    async with asyncio.timeout(BUDGET):
                        wrong = await _read(session, agent, layer, start, stop)
                except (aiohttp.ClientError, TimeoutError) as error:
                    wrong = repr(error)
                played.times.append(time.monotonic() - begun)
                if wrong:
                    played.wrong.append(f"bytes={start}-{stop - 1}: {wrong}")

        async def open_layer(layer: Layer) -> None:
            for start, stop in opening(len(layer.content)):
                await one(layer, start, stop)

        await asyncio.gather(*map(open_layer, layers))
        # Layer by layer in turns, as the files of an image lie across its layers.
        order = [(layer, read) for turn in zip(*reads, strict=True) for layer, read in zip(layers, turn, strict=True)]
        await asyncio.gather(*(one(layer, start, stop) for layer, (start, stop) in order))
    return played


async def _read(session: aiohttp.ClientSession, agent: str, layer: Layer, start: int, stop: int) -> str:
    """What is wrong with the answer to one read; "" if it is as overlaybd needs it."""
    url = URL(f"{agent}/blobs/{layer.url}", encoded=True)
    async with session.get(url, headers={"Range": f"bytes={start}-{stop - 1}"}) as answer:
        body = await answer.read()
    if answer.status != 206:
        return f"status {answer.status}: {body[:200]!r}"
    if answer.headers.get("Content-Length") != str(stop - start):
        return f"Content-Length {answer.headers.get('Content-Length')}"
    if answer.headers.get("Content-Range") != f"bytes {start}-{stop - 1}/{len(layer.content)}":
        return f"Content-Range {answer.headers.get('Content-Range')}"
    if len(body) != stop - start:
        return f"{len(body)} bytes"
    return "" if body == layer.content[start:stop] else "wrong bytes"
