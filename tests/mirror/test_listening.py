"""Where the mirror listens."""

from __future__ import annotations

import contextlib
import socket

import aiohttp
import pytest
from aiohttp import web

from mirror.serve import listening
from swarm.base.flags import Endpoint
from tests.parts.procs import free_port


def has_ipv6() -> bool:
    """Whether this machine has IPv6 on its loopback device."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.parametrize("host", ["::", ""], ids=["two colons", "no address"])
async def test_every_address_is_one_of_either_family(host: str) -> None:
    """`[::]:30000` as the tracker and the swarm's port take it, and `:30000`."""
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    where = Endpoint(host, free_port())
    async with listening(web.Application(), where, grace=0.1), aiohttp.ClientSession() as http:
        for address in ("127.0.0.1", "[::1]"):
            async with http.get(f"http://{address}:{where.port}/") as answer:
                assert answer.status == 404


async def test_one_address_is_that_alone() -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    where = Endpoint("::1", free_port())
    async with listening(web.Application(), where, grace=0.1), aiohttp.ClientSession() as http:
        async with http.get(f"http://[::1]:{where.port}/") as answer:
            assert answer.status == 404
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(f"http://127.0.0.1:{where.port}/")
