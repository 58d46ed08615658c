"""The trackers as an agent sees them: whose a digest is, found by DNS, left when they fail, gone back to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.flags import tracker_urls
from swarm.blob.errors import TrackerError
from swarm.protocol import wire
from swarm.tracking import link as links
from swarm.tracking import trackers
from swarm.tracking.boards import RemoteBoard
from swarm.tracking.doubts import Doubts
from swarm.tracking.trackers import Link, Trackers, rendezvous
from tests.parts.harbour import Nobody
from tests.parts.procs import free_port
from tests.parts.talk import Town, digest_of, town, until

URLS = tuple(f"http://10.0.0.{i}:6969" for i in range(1, 4))


class Holder(Nobody):
    """Holds one blob."""

    def held_blobs(self) -> Iterable[wire.CompleteBlob]:
        yield wire.CompleteBlob(digest=digest_of("held"), size=5)


class Seen:
    """An agent's trackers, and a way to wait for what happens to them."""

    def __init__(self, *urls: str) -> None:
        self.all = Trackers(urls, "node", Holder())
        self._changed = asyncio.Event()
        self.all.on_change(self._changed.set)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    async def up(self, *urls: str) -> None:
        """Wait until exactly these answer."""
        await self.until(lambda: {link.url for link in self.all.up()} == set(urls))

    def whose(self, digest: str) -> str:
        """The URL of the tracker that is responsible for *digest* now."""
        link = self.all.pick(digest)
        return link.url if link is not None else ""


@asynccontextmanager
async def seeing(*urls: str) -> AsyncIterator[Seen]:
    """An agent that looks for these trackers."""
    seen = Seen(*urls)
    await seen.all.start(6881)
    try:
        yield seen
    finally:
        await seen.all.close()


@asynccontextmanager
async def names(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, list[str]]]:
    """What names of this test mean; a name without addresses does not resolve. Asked often."""
    monkeypatch.setattr(trackers, "_RESOLVE_EVERY", 0.02)
    loop, known = asyncio.get_running_loop(), dict[str, list[str]]()
    real = loop.getaddrinfo

    async def resolve(host: Any, port: Any, **asked: Any) -> Any:
        if host not in known:
            return await real(host, port, **asked)
        if not known[host]:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [entry for ip in known[host] for entry in await real(ip, port, **asked)]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    yield known


@given(st.sets(st.sampled_from(URLS), min_size=1), st.text())
def test_all_agree_on_a_tracker_and_only_the_digests_of_a_lost_one_move(urls: set[str], digest: str) -> None:
    order = rendezvous(digest, urls)
    assert order == rendezvous(digest, sorted(urls, reverse=True))
    assert sorted(order) == sorted(urls)
    for lost in urls:
        assert rendezvous(digest, urls - {lost}) == [url for url in order if url != lost]


def test_digests_are_spread_evenly() -> None:
    counts = Counter(rendezvous(digest_of(str(i)), URLS)[0] for i in range(3000))
    assert set(counts) == set(URLS)
    assert min(counts.values()) > 900


@pytest.mark.parametrize(
    ("url", "addresses", "found"),
    [
        ("dns+http://t:6969", ["10.0.0.2", "10.0.0.1", "10.0.0.1"], ("http://10.0.0.1:6969", "http://10.0.0.2:6969")),
        ("dns+http://t", ["10.0.0.1"], ("http://10.0.0.1:6969",)),
        ("dns+https://t:443", ["fd00::1"], ("https://[fd00::1]:443",)),
        ("dns+http://t:6969", ["fd00::1", "10.0.0.1", "fd00::2"], ("http://10.0.0.1:6969",)),
        ("dns+http://t:6969", ["fe80::1%eth0"], ("http://[fe80::1]:6969",)),
        ("dns+http://t:6969", [], ()),
    ],
)
def test_the_trackers_behind_a_name(url: str, addresses: list[str], found: tuple[str, ...]) -> None:
    """A tracker with an address of each family is one tracker."""
    assert tracker_urls(url, addresses) == found


async def test_a_digest_goes_to_the_next_tracker_when_its_own_is_gone_and_back_when_it_returns() -> None:
    port = free_port()
    async with town() as other:
        first = f"http://127.0.0.1:{port}"
        digest = next(d for i in range(99) if rendezvous(d := digest_of(str(i)), [first, other.server.url])[0] == first)
        async with seeing(first, other.server.url) as seen:
            await seen.up(other.server.url)  # nobody is there yet: no request waits for it
            assert seen.whose(digest) == other.server.url
            async with at(port):
                await seen.up(first, other.server.url)
                assert seen.whose(digest) == first
            await seen.up(other.server.url)
            assert seen.whose(digest) == other.server.url
            async with at(port) as again:
                await seen.up(first, other.server.url)
                assert seen.whose(digest) == first
                (agent,) = again.server.cluster.agents.all()
                assert agent.held == {digest_of("held")}, "a tracker that starts is told everything again"


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_tracker_that_was_away_is_tried_as_soon_as_something_begins(
    hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that begins without the tracker comes twice; a try that *hangs* is not waited for to its end."""
    monkeypatch.setattr(trackers, "_RETRY_FIRST", 3600.0)
    monkeypatch.setattr(trackers, "_HANGS", 0.01)
    monkeypatch.setattr(links, "CONNECT_DEADLINE", 3600.0)
    port = free_port()
    with contextlib.ExitStack() as sockets:
        silent = sockets.enter_context(socket.create_server(("127.0.0.1", port))) if hangs else None
        async with seeing(f"http://127.0.0.1:{port}") as seen:
            (link,) = seen.all.links()
            if silent is None:
                await until(lambda: len(seen.all._seldom) > 0)  # nobody was there
            else:
                silent.setblocking(False)
                sockets.enter_context((await asyncio.get_running_loop().sock_accept(silent))[0])
                silent.close()
            async with at(port):
                seen.all.stir()
                await seen.up(link.url)


async def test_a_tracker_that_answers_nothing_is_left_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and is silent, as one on a node that is stuck: a call ends after CALL_DEADLINE."""
    monkeypatch.setattr(trackers, "CALL_DEADLINE", 0.05)
    async with town() as one, town() as two, seeing(one.server.url, two.server.url) as seen:
        await seen.up(one.server.url, two.server.url)
        stuck = asyncio.Event()
        link = next(link for link in seen.all.up() if link.url == one.server.url)
        assert link.patience == 0.05

        async def never(*_: Any) -> bytes:
            await stuck.wait()
            return b""

        monkeypatch.setitem(one.server._verbs, "board", never)
        digest = digest_of("x")
        poll = wire.BoardPoll(**seen.all.me(), digest=digest)
        with pytest.raises(TrackerError):
            await link.call("/v1/board", poll, wire.BoardAnswer)
        board = RemoteBoard(link)
        with pytest.raises(TrackerError):
            await board.poll(msgspec.structs.replace(poll, incarnation="joined"))
        elsewhere = seen.all.pick(digest)
        assert elsewhere is not None
        assert elsewhere.url == two.server.url, "the blob's board is kept elsewhere for a while"
        await seen.all._look()
        assert len(seen.all.up()) == 2, "it answers other questions"
        stuck.set()


async def test_when_no_tracker_gives_a_sign_of_life_all_are_down_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are frozen: the kernel takes connections, and nobody answers."""
    async with town() as one, town() as two, seeing(one.server.url, two.server.url) as seen:
        await seen.up(one.server.url, two.server.url)
        link = seen.all.pick(digest_of("x"))
        assert link is not None
        asked = 0

        async def dead(_: Link) -> bool:
            nonlocal asked
            asked += 1
            return False

        async def never(*_: Any) -> bytes:
            await asyncio.Event().wait()
            return b""

        monkeypatch.setattr(Link, "alive", dead)
        for here in (one, two):
            monkeypatch.setitem(here.server._verbs, "board", never)
            monkeypatch.setitem(here.server._verbs, "agent", never)
        poll = wire.BoardPoll(**seen.all.me(), digest=digest_of("x"))
        answers = await asyncio.gather(*(RemoteBoard(link).poll(poll) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(answer, TrackerError) for answer in answers)
        assert (seen.all.up(), asked) == ([], 2), "all are asked once for all who wait"


async def test_a_blob_returns_to_a_tracker_whose_board_failed_only_after_longer_and_longer_pauses() -> None:
    doubts, now, pauses = Doubts(), 0.0, []
    for _ in range(8):
        until = doubts.failed("t", "d", now)
        assert doubts.shuns("t", "d", until - 0.1)
        assert not doubts.shuns("t", "d", until)
        assert not doubts.shuns("t", "other", now)
        assert doubts.failed("t", "d", now) == until, "calls that fail together are one failure"
        pauses.append(until - now)
        now = until
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


class Notes:
    """Who looks after a tracker, and notes which blobs it failed for."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    async def silent(self) -> None:
        return None

    def failed(self, link: Link, digest: str = "") -> None:
        self.failures.append(digest)


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"oops", b"", b"x" * 20_000_000, b'{"version": 1e999}'])
@pytest.mark.parametrize("status", [200, 404, 500])
async def test_an_answer_that_makes_no_sense_is_a_failure_of_that_board(status: int, body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    app = web.Application()
    app.router.add_post("/v1/board", answer)
    server = TestServer(app)
    await server.start_server()
    notes = Notes()
    async with aiohttp.ClientSession() as http:
        link = Link(str(server.make_url("")).rstrip("/"), http, notes)
        poll = wire.BoardPoll(node="n", port=1, session="s", digest=digest_of("x"))
        with pytest.raises(TrackerError):
            await RemoteBoard(link).poll(poll)
    await server.close()
    assert notes.failures == [digest_of("x")]


@pytest.mark.parametrize(("told", "asked"), [(0.0, 25.0), (-1.0, 25.0), (40.0, 40.0), (1e6, 60.0)])
async def test_a_tracker_says_for_how_long_it_will_hold_the_next_poll(told: float, asked: float) -> None:
    """One with thousands of agents: without that their polls alone are a fifth of a core."""
    waits: asyncio.Queue[float] = asyncio.Queue()

    async def answer(request: web.Request) -> web.Response:
        waits.put_nowait(wire.decode(await request.read(), wire.AgentPoll).wait)
        return web.Response(body=wire.encode(wire.AgentAnswer(hold=told)))

    app = web.Application()
    app.router.add_post("/v1/agent", answer)
    server = TestServer(app)
    await server.start_server()
    async with asyncio.timeout(20), seeing(str(server.make_url("")).rstrip("/")):
        while (wait := await waits.get()) == 0:
            pass
    await server.close()
    assert wait == asked


async def test_the_only_tracker_is_given_more_time() -> None:
    async with town() as here, seeing(here.server.url) as seen:
        await seen.up(here.server.url)
        (link,) = seen.all.up()
        assert link.patience == trackers.LAST_DEADLINE > trackers.CALL_DEADLINE


@pytest.mark.parametrize("busy", [True, False])
async def test_the_only_tracker_is_waited_for_while_it_is_late_with_everything(
    busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that answers others at once, and not this, keeps no board: sixteen agents that left a busy one were nine
    copies."""
    monkeypatch.setattr(links, "OTHERWISE", 0.05)
    monkeypatch.setattr(links, "DOUBT", 0.02)
    async with town() as here, seeing(here.server.url) as seen:
        await seen.up(here.server.url)
        (link,) = seen.all.up()
        real, turn, signs = here.server._verbs["board"], asyncio.Event(), 0

        async def late(*asked: Any) -> Any:
            await turn.wait()
            return await real(*asked)

        async def sign(one: Link) -> bool:
            nonlocal signs
            signs += 1
            await asyncio.sleep(0)
            one.pulse = 1.0 if busy else 0.01
            if signs == 20:
                turn.set()
            return True

        monkeypatch.setitem(here.server._verbs, "board", late)
        monkeypatch.setattr(Link, "alive", sign)
        poll = wire.BoardPoll(**seen.all.me(), digest=digest_of("x"))
        if busy:
            assert (await RemoteBoard(link).poll(poll)).incarnation
            assert signs >= 20
        else:
            with pytest.raises(TrackerError, match="not this"):
                await RemoteBoard(link).poll(poll)
        turn.set()


async def test_trackers_come_and_go_with_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    one, two = (f"http://127.0.0.{i}:{port}" for i in (1, 2))
    async with names(monkeypatch) as known, at(port) as first, seeing(f"dns+http://trackers.test:{port}") as seen:
        known["trackers.test"] = ["127.0.0.1"]
        await seen.up(one)
        async with at(port, "127.0.0.2"):
            known["trackers.test"] = ["127.0.0.1", "127.0.0.2", "::1"]
            await seen.up(one, two)
            known["trackers.test"] = []
            await first.server.close()
            await seen.up(two)
            assert {link.url for link in seen.all.links()} == {one, two}, (
                "a name that does not resolve takes nobody away"
            )
            known["trackers.test"] = ["127.0.0.2"]
            async with asyncio.timeout(20):
                while len(seen.all.links()) > 1:  # noqa: ASYNC110 - nothing is said when one is forgotten
                    await asyncio.sleep(0.01)


async def test_a_name_forgets_only_its_own_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tracker is given by address, and down for now; the name does not know it, and must leave it alone."""
    port = free_port()
    fixed = f"http://127.0.0.1:{port}"
    async with names(monkeypatch) as known, at(port := free_port(), "127.0.0.2"):
        known["trackers.test"] = ["127.0.0.2"]
        async with seeing(fixed, f"dns+http://trackers.test:{port}") as seen:
            await seen.up(f"http://127.0.0.2:{port}")
            async with at(int(fixed.rpartition(":")[2])):
                await seen.up(fixed, f"http://127.0.0.2:{port}")


async def test_the_kernel_notices_a_tracker_whose_node_vanished() -> None:
    made = trackers._socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 1)))
    with made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert tuple(made.getsockopt(socket.IPPROTO_TCP, option) for option in options) == trackers._ALIVE


@asynccontextmanager
async def at(port: int, ip: str = "127.0.0.1") -> AsyncIterator[Town]:
    """A tracker at this address."""
    async with town(listen=(ip, port)) as here:
        yield here
