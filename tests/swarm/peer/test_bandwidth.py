"""Bytes per second, by counted bytes over a clock of our own: to peers, from upstream, and who comes first."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import SettingsInvalid
from mirror.limitsfile import Limits, LimitsFile, parse
from mirror.upstream.client import Upstream
from mirror.upstream.registries import Registries
from swarm.base.pace import BURST, TURN, Bucket, Pace
from swarm.blob.digest import Digest
from swarm.blob.geometry import MIB
from swarm.fetch.readers import Reader, Readers
from swarm.node import EMPTY
from swarm.peer.session import Session
from tests.parts.registry import Registry
from tests.swarm.peer.test_session import CUT, DEADLINE, Node, node

RATE = 1000.0


class Alarm:
    """A timer of Clock."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self._alarms: list[tuple[float, int, Alarm]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Alarm:
        alarm = Alarm(callback)
        heapq.heappush(self._alarms, (self.now + delay, len(self._alarms) + id(alarm), alarm))
        return alarm

    def next(self) -> bool:
        """Go to the next alarm; whether there was one."""
        while self._alarms:
            at, _, alarm = heapq.heappop(self._alarms)
            if alarm.callback is not None:
                self.now = max(self.now, at) + 1e-9
                alarm.callback()
                return True
        return False


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.floats(0, 5)), max_size=60),
    st.floats(1.0, 1e6),
)
def test_no_more_than_the_rate_passes_in_any_stretch_of_time(asked: list[tuple[int, float]], rate: float) -> None:
    """Whoever asks whenever: bytes <= rate x seconds + the burst + one grant."""
    bucket, now, passed = Bucket(rate, 0.0), 0.0, [(0.0, 0)]
    for count, pause in asked:
        now += pause
        now += bucket.wait(now)
        passed.append((now, count))
        bucket.take(count, now)
    largest = max((count for count, _ in asked), default=0)
    for place, (begun, _) in enumerate(passed):
        total = sum(count for _, count in passed[place:])
        assert total <= rate * (now - begun) + rate * BURST + 2 * largest + 1


def test_another_rate_counts_from_then_on() -> None:
    bucket = Bucket(RATE, 0.0)
    bucket.take(10_000, 0.0)
    assert bucket.wait(0.0) == pytest.approx((10_000 - RATE * BURST) / RATE)
    bucket.set(10 * RATE, 0.0)
    assert bucket.wait(0.0) == pytest.approx((10_000 - RATE * BURST) / RATE / 10)
    bucket.set(0.0, 0.0)
    assert bucket.wait(0.0) == 0.0


async def settled() -> None:
    """What can go on without time has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_those_that_somebody_waits_for_come_first_and_the_others_do_not_starve() -> None:
    clock, order = Clock(), []
    pace = Pace(RATE, clock)
    await pace.take(int(10 * RATE))

    async def ask(name: str, *, low: bool) -> None:
        await pace.take(100, low=low)
        order.append(name)

    tasks = [asyncio.create_task(ask("low", low=True)) for _ in range(5)]
    await settled()
    tasks += [asyncio.create_task(ask("pull", low=False)) for _ in range(3 * TURN)]
    await settled()
    while clock.next():
        await settled()
    await asyncio.gather(*tasks)
    assert order[: TURN - 1] == ["pull"] * (TURN - 1)
    assert 1 <= order[: 3 * TURN].count("low") <= 3  # a tenth
    assert order[-2:] == ["low", "low"]


async def test_who_is_cancelled_takes_nothing_and_a_lifted_bound_lets_all_go() -> None:
    clock = Clock()
    pace = Pace(RATE, clock)
    await pace.take(10_000)
    first, second = (asyncio.create_task(pace.take(10_000_000)) for _ in range(2))
    await settled()
    first.cancel()
    await settled()
    pace.set(0.0)
    await second
    await pace.take(10**9)
    assert clock.now == 0.0


@pytest.mark.needs_registry
async def test_all_of_an_agents_downloads_keep_to_one_rate(origin: Registry) -> None:
    """Three bodies of 2 MiB at once, 1 MiB/s: six seconds of our clock, less the burst; then another rate."""
    blobs = [origin.plant("bandwidth/app", 2 * MIB, seed) for seed in (1, 2, 3)]
    clock = Clock()
    pace = Pace(MIB, clock)
    registries = Registries(plain_http=frozenset({origin.host}))
    async with Upstream(registries, pace=pace) as upstream:

        async def read(place: int) -> int:
            blob, count = blobs[place], 0
            async with upstream.blob(origin.host, blob.repository, Digest(blob.digest), low=place == 0).open(
                0, None
            ) as body:
                async for chunk in body.chunks():
                    count += len(chunk)
            return count

        tasks = [asyncio.create_task(read(place)) for place in range(3)]
        done = asyncio.gather(*tasks)
        while not done.done():
            await asyncio.wait([done], timeout=0.01)  # the network's turn
            clock.next()
        assert await done == [2 * MIB] * 3
        assert 6.0 - BURST - 0.5 <= clock.now <= 6.5
        pace.set(0.0)
        assert await read(1) == 2 * MIB


async def test_a_window_is_asked_for_as_a_puller_asks_where_there_is_one() -> None:
    """A preheat's source is the last choice: what comes by it waits for everybody else."""
    async with Upstream() as upstream:
        slow, fast = (upstream.blob("registry.example", "app", EMPTY, low=low) for low in (True, False))
    readers = Readers([Reader(True, slow, low=True)])
    assert readers.source(0) is slow
    readers.add(Reader(True, fast))
    assert readers.source(0) is fast
    readers.add(Reader(False, slow, windows=(0,), low=True))
    assert readers.source(0) is fast


# -- to peers -----------------------------------------------------------------------------------------


async def test_what_goes_to_peers_is_bounded_and_the_bound_is_lifted_while_it_runs(tmp_path: Path) -> None:
    """A peer on a private address, as nodes are: libtorrent would exempt it. At 1 KiB/s nothing would become whole."""
    async with node("127.0.0.1", tmp_path / "a") as one, node("127.0.0.2", tmp_path / "b") as other:
        session: Session = one.session
        await session.limit(1024)
        await one.add(seed=True)
        seeker: Node = other
        await seeker.add([one.address])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await seeker.whole.wait()
        assert len(seeker.came) < CUT.pieces
        await session.limit(0)
        async with asyncio.timeout(DEADLINE):
            await seeker.whole.wait()


# -- the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", Limits(1, 2)),
        ('upload-limit = "50MiB"', Limits(50 * MIB, 2)),
        ('upload-limit = 0\ndownload-limit = "1.5MiB"', Limits(0, 3 * MIB // 2)),
    ],
)
def test_the_file_says_what_the_flags_said(text: str, limits: Limits) -> None:
    assert parse(text, Limits(1, 2)) == limits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("upload-limit", "Expected '='"),
        ("upload = 3", "'upload' is no setting"),
        ('upload-limit = "fast"', "'fast' is no size"),
        ("upload-limit = -1", "upload-limit: write a size"),
        ("upload-limit = true", "upload-limit: write a size"),
        ("download-limit = [1]", "download-limit: write a size"),
    ],
)
def test_what_the_file_cannot_say_is_one_line(text: str, said: str) -> None:
    with pytest.raises(SettingsInvalid, match=said.replace("[", r"\[")) as caught:
        parse(text, Limits())
    assert "\n" not in str(caught.value)


async def test_the_file_is_followed_as_a_configmap_changes_it(tmp_path: Path) -> None:
    """By a link that is moved; a file that is none keeps what was; without the file the flags count."""
    heard: asyncio.Queue[Limits] = asyncio.Queue()
    file = LimitsFile(tmp_path / "limits" / "limits.toml", Limits(7, 8), heard.put_nowait)
    (tmp_path / "limits").mkdir()

    def put(version: str, text: str) -> None:
        (tmp_path / "limits" / version).mkdir()
        (tmp_path / "limits" / version / "limits.toml").write_text(text)
        (tmp_path / "limits" / "new").symlink_to(version)
        (tmp_path / "limits" / "new").rename(tmp_path / "limits" / "..data")

    await file.open()
    try:
        async with asyncio.timeout(DEADLINE):
            assert await heard.get() == Limits(7, 8)
            (tmp_path / "limits" / "limits.toml").symlink_to("..data/limits.toml")
            put("..1", 'upload-limit = "1KiB"')
            assert await heard.get() == Limits(1024, 8)
            put("..2", "upload-limit = oops")
            put("..3", 'upload-limit = "2KiB"\ndownload-limit = 0')
            assert await heard.get() == Limits(2048, 0)
            (tmp_path / "limits" / "limits.toml").unlink()
            assert await heard.get() == Limits(7, 8)
    finally:
        await file.close()


async def test_a_file_that_is_none_at_the_start_is_refused(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("=")
    with pytest.raises(SettingsInvalid, match=r"limits\.toml"):
        await LimitsFile(tmp_path / "limits.toml", Limits(), lambda limits: None).open()
