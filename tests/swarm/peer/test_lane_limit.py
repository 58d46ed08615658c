"""What goes out over the lane keeps to a rate: by counted bytes over a clock of our own, and by a sender."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.pace import BURST
from swarm.blob.digest import Digest
from swarm.peer.lane.lane import Lane
from swarm.peer.lane.offers import Offer
from swarm.peer.lane.throttle import BODIES, LEAST_RATE, LEAST_STEP, SHORT, STEP, URGENT_BODIES, Throttle
from tests.parts.lane import Sample, sample

MIB = 1024 * 1024


@given(st.integers(1, 64 * MIB), st.lists(st.floats(0, 3), max_size=80))
def test_all_connections_together_keep_to_the_rate(rate: int, pauses: list[float]) -> None:
    throttle, now, sent = Throttle(), 0.0, 0
    throttle.set(rate, now)
    for pause in pauses:
        now += pause
        while step := throttle.step(now):
            throttle.took(step, now)
            sent += step
        assert sent <= rate * (now + BURST) + max(LEAST_STEP, rate / 20) + 1
        assert 0 < throttle.wait(now) <= max(LEAST_STEP, rate / 20) / rate


def test_what_went_another_way_counts_and_without_a_bound_nothing_does() -> None:
    throttle = Throttle()
    throttle.took(100 * MIB, 0.0)
    assert (throttle.step(0.0), throttle.wait(0.0), throttle.bodies(SHORT)) == (STEP, 0.0, BODIES)
    assert throttle.bodies(SHORT, urgent=True) == BODIES + URGENT_BODIES
    assert throttle.bodies(SHORT + 1, urgent=True) == BODIES
    throttle.set(MIB, 0.0)
    assert throttle.step(0.0)
    throttle.took(2 * MIB, 0.0)
    assert not throttle.step(1.9)
    assert throttle.step(2.0)


@pytest.mark.parametrize(("rate", "bodies"), [(1, 1), (LEAST_RATE * 3, 3), (1024 * MIB, BODIES)])
def test_no_more_bodies_at_once_than_a_rate_feeds(rate: int, bodies: int) -> None:
    throttle = Throttle()
    throttle.set(rate, 0.0)
    assert throttle.bodies(SHORT) == bodies


async def nothing(_digest: Digest) -> Offer | None:
    return None


async def test_a_sender_stands_still_at_its_bound_and_goes_on_when_it_is_lifted(tmp_path: Path) -> None:
    """At 1 KiB/s one turn goes out, and nobody else gets a body; without a bound the rest comes whole."""
    blob, lane = sample(tmp_path, 3 * MIB + 12345), Lane(nothing)
    port = lane.start("127.0.0.1", 0)
    lane.limit(1024)
    lane.offer(blob.offer())
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            head, body = await asyncio.to_thread(begin, sock, blob)
            assert b" 200 " in head
            while len(body) < LEAST_STEP:
                body += await asyncio.to_thread(sock.recv, MIB)
            with socket.create_connection(("127.0.0.1", port), timeout=20) as other:
                refused, _ = await asyncio.to_thread(begin, other, blob)
            assert b" 503 " in refused
            assert len(body) == LEAST_STEP
            lane.limit(0)
            while len(body) < blob.cut.size:
                body += await asyncio.to_thread(sock.recv, MIB)
            assert body == blob.data
    finally:
        await lane.close()


def begin(sock: socket.socket, blob: Sample) -> tuple[bytes, bytes]:
    """Ask for all of it: the head, and what came of the body with it. Blocks."""
    sock.sendall(f"GET /{blob.digest} HTTP/1.1\r\n\r\n".encode())
    got = b""
    while b"\r\n\r\n" not in got:
        got += sock.recv(4096)
    head, _, body = got.partition(b"\r\n\r\n")
    return head, body
