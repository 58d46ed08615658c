"""Membership from DNS names and static networks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiodns
import pytest

from tracker.errors import NameUnresolved
from tracker.members.backoff import Backoff
from tracker.members.dns import DnsDiscovery, addresses
from tracker.members.static import StaticDiscovery


class Names:
    """Answers one look after another; the last one for ever. An exception is raised."""

    def __init__(self, *answers: Iterable[str] | Exception) -> None:
        self.answers = list(answers)
        self.looks = 0

    async def __call__(self, name: str) -> Iterable[str]:
        self.looks += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def follow(names: Names, changes: int) -> list[tuple[bool, bool, bool]]:
    """(ready, .1 is member, .2 is member) after each of the first *changes* changes."""
    discovery = DnsDiscovery(["agents"], interval=0.001, resolve=names, backoff=Backoff(0.001, 0.001))
    seen: list[tuple[bool, bool, bool]] = []
    enough = asyncio.Event()

    def on_change() -> None:
        seen.append((discovery.ready, discovery.is_member("10.0.0.1"), discovery.is_member("::ffff:10.0.0.2")))
        if len(seen) == changes:
            enough.set()

    assert not discovery.ready
    task = asyncio.create_task(discovery.run(on_change))
    async with asyncio.timeout(10):
        await enough.wait()
    task.cancel()
    await asyncio.wait([task])
    return seen


async def test_members_follow_the_name() -> None:
    names = Names(["10.0.0.1"], ["10.0.0.1"], ["10.0.0.1", "10.0.0.2"], ["10.0.0.2"])
    assert await follow(names, 3) == [(True, True, False), (True, True, True), (True, False, True)]


async def test_a_name_that_does_not_resolve_keeps_its_last_addresses() -> None:
    names = Names(["10.0.0.1"], NameUnresolved("no server"), [], TimeoutError(), ["10.0.0.2"])
    assert await follow(names, 2) == [(True, True, False), (True, False, True)]
    assert names.looks >= 5


async def test_nobody_is_ready_before_the_first_answer() -> None:
    names = Names(NameUnresolved("not yet"), NameUnresolved("not yet"), ["10.0.0.1"])
    assert await follow(names, 1) == [(True, True, False)]
    assert names.looks == 3


async def test_the_system_resolver_knows_this_machine() -> None:
    async with aiodns.DNSResolver(timeout=2, tries=1) as resolver:
        assert "127.0.0.1" in await addresses(resolver, "localhost")
        assert await addresses(resolver, "192.0.2.7") == ["192.0.2.7"]


async def test_a_name_that_nobody_has_is_unresolved() -> None:
    # RFC 6761 section 6.3/6.4: names under .invalid exist nowhere; the server asked here is a closed port.
    async with aiodns.DNSResolver(nameservers=["127.0.0.1"], udp_port=1, tcp_port=1, timeout=0.2, tries=1) as resolver:
        with pytest.raises(NameUnresolved):
            await addresses(resolver, "agents.invalid")


async def test_static_networks() -> None:
    static = StaticDiscovery(["10.0.0.0/8", "fd00::/8", "192.0.2.7"], {"10.0.0.0/8": "a", "10.1.0.0/16": "b"})
    assert static.ready
    assert [static.is_member(ip) for ip in ("10.9.9.9", "::ffff:10.0.0.1", "fd00::1", "192.0.2.7")] == [True] * 4
    assert [static.is_member(ip) for ip in ("11.0.0.1", "fe80::1", "192.0.2.8", "x", "")] == [False] * 5
    assert [static.zone(ip) for ip in ("10.0.0.1", "10.1.0.1", "fd00::1", "x")] == ["a", "b", "", ""]
    with pytest.raises(ValueError, match="network"):
        StaticDiscovery(["10.0.0.0/99"])
