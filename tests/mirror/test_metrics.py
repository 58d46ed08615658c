"""Every metric moves: each one that the tracker and the agent declare is made to change by what it counts."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from mirror.metrics import FrontMetrics
from mirror.settings import TagTtl
from mirror.upstream.guard import Guard
from swarm.blob.geometry import MIB, geometry
from swarm.fetch import patience, stalls
from swarm.metrics import SwarmMetrics
from swarm.peer import arrivals
from swarm.protocol import wire
from swarm.storage.kept import KeptImage
from tests.e2e.test_e2e_failures import pull_until_right, rot
from tests.parts.cluster import Cluster, cluster
from tests.parts.counter import Counter, Rule
from tests.parts.fetch import fetch
from tests.parts.front import agent
from tests.parts.liar import liar
from tests.parts.registry import Blob, Registry
from tests.parts.talk import Refusal, Talker, digest_of, town, until
from tracker.members.static import StaticDiscovery
from tracker.metrics import Metrics
from tracker.state.rivals import PROOF

KIB = 1024


def declared(declare: Callable[[CollectorRegistry], object]) -> set[str]:
    """The names of the metrics that *declare* puts into a registry."""
    registry = CollectorRegistry()
    declare(registry)
    return {metric.name for metric in registry.collect()}


class Moves:
    """Which metrics had another value than at first, at any look."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.moved: set[str] = set()

    def look(self, values: Mapping[str, float]) -> None:
        """*values*: sample (with its labels) -> value. A sample that was not there was 0."""
        for sample, value in values.items():
            if value != self.first.setdefault(sample, 0.0):
                name = sample.partition("{")[0]
                for suffix in ("_total", "_count", "_sum", "_bucket", ""):
                    self.moved.add(name.removesuffix(suffix))

    def registry(self, registry: CollectorRegistry) -> None:
        """Look at everything in *registry*."""
        samples = [sample for metric in registry.collect() for sample in metric.samples]
        self.look({f"{sample.name}{{{sample.labels}}}": sample.value for sample in samples})


@pytest.mark.parametrize("declare", [Metrics, FrontMetrics, SwarmMetrics, lambda registry: Guard(metrics=registry)])
def test_names_follow_the_conventions_of_prometheus(declare: Callable[[CollectorRegistry], object]) -> None:
    """Our prefix, lower case, base units at the end, `total` for counters only, and a sentence of help."""
    registry = CollectorRegistry()
    declare(registry)
    for metric in registry.collect():
        assert re.fullmatch(r"shoal_[a-z]+(_[a-z]+)*", metric.name), metric.name
        assert not metric.name.endswith(("_total", "_count", "_sum", "_ms", "_mib", "_percent")), metric.name
        assert metric.type != "histogram" or metric.name.endswith("_seconds"), metric.name
        assert metric.documentation.endswith("."), metric.name


# -- the tracker ------------------------------------------------------------------------------------


async def test_each_metric_of_the_tracker_moves() -> None:
    d, e, size = digest_of("d"), digest_of("e"), MIB
    members = StaticDiscovery([f"127.0.0.{i}/32" for i in (1, 2, 3)])
    async with town(members, quarantine=0.05, strikes=9) as here:
        moves, registry = Moves(), here.server.metrics.registry
        a, b, c = (here.agent(name, 1000 + i, f"127.0.0.{i}") for i, name in enumerate("abc", 1))
        with pytest.raises(Refusal):
            await here.agent("stranger", 1, "127.0.0.9").hello()
        await a.get("/announce")
        await a.board(d, want=1, size=size)
        release = wire.Release(**a.me, digest=d, incarnation=a.seen[d].incarnation, windows=(0,), failure="refused")
        await a.say("release", release, wire.BoardAnswer)
        await b.bring_in(e, size)
        waiting = asyncio.create_task(c.board(e, size=size))
        await waiting
        waiting = asyncio.create_task(c.board(e, wait=20.0))
        await until(lambda: here.server.metrics.waiting._value.get() == 1)
        moves.registry(registry)
        await b.reject(e)
        await waiting
        await b.bring_in(e, size)
        await b.seal(e)
        corrupt = wire.Corrupt(**c.me, digest=e, peer_ip="127.0.0.2", peer_port=1002)
        await c.say("corrupt", corrupt, wire.Ok)
        await a.board(e, size=size)
        await a.publish(e, size, 0, "liar")
        name = "registry.example/app:1"
        await b.say("name", wire.NameLookup(**b.me, name=name, ttl=60.0), wire.NameAnswer)
        await b.say("name/told", wire.NameTold(**b.me, name=name, digest=e, media_type="x", size=5), wire.Ok)
        await c.say("gone", wire.Gone(port=c.me["port"], session=c.me["session"], node="c"), wire.Ok)
        await _replace(here.agent("a", 1001, "127.0.0.1"), a)
        assert here.server.cluster.keeping.order(wire.Keep(image="registry.example/app:1", copies=1, serial=1)) == ""
        await a.get("/metrics")
        await until(lambda: counted(registry, "shoal_tracker_loop_lag_seconds_count") > 0)
        moves.registry(registry)
    assert declared(Metrics) - moves.moved == set()


async def _replace(newer: Talker, older: Talker) -> None:
    """*newer* takes the address of *older*, which does not give up."""
    newer.me["session"] = "of another process"
    await newer.hello()
    for _ in range(PROOF):
        with pytest.raises(Refusal):
            await older.poll()


# -- the agent --------------------------------------------------------------------------------------


@pytest.mark.needs_registry
async def test_each_metric_of_the_front_end_and_of_upstream_moves(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """One agent alone, and an upstream that serves, hangs, throttles and fails."""
    repository = "metrics/front"
    blobs = [origin.plant(repository, 4 * MIB, 980 + i) for i in range(6)]
    image = await origin.push_image(repository, "1", [KIB])
    here, throttled = upstream.host, f"localhost:{upstream.port}"

    def path(blob: Blob, ns: str = here) -> str:
        return f"/v2/{repository}/blobs/{blob.digest}?ns={ns}"

    async with agent(tmp_path, tag_ttl=(TagTtl("", 0.0),)) as running:
        moves, registry = Moves(), running.front.metrics.registry
        hung, plain, ranges, *others = blobs
        await upstream.rules(Rule(match=hung.digest, after=KIB, then="hang"))
        pull = asyncio.create_task(fetch(f"{running.url}{path(hung)}", deadline=20))
        await upstream.counts(part=hung.digest, requests=1, sent=KIB)
        moves.registry(registry)  # gauges of what is under way
        await upstream.rules()
        assert (await running.ask(path(plain)))[0] == 200

        url = f"/blobs/{upstream.url}/v2/{repository}/blobs/{ranges.digest}"
        for step in range(64):
            if step == 32:
                await until(lambda: counted(registry, "shoal_front_prefetched_bytes_total") > 0)
                running.front.streaming.background._workers = 0
            span = f"bytes={step * 64 * KIB}-{(step + 1) * 64 * KIB - 1}"
            assert (await running.ask(url, headers={"Range": span}))[0] == 206

        manifest = f"/v2/{repository}/manifests/{image.tag}?ns={here}"
        assert (await running.ask(manifest))[0] == 200
        await upstream.rules(Rule(status=429, headers={"Retry-After": "1"}))
        for _ in range(2):
            assert (await running.ask(path(others[0], throttled)))[0] in (404, 429)
        running.front.registry.upstream.guard.hold(throttled, 1.0)  # as another agent tells
        await upstream.rules(Rule(status=500))
        assert (await running.ask(manifest))[0] == 200, "the last known digest"
        for blob in others[:2]:
            await running.ask(path(blob))
        running.front.most = 0
        assert (await running.ask(manifest))[0] == 503
        await until(lambda: counted(registry, "shoal_loop_lag_seconds_count") > 0)
        moves.registry(registry)
        pull.cancel()
        await asyncio.gather(pull, return_exceptions=True)
    expected = declared(FrontMetrics) | declared(lambda registry: Guard(metrics=registry))
    assert expected - moves.moved == set()


def counted(registry: CollectorRegistry, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(s.value for metric in registry.collect() for s in metric.samples if s.name == name)


@asynccontextmanager
async def three(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three agents; the third offers what a containerd has."""
    content = tmp_path / "content"
    (content / "blobs" / "sha256").mkdir(parents=True)
    async with cluster(tmp_path, agents=2) as shoal:
        await shoal.add(f"--containerd-content={content}")
        yield shoal


@pytest.mark.needs_registry
@pytest.mark.timeout(200)
async def test_each_metric_of_the_swarm_moves(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Bytes of every source; a copy that rotted, a member that lies, an upstream that fails."""
    names = ("shared", "containerd", "rotten", "lied", "failed")
    blob = {name: origin.plant(f"metrics/{name}", 12 * MIB, 990 + i) for i, name in enumerate(names)}
    async with three(tmp_path) as shoal:
        one, two, three_ = shoal.agents
        moves = Moves()

        async def look() -> dict[str, float]:
            found: dict[str, float] = {}
            for each in shoal.agents:
                if each.process.alive:
                    values = await each.metrics()
                    moves.look({name: value for name, value in values.items() if value})
                    found |= values
            return found

        await upstream.shape(total=6 * MIB)
        pull = asyncio.create_task(one.blob(blob["shared"], upstream.host))
        await upstream.counts(part="shared", sent=MIB)
        await look()  # what is under way
        await upstream.shape()
        assert (await pull).digest == blob["shared"].digest
        for reader in (two, two):
            assert (await reader.blob(blob["shared"], upstream.host)).digest == blob["shared"].digest

        hexed = blob["containerd"].digest.removeprefix("sha256:")
        place = tmp_path / "content" / "blobs" / "sha256" / hexed
        rough = tmp_path / "ingest"
        rough.write_bytes(await fetched(origin, blob["containerd"]))
        rough.rename(place)
        await upstream.reset()
        async with asyncio.timeout(20):
            while not (await three_.status())["held"]:  # noqa: ASYNC110 - another process's disk: no event of ours
                await asyncio.sleep(0.05)
        assert (await three_.blob(blob["containerd"], upstream.host)).whole
        assert (await upstream.counts()).bytes_of("metrics/containerd") == 0

        assert (await one.blob(blob["rotten"], upstream.host)).whole
        copy = await one.keeps(blob["rotten"])
        await one.stop()
        await asyncio.to_thread(rot, copy, blob["rotten"])
        shared = blob["shared"]
        keep = wire.Keep(image="registry.example/app:1", copies=1, serial=1)
        kept = KeptImage(keep, shared.digest, {shared.digest: shared.size})
        await asyncio.to_thread((one.store / "kept.json").write_bytes, msgspec.json.encode([kept]))
        await one.start()
        await pull_until_right(two, blob["rotten"], upstream.host)

        async with liar(shoal.tracker.url, blob["lied"].digest, blob["lied"].size, tmp_path) as lies:
            await asyncio.gather(*(pull_until_right(each, blob["lied"], upstream.host) for each in shoal.agents))
            await lies.says("told quarantined")

        for each in shoal.agents:
            port = (await each.status())["swarm"]["lane"]
            refused = await fetch(f"http://127.0.0.1:{port}/{digest_of('nobody has it')}")
            assert refused.status == 404

        await upstream.rules(Rule(match="metrics/failed", status=500, times=2))
        await pull_until_right(two, blob["failed"], upstream.host)
        async with asyncio.timeout(30):
            while not {"shoal_swarm_sent_bytes", "shoal_swarm_lane_refusals"} <= moves.moved:  # told by a timer
                await look()
                await asyncio.sleep(0.2)
        served = {
            name.partition("origin=")[2].partition(",")[0].rstrip("}")
            for each in shoal.agents
            for name, value in (await each.metrics()).items()
            if name.startswith("shoal_front_sent_bytes_total") and value
        }
        await look()
    assert served == {"disk", "containerd", "peer", "upstream"}
    assert declared(SwarmMetrics) - moves.moved - RARE == set()


RARE = {"shoal_swarm_stalls", "shoal_swarm_read_back", "shoal_swarm_direct_streams"}
"""What happens by bad luck; it is brought about in the next test."""


@pytest.mark.needs_registry
async def test_the_metrics_of_bad_luck_move(
    origin: Registry, upstream: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that nobody can reach; a file that is behind libtorrent's word. Without a lane: all by torrents."""
    monkeypatch.setattr(stalls, "STALL", 1.0)  # shorter than the trial of a sole seed that nobody has confirmed
    monkeypatch.setattr(patience, "SILENT", 20.0)
    blob = origin.plant("metrics/luck", 4 * MIB, 979)
    path = f"/v2/{blob.repository}/blobs/{blob.digest}?ns={upstream.host}"
    content, layout = await fetched(origin, blob), geometry(blob.size)
    spans = [layout.piece_span(piece) for piece in range(layout.pieces)]
    hashes = b"".join(hashlib.sha1(content[offset : offset + length]).digest() for offset, length in spans)
    check, behind = arrivals._check, [True]

    def late(fd: int, spans: Sequence[tuple[int, int]], expected: Sequence[bytes | None]) -> list[bool]:
        return [False] * len(spans) if behind and behind.pop() else check(fd, spans, expected)

    async with town() as here, town() as elsewhere:
        for place in (here, elsewhere):
            ghost = place.agent("ghost", 1)
            await ghost.hello()
            whole = wire.Whole(**ghost.me, digest=blob.digest, size=blob.size, hashes=hashes)
            await ghost.say("whole", whole, wire.Ok)
        moves = Moves()
        async with agent(tmp_path / "one", tracker=(here.server.url,), window_lane=False) as one:
            await until(lambda: counted(one.front.metrics.registry, "shoal_swarm_trackers_up") == 1)
            assert (await one.ask(path))[2] == content
            moves.registry(one.front.metrics.registry)
            monkeypatch.setattr(stalls, "STALL", 20.0)
            monkeypatch.setattr(patience, "SILENT", 0.5)
            async with agent(tmp_path / "alone", tracker=(elsewhere.server.url,)) as alone:
                await until(lambda: counted(alone.front.metrics.registry, "shoal_swarm_trackers_up") == 1)
                assert (await alone.ask(path))[2] == content
                moves.registry(alone.front.metrics.registry)
            monkeypatch.setattr(arrivals, "_check", late)
            async with agent(tmp_path / "two", tracker=(here.server.url,), window_lane=False) as two:
                await until(lambda: counted(two.front.metrics.registry, "shoal_swarm_trackers_up") == 1)
                assert (await two.ask(path))[2] == content
                moves.registry(two.front.metrics.registry)
    assert RARE - moves.moved == set()


async def fetched(origin: Registry, blob: Blob) -> bytes:
    """The bytes of a planted blob."""
    hexed = blob.digest.removeprefix("sha256:")
    return (origin.directory / "docker/registry/v2/blobs/sha256" / hexed[:2] / hexed / "data").read_bytes()
