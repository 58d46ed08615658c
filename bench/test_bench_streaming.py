"""Ranges on loopback: Shoal beside reading directly and beside an nginx `slice` cache, ratios within one run.

A read is 64 KiB at random, one at a time on one kept connection: so waits a process in a lazily loaded image.
Loopback has no latency and no link rate: what counts here is what the agent adds.
"""

from __future__ import annotations

import http.client
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from urllib.parse import urlsplit

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import pulls
from bench.conftest import Say
from bench.images import Image
from bench.mirrors import BUILT_IN, Running
from bench.net import Host
from bench.stage import METRICS_PORT, Stage, push

KIB, MIB = 1024, 1024 * 1024
STEP = 64 * KIB
READS = 150
SIZE = 96 * MIB
"""Bytes of the layer that is read: more than READS random reads touch of it."""

BULK = 384 * MIB
"""Bytes of the pull beside which is read."""

SCAN = 48 * MIB
SCAN_STEP = MIB
"""Bytes per request of the scanner: overlaybd's prefetch and Peerd's chunk."""


def image(place: Stage, size: int) -> Image:
    """A new image of one layer: nobody has it."""
    push(place, size, 1)
    return place.images[-1][0]


def ranges(mirror: Running, host: Host, made: Image, places: Sequence[tuple[int, int]]) -> list[float]:
    """Seconds that each of *places* took, one after the other over one connection of *host*."""
    base = urlsplit(mirror.base(host))
    path = base.path + mirror.range_path.format(repository=made.repository, digest=made.layers[0][0])
    link = http.client.HTTPConnection(base.netloc, timeout=60)
    times = []
    try:
        for start, stop in places:
            begun = time.perf_counter()
            link.request("GET", path, headers={"Range": f"bytes={start}-{stop - 1}"})
            answer = link.getresponse()
            body = answer.read()
            times.append(time.perf_counter() - begun)
            assert (answer.status, len(body)) == (206, stop - start)
    finally:
        link.close()
    return times


def anywhere(seed: int, count: int = READS) -> list[tuple[int, int]]:
    """*count* reads of 64 KiB at random."""
    chance = random.Random(seed)
    starts = [chance.randrange(SIZE - STEP) for _ in range(count)]
    return [(start, start + STEP) for start in starts]


def pull(place: Stage, mirror: Running, made: Image, host: Host) -> None:
    """*host* pulls all of *made*."""
    measured = pulls.pull(place, mirror, made, {host.name: 0.0}, check="none")
    assert [p.error for p in measured.pulled] == [""]


def came(place: Stage, host: Host, source: str) -> float:
    """Bytes that came to the agent on *host* from *source* ("peer" or "upstream") so far."""
    link = http.client.HTTPConnection("127.0.0.1", place.port(METRICS_PORT, host), timeout=10)
    try:
        link.request("GET", "/metrics")
        text = link.getresponse().read().decode()
    finally:
        link.close()
    found = re.search(rf'^shoal_swarm_received_bytes_total{{source="{source}"}} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture(autouse=True)
def _open_to_nginx(place: Stage) -> None:
    """Its workers give up root, and must get at its directories all the same."""
    for above in (place.work, *list(place.work.parents)[:2]):
        above.chmod(0o755)


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[threading.Thread]:
    """*work* in a thread meanwhile."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join()


def shown(times: Sequence[float]) -> str:
    """p50 and p99 in milliseconds."""
    ordered = sorted(times)
    return f"{median(ordered) * 1e3:.2f} / {ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1e3:.2f}"


def test_random_reads(benchmark: BenchmarkFixture, place: Stage, say: Say) -> None:
    """p50 and p99 of a random read: direct, nginx slice, and Shoal from upstream, from a peer, from the disk."""
    two = replace(place, nodes=place.nodes[:2])
    holder, reader = two.nodes
    asked = READS * STEP
    rows: dict[str, list[float]] = {}
    more: list[str] = []
    with BUILT_IN["direct"](two) as mirror:
        rows["direct"] = ranges(mirror, reader, image(place, SIZE), anywhere(1))
    with BUILT_IN["nginx-slice"](two) as mirror:
        made, before = image(place, SIZE), place.upstream_counts()["bytes"]
        rows["nginx slice, from upstream"] = ranges(mirror, reader, made, anywhere(2))
        more.append(f"nginx slice from upstream {(place.upstream_counts()['bytes'] - before) / asked:.1f}")
        rows["nginx slice, again"] = ranges(mirror, reader, made, anywhere(2))
    with BUILT_IN["shoal"](two) as mirror:
        made, before = image(place, SIZE), place.upstream_counts()["bytes"]
        rows["from upstream"] = ranges(mirror, reader, made, anywhere(3))
        more.append(f"from upstream {(place.upstream_counts()['bytes'] - before) / asked:.1f}")
        rows["local, of what was read"] = ranges(mirror, reader, made, anywhere(3))
        held = image(place, SIZE)
        pull(place, mirror, held, holder)
        had = came(place, reader, "peer")
        rows["from a peer"] = ranges(mirror, reader, held, anywhere(4))
        more.append(f"from a peer {(came(place, reader, 'peer') - had) / asked:.1f}")
        busy, bulk = image(place, SIZE), image(place, BULK)
        pull(place, mirror, busy, holder)
        pull(place, mirror, bulk, holder)
        times: list[float] = []
        with beside(lambda: pull(place, mirror, bulk, reader)) as pulling:
            for start in range(0, 10 * READS, 10):
                times += ranges(mirror, reader, busy, anywhere(100 + start, 10))
                if not pulling.is_alive():
                    break
        rows["from a peer, beside a bulk pull"] = times
        pull(place, mirror, held, reader)
        hits: list[float] = benchmark.pedantic(  # type: ignore[no-untyped-call]  # pytest-benchmark has no types there
            ranges, args=(mirror, reader, held, anywhere(5)), rounds=3, iterations=1
        )
        rows["local, held whole"] = hits
    direct = median(rows["direct"])
    for name, found in rows.items():
        say(
            f"random 64 KiB read, {name}: p50 / p99 {shown(found)} ms, p50 {median(found) / direct:.1f} x direct "
            f"({len(found)} reads)"
        )
    say(f"bytes moved for each that was asked for: {', '.join(more)}")


@pytest.mark.parametrize("width", [1, 4], ids=["one-at-a-time", "four-at-once"])
def test_scanner_on_three_nodes(benchmark: BenchmarkFixture, place: Stage, say: Say, width: int) -> None:
    """Three nodes read one file from end to end at once, cold, as in Peerd's own table (3.5-13 MB/s on 3 nodes)."""
    three = replace(place, nodes=place.nodes[:3])
    speeds: dict[str, list[float]] = {}
    sent: dict[str, float] = {}
    for name in ("direct", "nginx-slice", "shoal"):
        with BUILT_IN[name](three) as mirror:
            made, before = image(place, SCAN), place.upstream_counts()["bytes"]

            def scan_all(mirror: Running = mirror, made: Image = made) -> list[float]:
                with ThreadPoolExecutor(3) as pool:
                    return list(pool.map(lambda host: _scan(mirror, host, made, width), three.nodes))

            if name == "shoal":
                speeds[name] = benchmark.pedantic(scan_all, rounds=1, iterations=1)  # type: ignore[no-untyped-call]
            else:
                speeds[name] = scan_all()
            sent[name] = (place.upstream_counts()["bytes"] - before) / SCAN
    say(
        f"scanner, 3 nodes, {SCAN // MIB} MiB, {width} at once: "
        + "; ".join(
            f"{name} {median(found):.0f} MB/s a node, {sent[name]:.2f} copies" for name, found in speeds.items()
        )
        + f"; Shoal at {median(speeds['shoal']) / median(speeds['direct']):.2f} of direct"
    )


def _scan(mirror: Running, host: Host, made: Image, width: int) -> float:
    """MB/s of *host* reading the layer from end to end, *width* requests at once."""
    steps = [(start, min(start + SCAN_STEP, SCAN)) for start in range(0, SCAN, SCAN_STEP)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(width) as pool:
        list(pool.map(lambda place: ranges(mirror, host, made, steps[place::width]), range(width)))
    return SCAN / (time.perf_counter() - begun) / 1e6
