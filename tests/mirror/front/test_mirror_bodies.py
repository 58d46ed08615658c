"""Bodies where something fails under them: a copy that cannot be read, first readers that race, no descriptors."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path

import pytest
from aiohttp import web

from mirror.front import sending
from mirror.front.opaque import OpaqueCache
from mirror.serve import calm
from swarm.blob.errors import StoreFull
from tests.mirror.upstream.test_upstream_traps import ranged, serving
from tests.parts import data
from tests.parts.front import file_agent

CONTENT = data.blob(900_000, 41)


async def good(request: web.Request) -> web.StreamResponse:
    """A store in good order."""
    return ranged(request, CONTENT)


async def test_a_copy_that_cannot_be_read_is_gone_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk under a body is not the client's leaving: the rest comes from upstream, and is right."""
    warm, calls = sending._warm, 0

    def fails(fd: int, offset: int, count: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        warm(fd, offset, count)

    monkeypatch.setattr(sending, "_warm", fails)
    monkeypatch.setattr(sending, "_is_cached", lambda *_: False)
    async with serving(good) as upstream, file_agent(tmp_path) as (agent, swarm):
        digest = swarm.add(CONTENT)
        status, _, body = await agent.ask(f"/v2/a/blobs/{digest}?ns={upstream.host}")
        assert (status, body) == (200, CONTENT)
        assert len(upstream.asked) == 1


async def test_a_streamed_range_opens_its_blob_once(tmp_path: Path) -> None:
    """Each opening joins the blob's board anew, 16 times for a megabyte."""
    async with serving(good) as upstream, file_agent(tmp_path) as (agent, swarm):
        digest = swarm.add(CONTENT)
        for start in range(0, 200_000, 50_000):
            before = swarm.opened
            status, _, body = await agent.ask(
                f"/blobs/http://{upstream.host}/x/blobs/{digest}", headers={"Range": f"bytes={start}-{start + 99}"}
            )
            assert (status, body) == (206, CONTENT[start : start + 100])
            assert swarm.opened == before + 1


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_first_readers_that_race_make_one_file(tmp_path: Path) -> None:
    """And leave no descriptor behind, also where some of them leave."""
    cache = OpaqueCache(tmp_path)
    before = descriptors()

    async def reader() -> int:
        async with cache.open("http://h/x", "http://h/x?s=1", 1000, '"e"') as file:
            await asyncio.sleep(0)
            return file.fd

    tasks = [asyncio.create_task(reader()) for _ in range(20)]
    for task in tasks[::3]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert len({fd for fd in found if isinstance(fd, int)}) == 1
    cache.close()
    assert descriptors() == before


async def test_without_an_etag_another_query_is_another_file(tmp_path: Path) -> None:
    cache = OpaqueCache(tmp_path)
    files = []
    for url, etag in (("h?id=1", ""), ("h?id=2", ""), ("h?id=1", 'W/"w"'), ("h?id=2", 'W/"w"')):
        async with cache.open("h", url, 1000, etag) as file:
            files.append(file)
    assert len({id(file) for file in files}) == 4
    async with cache.open("h", "h?sig=1", 1000, '"e"') as one, cache.open("h", "h?sig=2", 1000, '"e"') as two:
        assert one is two, "a signature says nothing about the bytes; an ETag does"
    cache.close()
    with pytest.raises(StoreFull):
        async with cache.open("h", "h?late", 1000, ""):
            pass


async def test_running_out_of_descriptors_is_told_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    loop = asyncio.get_running_loop()
    calm(loop, lambda: now)
    try:
        context = {"message": "socket.accept() out of system resource", "exception": OSError(errno.EMFILE, "too many")}
        with caplog.at_level(logging.WARNING, "shoal.mirror"):
            for now in (0.0, 0.1, 0.9, 1.0, 1.5):  # noqa: B007  (the clock)
                loop.call_exception_handler(context)
        assert [record.message for record in caplog.records] == ["connections-wait"] * 2
    finally:
        loop.set_exception_handler(None)
