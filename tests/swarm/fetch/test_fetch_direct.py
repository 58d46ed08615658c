"""A reader's own stream from upstream, and the trial that shows whether one is worth it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swarm.blob.geometry import MIB
from swarm.fetch import trial as trials
from swarm.fetch.direct import Direct
from swarm.fetch.trial import LENGTH, Trial
from swarm.upstream.download import Begun
from tests.parts import data
from tests.parts.intake import NotingHost, SentUpstream, claiming
from tests.parts.talk import until

SIZE = 6 * MIB


def stream(
    host: NotingHost, first: int, stop: int | None = None, leaves: Callable[[int, float], bool] = lambda _w, _r: False
) -> Direct:
    """A stream from piece *first* on."""
    pool = ThreadPoolExecutor(1)
    return Direct(host, host.upstream, pool, Begun(), first, stop, leaves=leaves, clock=time.monotonic)


async def test_it_brings_everything_from_where_the_reader_stands(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE) as (_, host, upstream):
        await stream(host, 5).run()
        assert host.place is not None
        assert host.pieces == list(range(5, host.place.layout.pieces))
        assert len(upstream.asked) == 1


async def test_it_tells_the_size_if_nobody_has(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE, sized=False) as (_, host, _upstream):
        await stream(host, 0).run()
        assert host.place is not None
        assert host.place.pieces.count == host.place.layout.pieces


async def test_it_ends_before_a_window_that_others_bring_in_but_not_before_its_first(tmp_path: Path) -> None:
    asked: list[int] = []

    def leaves(window: int, rate: float) -> bool:
        asked.append(window)
        assert rate > 0
        return window == 3

    async with claiming(tmp_path, SIZE) as (_, host, upstream):
        assert host.place is not None
        first = host.place.layout.windows[1].first_piece
        await stream(host, first, leaves=leaves).run()
        assert asked == [2, 3]
        assert host.pieces == list(range(first, host.place.layout.windows[3].first_piece))
        assert upstream.sent < SIZE - MIB


async def test_it_goes_on_at_the_byte_where_a_body_broke_off(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE, breaks=200_000, step=50_000) as (_, host, upstream):
        await stream(host, 0).run()
        assert host.place is not None
        assert host.place.pieces.count == host.place.layout.pieces
        assert upstream.sent <= SIZE + 50_000


class Ticking:
    """A Source of chunks of *step* bytes, *count* of them, each at a tick of a clock of its own; then nothing."""

    upstream = "registry.test"

    def __init__(self, step: int, count: int) -> None:
        self.now, self.step, self.count = 100.0, step, count
        self.asked: list[tuple[int, int | None]] = []

    total = SIZE
    offset = 0
    whole = False
    etag = ""

    @asynccontextmanager
    async def open(self, start: int, stop: int | None) -> AsyncIterator[Ticking]:
        self.asked.append((start, stop))
        yield self

    async def chunks(self) -> AsyncIterator[bytes]:
        for _ in range(self.count):
            self.now += 0.1
            yield bytes(self.step)
        await asyncio.Event().wait()


async def test_a_trial_measures_what_follows_the_first_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "LONG_ENOUGH", 0.05)
    thin = Ticking(1000, 3)
    trial = Trial(thin, 7, lambda: thin.now)
    assert (trial.answered, trial.rate) == (None, float("inf"))
    await trial.run()
    assert trial.answered == pytest.approx(100.1)
    assert trial.rate == pytest.approx(10_000)
    assert thin.asked == [(7, 7 + LENGTH)]
    stopped = Ticking(1000, 1)
    trial = Trial(stopped, 0, lambda: stopped.now)
    reading = asyncio.ensure_future(trial.run())
    await until(lambda: trial.answered is not None)
    stopped.now += 5.0
    await reading
    assert trial.rate == 0.0, "the first bytes came, and no more"


async def test_what_comes_at_once_is_quick_and_what_fails_has_not_answered() -> None:
    upstream = SentUpstream(data.blob(SIZE, 3))
    trial = Trial(upstream, 0, time.monotonic)
    await trial.run()
    assert trial.answered is not None
    assert trial.rate == float("inf")
    assert upstream.sent == LENGTH
    upstream.broken = True
    refused = Trial(upstream, 0, time.monotonic)
    await refused.run()
    assert refused.answered is None
    upstream.broken = False
    upstream.answers.clear()
    silent = asyncio.ensure_future(Trial(upstream, 0, time.monotonic).run())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not silent.done()
    silent.cancel()
    await asyncio.gather(silent, return_exceptions=True)
