"""Images on the page: which blobs belong together, as agents saw manifests go by; bounded, and a lie mislabels only."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.front import images as seen
from swarm.blob.errors import DigestInvalid
from swarm.blob.geometry import MIB, geometry
from swarm.protocol import wire
from swarm.tracking import images as shown
from tests.parts.cluster import cluster
from tests.parts.counter import Counter
from tests.parts.fleet import Zoned, pullers
from tests.parts.registry import Registry
from tests.parts.talk import Town, digest_of, town
from tracker.page import views
from tracker.page.ask import Ask
from tracker.page.look import Look
from tracker.page.merge import images as merged
from tracker.page.pictures import ends
from tracker.state import images as state
from tracker.state.images import Images


def image(name: str, *blobs: str, size: int = 10, **said: Any) -> wire.Image:
    parts = tuple(wire.CompleteBlob(digest=digest_of(blob), size=size) for blob in blobs)
    return wire.Image(name=f"r.example/{name}", manifest=digest_of(name), blobs=parts, **said)


# -- what agents see ----------------------------------------------------------------------------------


def test_an_index_says_the_platform_of_the_manifests_that_follow_it() -> None:
    told: list[wire.Image] = []
    images = seen.Images(told.append)
    child, config, layer = digest_of("child"), digest_of("config"), digest_of("layer")
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    index = {"manifests": [{"digest": child, "platform": platform}, {"digest": 7}, "no entry"]}
    manifest = {"config": {"digest": config, "size": 3}, "layers": [{"digest": layer, "size": 9}]}
    images.saw("r.example/app", digest_of("index"), json.dumps(index).encode())
    images.saw("r.example/app", child, json.dumps(manifest).encode())
    images.saw("r.example/app", digest_of("other"), b"[1]")
    images.saw("r.example/app", digest_of("other"), b"\xff")
    images.saw("r.example/app", digest_of("other"), b'{"layers": []}')
    (one,) = told
    assert (one.index, one.platform, one.manifest) == (digest_of("index"), "linux/arm64/v8", child)
    assert [(blob.digest, blob.size) for blob in one.blobs] == [(config, 3), (layer, 9)]


@given(st.binary(max_size=200) | st.recursive(st.integers() | st.text() | st.none(), st.lists).map(json.dumps))
def test_what_is_no_manifest_is_left_alone(content: bytes | str) -> None:
    text = content if isinstance(content, bytes) else content.encode()
    seen.Images(lambda one: pytest.fail(f"told of {one}")).saw("r.example/app", digest_of("x"), text)


def test_an_agent_says_an_image_once_and_again_when_it_pulls() -> None:
    images = shown.Images(most=2)
    assert images.saw(image("a", "l", pulled=True))
    assert not images.saw(image("a", "l"))
    assert images.saw(image("a", "l", pulled=True))  # it was evicted, and is pulled again
    assert images.saw(image("a", "l", index=digest_of("i"), platform="linux/amd64"))
    assert not images.saw(image("a", "l"))  # by its digest: what the index said stays
    assert images.saw(image("b", "l"))
    assert images.saw(image("c", "l"))
    assert [one.name for one in images.all()] == ["r.example/b", "r.example/c"]
    assert not any(one.pulled for one in images.all())


# -- what the tracker keeps ---------------------------------------------------------------------------


def test_what_most_members_say_is_shown() -> None:
    images = Images()
    images.told([image("app", "lie")], "k0", "liar", 1.0)
    for number in range(3):
        images.told([image("app", "l1", "l2", platform="linux/amd64")], f"k{number}", f"honest{number}", 2.0)
    found = images.get(digest_of("app"))
    assert found is not None
    assert set(found.blobs) == {digest_of("l1"), digest_of("l2")}
    images.told([image("app", "lie", "another")] * 9, "k0", "liar", 3.0)  # a member has one voice, however often
    assert set(found.blobs) == {digest_of("l1"), digest_of("l2")}
    assert [one.manifest for one in images.of(digest_of("l1"))] == [digest_of("app")]
    assert images.of(digest_of("lie")) == []


def test_a_member_that_makes_images_up_pushes_out_nobody_elses() -> None:
    images = Images()
    images.told([image("honest", "l")], "k0", "honest", 1.0)
    for number in range(2 * state.PER_MEMBER):
        images.told([image(f"made-up-{number}", f"l{number}")], "k1", "liar", 2.0)
    assert len(images) == state.PER_MEMBER + 1
    assert images.get(digest_of("honest")) is not None
    images.told([image("honest", "l")], "k1", "liar", 3.0)
    for number in range(state.PER_MEMBER):
        images.told([image(f"more-{number}", "m")], "k1", "liar", 4.0)
    assert images.get(digest_of("honest")) is not None  # the other member still vouches for it


def test_all_images_together_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MOST_BYTES", 200_000)
    images = Images()
    for number in range(300):
        images.told([image(f"i{number}", *(f"{number}-{n}" for n in range(10)))], "k", f"m{number}", float(number))
    assert len(images) == 200_000 // 2500
    assert images.get(digest_of("i299")) is not None
    assert images.of(digest_of("0-0")) == []
    monkeypatch.setattr(state, "MOST", 5)
    images.told([image("last", "l")], "k", "m", 999.0)
    assert len(images) == 5


def test_a_digest_that_is_none_is_refused() -> None:
    with pytest.raises(DigestInvalid):
        Images().told([wire.Image(name="x", manifest="../x", blobs=())], "k", "m", 0.0)


# -- what the page shows ------------------------------------------------------------------------------


def listed(here: Town) -> views.ImageLine:
    """The only image."""
    view = Look(here.server.cluster).view(Ask(kind="images"))
    assert isinstance(view, views.ImagesView)
    (line,) = view.list.rows.values()
    return line


async def test_who_has_it_who_pulls_it_and_where_its_bytes_came_from() -> None:
    """Two layers of 12 MiB: one agent has both, one pulls the second; a third has nothing to do with it."""
    size = 12 * MIB
    async with town(Zoned(), away=600.0) as here:
        one, two, three = await pullers(here, 3, "second")
        app = image("app", "first", "second", size=size, index=digest_of("index"), platform="linux/amd64", pulled=True)
        await one.talker.poll(full=True, images=(app,), add=(wire.CompleteBlob(digest=digest_of("first"), size=size),))
        await two.talker.poll(full=True, images=(app,), add=(wire.CompleteBlob(digest=digest_of("first"), size=size),))
        await three.board(size=size)
        await one.board(want=2, size=size)
        for window in range(len(geometry(size).windows)):
            await one.bring(size, window)
        await one.talker.seal(one.digest)
        await one.talker.poll(add=(wire.CompleteBlob(digest=one.digest, size=size),))
        await two.board(size=size)
        await two.get(size, [0, 1])
        look, line = Look(here.server.cluster), listed(here)
        assert (line.names, line.platform, line.size) == (("r.example/app",), "linux/amd64", 2 * size)
        assert (line.nodes, line.of, line.fetching) == (1, 3, 1)
        assert list(line.fetchers.values()) == [two.talker.me["node"]]
        assert (line.held, line.arriving) == (size, 2 * MIB)
        assert line.moved == (size, 2 * MIB)
        assert line.began > 0
        detail = look.view(Ask(kind="image", name=app.manifest))
        assert isinstance(detail, views.ImageView)
        assert [row.state for row in detail.rows.values()] == ["fetching", "whole"]
        assert detail.layers[one.digest].nodes == 1
        swarm = look.view(Ask(kind="swarm", name=one.digest))
        assert isinstance(swarm, views.SwarmView)
        assert swarm.swarm.images == ("r.example/app",)
        await two.get(size, range(len(geometry(size).windows)))
        await two.talker.poll(add=(wire.CompleteBlob(digest=two.digest, size=size),))
        line = listed(here)
        assert (line.nodes, line.fetching, line.moved) == (2, 0, (size, size))


def told(**said: Any) -> views.ImageLine:
    usual: dict[str, Any] = {
        "manifest": digest_of("app"), "names": ("r.example/app:1",), "platform": "", "size": 100, "blobs": 2,
        "nodes": 0, "of": 4, "fetching": 1, "fetchers": {"a": "node-a"}, "began": 10.0,
    }  # fmt: skip
    return views.ImageLine(**usual | said)


def test_two_trackers_know_different_layers_of_one_image() -> None:
    here = told(held=20, arriving=10, moved=(5, 1), seen=1)
    there = told(fetchers={"b": "node-b"}, began=8.0, held=20, arriving=30, moved=(1, 2), nodes=1, seen=2)
    lists = [views.ImageList(total=1, order=(one.manifest,), rows={one.manifest: one}) for one in (here, there)]
    (line,) = merged(lists, 0, 10, 18.0).rows.values()
    assert (line.fetching, line.fetchers, line.began) == (2, {"a": "node-a", "b": "node-b"}, 8.0)
    assert (line.held, line.arriving, line.moved, line.nodes, line.seen) == (20, 40, (6, 3), 1, 2)
    assert line.ends == round(18.0 + 10.0 * 140 / 60)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (told(fetching=0, fetchers={}, began=0.0), 0.0),
        (told(), 0.0),  # nothing has come yet
        (told(arriving=50), 30.0),
        (told(held=100), 20.0),
    ],
)
def test_when_it_ends_is_guessed_from_what_came(line: views.ImageLine, expected: float) -> None:
    assert ends(line, 20.0) == expected


@pytest.mark.needs_registry
async def test_real_agents_name_the_image_that_they_pull(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Two agents, index and manifest as containerd asks for them; the tracker is restarted and is told again."""
    pushed = await origin.push_image("images/app", "amd64", [2 * MIB, MIB])
    index = await origin.push_index("images/app", "v1", [pushed])
    async with cluster(tmp_path, agents=2) as whole:
        for agent in whole.agents:
            await agent.manifest("images/app", "v1", upstream.host, method="HEAD")
            await agent.manifest("images/app", index.digest, upstream.host)
            await agent.manifest("images/app", pushed.manifest.digest, upstream.host)
            for blob in (pushed.config, *pushed.layers):
                assert (await agent.blob(blob, upstream.host)).whole
                await agent.keeps(blob)

        async def known() -> dict[str, Any]:
            rows = (await whole.tracker.state("/api/v1/cluster/images"))["list"]["rows"]
            found: dict[str, Any] = rows.get(pushed.manifest.digest, {})
            return found

        async def on_both() -> dict[str, Any]:
            async with asyncio.timeout(30):
                while True:
                    line = await known()
                    if line.get("nodes") == 2:
                        return line

        line = await on_both()
        assert f"{upstream.host}/images/app:v1" in line["names"]
        assert (line["of"], line["blobs"], line["fetching"]) == (2, 3, 0)
        assert line["moved"][0] <= 1.02 * line["size"]
        assert sum(line["moved"]) >= line["size"]
        await whole.tracker.kill()
        await whole.tracker.start()
        assert (await on_both())["names"] == [f"{upstream.host}/images/app:v1"]
