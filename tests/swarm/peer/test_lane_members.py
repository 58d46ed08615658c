"""The lane between members: encrypted, and closed to everybody else."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path

import pytest

from swarm.base.link import Link, dial
from swarm.blob.digest import Digest
from swarm.blob.errors import Unserved
from swarm.identity.name import Role
from swarm.peer.lane import message
from swarm.peer.lane.errand import Errand, Owner
from swarm.peer.lane.lane import Lane
from swarm.peer.lane.offers import Offer
from tests.parts.lane import sample
from tests.swarm.identity.test_identity import authority, of, stranger


class Heedless(Owner):
    """Who has an errand run, and looks at its end alone."""


async def nothing(_digest: Digest) -> Offer | None:
    return None


async def test_pieces_come_encrypted_from_a_member(tmp_path: Path) -> None:
    ca, blob = authority(), sample(tmp_path, 5 * 1024 * 1024 + 77)
    giver, taker = Lane(nothing, of(ca, name="node-1")), Lane(nothing, of(ca, name="node-2"))
    giver.start("127.0.0.1", 0)
    taker.start("127.0.0.1", 0)
    giver.offer(blob.offer())
    with blob.empty() as fd:
        errand = Errand(
            blob.digest, blob.cut, fd, 0, blob.cut.pieces - 1,
            owner=Heedless(), holders=[("127.0.0.1", giver.port)], expected=blob.sums,
        )  # fmt: skip
        taker.submit(errand)
        await errand.ended
        assert os.pread(fd, blob.cut.size, 0) == blob.data
    await taker.close()
    await giver.close()


@pytest.mark.parametrize("kind", ["plain", "no certificate", "another authority", "a certificate that ended"])
async def test_who_is_no_member_gets_no_byte(tmp_path: Path, kind: str) -> None:
    ca, blob = authority(), sample(tmp_path, 1_000_000)
    giver = Lane(nothing, of(ca))
    giver.start("127.0.0.1", 0)
    giver.offer(blob.offer())
    context = stranger(kind, ca)

    def talk() -> bytes:
        sock = socket.create_connection(("127.0.0.1", giver.port), timeout=20)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=Role.AGENT.host)
        with sock:
            sock.sendall(f"GET /{blob.digest} HTTP/1.1\r\n\r\n".encode())
            return sock.recv(1000)

    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        assert await asyncio.to_thread(talk)
    assert giver.counts.sent == 0
    await giver.close()


async def test_an_agent_takes_nothing_from_who_is_no_member(tmp_path: Path) -> None:
    blob = sample(tmp_path, 1_000_000)
    giver, taker = Lane(nothing, of(authority())), Lane(nothing, of(authority()))
    giver.start("127.0.0.1", 0)
    taker.start("127.0.0.1", 0)
    giver.offer(blob.offer())
    with blob.empty() as fd:
        errand = Errand(
            blob.digest, blob.cut, fd, 0, 0,
            owner=Heedless(), holders=[("127.0.0.1", giver.port)], expected=blob.sums,
        )  # fmt: skip
        taker.submit(errand)
        with pytest.raises(Unserved):
            await errand.ended
    await taker.close()
    await giver.close()


async def test_a_kept_connection_between_members_is_used_again(tmp_path: Path) -> None:
    """A look at whether it is of use took half a second and said no: each window had a connection of its own."""
    ca, blob = authority(), sample(tmp_path, 300_000)
    giver = Lane(nothing, of(ca))
    giver.start("127.0.0.1", 0)
    giver.offer(blob.offer())
    tls = of(ca, name="node-2").client_context()

    def ask(link: Link) -> bytes:
        buffer, got = memoryview(bytearray(65536)), bytearray()
        link.send(message.request("127.0.0.1", blob.digest, 0, blob.cut.size))
        left = message.read_answer(link.head(buffer, 20.0, message.MOST_HEAD)).length
        while len(got) < left and (count := link.fill(buffer, left - len(got))):
            got += buffer[:count]
        return bytes(got)

    link = await asyncio.to_thread(dial, ("127.0.0.1", giver.port), tls=tls, host=Role.AGENT.host, patience=20.0)
    for _ in range(3):
        assert await asyncio.to_thread(ask, link) == blob.data
        assert not link.stale()
    await giver.close()
    assert link.stale()
    link.close()
