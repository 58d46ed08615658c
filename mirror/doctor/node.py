"""What the node gives an agent: room on its disk, names, a way through its proxy."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mirror.doctor.finding import Finding, ok, wrong
from swarm.base.flags import format_size

WITHIN = 3.0
"""Seconds for a name, or for a proxy's first word: both are on the way of every pull."""

LEAST = 0.05
"""Share of a disk's bytes and inodes that must be free: kubelet evicts pods below 10 % and 5 % by default."""

SKEW = 30.0
"""Seconds between two clocks above which tokens and certificates begin to be refused."""


def disk(store: Path, budget: int) -> Iterator[Finding]:
    """Whether *store* can grow to *budget* bytes."""
    place = next((path for path in (store, *store.parents) if path.exists()), Path("/"))
    try:
        room = os.statvfs(place)
    except OSError as problem:
        yield wrong("disk", f"{store} cannot be looked at: {problem.strerror}", f"ls -ld {store}")
        return
    size, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    faults = []
    if room.f_flag & os.ST_RDONLY:
        faults.append(wrong("disk", f"{place} is mounted read-only", f"mount -o remount,rw {place}"))
    elif store.exists() and not os.access(store, os.W_OK):
        faults.append(
            wrong("disk", f"{store} may not be written by uid {os.geteuid()}", f"chown {os.geteuid()} {store}")
        )
    if size and free < size * LEAST:
        faults.append(
            wrong(
                "disk",
                f"{place} has {format_size(free >> 20 << 20)} of {format_size(size >> 20 << 20)} left",
                f"free some, or give the agent a smaller --store-budget than {format_size(budget)}",
            )
        )
    if room.f_files and room.f_favail < room.f_files * LEAST:
        faults.append(wrong("disk", f"{place} has {room.f_favail} inodes left", f"df -i {place}, and free some"))
    if size and budget > size:
        faults.append(
            wrong(
                "disk",
                f"the budget of {format_size(budget)} is more than the whole disk",
                f"set --store-budget below {format_size(size >> 30 << 30)}",
            )
        )
    yield from faults or [ok("disk", f"{format_size(free >> 20 << 20)} free below {store}")]


async def names(hosts: Iterable[str]) -> list[Finding]:
    """Whether each of *hosts* has an address."""
    return [finding for host in dict.fromkeys(hosts) for finding in await _name(host)]


async def _name(host: str) -> list[Finding]:
    mend = f"getent hosts {host}, and mend /etc/resolv.conf or the cluster's DNS"
    try:
        async with asyncio.timeout(WITHIN):
            await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except TimeoutError:
        return [wrong("dns", f"no answer for {host} within {WITHIN:g} s", mend)]
    except OSError as problem:
        return [wrong("dns", f"{host} has no address ({problem.strerror or problem})", mend)]
    return []


def skewed(ours: float, theirs: float, whose: str) -> list[Finding]:
    """Whether two clocks, seconds since 1970, agree."""
    if abs(ours - theirs) <= SKEW:
        return []
    way = "ahead of" if ours > theirs else "behind"
    return [
        wrong(
            "clock",
            f"this node's clock is {abs(ours - theirs):.0f} s {way} that of {whose}",
            "timedatectl set-ntp true",
        )
    ]


def proxy_of(environment: Mapping[str, str]) -> str:
    """The proxy that HTTPS requests are told to take; "" for none."""
    return environment.get("HTTPS_PROXY") or environment.get("https_proxy") or ""


async def proxy(url: str, target: str) -> list[Finding]:
    """Whether the proxy at *url* opens a way to *target* (`host:port`) by CONNECT (RFC 9110, section 9.3.6)."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    shown = f"{parts.hostname}:{parts.port or 3128}"
    mend = f"curl -v -x http://{shown} https://{target}/v2/, and mend the proxy, or name {target} in NO_PROXY"
    writer = None
    try:
        async with asyncio.timeout(WITHIN):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 3128)
            writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            await writer.drain()
            first = (await reader.readline()).split()
    except TimeoutError:
        return [wrong("proxy", f"the proxy {shown} swallows requests: no word within {WITHIN:g} s", mend)]
    except OSError as problem:
        return [wrong("proxy", f"the proxy {shown} cannot be reached ({problem.strerror or problem})", mend)]
    finally:
        if writer is not None:
            writer.close()
    if len(first) < 2:
        return [wrong("proxy", f"the proxy {shown} closed the connection without an answer", mend)]
    if first[1] not in (b"200", b"407"):
        return [wrong("proxy", f"the proxy {shown} refuses {target} with {first[1].decode(errors='replace')}", mend)]
    return [ok("proxy", f"{shown} opens the way to {target}")]
