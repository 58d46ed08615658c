"""Members by a DNS name: every A and AAAA record of it, for clusters without API access and plain machines.

The records of a headless Service that publishes addresses which are not ready are its pods, so this
follows a cluster with some seconds of delay and without any permission.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable

import aiodns

from tracker.errors import NameUnresolved
from tracker.members.backoff import USUAL, Backoff
from tracker.members.discovery import OnChange, Reason, canonical

log = logging.getLogger("shoal.tracker")

INTERVAL = 5.0
"""Seconds between two looks: the time to live that cluster DNS gives its records."""

DEADLINE = 5.0
"""Seconds for one look."""

MOST = 20_000
"""Addresses taken from one look at most."""


Resolve = Callable[[str], Awaitable[Iterable[str]]]
"""Name -> addresses. Raises NameUnresolved."""


class DnsDiscovery:
    """Everybody whose address is behind one of *names* is a member. There are no zones.

    A name that does not resolve keeps its last addresses: the members do not leave because the
    name server does.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        interval: float = INTERVAL,
        resolve: Resolve | None = None,
        backoff: Backoff = USUAL,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._names = tuple(names)
        self._interval = interval
        self._resolve = resolve
        self._backoff = backoff
        self._chance = chance
        self._known: dict[str, frozenset[str]] = {}
        self._members: frozenset[str] = frozenset()

    @property
    def ready(self) -> bool:
        """True once every name has resolved."""
        return len(self._known) == len(set(self._names))

    def is_member(self, ip: str) -> bool:
        try:
            return canonical(ip) in self._members
        except ValueError:
            return False

    def zone(self, ip: str) -> str:
        return ""

    def named(self, name: str) -> tuple[str, ...] | None:
        return None

    def name(self, ip: str) -> str:
        return ""

    def touched(self) -> frozenset[str] | None:
        return None

    def note(self, ip: str, reason: Reason, message: str) -> None:
        """There is no place for it but the log, which has it already."""

    async def run(self, on_change: OnChange) -> None:
        """Look again every *interval* seconds, until cancelled."""
        if self._resolve is not None:
            await self._follow(self._resolve, on_change)
            return
        async with aiodns.DNSResolver(timeout=DEADLINE / 2, tries=2) as resolver:

            async def resolve(name: str) -> Iterable[str]:
                return await addresses(resolver, name)

            await self._follow(resolve, on_change)

    async def _follow(self, resolve: Resolve, on_change: OnChange) -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in dict.fromkeys(self._names):
                tasks.create_task(self._follow_name(name, resolve, on_change))

    async def _follow_name(self, name: str, resolve: Resolve, on_change: OnChange) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(DEADLINE):
                    found = frozenset(sorted(map(canonical, await resolve(name)))[:MOST])
                if not found:
                    raise NameUnresolved("no address")
            except (NameUnresolved, TimeoutError) as error:
                failures += 1
                if failures == 1:
                    reason = str(error) or "no answer in time"
                    log.warning("discovery_failing", extra={"fields": {"resource": name, "reason": reason}})
                # Never slower than the usual interval: a name is cheap to ask.
                await asyncio.sleep(min(self._interval, self._backoff.delay(failures, self._chance())))
                continue
            if failures:
                log.info("discovery_back", extra={"fields": {"resource": name}})
            failures = 0
            if self._learn(name, found):
                on_change()
            await asyncio.sleep(self._interval)

    def _learn(self, name: str, found: frozenset[str]) -> bool:
        was_ready, before = self.ready, self._members
        self._known[name] = found
        self._members = frozenset().union(*self._known.values())
        return self._members != before or self.ready != was_ready


async def addresses(resolver: aiodns.DNSResolver, name: str) -> list[str]:
    """Every IPv4 and IPv6 address of *name*. Raises NameUnresolved."""
    try:
        found = await resolver.getaddrinfo(name, family=socket.AF_UNSPEC)
    except aiodns.error.DNSError as error:
        raise NameUnresolved(str(error.args[1]) if len(error.args) > 1 else "unresolved") from None
    texts = [node.addr[0] for node in found.nodes]
    return [text.decode() if isinstance(text, bytes) else text for text in texts]
