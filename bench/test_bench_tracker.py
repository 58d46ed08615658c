"""One tracker process under load from another: announces, joins and polls per second, memory per agent and board."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import Say
from bench.net import Host, Link
from bench.processes import Process, running, wait_listening

PORT = 16969
HERE = Host("here", "127.0.0.1", Link(None, None))


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Process]:
    """A tracker of its own, empty."""
    shoal = str(Path(sys.executable).with_name("shoal"))
    with running([]) as processes:
        argv = [shoal, "tracker", "--listen", f"127.0.0.1:{PORT}", "--log-level", "warning"]
        processes.append(Process(HERE, argv, tmp_path / "tracker.log"))
        wait_listening([(processes[0], "127.0.0.1", PORT)])
        yield processes[0]


def load(kind: str, count: int) -> dict[str, float]:
    """What the generator, in a process of its own, says of *count* requests."""
    argv = [sys.executable, "-m", "bench.load", f"127.0.0.1:{PORT}", kind, str(count)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    told: dict[str, float] = json.loads(done.stdout)
    return told


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
