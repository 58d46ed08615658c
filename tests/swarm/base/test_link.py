"""Connections of threads: when one that was kept may be used again."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import trustme

from swarm.base.link import Link


@contextmanager
def linked(*, encrypted: bool) -> Iterator[tuple[Link, socket.socket]]:
    """A link, and the socket at its other end."""
    listener = socket.create_server(("127.0.0.1", 0))
    mine = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    listener.close()
    if encrypted:
        authority = trustme.CA()
        server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server)
        authority.configure_trust(client)
        with ThreadPoolExecutor(1) as pool:
            shaken = pool.submit(server.wrap_socket, other, server_side=True)
            link = Link(mine, client, "127.0.0.1")
            other = shaken.result()
    else:
        link = Link(mine)
    try:
        yield link, other
    finally:
        link.close()
        other.close()


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_kept_connection_is_used_again_until_the_other_end_closes_it(encrypted: bool) -> None:
    """An encrypted one as well: each was taken for closed, after half a second, and dialled anew."""
    buffer = memoryview(bytearray(1000))
    with linked(encrypted=encrypted) as (link, other):
        for _ in range(2):
            other.sendall(b"HTTP/1.1 200 OK\r\n\r\nab")
            assert link.head(buffer, 5, 100) == b"HTTP/1.1 200 OK"
            got = b""
            while len(got) < 2:
                got += bytes(buffer[: link.fill(buffer[:2], 2)])
            assert got == b"ab"
            assert not link.stale()
        other.sendall(b"unasked")
        assert link.stale()
    with linked(encrypted=encrypted) as (link, other):
        other.close()
        assert link.stale()
        link.close()
        assert link.stale()


def test_a_head_without_an_end_is_not_read_for_ever() -> None:
    with linked(encrypted=False) as (link, other):
        other.sendall(b"x" * 300)
        with pytest.raises(OSError, match="no end"):
            link.head(memoryview(bytearray(1000)), 5, 200)
