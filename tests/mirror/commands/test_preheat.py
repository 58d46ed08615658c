"""`shoal preheat`: images are on the chosen nodes before somebody asks, by one copy; the exit code is true."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.front.gathering import chosen
from mirror.front.images import blobs_of
from swarm.blob.errors import SourceRefused
from swarm.blob.geometry import MIB
from swarm.protocol import wire
from tests.parts.cluster import Cluster, cluster
from tests.parts.counter import Counter
from tests.parts.keys import Keys
from tests.parts.registry import Image, Registry
from tests.parts.talk import town
from tracker.members.selectors import fits, parse_selector
from tracker.members.static import StaticDiscovery
from tracker.state import preheats
from tracker.state.preheats import Candidate, Order, Preheats

TOKEN = "open sesame"


@asynccontextmanager
async def heated(tmp_path: Path, *, agents: int = 3, trackers: int = 1) -> AsyncIterator[Cluster]:
    """A cluster whose trackers take orders."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    discovery = ["--discovery=static", "--member=127.0.0.0/8", f"--preheat-token={tmp_path / 'token'}"]
    async with cluster(tmp_path, agents=agents, trackers=trackers, discovery=discovery) as whole:
        yield whole


async def start(whole: Cluster, *words: str, token: str = "token") -> asyncio.subprocess.Process:
    """`shoal preheat` under way."""
    argv = [sys.executable, "-m", "mirror", "preheat", *words, f"--preheat-token={whole.directory / token}"]
    argv += [f"--tracker={tracker.url}" for tracker in whole.trackers]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe, env=os.environ | {"COLUMNS": "80"})


async def preheat(whole: Cluster, *words: str, token: str = "token") -> tuple[int, str, str]:
    """Exit status, output, errors."""
    process = await start(whole, *words, token=token)
    out, errors = await process.communicate()
    return process.returncode or 0, out.decode(), errors.decode()


def name_of(image: Image, upstream: Counter) -> str:
    return f"{upstream.host}/{image.repository}:{image.tag}"


def states(out: str) -> dict[str, str]:
    """Node -> state, from --json."""
    return {told["name"]: told["state"] for told in json.loads(out)["agents"].values()}


@pytest.mark.needs_registry
async def test_every_node_has_it_by_one_copy_and_a_second_run_moves_nothing(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """An index, so that a platform is chosen; then a pull asks upstream for no byte of a layer."""
    image = await origin.push_image("preheat/app", "amd64", [3 * MIB, MIB])
    index = await origin.push_index("preheat/app", "v1", [image])
    name = f"{upstream.host}/preheat/app:v1"
    async with heated(tmp_path) as whole:
        status, out, errors = await preheat(whole, name, "--platform=linux/amd64", "--wait", "--json")
        assert status == 0, errors
        assert set(states(out).values()) == {"done"}
        assert len(states(out)) == 3
        counts = await upstream.counts()
        for blob in (*image.layers, image.config, index):
            assert counts.bytes_of(blob.digest) <= 1.02 * blob.size, blob
        await upstream.reset()
        status, out, _ = await preheat(whole, name, "--platform=linux/amd64", "--wait", "--json")
        assert status == 0
        assert all(told["sources"] == {} for told in json.loads(out)["agents"].values())
        assert (await upstream.counts()).sent == 0
        for agent in whole.agents:
            for layer in image.layers:
                assert (await agent.blob(layer, upstream.host)).whole
        assert (await upstream.counts()).bytes_of("/blobs/") == 0
        status, out, _ = await preheat(whole, name, "--platform=linux/amd64", "--wait")
        assert "3 of 3 nodes have it" in out
        assert max(map(len, out.splitlines())) <= 80, out


@pytest.mark.needs_registry
async def test_a_part_of_the_nodes(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """--count tells so many and no other; an image that is not there fails, with a reason."""
    image = await origin.push_image("preheat/part", "v1", [MIB])
    async with heated(tmp_path) as whole:
        status, out, _ = await preheat(whole, name_of(image, upstream), "--count=2", "--wait", "--json")
        assert (status, len(states(out))) == (0, 2)
        held = [(await agent.status())["held"] for agent in whole.agents]
        assert sorted(count > 0 for count in held) == [False, True, True]
        status, out, errors = await preheat(whole, f"{upstream.host}/preheat/none:v1", "--wait", "--json")
        assert status == 1
        assert set(states(out).values()) == {"failed"}
        assert "preheat/none" in errors


@pytest.mark.busy_loop("makes and compresses an image of 16 MiB")
@pytest.mark.needs_registry
async def test_a_node_that_dies_in_the_middle_is_named(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """The others are done; the exit status is 1."""
    image = await origin.push_image("preheat/dies", "v1", [16 * MIB])
    async with heated(tmp_path) as whole:
        await upstream.shape(total=4 * MIB)
        process = await start(whole, name_of(image, upstream), "--wait", "--json")
        await upstream.counts(part="preheat/dies", sent=MIB)
        await whole.agents[1].kill()
        await upstream.shape()
        out, errors = await process.communicate()
        assert process.returncode == 1
        assert states(out.decode()) == {"agent-0": "done", "agent-1": "lost", "agent-2": "done"}
        assert b"agent-1: lost" in errors


@pytest.mark.busy_loop("makes and compresses an image of 16 MiB")
@pytest.mark.needs_registry
async def test_it_survives_the_tracker_that_took_the_order(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """kill -9 in the middle: the order goes on with the other one, and nothing is fetched twice."""
    image = await origin.push_image("preheat/tracker", "v1", [16 * MIB])
    async with heated(tmp_path, trackers=2) as whole:
        await upstream.shape(total=4 * MIB)
        process = await start(whole, name_of(image, upstream), "--wait", "--json")
        await upstream.counts(part="preheat/tracker", sent=MIB)
        await whole.trackers[0].kill()
        await upstream.shape()
        out, errors = await process.communicate()
        assert process.returncode == 0, errors
        assert set(states(out.decode()).values()) == {"done"}
        assert len(states(out.decode())) == 3


async def test_without_the_token_nobody_orders(tmp_path: Path) -> None:
    """Wrong, missing, or none set: one line that says so, exit status 1."""
    (tmp_path / "wrong").write_text("guess")
    async with heated(tmp_path, agents=0) as whole:
        status, _, errors = await preheat(whole, "alpine", token="wrong")
        assert (status, "token is missing or wrong" in errors) == (1, True)
        status, _, errors = await preheat(whole, "alpine")
        assert (status, "no agent is a member" in errors) == (1, True)
    async with cluster(tmp_path / "off", agents=0) as whole:
        (tmp_path / "off" / "token").write_text(TOKEN)
        status, _, errors = await preheat(whole, "alpine")
        assert (status, "--preheat-token" in errors) == (1, True)
        assert len(errors.splitlines()) == 1


@pytest.mark.needs_registry
async def test_it_orders_by_tls_from_trackers_that_the_authority_signed(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """As the chart's CronJob does; another authority's trackers are not spoken to."""
    image = await origin.push_image("preheat/tls", "v1", [MIB])
    keys, others = await Keys(tmp_path / "keys").make(), await Keys(tmp_path / "others").make()
    (tmp_path / "token").write_text(TOKEN)
    discovery = ["--discovery=static", "--member=127.0.0.0/8", f"--preheat-token={tmp_path / 'token'}"]
    discovery += await keys.of("tracker", "tracker-0")
    async with cluster(tmp_path, agents=0, discovery=discovery) as whole:
        await whole.add(*(await keys.of("agent", "agent-0")))
        trusted, foreign = [(await one.of("agent", "x"))[0] for one in (keys, others)]
        status, out, errors = await preheat(whole, name_of(image, upstream), "--wait", "--json", trusted)
        assert (status, states(out)) == (0, {"agent-0": "done"}), errors
        status, _, errors = await preheat(whole, name_of(image, upstream), foreign)
        assert status == 1
        assert TOKEN not in errors


class Nodes(StaticDiscovery):
    """Of 127.0.0.0/8; the node of an even address is a spot node. *known*: whether nodes may be listed."""

    def __init__(self, *, known: bool = True) -> None:
        super().__init__(["127.0.0.0/8"])
        self._known = known

    def labels(self, ip: str) -> Mapping[str, str] | None:
        """Labels of the node at *ip*."""
        spot = int(ip.rpartition(".")[2]) % 2 == 0
        return {"life": "spot" if spot else "steady", "pool": "a"} if self._known else None


@pytest.mark.parametrize(
    ("labels", "status", "said"),
    [
        ("life=spot", 200, "node-2 node-4"),
        ("life!=spot,pool", 200, "node-1 node-3"),
        ("life in (spot, steady), !gpu", 200, "node-1 node-2 node-3 node-4"),
        ("gpu", 400, "no agent is on a node with the labels gpu"),
        ("life=spot; rm", 400, "is no label selector"),
    ],
)
async def test_a_tracker_that_knows_nodes_chooses_by_their_labels(
    tmp_path: Path, labels: str, status: int, said: str
) -> None:
    found, answer = await chosen_by(Nodes(), tmp_path, labels)
    assert found == status
    named = " ".join(sorted(told["name"] for told in answer.get("agents", {}).values()))
    assert said in (named or answer["message"])


async def test_a_tracker_without_the_right_to_list_nodes_says_so(tmp_path: Path) -> None:
    for discovery in (Nodes(known=False), StaticDiscovery(["127.0.0.0/8"])):
        status, answer = await chosen_by(discovery, tmp_path, "life=spot")
        assert (status, "does not know the labels of nodes" in answer["message"]) == (400, True)


async def chosen_by(discovery: StaticDiscovery, tmp_path: Path, labels: str) -> tuple[int, Any]:
    """Status and answer of an order by labels, at a tracker of four agents."""
    (tmp_path / "token").write_text(TOKEN)
    async with town(discovery, preheat_token=tmp_path / "token") as here:
        for number in range(1, 5):
            await here.agent(f"node-{number}", ip=f"127.0.0.{number}").hello()
        body = msgspec.json.encode(Order(id="0123456789", images=("r.example/app:1",), labels=labels))
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{here.server.url}/api/v1/preheats", data=body, headers=headers) as answer,
        ):
            return answer.status, await answer.json()


# --------------------------------------------------------------------------- pure


@given(st.text(max_size=30) | st.text("ab=!,() in", max_size=30))
def test_a_selector_is_taken_or_refused_in_one_line(text: str) -> None:
    refused = ""
    try:
        requirements = parse_selector(text)
    except ValueError as error:
        refused = str(error)
    else:
        assert isinstance(fits(requirements, {"a": "b"}), bool)
    assert len(refused.splitlines()) <= 1


def order(**said: Any) -> Order:
    return Order(**{"id": "12345678", "images": ("a",), **said})


@given(
    st.lists(st.tuples(st.integers(0, 99), st.sampled_from("abc")), unique=True, max_size=40),
    st.integers(0, 50),
    st.floats(0, 100),
)
def test_who_is_chosen_is_spread_over_zones(nodes: list[tuple[int, str]], count: int, percent: float) -> None:
    """So many as asked for, none twice, and no zone has two more than another that could have given one."""
    candidates = [Candidate(f"{n}{zone}", f"node-{n}", zone) for n, zone in nodes]
    found = preheats.choose(order(count=count, percent=percent), candidates)
    assert len(set(found)) == len(found) <= len(candidates)
    if count:
        assert len(found) <= count
    if not count and not percent:
        assert len(found) == len(candidates)
    taken = {zone: sum(one.zone == zone for one in found) for zone in "abc"}
    left = {zone: sum(one.zone == zone for one in candidates) - taken[zone] for zone in "abc"}
    for zone in "abc":
        if left[zone]:
            assert taken[zone] >= max(taken.values()) - 1


def test_an_agent_that_comes_back_is_told_again() -> None:
    """Under its new session; one that does not is lost, and one that is done stays done."""
    found = Preheats()
    found.add(order(), [Candidate("a", "a", ""), Candidate("b", "b", "")], 0.0)
    assert len(found.due("a", "one")) == 1
    assert found.due("a", "one") == ()
    said = wire.PreheatTold(node="b", port=1, session="s", id="12345678", state="done")
    assert found.told("b", said, 1.0)
    for key in "ab":
        found.left(key, 2.0)
    assert len(found.due("a", "two")) == 1
    found.left("a", 3.0)
    progress = found.progress("12345678", 3.0 + preheats.LOST)
    assert progress is not None
    assert {key: told.state for key, told in progress.agents.items()} == {"a": "lost", "b": "done"}
    assert progress.finished


def test_orders_are_bounded() -> None:
    """The finished go first; nobody's are kept for ever."""
    found = Preheats()
    for number in range(3 * preheats.MOST):
        found.add(order(id=f"order{number:05}"), [Candidate("a", "a", "")], float(number))
    assert len(found) <= preheats.MOST
    found.add(order(id="thelastone"), [], 10 * preheats.KEEP)
    assert len(found) == 1


def test_the_parts_of_images_artifacts_and_indexes() -> None:
    """Layers that live elsewhere (`urls`) and digests without a swarm are left out; a platform must be there."""
    digest = "sha256:" + "0" * 64
    manifest = {
        "config": {"digest": digest, "size": 3},
        "layers": [{"digest": "sha512:" + "0" * 128, "size": 1}, {"digest": digest, "size": 2, "urls": ["x"]}, "no"],
    }
    assert [(part.digest, part.size) for part in blobs_of(manifest)] == [(digest, 3)]
    index = {"manifests": [{"digest": digest, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}]}
    assert chosen(index, "linux/arm64") == digest
    with pytest.raises(SourceRefused, match="linux/amd64"):
        chosen(index, "linux/amd64")
