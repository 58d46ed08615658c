"""When an agent may go: once its node asks for nothing, and other agents have what they fetch from it."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from mirror.front.app import MOST_WAITING, make_site
from mirror.front.quiet import GIVING, Quiet
from mirror.metrics import FrontMetrics
from mirror.serve import listening
from swarm.base.flags import Endpoint
from tests.parts.procs import free_port

LONG = 60.0


async def turns() -> None:
    """Let everything go on that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_asks_for_nothing_is_quiet_at_once() -> None:
    assert await Quiet(0).comes(LONG)


async def test_the_last_of_several_requests_is_waited_for() -> None:
    quiet = Quiet(0)
    quiet.began()
    quiet.began()
    waiting = asyncio.create_task(quiet.comes(LONG))
    await turns()
    quiet.ended()
    await turns()
    assert not waiting.done()
    quiet.ended()
    assert await waiting


async def test_a_request_soon_after_another_is_the_same_pull() -> None:
    quiet = Quiet(LONG)
    quiet.began()
    waiting = asyncio.create_task(quiet.comes(2 * LONG))
    await turns()
    for _ in range(3):
        quiet.ended()
        await turns()
        quiet.began()
        await turns()
    assert not waiting.done()
    waiting.cancel()


async def test_others_that_fetch_from_here_are_waited_for() -> None:
    """What this agent alone holds they would take from upstream once more."""
    given = iter([0, 5, 5, 9, 9, 9])
    quiet = Quiet(0, given=lambda: next(given), clock=lambda: 0.0)
    assert await quiet.comes(LONG)
    assert not list(given), "three looks: the third found that nothing more was sent"


async def test_others_that_never_end_are_not_waited_for_for_ever() -> None:
    """In a large cluster somebody always fetches something."""
    sent, now = 0, 0.0

    def given() -> int:
        nonlocal sent
        sent += 1
        return sent

    def clock() -> float:
        nonlocal now
        now += GIVING / 4
        return now

    assert await Quiet(0, given=given, clock=clock).comes(LONG)
    assert now == pytest.approx(GIVING * 5 / 4), "as long as that from the first look on"


async def test_the_wait_has_an_end() -> None:
    quiet = Quiet(0)
    quiet.began()
    assert not await quiet.comes(0)


@pytest.mark.parametrize(
    ("query", "busy", "status", "text"),
    [
        ("?within=60", False, 200, "idle"),
        ("?within=0.01", True, 200, "1 requests are under way"),
        ("", True, 200, "1 requests are under way"),
        ("?within=soon", False, 400, "within is a number of seconds"),
        ("?within=-1", False, 400, "within is a number of seconds"),
        ("?within=nan", False, 400, "within is a number of seconds"),
        ("?within=86400", False, 400, "within is a number of seconds"),
    ],
)
async def test_kubernetes_asks_by_http(query: str, busy: bool, status: int, text: str) -> None:
    quiet = Quiet(0)
    if busy:
        quiet.began()
    site = make_site(FrontMetrics(CollectorRegistry()), lambda: True, dict, quiet)
    where = Endpoint("127.0.0.1", free_port())
    url = f"http://{where}/idle{query}"
    async with listening(site, where, grace=0.1), aiohttp.ClientSession() as http, http.get(url) as answer:
        assert answer.status == status
        assert (await answer.text()).startswith(text)


async def test_only_a_few_may_wait() -> None:
    quiet = Quiet(0)
    quiet.began()
    held = [asyncio.create_task(quiet.comes(LONG)) for _ in range(MOST_WAITING)]
    await turns()
    site = make_site(FrontMetrics(CollectorRegistry()), lambda: True, dict, quiet)
    where = Endpoint("127.0.0.1", free_port())
    url = f"http://{where}/idle?within=60"
    async with listening(site, where, grace=0.1), aiohttp.ClientSession() as http, http.get(url) as answer:
        assert answer.status == 503
    quiet.ended()
    assert all(await asyncio.gather(*held))
    assert quiet.waiting == 0
