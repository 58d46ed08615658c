"""The swarm port: who connects and proves nothing is closed, bounded by address, and not accepted for a while."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.peer import strangers
from swarm.peer.session import Session
from swarm.peer.strangers import CALM, HURRY, IN_ALL, PATIENCE, PER_ADDRESS, Accepted, Door, bar, judge, look
from tests.parts.procs import ready
from tests.swarm.peer.test_session import DEADLINE, node


def crowd(count: int, ip: str = "10.0.0.9", first: int = 1000) -> list[Accepted]:
    """*count* connections of one address."""
    return [Accepted(first + n, ip, first + n) for n in range(count)]


def test_who_proves_nothing_is_closed_after_a_while_and_sooner_in_a_crowd() -> None:
    one = crowd(1)
    assert judge(dict.fromkeys(one, 0.0), (), PATIENCE - 0.1).close == ()
    assert judge(dict.fromkeys(one, 0.0), (), PATIENCE).close == (one[0],)
    many = crowd(CALM + 1)
    assert set(judge(dict.fromkeys(many, 0.0), (), HURRY).close) == set(many)


def test_who_proved_itself_stays_however_long() -> None:
    many = crowd(CALM * 4)
    ends = {(one.ip, one.port) for one in many}
    assert judge(dict.fromkeys(many, 0.0), ends, 1e6).close == ()


def test_an_address_that_floods_is_closed_and_barred() -> None:
    flood, other = crowd(PER_ADDRESS + 1), crowd(3, "10.0.0.1", 9000)
    found = judge(dict.fromkeys(flood + other, 0.0), (), 0.0)
    assert set(found.close) == set(flood)
    assert found.bar == {"10.0.0.9"}
    assert found.flood


def test_an_address_that_proved_itself_is_bounded_and_not_barred() -> None:
    flood, honest = crowd(PER_ADDRESS + 5), crowd(1, "10.0.0.9", 9000)
    since = {one: float(n) for n, one in enumerate(flood)} | {honest[0]: 0.0}
    found = judge(since, {(honest[0].ip, honest[0].port)}, 0.0)
    assert found.bar == frozenset()
    assert found.close == tuple(flood[:5])  # the oldest


def test_many_addresses_together_are_bounded() -> None:
    since = {Accepted(n, f"10.0.{n // 250}.{n % 250}", 5000): float(n) / 1e6 for n in range(IN_ALL + 7)}
    assert [one.fd for one in judge(since, (), 0.1).close] == list(range(7))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listener that nobody accepts from."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as made:
        yield made


@pytest.fixture
def filters() -> None:
    """Some kernels attach them for root alone."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        if os.geteuid() and not bar(made.fileno(), socket.AF_INET, ["127.0.0.9"]):
            pytest.skip("only root may attach socket filters here")


def dial(source: str, to: tuple[str, int]) -> socket.socket:
    """A connection on its way."""
    made = socket.socket()
    made.setblocking(False)
    made.bind((source, 0))
    assert made.connect_ex(to) in (0, errno.EINPROGRESS)
    return made


def is_through(made: socket.socket) -> bool:
    """Whether the kernel of the other end has answered."""
    return ready(made.fileno(), select.POLLOUT, 0)


@pytest.mark.usefixtures("filters")
def test_the_kernel_drops_the_syns_of_barred_addresses_and_nothing_else(listener: socket.socket) -> None:
    at = listener.getsockname()
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(dial("127.0.2.9", at))
        inner, _ = listener.accept()
        stack.enter_context(inner)
        assert bar(listener.fileno(), socket.AF_INET, ["127.0.2.9", "127.0.2.11", "fd00::1"])
        barred = [stack.enter_context(dial(ip, at)) for ip in ("127.0.2.9", "127.0.2.11")]
        free = stack.enter_context(dial("127.0.2.10", at))  # loopback: answered within connect
        assert is_through(free)
        assert not any(is_through(one) for one in barred)
        before.send(b"x")  # what was accepted before goes on
        assert inner.recv(1) == b"x"
        assert bar(listener.fileno(), socket.AF_INET, [])
        assert is_through(stack.enter_context(dial("127.0.2.9", at)))


@pytest.mark.usefixtures("filters")
def test_an_ipv6_address_is_barred_as_a_whole() -> None:
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        except OSError:
            pytest.skip("no IPv6 here")
        dialled = stack.enter_context(socket.socket(socket.AF_INET6))
        dialled.setblocking(False)
        assert bar(listener.fileno(), socket.AF_INET6, ["::2", "::1"])
        dialled.connect_ex(listener.getsockname())
        assert not is_through(dialled)
        assert bar(listener.fileno(), socket.AF_INET6, ["::2", "1::1"])
        other = stack.enter_context(socket.socket(socket.AF_INET6))
        other.setblocking(False)
        other.connect_ex(listener.getsockname())
        assert is_through(other)


def test_a_look_sees_the_sockets_of_one_port_and_no_others(listener: socket.socket) -> None:
    with dial("127.0.2.9", listener.getsockname()) as dialled, listener.accept()[0] as inner:
        seen = look(listener.getsockname()[1])
        assert seen.listeners == [(listener.fileno(), socket.AF_INET)]
        assert seen.accepted == [Accepted(inner.fileno(), *dialled.getsockname())]
        assert not strangers.shut(seen.accepted[0]._replace(port=1))  # the descriptor is another connection's
        assert strangers.shut(seen.accepted[0])
        assert ready(dialled.fileno(), select.POLLIN, DEADLINE)
        assert dialled.recv(1) == b""


def door_of(session: Session) -> Door:
    """Its door."""
    assert session._door is not None
    return session._door


@pytest.mark.usefixtures("filters")
async def test_a_flood_on_the_swarm_port_is_closed_and_members_go_on(tmp_path: Path) -> None:
    """The real engine under more silent connections than one address may have: a member still gets the blob."""
    async with node("127.0.0.1", tmp_path / "a") as holder, node("127.0.0.2", tmp_path / "b") as seeker:
        await holder.add(seed=True)
        door = door_of(holder.session)
        with contextlib.ExitStack() as stack:
            for batch in range(4):
                for _ in range((PER_ADDRESS + 64) // 4):
                    stack.enter_context(dial("127.0.2.9", holder.address))
                async with asyncio.timeout(DEADLINE):  # libtorrent's listen queue has 512 places
                    while len(look(holder.address[1]).accepted) < (batch + 1) * ((PER_ADDRESS + 64) // 4):
                        await asyncio.to_thread(os.sched_yield)
            await door.tidy()
            assert door.shut == PER_ADDRESS + 64
            assert not is_through(stack.enter_context(dial("127.0.2.9", holder.address)))
            await seeker.add([holder.address])
            async with asyncio.timeout(DEADLINE):
                await seeker.whole.wait()
            await door.tidy()
            assert door.shut == PER_ADDRESS + 64  # the member's connection is proven
