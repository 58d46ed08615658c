"""The cluster's network: namespaces that hang on one switch, with routes to every node's pods.

Addresses, of both families, are a function of a place's number. All of it is private to the namespaces, so several
clusters may use the same addresses at once.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from tests.parts.kubecluster import claims
from tests.parts.procs import PartFailed, run

CONTROL, REGISTRY, FIRST_NODE = 1, 5, 11
"""Numbers of places: the control plane, the registry, the first node (the others follow)."""

OUTSIDE = 254
"""Number of this machine itself, where a person's commands come from."""

SERVICES = ("10.96.0.0/16", "fd00:96::/112")
"""Addresses of services."""

PODS = ("10.244.0.0/16", "fd00:244::/48")
"""Addresses of all pods."""


def address(number: int) -> str:
    """IPv4 address of a place."""
    return f"10.99.0.{number}"


def address6(number: int) -> str:
    """IPv6 address of a place."""
    return f"fd00:99::{number:x}"


def pods(number: int) -> tuple[str, str]:
    """The networks of one node's pods, IPv4 and IPv6."""
    return f"10.244.{number}.0/24", f"fd00:244:0:{number:x}::/64"


async def obstacle() -> str:
    """Why `Network.uplink` would fail, and what to do about it; "": it would not."""
    shown = await run(["ip", "-o", "addr", "show", "to", address(OUTSIDE)], deadline=20)
    return claims.in_the_way(shown, await asyncio.to_thread(claims.owners))


class Network:
    """The switch and the namespaces on it. Their names begin with *prefix*, which is this cluster's alone."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._places: dict[int, str] = {}
        self._nodes: set[int] = set()
        self._joining = asyncio.Lock()
        """One place after the other: each has to see all that came before it."""

    async def up(self) -> None:
        """Make the switch: a bridge in a namespace of its own."""
        await _ip("netns", "add", self.name("lan"))
        await self._in("lan", "link", "add", "switch", "type", "bridge")
        await self._in("lan", "link", "set", "switch", "up")

    async def down(self) -> None:
        """Take every namespace away, and with it what was in it."""
        for place in [*self._places.values(), "lan"]:
            with suppress(PartFailed):
                await _ip("netns", "del", self.name(place))
        self._places.clear()
        self._nodes.clear()

    def name(self, place: str) -> str:
        """The namespace of a place."""
        return f"{self.prefix}-{place}"

    def file(self, place: str) -> Path:
        """What `nsenter --net=` takes for a place."""
        return Path("/run/netns") / self.name(place)

    def enter(self, place: str, *words: str) -> list[str]:
        """A command line that is run in the place's network."""
        return ["nsenter", f"--net={self.file(place)}", "--", *words]

    async def join(self, place: str, number: int, *, node: bool = False) -> None:
        """A namespace of its own for *place*. A node forwards, and every other place learns the way to its pods."""
        async with self._joining:
            await _ip("netns", "add", self.name(place))
            self._places[number] = place
            await self._in(place, "link", "set", "lo", "up")
            for key in (
                "net.ipv4.ip_forward=1",
                "net.ipv6.conf.all.forwarding=1",
                "net.ipv6.conf.default.accept_dad=0",
            ):
                await run(self.enter(place, "sysctl", "-qw", key))
            await self._plug(self.name(place), number)
            for known in self._nodes:
                await self._route(number, known)
            if node:
                self._nodes.add(number)
                for other in self._places:
                    if other != number:
                        await self._route(other, number)

    async def uplink(self) -> None:
        """A leg of this machine itself: the cluster's addresses can be reached from it, by nobody else. Raises
        PartFailed if another cluster has one: the addresses are the same."""
        if why := await obstacle():
            raise PartFailed(why)
        inner, here = "outside", str(os.getpid())
        await self._in("lan", "link", "add", inner, "type", "veth", "peer", "name", self.name("up"), "netns", here)
        await self._in("lan", "link", "set", inner, "master", "switch", "up")
        await _ip("addr", "add", f"{address(OUTSIDE)}/24", "dev", self.name("up"))
        await _ip("link", "set", self.name("up"), "up")
        for number in self._nodes:
            await _ip("route", "add", pods(number)[0], "via", address(number))

    async def _plug(self, namespace: str, number: int) -> None:
        """A cable between the switch and `eth0` of a namespace."""
        port = f"port{number}"
        await self._in("lan", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        await self._in("lan", "link", "set", port, "master", "switch", "up")
        await _ip("-n", namespace, "addr", "add", f"{address(number)}/24", "dev", "eth0")
        await _ip("-n", namespace, "addr", "add", f"{address6(number)}/64", "dev", "eth0", "nodad")
        await _ip("-n", namespace, "link", "set", "eth0", "up")
        # Nobody is there to take it, but without a default route a service's address is not even tried.
        await _ip("-n", namespace, "route", "add", "default", "via", address(OUTSIDE))
        await _ip("-n", namespace, "route", "add", "default", "via", address6(OUTSIDE))

    async def _route(self, number: int, node: int) -> None:
        """Teach the place *number* the way to the pods of *node*."""
        for network, gateway in zip(pods(node), (address(node), address6(node)), strict=True):
            await self._in(self._places[number], "route", "replace", network, "via", gateway)

    async def _in(self, place: str, *words: str) -> None:
        await _ip("-n", self.name(place), *words)


async def _ip(*words: str) -> None:
    await run(["ip", *words], deadline=20)
