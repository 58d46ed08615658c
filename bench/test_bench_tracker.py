"""One tracker process under load from another: announces, joins and polls per second, memory per agent and board."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import Say
from bench.net import Host, Link
from bench.processes import Process, running, wait_listening

PORT = 16969
HERE = Host("here", "127.0.0.1", Link(None, None))
LARGE = 10_000
SPARE_FILES = 200


@contextmanager
def trackers(directory: Path, count: int) -> Iterator[list[Process]]:
    """*count* trackers, empty, at PORT and above."""
    shoal = str(Path(sys.executable).with_name("shoal"))
    ports = range(PORT, PORT + count)
    with running([]) as processes:
        for port in ports:
            argv = [shoal, "tracker", "--listen", f"127.0.0.1:{port}", "--log-level", "warning"]
            processes.append(Process(HERE, argv, directory / f"tracker-{port}.log"))
        wait_listening([(process, "127.0.0.1", port) for process, port in zip(processes, ports, strict=True)])
        yield processes


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Process]:
    """A tracker of its own."""
    with trackers(tmp_path, 1) as (process,):
        yield process


def load(kind: str, count: int) -> dict[str, float]:
    """What the generator, in a process of its own, says of *count* requests."""
    told: dict[str, float] = generator("bench.load", f"127.0.0.1:{PORT}", kind, str(count))
    return told


def generator(*argv: str) -> Any:
    """The JSON that a Python module prints."""
    (told,) = generators(argv)
    return told


def generators(*argvs: tuple[str, ...]) -> list[Any]:
    """The JSON that each of some Python modules prints, which run at once."""
    root = Path(__file__).parent.parent
    started = [
        subprocess.Popen((sys.executable, "-m", *argv), stdout=subprocess.PIPE, text=True, cwd=root) for argv in argvs
    ]
    try:
        texts = [process.communicate()[0] for process in started]
        assert not any(process.returncode for process in started)
        return [json.loads(text) for text in texts]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.parametrize("kind", ["announce", "agent", "board", "crowd"])
def test_requests_per_second(benchmark: BenchmarkFixture, tracker: Process, say: Say, kind: str) -> None:
    """Aim of issue 3: 5,000 announces a second on one core."""
    load(kind, 2_000)
    before = tracker.cpu()
    told = benchmark.pedantic(load, (kind, 10_000), rounds=1, iterations=1)  # type: ignore[no-untyped-call]  # pytest-benchmark has no types there
    used = tracker.cpu() - before
    assert told["errors"] == 0
    say(
        f"tracker, {kind}: {told['requests'] / told['seconds']:.0f}/s measured, "
        f"{told['requests'] / used:.0f} per CPU-second of the tracker; aim 5000"
    )


@pytest.mark.parametrize("kind", ["agent", "board"])
def test_memory_per_thousand(benchmark: BenchmarkFixture, tracker: Process, say: Say, kind: str) -> None:
    """Resident memory for 1,000 agents that hold 20 blobs each; for 1,000 boards of 1 GiB with 20 agents."""
    load("warmup", 50)
    resident = psutil.Process(tracker.popen.pid).memory_info
    before = resident().rss
    told = benchmark.pedantic(load, (f"fill-{kind}", 1_000), rounds=1, iterations=1)  # type: ignore[no-untyped-call]  # pytest-benchmark has no types there
    assert told["errors"] == 0
    say(f"tracker, memory: {(resident().rss - before) / 2**20:.1f} MiB per 1,000 {kind}s")


def test_ten_thousand_agents_on_two_replicas(benchmark: BenchmarkFixture, tmp_path: Path, say: Say) -> None:
    """Aim of issue 3. All have a channel at both trackers, and all pull two layers at once, one from each.

    Fewer where a process may not open two files for each of them. One process speaks for all agents to one tracker.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    agents = min(LARGE, (hard - SPARE_FILES) // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with trackers(tmp_path, 2) as processes:
            crowds = [("bench.crowd", str(agents), f"127.0.0.1:{port}") for port in (PORT, PORT + 1)]
            told = benchmark.pedantic(generators, crowds, rounds=1, iterations=1)  # type: ignore[no-untyped-call]  # pytest-benchmark has no types there
            for process, seen in zip(processes, told, strict=True):
                assert seen["dropped"] == 0
                say(
                    f"tracker, rollout to {seen['agents']}: {seen['news']} news in {seen['answers']} answers, "
                    f"{process.cpu():.1f} CPU-s, peak {process.peak() / 2**20:.0f} MiB; connected in "
                    f"{seen['connecting']:.1f} s, the layer entered in {seen['entering']:.1f} s, known and sealed by "
                    f"all {seen['sealed_after']:.1f} s later; a window was heard of after {seen['lag_p50']:.1f} s, "
                    f"{seen['lag_max']:.1f} s (max); a publication took {seen['publish_max']:.1f} s at most"
                )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
