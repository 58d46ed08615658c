"""The JSON behind the page: its schema, its stream, its size with 5,000 agents."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import jsonschema
import pytest

from swarm.blob.geometry import MIB, geometry
from swarm.protocol import wire
from tests.parts.fleet import Zoned, pullers
from tests.parts.talk import Town, digest_of, hashes_of, town
from tracker.members.gate import Visitor
from tracker.page import live
from tracker.page.patch import apply

SIZE = 12 * MIB


@pytest.fixture
async def here() -> AsyncIterator[Town]:
    async with town(Zoned(), away=600.0) as running:
        yield running


async def get(here: Town, path: str) -> Any:
    async with asyncio.timeout(20), aiohttp.ClientSession() as http, http.get(here.server.url + path) as answer:
        assert answer.status == 200, await answer.text()
        return json.loads(await answer.read())


async def event(stream: aiohttp.StreamReader) -> tuple[str, int, Any]:
    """The next server-sent event: kind, bytes, data."""
    kind = ""
    while True:
        line = (await stream.readuntil(b"\n")).decode().rstrip("\n")
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            return kind, len(line), json.loads(line.removeprefix("data: "))


async def test_every_answer_is_as_its_schema_says(here: Town) -> None:
    """All paths that the schema names, with a swarm on the move, blame, a backoff and a tag."""
    one, two = await pullers(here, 2, "layer")
    await one.board(want=2, size=SIZE)
    await one.bring(SIZE, 0)
    await two.board()
    me = two.talker.me
    manifest = digest_of("manifest")
    blobs = (wire.CompleteBlob(digest=one.digest, size=SIZE),)
    image = wire.Image(name="registry.example/app", manifest=manifest, blobs=blobs, platform="linux/amd64", pulled=True)
    await two.talker.poll(full=True, images=(image,))
    await two.talker.say("backoff", wire.BackoffTold(**me, host="registry.example", seconds=60.0), wire.Ok)
    here.server.cluster.backoffs.tell("registry.example", "another member", 60.0, here.server.cluster.now())
    await one.talker.hello(copy=3000)
    corrupt = wire.Corrupt(**me, digest=digest_of("copy"), peer_ip="127.0.1.1", peer_port=6881)
    await two.talker.say("corrupt", corrupt, wire.Ok)
    schema = await get(here, "/api/v1/schema")
    jsonschema.Draft202012Validator.check_schema(schema)
    for path, answer in schema["answers"].items():
        place = path.replace("{digest}", one.digest).replace("{manifest}", manifest).replace("{key}", "127.0.1.1:6881")
        document = await get(here, place)
        jsonschema.Draft202012Validator({**answer, "$defs": schema["$defs"]}).validate(document)
        if "cluster" in path:
            assert "null" not in json.dumps(document), path  # a patch says by null that a member is gone
    assert len(schema["answers"]) == 12


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/cluster/swarms/sha256:nothing", 404),
        ("/api/v1/cluster/agents/nobody", 404),
        ("/api/v1/cluster/nothing", 404),
        ("/api/v1/cluster/swarms?offset=x", 400),
        ("/api/v1/cluster/live?view=nothing", 404),
        ("/page/..%2fserver.py", 404),
        ("/page/style.css", 200),
    ],
)
async def test_what_else_is_asked(here: Town, path: str, status: int) -> None:
    assert (await here.agent("x").get(path))[0] == status


async def test_a_file_that_is_known_already_is_not_sent_again(here: Town) -> None:
    client = here.agent("x")
    async with client.http.get(here.server.url + "/page/main.js") as answer:
        tag = answer.headers["ETag"]
    assert await client.get("/page/main.js", **{"If-None-Match": tag}) == (304, b"")


async def test_the_stream_says_what_changed_and_ends_with_the_tracker(here: Town) -> None:
    """First all of it, then patches that make what a new look would say."""
    (one,) = await pullers(here, 1, "layer")
    await one.board(want=2, size=SIZE)
    path = f"/api/v1/cluster/live?view=swarms/{one.digest}"
    async with aiohttp.ClientSession() as http, http.get(here.server.url + path) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        kind, _, view = await event(answer.content)
        assert (kind, view["rows"]["127.0.1.1:6881"]["cells"][:2]) == ("view", "cc")
        await one.bring(SIZE, 0)
        while view["rows"]["127.0.1.1:6881"]["cells"][0] != "u":
            kind, length, patch = await event(answer.content)
            assert (kind, length < 1500) == ("patch", True)
            view = apply(view, patch)
        assert view["swarm"]["published"] == 1
        closing = asyncio.create_task(here.server.close())
        while (await answer.content.readany()) != b"":
            pass
        await closing


async def test_listeners_are_bounded_and_a_place_comes_free(here: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LISTENERS", 2)
    path = here.server.url + "/api/v1/cluster/live?view="
    async with aiohttp.ClientSession() as http:
        first, second = await http.get(path), await http.get(path)
        await event(first.content)
        await event(second.content)
        assert (await http.get(path)).status == 503
        second.close()
        while (third := await http.get(path)).status == 503:
            third.close()
            await event(first.content)
        assert (await event(third.content))[0] == "view"
        third.close()
        first.close()


async def test_a_missing_thing_appears(here: Town) -> None:
    path = f"/api/v1/cluster/live?view=swarms/{digest_of('layer')}"
    async with aiohttp.ClientSession() as http, http.get(here.server.url + path) as answer:
        kind, _, data = await event(answer.content)
        assert kind == "missing"
        assert "appears as soon as" in data["missing"]
        (one,) = await pullers(here, 1, "layer")
        await one.board(size=SIZE)
        while kind == "missing":
            kind, _, data = await event(answer.content)
        assert kind == "view"


@pytest.mark.busy_loop("it makes 5,000 agents between two awaits")
async def test_5000_agents(here: Town, record_property: Any) -> None:
    """Each view stays small, in order and in pages; a second in which 200 agents moved is a small patch."""
    chance = Random(7)
    cluster = here.server.cluster
    size = 900 * MIB
    count = len(geometry(size).windows)
    digest = digest_of("big")
    stats = dict.fromkeys(("store_bytes", "store_budget", "upstream_bytes", "peer_bytes_in", "peer_bytes_out"), 5e9)
    agents = []
    for index in range(5000):
        ip = f"127.{index >> 16}.{index >> 8 & 255}.{index & 255}"
        me: dict[str, Any] = {"node": f"node-{index:04d}", "port": 6881, "session": "s"}
        visitor = Visitor(ip, member=True, zone=f"zone-{index % 3}")
        poll = wire.AgentPoll(**me, full=True, stats=stats)
        agent = cluster.hello(poll, visitor)
        cluster.holds(agent, poll)
        have = wire.bitmap(chance.getrandbits(count))
        cluster.join(agent, wire.BoardPoll(**me, digest=digest, size=size, want=index < 8, have=have))
        agents.append((agent, me))
    swarm = cluster.swarms.get(digest)
    assert swarm is not None
    incarnation = swarm.incarnation
    for window in range(count // 2):
        agent, me = agents[window % 8]
        cluster.publish(agent, wire.Publish(
            **me, digest=digest, incarnation=incarnation, generation=0, size=size, window=window,
            hashes=hashes_of(size, window),
        ))  # fmt: skip
    for view, most in (("", 16), ("/swarms", 4), (f"/swarms/{digest}", 64), ("/agents", 24), ("/search?q=node-1", 24)):
        body = (await here.agent("x").get(f"/api/v1/cluster{view}"))[1]
        record_property(f"bytes of {view or '/'}", len(body))
        print(f"{view.partition('sha256')[0] or '/'}: {len(body)} bytes, {len(gzip.compress(body))} compressed")
        assert len(body) < most * 1024, view
    page = await get(here, "/api/v1/cluster/agents?offset=4950")
    assert page["list"]["total"] == 5000
    assert page["list"]["order"][-1] == agents[-1][0].key
    assert (await get(here, "/api/v1/cluster/agents?q=node-0042"))["list"]["total"] == 1
    assert (await get(here, "/api/v1/cluster"))["zones"]["zone-0"]["total"] == 1667

    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{here.server.url}/api/v1/cluster/live?view=agents") as answer,
    ):
        await event(answer.content)
        for agent, me in chance.sample(agents, 200):
            cluster.holds(agent, wire.AgentPoll(**me, stats={**stats, "peer_bytes_in": 6e9}))
        _, length, patch = await event(answer.content)
        assert patch["now"]
        assert length < 4096


def test_the_files_of_the_page_ask_nobody_else() -> None:
    """No address of another host, nothing inline, nothing set as HTML."""
    for path in sorted(Path("tracker/page/static").iterdir()):
        text = path.read_text()
        for word in ("https://", "//cdn", "innerHTML", "style=", "eval(", "javascript:"):
            assert word not in text, (path.name, word)
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), path.name
