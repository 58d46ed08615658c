"""An upstream that is late or thin for all is waited for, and sends one copy. Who only says so is not waited for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from swarm.fetch import patience
from swarm.fetch.trial import LENGTH
from swarm.protocol import wire
from tests.parts import data
from tests.parts.front import Agent, agent
from tests.parts.talk import Talker, Town, town, until

TICK = 0.05
"""Seconds between two writes of a thin line."""


@dataclass
class Line:
    """A registry with one blob, behind a line like this."""

    content: bytes
    late: float = 0.0
    """Seconds before an answer."""
    rate: int = 0
    """Bytes per second and connection; 0: as fast as it goes."""
    silent: bool = False
    """Nothing comes after the headers."""
    sent: int = 0
    host: str = ""
    ranges: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Where an agent has the blob."""
        return f"/v2/team/app/blobs/{data.digest_of(self.content)}?ns={self.host}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The blob, or the ping."""
        if "/blobs/" not in request.path:
            return web.json_response({})
        asked = request.headers.get("Range", "bytes=0-")
        self.ranges.append(asked)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        assert found is not None
        at, size = int(found[1]), len(self.content)
        stop = min(size, int(found[2]) + 1) if found[2] else size
        await asyncio.sleep(self.late)
        response = web.StreamResponse(status=206, headers={"Content-Range": f"bytes {at}-{stop - 1}/{size}"})
        response.content_length = stop - at
        await response.prepare(request)
        if self.silent:
            await asyncio.Event().wait()
        step = int(self.rate * TICK) if self.rate else 64 * 1024
        while at < stop:
            chunk = self.content[at : min(stop, at + step)]
            await response.write(chunk)
            at += len(chunk)
            self.sent += len(chunk)
            await asyncio.sleep(TICK if self.rate else 0)
        return response


@asynccontextmanager
async def behind(line: Line) -> AsyncIterator[Line]:
    """*line*, with a registry that listens."""
    app = web.Application()
    app.router.add_get("/{path:.*}", line.answer)
    server = TestServer(app)
    await server.start_server()
    line.host = f"127.0.0.1:{server.port}"
    try:
        yield line
    finally:
        await server.close()


@asynccontextmanager
async def agents(here: Town, directory: Path, count: int) -> AsyncIterator[list[Agent]]:
    """So many agents that the tracker knows."""
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(agent(directory / f"{index}", tracker=(here.server.url,)))
            for index in range(count)
        ]
        await until(lambda: len(here.server.cluster.agents) == count)
        yield started


def direct(one: Agent) -> float:
    """Streams that its readers had because others did not bring what they waited for."""
    found = one.front.metrics.registry.get_sample_value("shoal_swarm_direct_streams_total", {"kind": "others"})
    return found or 0.0


@pytest.mark.parametrize(("size", "late", "rate"), [(3_000_000, 4.0, 0), (400_000, 0.0, 80_000)], ids=["late", "thin"])
async def test_what_is_slow_for_all_is_brought_in_once(size: int, late: float, rate: int, tmp_path: Path) -> None:
    """Later than a reader waits for somebody of whom it knows nothing; thinner than a window in its time."""
    async with behind(Line(data.blob(size, 11), late, rate)) as line, town() as here:
        async with agents(here, tmp_path, 3) as three:
            answers = await asyncio.gather(*(one.ask(line.path) for one in three))
        assert [(status, body == line.content) for status, _, body in answers] == [(200, True)] * 3
        assert [direct(one) for one in three] == [0.0] * 3
        # two of them try for themselves whether upstream is as slow as the third one says
        assert line.sent <= size + 2 * LENGTH


async def test_who_says_that_upstream_is_late_is_believed_no_longer_than_upstream_is(tmp_path: Path) -> None:
    """A member with the claim on the first window, which says each second that upstream has not answered."""
    async with behind(Line(data.blob(400_000, 12))) as line, town() as here:
        liar, digest = here.agent("liar", 7001, "127.0.0.9"), data.digest_of(line.content)
        await liar.hello()
        assert (await liar.board(digest, want=1)).claims == (0,)
        saying = asyncio.create_task(_wait_in_vain(liar, digest))
        async with agent(tmp_path, tracker=(here.server.url,)) as one:
            await until(lambda: len(here.server.cluster.agents) == 2)
            status, _, body = await one.ask(line.path)
            assert (status, body == line.content) == (200, True)
            assert direct(one) == 1.0
            assert line.sent <= len(line.content) + LENGTH
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)


@pytest.mark.parametrize("count", [1, 3])
async def test_who_gets_headers_and_nothing_more_is_told_in_time(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was left standing for more than a minute. Whoever asks again later is told as well."""
    monkeypatch.setattr(patience, "FIRST", 3.0)
    line = Line(data.blob(3_000_000, 13), silent=True)
    async with behind(line), town() as here, agents(here, tmp_path, count) as asked:
        for _ in range(2):
            answers = await asyncio.gather(*(one.ask(line.path) for one in asked))
            assert [status for status, _, _ in answers] == [404] * count
            assert line.sent == 0


async def _wait_in_vain(liar: Talker, digest: str) -> None:
    known, waited = liar.seen[digest], 0.5
    while True:
        said = wire.Progress(
            **liar.me, digest=digest, incarnation=known.incarnation, done={0: 0}, waiting={0: waited},
            upstream_timeout=patience.COMING,
        )  # fmt: skip
        await liar.say("progress", said, wire.BoardAnswer)
        await asyncio.sleep(0.5)
        waited += 0.5
