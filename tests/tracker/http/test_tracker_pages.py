"""What people and probes read from a tracker: JSON in pages, metrics, health, the status page."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from swarm.blob.geometry import MIB
from tests.parts.talk import Town, digest_of, town
from tracker.errors import TrackerError
from tracker.http.server import TrackerServer
from tracker.members.static import StaticDiscovery
from tracker.page.report import AgentPage, BoardPage, BoardsPage, State
from tracker.settings import TrackerSettings

D = digest_of("blob")
SIZE = 3 * MIB


@pytest_asyncio.fixture
async def here() -> AsyncIterator[Town]:
    """A tracker with three agents, one sealed blob and one on its way."""
    zones = {"127.0.0.1/32": "north", "127.0.0.2/32": "south"}
    async with town(StaticDiscovery(["127.0.0.0/8"], zones)) as running:
        a = running.agent("node-a", 1001)
        await a.hello()
        await a.bring_in(D, SIZE)
        await a.seal(D)
        for number, ip in ((2, "127.0.0.1"), (3, "127.0.0.2")):
            await running.agent(f"node-{number}", 1000 + number, ip).board(digest_of("other"), want=1, size=SIZE)
        yield running


async def test_the_state_of_the_cluster(here: Town) -> None:
    status, body = await here.agent("x").get("/api/v1/state")
    state = msgspec.json.decode(body, type=State)
    assert status == 200
    assert state.ready
    assert (state.agents, state.boards) == (3, {"new": 0, "entering": 1, "sealed": 1, "poisoned": 0})
    assert [(zone.name, zone.agents) for zone in state.zones] == [("north", 2), ("south", 1)]
    assert state.rate > 0


@pytest.mark.parametrize(
    ("query", "total", "shown"),
    [
        ("", 3, ["node-2", "node-3", "node-a"]),
        ("?offset=1&limit=1", 3, ["node-3"]),
        ("?q=node-a", 1, ["node-a"]),
        ("?q=south", 1, ["node-3"]),
        ("?q=127.0.0.1:1002", 1, ["node-2"]),
        ("?offset=10", 3, []),
    ],
)
async def test_agents_in_pages(here: Town, query: str, total: int, shown: list[str]) -> None:
    page = msgspec.json.decode((await here.agent("x").get("/api/v1/agents" + query))[1])
    assert page["total"] == total
    assert [agent["name"] for agent in page["items"]] == shown


@pytest.mark.parametrize(
    ("query", "states"),
    [("", ["entering", "sealed"]), ("?state=sealed", ["sealed"]), ("?q=nothing", []), ("?limit=1", ["entering"])],
)
async def test_boards_in_pages(here: Town, query: str, states: list[str]) -> None:
    page = msgspec.json.decode((await here.agent("x").get("/api/v1/boards" + query))[1])
    assert [board["state"] for board in page["items"]] == states


async def test_one_board(here: Town) -> None:
    client = here.agent("x")
    board = msgspec.json.decode((await client.get(f"/api/v1/boards/{digest_of('other')}"))[1], type=BoardPage)
    assert [(claim.window, claim.agent) for claim in board.claims] == [(0, "127.0.0.1:1002"), (1, "127.0.0.2:1003")]
    assert [strip.windows for strip in board.agents] == ["c..", ".c."]
    sealed = msgspec.json.decode((await client.get(f"/api/v1/boards/{D}"))[1], type=BoardPage)
    assert sealed.publishers == ["127.0.0.1:1001"] * 3
    assert [strip.windows for strip in sealed.agents] == ["hhh"]
    assert sealed.arrived == SIZE
    assert sealed.info_hash is not None


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/agents?limit=x", 400),
        ("/api/v1/boards?offset=-1", 400),
        ("/api/v1/boards/nothing", 400),
        (f"/api/v1/boards/{digest_of('unknown')}", 404),
        ("/nothing", 404),
        ("/v1/board", 405),
        ("/healthz", 200),
        ("/readyz", 200),
    ],
)
async def test_what_else_is_asked(here: Town, path: str, status: int) -> None:
    assert (await here.agent("x").get(path))[0] == status


async def test_metrics_move(here: Town) -> None:
    client = here.agent("x")
    await client.get("/announce")
    text = (await client.get("/metrics"))[1].decode()
    for line in (
        "shoal_tracker_agents 3.0",
        'shoal_tracker_boards{state="sealed"} 1.0',
        "shoal_tracker_windows_published_total 3.0",
        'shoal_tracker_requests_total{status="200",verb="publish"} 3.0',
        'shoal_tracker_announces_total{outcome="malformed"} 1.0',
    ):
        assert line in text


async def test_the_page_loads_nothing_from_elsewhere(here: Town) -> None:
    client = here.agent("x")
    async with client.http.get(here.server.url + "/") as answer:
        body = await answer.text()
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "http://" not in body
    assert "https://" not in body


def test_the_pages_have_a_schema() -> None:
    schemas, parts = msgspec.json.schema_components([State, AgentPage, BoardsPage, BoardPage])
    assert len(schemas) == 4
    assert {"State", "BoardLine", "AgentLine", "Strip", "ClaimLine"} <= parts.keys()


async def test_an_address_in_use_is_one_line(here: Town) -> None:
    port = int(here.server.url.rpartition(":")[2])
    second = TrackerServer(TrackerSettings(listen=("127.0.0.1", port)), StaticDiscovery([]))
    with pytest.raises(TrackerError, match="cannot listen"):
        await second.start()
    await second.close()


async def test_a_tracker_process_ends_soon_after_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mirror", "tracker", "--listen", "127.0.0.1:0", stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while b"tracker.started" not in (line := await process.stderr.readline()):
                assert line
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
