"""Pulls on loopback: Shoal beside direct pulls and nginx, ratios within one run.

Loopback has no link rate: what counts here is processor time and what the agent adds to a pull.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import pulls
from bench.conftest import Say
from bench.images import Image
from bench.mirrors import BUILT_IN, Running
from bench.processes import Process, running, wait_listening
from bench.stage import CENTRAL_PORT, Stage, push

MIB = 1024 * 1024
GIB = 1024 * MIB
ROUNDS = 3


def image(place: Stage, size: int) -> Image:
    """A new image of one layer: nobody has it."""
    push(place, size, 1)
    return place.images[-1][0]


def pull(place: Stage, mirror: Running, made: Image, nodes: int) -> pulls.Measured:
    """*nodes* clients at once; all must have got the bytes from the mirror."""
    measured = pulls.pull(place, mirror, made, {host.name: 0.0 for host in place.nodes[:nodes]}, check="none")
    assert [p.error for p in measured.pulled] == [""] * nodes
    assert sum(p.fell_back for p in measured.pulled) == 0
    return measured


def rounds(benchmark: BenchmarkFixture, work: Callable[[], pulls.Measured]) -> list[pulls.Measured]:
    """*work* a few times under the benchmark's clock; what each time measured."""
    done: list[pulls.Measured] = []
    benchmark.pedantic(lambda: done.append(work()), rounds=ROUNDS, iterations=1)  # type: ignore[no-untyped-call]  # pytest-benchmark has no types there
    return done


def cost(measured: pulls.Measured) -> float:
    """CPU-seconds of mirror and machine per GiB delivered."""
    return measured.machine_cpu / sum(p.bytes for p in measured.pulled) * GIB


def test_one_agent_cold_against_direct(benchmark: BenchmarkFixture, place: Stage, say: Say) -> None:
    """256 MiB that nobody has. Aim of issue 2: 1.05 x the direct pull."""
    one = replace(place, nodes=place.nodes[:1])
    with BUILT_IN["direct"](one) as mirror:
        plain = [pull(one, mirror, image(place, 256 * MIB), 1).makespan for _ in range(ROUNDS)]
    with BUILT_IN["shoal"](one) as mirror:
        ours = [m.makespan for m in rounds(benchmark, lambda: pull(one, mirror, image(place, 256 * MIB), 1))]
    say(
        f"one agent, cold, 256 MiB: {median(ours):.2f} s, direct {median(plain):.2f} s, "
        f"ratio {median(ours) / median(plain):.2f} (best {min(ours) / min(plain):.2f}); aim 1.05"
    )


@pytest.mark.parametrize("clients", [1, 8])
def test_finished_blob_against_nginx(
    benchmark: BenchmarkFixture, place: Stage, say: Say, tmp_path: Path, clients: int
) -> None:
    """256 MiB that the agent holds, against nginx with the same bytes. Aim of issue 2: 0.8 of nginx."""
    one = replace(place, nodes=place.nodes[:1])
    made = image(place, 256 * MIB)
    with _static(place, made, tmp_path) as server:
        plain = [pull(place, server, made, clients).makespan for _ in range(ROUNDS)]
    with BUILT_IN["shoal"](one) as mirror:
        everybody = replace(mirror, base=lambda _host: mirror.base(place.nodes[0]))
        pull(place, everybody, made, 1)
        ours = [m.makespan for m in rounds(benchmark, lambda: pull(place, everybody, made, clients))]
    say(
        f"finished blob, 256 MiB, {clients} clients: {clients * 256 / min(ours):.0f} MiB/s, "
        f"nginx {clients * 256 / min(plain):.0f} MiB/s, {min(plain) / min(ours):.2f} of nginx; aim 0.8"
    )


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_processor_time_of_eight_agents(benchmark: BenchmarkFixture, place: Stage, say: Say, warm: bool) -> None:
    """64 MiB to eight agents at once: CPU-seconds per GiB delivered against eight direct pulls."""
    with BUILT_IN["direct"](place) as mirror:
        plain = [cost(pull(place, mirror, image(place, 64 * MIB), 8)) for _ in range(ROUNDS)]
    agents: list[float] = []

    def round_() -> pulls.Measured:
        with BUILT_IN["shoal"](place) as mirror:
            made = image(place, 64 * MIB)
            if warm:
                pull(place, mirror, made, 1)
            measured = pull(place, mirror, made, 8)
        agents.append(measured.mirror_cpu / sum(p.bytes for p in measured.pulled) * GIB)
        return measured

    ours = [cost(measured) for measured in rounds(benchmark, round_)]
    say(
        f"8 agents, 64 MiB, {'warm' if warm else 'cold'}: {median(ours):.1f} CPU-s/GiB for the whole machine "
        f"(agents and tracker {median(agents):.1f}), 8 direct pulls {median(plain):.1f}"
    )


def test_range_latency_and_first_byte(benchmark: BenchmarkFixture, place: Stage, say: Say) -> None:
    """64 KiB ranges of a finished blob over one connection, and time to the first byte of cold and warm pulls."""
    one = replace(place, nodes=place.nodes[:1])
    with BUILT_IN["shoal"](one) as mirror:
        made = image(place, 64 * MIB)
        first = [pull(one, mirror, made, 1).pulled[0].first_byte or 0.0 for _ in range(ROUNDS + 1)]
        plain = replace(mirror, range_path="/v2/{repository}/blobs/{digest}")
        read = rounds(benchmark, lambda: pulls.read(one, plain, made, one.nodes, count=500, length=65536, parallel=1))
    times = sorted(time for measured in read for time in measured.pulled[0].times)
    with BUILT_IN["direct"](one) as direct:
        cold = pull(one, direct, image(place, 64 * MIB), 1).pulled[0].first_byte or 0.0
    say(
        f"first byte: cold {first[0] * 1e3:.1f} ms, held {median(first[1:]) * 1e3:.1f} ms, direct {cold * 1e3:.1f} ms "
        f"(manifest included); 64 KiB range, held: p50 {times[len(times) // 2] * 1e3:.2f} ms, "
        f"p99 {times[int(len(times) * 0.99)] * 1e3:.2f} ms"
    )


@contextlib.contextmanager
def _static(place: Stage, made: Image, root: Path) -> Iterator[Running]:
    """nginx with files of the lengths of *made*, under the paths that a registry has them at."""
    files = root / "files" / "v2" / made.repository
    for part in ("manifests", "blobs"):
        (files / part).mkdir(parents=True)
    layers = [{"digest": digest, "size": size} for digest, size in made.layers]
    (files / "manifests" / made.tag).write_text(json.dumps({"layers": layers}))
    for digest, size in made.layers:
        (files / "blobs" / digest).write_bytes(os.urandom(size))
    for above in (root, *list(root.parents)[:3]):
        above.chmod(0o755)  # nginx' workers give up root
    port = place.port(CENTRAL_PORT, place.central)
    config = root / "nginx.conf"
    config.write_text(_STATIC.format(root=root, port=port))
    argv = ["nginx", "-p", str(root), "-e", str(root / "error.log"), "-c", str(config)]
    with running([]) as processes:
        processes.append(Process(place.central, argv, root / "log"))
        wait_listening([(processes[0], "127.0.0.1", port)])
        yield Running(lambda _host: f"http://127.0.0.1:{port}", processes)


_STATIC = """
daemon off; worker_processes auto; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3; uwsgi_temp_path {root}/t4;
  scgi_temp_path {root}/t5;
  server {{ listen 127.0.0.1:{port}; root {root}/files; }}
}}
"""
