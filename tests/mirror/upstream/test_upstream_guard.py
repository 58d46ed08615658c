"""The guard at work: bounds, pauses and breakers by host, with time and chance passed in."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from prometheus_client import CollectorRegistry

from mirror.upstream.guard import Guard
from mirror.upstream.limits import Limits
from swarm.blob.errors import SourceBroken, SourceBusy


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_no_more_requests_than_allowed_are_under_way_but_readers_have_a_reserve() -> None:
    guard = Guard(lambda _host: Limits(connections=2, reserve=1, patience=0.05))
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(guard.enter("reg"))
        with pytest.raises(SourceBusy) as caught:
            await stack.enter_async_context(guard.enter("reg"))
        assert caught.value.retry_after is not None
        await stack.enter_async_context(guard.enter("reg", urgent=True))
        with pytest.raises(SourceBusy):
            await stack.enter_async_context(guard.enter("reg", urgent=True))
        await stack.enter_async_context(guard.enter("other"))
        assert guard.status()["reg"]["inflight"] == 3
    assert guard.status()["reg"]["inflight"] == 0


async def test_who_waits_goes_on_when_a_request_ends_and_a_cancelled_one_takes_no_place() -> None:
    guard = Guard(lambda _host: Limits(connections=1, reserve=1, patience=10.0))
    entered: list[int] = []

    async def one(number: int) -> None:
        async with guard.enter("reg") as ticket:
            entered.append(number)
            ticket.answered()

    async with guard.enter("reg"):
        waiting = [asyncio.create_task(one(number)) for number in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.gather(waiting[1], return_exceptions=True)
        assert entered == []
    await asyncio.gather(waiting[0], waiting[2])
    assert entered == [0, 2]


async def test_retry_after_is_kept_and_told_and_ends() -> None:
    clock, told = Clock(), []
    guard = Guard(on_backoff=lambda host, seconds: told.append((host, seconds)), clock=clock)
    async with guard.enter("reg") as ticket:
        ticket.failed(SourceBusy("later", status=429, retry_after=30.0))
    assert told == [("reg", 30.0)]
    clock.now += 29.0
    with pytest.raises(SourceBusy) as caught:
        async with guard.enter("reg"):
            pass
    assert caught.value.retry_after == pytest.approx(1.0)
    clock.now += 1.5
    async with guard.enter("reg") as ticket:
        ticket.answered()


async def test_without_retry_after_the_pause_grows() -> None:
    clock, told = Clock(), []
    guard = Guard(on_backoff=lambda _host, seconds: told.append(seconds), clock=clock, chance=lambda: 0.5)
    for _ in range(4):
        async with guard.enter("reg") as ticket:
            ticket.failed(SourceBusy("later", status=429))
        clock.now += 120.0
    assert told == [0.5, 1.0, 2.0, 4.0]


async def test_a_shorter_pause_does_not_end_a_longer_one_and_what_the_cluster_says_is_not_told_back() -> None:
    clock, told = Clock(), []
    guard = Guard(on_backoff=lambda host, seconds: told.append((host, seconds)), clock=clock)
    guard.hold("reg", 30.0)
    guard.hold("reg", 5.0)
    assert guard.held("reg") == 30.0
    assert told == []


async def test_an_open_breaker_lets_one_probe_through_and_closes_on_its_headers() -> None:
    clock = Clock()
    guard = Guard(clock=clock, chance=lambda: 0.5)
    for _ in range(5):
        async with guard.enter("reg") as ticket:
            ticket.failed(SourceBroken("no"))
    with pytest.raises(SourceBroken) as caught:
        async with guard.enter("reg"):
            pass
    assert caught.value.retry_after == 0.5
    clock.now += 1.0
    async with guard.enter("reg") as probe:
        with pytest.raises(SourceBroken):
            async with guard.enter("reg"):
                pass
        probe.headers()
        async with guard.enter("reg") as ticket:
            ticket.answered()


async def test_the_rate_is_kept_and_who_would_wait_too_long_is_told_so() -> None:
    clock = Clock()
    guard = Guard(lambda _host: Limits(rate=0.1, patience=5.0), clock=clock)
    for _ in range(10):
        async with guard.enter("reg"):
            pass
    with pytest.raises(SourceBusy) as caught:
        async with guard.enter("reg"):
            pass
    assert caught.value.retry_after == pytest.approx(10.0)


async def test_hosts_beyond_the_bound_share_a_label_and_everything_is_counted() -> None:
    metrics = CollectorRegistry()
    guard = Guard(metrics=metrics, clock=Clock())
    for number in range(70):
        async with guard.enter(f"host-{number}") as ticket:
            ticket.bytes(10)
            ticket.answered()
    guard.hold("host-1", 5.0)
    with pytest.raises(SourceBusy):
        async with guard.enter("host-1"):
            pass

    def count(name: str, **labels: str) -> float | None:
        return metrics.get_sample_value(name, labels)

    assert count("shoal_upstream_requests_total", host="host-1", outcome="answered") == 1
    assert count("shoal_upstream_requests_total", host="other", outcome="answered") == 6
    assert count("shoal_upstream_bytes_total", host="other") == 60
    assert count("shoal_upstream_pauses_total", host="host-1", by="cluster") == 1
    assert count("shoal_upstream_held_back_total", host="host-1", why="pause") == 1
    assert count("shoal_upstream_inflight", host="host-1") == 0
