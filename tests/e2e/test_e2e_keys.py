"""Agents and trackers that know each other by key: what members get, what strangers do not, and what is on the wire."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from swarm.identity.name import Role
from tests.parts.cluster import Cluster, Tracker
from tests.parts.counter import Counter
from tests.parts.fetch import assert_right
from tests.parts.keys import Keys
from tests.parts.procs import PartFailed, Process, free_port, python, run
from tests.parts.registry import Registry

pytestmark = [pytest.mark.needs_registry, pytest.mark.timeout(150)]

MIB = 1024 * 1024
COPIES = 1.02
FROM_PEER = "shoal_swarm_received_bytes_total{source=peer}"


@asynccontextmanager
async def keyed(tmp_path: Path, *names: str) -> AsyncIterator[tuple[Cluster, Keys, int]]:
    """A tracker and agents of these names, each with a key; and the port of the tracker's page."""
    keys = await Keys(tmp_path / "keys").make()
    port, page = free_port(), free_port()
    flags = await keys.of("tracker", "tracker-0")
    argv = python("mirror", "tracker", f"--listen=127.0.0.1:{port}", f"--page-listen=127.0.0.1:{page}", *flags)
    process = Process(argv, name="tracker", log=tmp_path / "tracker.log")
    whole = Cluster(tmp_path, [Tracker(port, process)])
    try:
        await whole.tracker.start()
        agents = [whole.prepare(*(await keys.of("agent", name)), name=name) for name in names]
        await asyncio.gather(*(agent.start() for agent in agents))
        yield whole, keys, page
    finally:
        await whole.stop_agents()
        await process.stop()


async def test_members_pull_by_key_and_upstream_gives_one_copy(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    blob = origin.plant("keys/pull", 24 * MIB, 41)
    async with keyed(tmp_path, "a", "b", "c") as (shoal, _, page):
        assert_right(await shoal.pull(blob, upstream.host), blob)
        assert (await upstream.counts()).bytes_of(blob.repository) <= COPIES * blob.size
        moved = [await agent.metrics() for agent in shoal.agents]
        assert sum(one["shoal_swarm_received_bytes_total{source=peer}"] for one in moved) >= blob.size
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{page}/api/v1/agents") as answer:
            assert {one["name"] for one in (await answer.json())["items"]} == {"a", "b", "c"}


async def test_an_agent_without_a_key_or_with_another_authoritys_is_alone_and_serves(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    blob = origin.plant("keys/alone", 6 * MIB, 42)
    async with keyed(tmp_path, "a") as (shoal, _, _page):
        others = await Keys(tmp_path / "others").make()
        for name, flags in (("bare", ()), ("other", await others.of("agent", "other"))):
            agent = shoal.prepare(*flags, name=name)
            await agent.start(joined=False)
            assert_right([await agent.blob(blob, upstream.host)], blob)
            assert (await agent.status())["member"] is False


async def answers(url: str, context: ssl.SSLContext | None) -> int:
    """The status that whoever has *context* gets; 0: not even TLS."""
    secure: dict[str, Any] = {"ssl": context, "server_hostname": Role.TRACKER.host} if context is not None else {}
    try:
        async with aiohttp.ClientSession() as http, http.get(url, **secure) as answer:
            return answer.status
    except (aiohttp.ClientError, OSError):
        return 0


async def test_strangers_get_health_and_nothing_else(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """No torrent, no list of peers, no page with names: not in clear, and not by TLS without a certificate."""
    blob = origin.plant("keys/strangers", 3 * MIB, 43)
    async with keyed(tmp_path, "a") as (shoal, _, page):
        assert_right(await shoal.pull(blob, upstream.host), blob)
        bare = ssl.create_default_context(cafile=str(tmp_path / "keys/ca/ca.crt"))
        plain, secure = shoal.tracker.url, shoal.tracker.url.replace("http", "https")
        paths = (
            "/",
            "/api/v1/agents",
            "/api/v1/boards",
            "/api/v1/cluster",
            "/metrics",
            f"/torrents/{blob.digest}.torrent",
        )
        for path in paths:
            assert await answers(plain + path, None) == 0, path
            assert await answers(secure + path, bare) == 403, path
        assert await answers(f"{secure}/announce?info_hash=x", bare) == 200, "BEP 3: a failure is said in the body"
        assert await answers(f"{secure}/healthz", bare) == 200
        assert await answers(f"http://127.0.0.1:{page}/v1/agent", None) == 403
        assert await answers(f"http://127.0.0.1:{page}/api/v1/agents", None) == 200
        # The swarm port: bytes that are no TLS, and a handshake without a certificate.
        agent = shoal.agents[0]
        reader, writer = await asyncio.open_connection("127.0.0.1", agent.swarm_port)
        writer.write(b"\x13BitTorrent protocol" + bytes(48))
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                assert len(await reader.read()) < 16, "a TLS alert, and the end"
        writer.close()


async def test_a_certificate_is_renewed_under_a_running_cluster(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    first, second = (origin.plant(f"keys/renewed-{i}", 6 * MIB, 44 + i) for i in range(2))
    async with keyed(tmp_path, "a", "b") as (shoal, keys, _):
        one, other = shoal.agents
        assert_right([await one.blob(first, upstream.host)], first)
        for name in ("a", "b"):
            await keys.of("agent", name)
        await keys.of("tracker", "tracker-0")
        assert_right([await other.blob(first, upstream.host)], first)
        assert_right(await shoal.pull(second, upstream.host), second)
        for agent in shoal.agents:
            await agent.process.says("identity-renewed")
            assert not agent.events("tracker-down")
        counts = await upstream.counts()
        for blob in (first, second):
            assert counts.bytes_of(blob.repository) <= COPIES * blob.size


@pytest.mark.needs_tcpdump
@pytest.mark.needs_root
async def test_a_capture_of_a_pull_shows_no_plaintext(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Between members there is neither a byte of the blob nor a word of the protocol to be read."""
    async with keyed(tmp_path, "a", "b") as (shoal, _, _page):
        one, other = shoal.agents
        swarms = [one.swarm_port, other.swarm_port]
        ports = [shoal.tracker.port, *swarms, *(port + 1 for port in swarms)]  # the lane's is the next
        capture = tmp_path / "capture.pcap"
        wanted = " or ".join(f"tcp port {port}" for port in ports)
        argv = [*["tcpdump", "-i", "lo", "-s", "0", "-B", "65536", "-U", "-w"], str(capture), wanted]
        spy = Process(argv, name="tcpdump", log=tmp_path / "tcpdump.log")
        spy.start()
        try:
            await spy.says("listening on lo")
            by_peer = []
            for seed in (46, 47, 48):  # each at once after the first has it: nobody may dial too early
                blob = origin.plant("keys/capture", 6 * MIB, seed)
                before = (await other.metrics()).get(FROM_PEER, 0.0)
                got = [await one.blob(blob, upstream.host), await other.blob(blob, upstream.host)]
                by_peer.append((await other.metrics()).get(FROM_PEER, 0.0) - before)
        finally:
            await spy.stop()
        assert_right(got, blob)
        assert by_peer == [blob.size] * 3
        seen = capture.read_bytes()
        assert len(seen) > blob.size, "the capture saw the pull"
        content = (one.store / "blobs/sha256" / blob.digest.removeprefix("sha256:")).read_bytes()
        for start in range(0, len(content) - 32, MIB // 2):
            assert content[start : start + 32] not in seen
        for word in (
            blob.digest.encode(),
            blob.digest[7:].encode(),
            b"BitTorrent protocol",
            b'"session"',
            b"POST /v1/",
        ):
            assert word not in seen, word


async def test_one_key_is_one_member_whatever_address_it_names(tmp_path: Path) -> None:
    """Two agents behind one address do not replace each other, and a name is taken from the certificate alone."""
    async with keyed(tmp_path, "a", "b") as (shoal, _, page):
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{page}/api/v1/agents") as answer:
            assert len((await answer.json())["items"]) == 2
        assert [(await agent.status())["member"] for agent in shoal.agents] == [True, True]


async def test_shoal_ca_makes_keys_that_only_their_owner_reads(tmp_path: Path) -> None:
    keys = await Keys(tmp_path).make()
    flags = await keys.of("agent", "node-1")
    key = Path(flags[2].partition("=")[2])
    assert (key.stat().st_mode & 0o777, (tmp_path / "ca/ca.key").stat().st_mode & 0o777) == (0o600, 0o600)
    with pytest.raises(PartFailed, match=r"exit 1\nshoal: .*exists.*\n$"):
        await run(python("mirror", "ca", "init", str(tmp_path / "ca")))
