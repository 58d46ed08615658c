"""Windows from upstream, past the event loop and by it: whatever ends where, each byte comes once and is right."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror.upstream.client import Upstream
from swarm.blob.digest import parse
from swarm.blob.errors import SourceBroken
from swarm.blob.geometry import MIB, geometry
from swarm.storage.staged import Staged
from swarm.upstream.download import Begun, download_window
from swarm.upstream.source import Sink, Source
from tests.mirror.upstream.test_upstream_traps import REPOSITORY, ranged, serving
from tests.parts.data import blob, digest_of
from tests.parts.storing import opened, pieces_of

SIZE = 2 * MIB + 12_345
DATA = blob(SIZE, 11)
PIECES = pieces_of(DATA)
LAYOUT = geometry(SIZE)
STEP = 50_000
"""Bytes that upstream sends at once."""

CLOSED = 0
"""In a plan: the way past the loop is closed."""


@dataclass
class Planned:
    """An upstream that ends each answer after as many bytes as *plan* says, the last of which is repeated."""

    plan: list[int]
    upstream: str = "planned"
    sent: int = 0
    threads: set[int] = field(default_factory=set)

    def _next(self) -> int:
        return self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]

    @asynccontextmanager
    async def open(self, start: int, stop: int | None) -> AsyncIterator[_Body]:
        most = self._next() or SIZE
        yield _Body(self, start, min(stop or SIZE, SIZE), most)

    async def pour(self, start: int, stop: int, total: int, sink: Sink, begun: Callable[[], None]) -> bool:
        assert total == SIZE
        most = self._next()
        if most == CLOSED:
            return False
        begun()
        await asyncio.to_thread(self._give, start, min(stop, start + most), sink)
        if start + most < stop:
            raise SourceBroken("cut")
        return True

    def _give(self, at: int, stop: int, sink: Sink) -> None:
        self.threads.add(threading.get_ident())
        while at < stop:
            count = min(STEP, sink.room, stop - at)
            sink.put(memoryview(DATA)[at : at + count])
            at += count
            self.sent += count


@dataclass
class _Body:
    planned: Planned
    offset: int
    stop: int
    most: int
    total: int = SIZE
    whole: bool = False
    etag: str = ""

    async def chunks(self) -> AsyncIterator[bytes]:
        at, stop = self.offset, min(self.stop, self.offset + self.most)
        while at < stop:
            chunk = DATA[at : min(at + STEP, stop)]
            at += len(chunk)
            self.planned.sent += len(chunk)
            yield chunk
        if stop < self.stop:
            raise SourceBroken("cut")


@dataclass
class Told:
    """What a download told."""

    pieces: dict[int, bytes] = field(default_factory=dict)
    count: int = 0

    def piece(self, piece: int, sha1: bytes) -> None:
        assert piece not in self.pieces
        self.pieces[piece] = sha1

    def bytes(self, count: int) -> None:
        self.count += count


async def bring(source: Source, staged: Staged, begun: Begun, told: Told, window: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        await download_window(
            source, LAYOUT, LAYOUT.windows[window], staged, pool,
            ready=told.pieces.__contains__, on_bytes=told.bytes, on_piece=told.piece, begun=begun,
        )  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.integers(0, MIB // 2), max_size=8))
def test_whatever_ends_where_each_byte_comes_once(plan: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both ways follow each other in mid-piece, and go on where the other one ended."""

    async def run(directory: Path) -> None:
        source, told, begun = Planned([*plan, SIZE]), Told(), Begun()
        async with opened(directory) as store:
            staged = await store.stage(parse(digest_of(DATA)), SIZE)
            for window in range(len(LAYOUT.windows)):
                await bring(source, staged, begun, told, window)
            assert told.pieces == PIECES
            assert source.sent == told.count == SIZE
            assert os.pread(staged.fd, SIZE, 0) == DATA
            await staged.abandon(keep=False)

    asyncio.run(run(tmp_path_factory.mktemp("store")))


async def test_cut_again_and_again_without_a_byte_it_is_broken(tmp_path: Path) -> None:
    class Mute(Planned):
        def _give(self, at: int, stop: int, sink: Sink) -> None:
            raise SourceBroken("cut")

    source, told, begun = Mute([SIZE]), Told(), Begun()
    begun.keep(0, [memoryview(DATA)[:77]])
    async with opened(tmp_path) as store:
        staged = await store.stage(parse(digest_of(DATA)), SIZE)
        with pytest.raises(SourceBroken):
            await bring(source, staged, begun, told, 0)
        assert begun.length(0) == 77, "what came before is not lost"
        await staged.abandon(keep=False)


async def test_after_the_first_answer_windows_of_a_real_server_come_past_the_loop(tmp_path: Path) -> None:
    """Each by one request, and all right."""
    connections: set[object] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        connections.add(request.transport.get_extra_info("peername") if request.transport else None)
        return ranged(request, DATA)

    async with serving(answer) as server, Upstream() as upstream, opened(tmp_path) as store:
        source = upstream.blob(server.host, REPOSITORY, parse(digest_of(DATA)))
        staged = await store.stage(parse(digest_of(DATA)), SIZE)
        told, begun = Told(), Begun()
        for window in range(len(LAYOUT.windows)):
            await bring(source, staged, begun, told, window)
        assert told.pieces == PIECES
        assert told.count == SIZE
        assert (len(server.asked), len(connections)) == (len(LAYOUT.windows), 2), "the loop's, and a thread's"
        await staged.abandon(keep=False)
