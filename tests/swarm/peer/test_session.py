"""Real libtorrent sessions that fetch from each other: who is dialled when, and which connections stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swarm.blob.digest import parse
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import sealed_info
from swarm.peer import session as sessions
from swarm.peer.owner import Owner
from swarm.peer.peers import LoopbackAnnounce, PeerAddress
from swarm.peer.session import Session, Torrent
from tests.parts.data import blob, digest_of
from tests.parts.storing import hashes_of

DATA = blob(3_000_000, seed=1)
CUT = geometry(len(DATA))
INFO = sealed_info(parse(digest_of(DATA)), CUT, hashes_of(DATA))
DEADLINE = 20.0


class Node(Owner):
    """A session, its directory, and the pieces that came to it."""

    def __init__(self, session: Session, address: PeerAddress, directory: Path) -> None:
        self.session = session
        self.address = address
        self.path = directory / "blob"
        self.peers: Sequence[PeerAddress] = ()
        self.came: set[int] = set()
        self.whole = asyncio.Event()

    async def add(self, peers: Sequence[PeerAddress] = (), *, seed: bool = False) -> Torrent:
        """The torrent of the blob, which a *seed* has. *peers* is looked at anew when they are asked for again."""
        self.path.write_bytes(DATA if seed else b"")
        self.peers = peers
        every = range(CUT.pieces)
        return await self.session.add(INFO, path=self.path, have=every if seed else (), wanted=every, owner=self)

    def dialled(self) -> Sequence[PeerAddress]:
        return self.peers

    def arrived(self, piece: int) -> None:
        self.came.add(piece)
        if len(self.came) == CUT.pieces:
            self.whole.set()


@asynccontextmanager
async def node(ip: str, directory: Path) -> AsyncIterator[Node]:
    """A node that listens on *ip*."""
    directory.mkdir()
    session = Session((ip, 0), on_bad_peer=lambda *_: None)
    port = await session.start()
    try:
        yield Node(session, (ip, port), directory)
    finally:
        await session.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes that know nothing of each other."""
    async with node("127.0.0.1", tmp_path / "a") as one, node("127.0.0.2", tmp_path / "b") as other:
        yield one, other


@pytest.fixture
def announces(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Requests that come to the trackers on loopback."""
    seen: list[bytes] = []
    answer: Callable[[LoopbackAnnounce, bytes], bytes] = LoopbackAnnounce.answer

    def watched(tracker: LoopbackAnnounce, target: bytes) -> bytes:
        seen.append(target)
        return answer(tracker, target)

    monkeypatch.setattr(LoopbackAnnounce, "answer", watched)
    return seen


def after(monkeypatch: pytest.MonkeyPatch, method: Callable[..., None]) -> asyncio.Event:
    """Set whenever a session has run *method* of it."""
    done = asyncio.Event()

    def watched(*args: object) -> None:
        method(*args)
        done.set()

    monkeypatch.setattr(Session, method.__name__, watched)
    for kind in [kind for kind, handler in sessions._HANDLERS.items() if handler is method]:
        monkeypatch.setitem(sessions._HANDLERS, kind, watched)
    return done


async def test_the_first_peers_are_dialled_without_an_announce(pair: tuple[Node, Node], announces: list[bytes]) -> None:
    holder, seeker = pair
    await holder.add(seed=True)
    await seeker.add([holder.address])
    async with asyncio.timeout(DEADLINE):
        await seeker.whole.wait()
    assert announces == []


async def test_later_peers_are_announced_and_dialled(pair: tuple[Node, Node], announces: list[bytes]) -> None:
    holder, seeker = pair
    peers: list[PeerAddress] = []
    torrent = await seeker.add(peers)
    await holder.add(seed=True)
    peers.append(holder.address)
    torrent.reannounce()
    async with asyncio.timeout(DEADLINE):
        await seeker.whole.wait()
    assert len(announces) == 1


async def test_a_peer_that_has_the_torrent_later_is_dialled_again(
    pair: tuple[Node, Node], announces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes the connection at first: nobody tells the seeker when to come back."""
    holder, seeker = pair
    refused = after(monkeypatch, Session._on_disconnected)
    await seeker.add([holder.address])
    async with asyncio.timeout(DEADLINE):
        await refused.wait()
        await holder.add(seed=True)
        await seeker.whole.wait()
    assert announces == []


async def test_idle_connections_are_closed_where_there_are_many(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, seeker = pair
    looked = after(monkeypatch, Session._bound_idle)

    async def closes_idle(most: int) -> bool:
        monkeypatch.setattr(sessions, "MANY_OPEN", most)
        looked.clear()
        seeker.session.count()
        async with asyncio.timeout(DEADLINE):
            await looked.wait()
        return bool(seeker.session._session.get_settings()["close_redundant_connections"])

    await holder.add(seed=True)
    await seeker.add([holder.address])
    async with asyncio.timeout(DEADLINE):
        await seeker.whole.wait()
    assert not await closes_idle(1), "one connection is not more than one"
    assert await closes_idle(0)
    assert not await closes_idle(10)
