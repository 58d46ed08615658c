"""Announce and scrape: what any BitTorrent client may send, and what it is told (BEP 3, 7, 23, 48)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import bencodepy
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from swarm.blob.geometry import MIB, geometry
from swarm.blob.metainfo import info_hash, sealed_info
from swarm.protocol import wire
from tests.parts.procs import free_port
from tests.parts.talk import Talker, Town, digest_of, town, until, whole_of
from tracker.errors import Malformed
from tracker.state.announce import MAX_NUMWANT, Announce, Counts, Told, announce_answer, parse_announce, parse_scrape

D = digest_of("blob")
SIZE = 3 * MIB
INFO_HASH = info_hash(sealed_info(D, geometry(SIZE), whole_of(SIZE)))
PEER_ID = b"-XX0001-\x00\xff&=%+ ?#123"[:20]


def target(path: str = "/announce", /, **fields: object) -> str:
    """A request target: bytes are percent-encoded, None leaves a field out."""
    said: dict[str, Any] = {"info_hash": INFO_HASH, "peer_id": PEER_ID, "port": 7000, "left": 1, **fields}
    return (
        path
        + "?"
        + "&".join(
            f"{key}={quote_from_bytes(value) if isinstance(value, bytes) else value}"
            for key, value in said.items()
            if value is not None
        )
    )


@pytest_asyncio.fixture
async def here() -> AsyncIterator[Town]:
    """A tracker on which an agent at 127.0.0.9:1001 sealed the blob."""
    async with town(hosts=("shoal.example",)) as running:
        a = running.agent("a", 1001, "127.0.0.9")
        await a.hello(blob=SIZE)
        await a.whole(D, SIZE)
        yield running


async def ask(client: Talker, path: str = "/announce", /, **fields: object) -> dict[bytes, Any]:
    """The decoded answer."""
    status, body = await client.get(target(path, **fields))
    assert status == 200
    answer: dict[bytes, Any] = bencodepy.decode(body)
    return answer


# -- queries --------------------------------------------------------------------------------------------


@given(st.binary(min_size=20, max_size=20), st.binary(min_size=20, max_size=20))
def test_any_twenty_bytes_are_an_info_hash(key: bytes, peer_id: bytes) -> None:
    asked = parse_announce(target(info_hash=key, peer_id=peer_id), 50)
    assert (asked.info_hash, asked.peer_id) == (key, peer_id)
    assert parse_scrape(f"/scrape?info_hash={quote_from_bytes(key)}&info_hash={quote_from_bytes(key[::-1])}") == [
        key,
        key[::-1],
    ]


def test_bytes_that_came_unescaped_are_taken_as_they_are() -> None:
    raw = b"a+b/c~\xff\x80 12345678901"
    text = raw.decode("utf-8", "surrogateescape")
    assert parse_announce(target(info_hash=None) + f"&info_hash={text}", 50).info_hash == raw


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"info_hash": None}, "info_hash"),
        ({"info_hash": b"short"}, "info_hash"),
        ({"info_hash": b"x" * 21}, "info_hash"),
        ({"info_hash": "%zz" * 7}, "info_hash"),
        ({"peer_id": None}, "peer_id"),
        ({"peer_id": b""}, "peer_id"),
        ({"port": None}, "port"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": "x"}, "port"),
        ({"port": "-1"}, "port"),
        ({"port": "1" * 30}, "port"),
        ({"left": "many"}, "left"),
        ({"uploaded": "-5"}, "uploaded"),
        ({"downloaded": "1.5"}, "downloaded"),
        ({"numwant": "x"}, "numwant"),
        ({"event": "finished"}, "event"),
        ({"left": "1&left=2"}, "left"),
        ({"padding": "x" * 9000}, "too long"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        parse_announce(target(**fields), 50)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"numwant": 50, "compact": True, "event": "", "left": 1}),
        ({"numwant": 3}, {"numwant": 3}),
        ({"numwant": 0}, {"numwant": 0}),
        ({"numwant": -1}, {"numwant": 50}),
        ({"numwant": 100000}, {"numwant": MAX_NUMWANT}),
        ({"compact": 0}, {"compact": False}),
        ({"compact": 1}, {"compact": True}),
        ({"event": ""}, {"event": ""}),
        ({"event": "stopped"}, {"event": "stopped"}),
        ({"event": "paused"}, {"event": ""}),
        ({"left": None}, {"left": None}),
        ({"no_peer_id": 1}, {"no_peer_id": True}),
        ({"key": "ab", "ip": "10.0.0.1", "supportcrypto": 1}, {"port": 7000}),
    ],
)
def test_what_a_client_says_is_understood(fields: dict[str, object], expected: dict[str, object]) -> None:
    asked = parse_announce(target(**fields), 50)
    assert {key: getattr(asked, key) for key in expected} == expected


# -- answers --------------------------------------------------------------------------------------------


def asked(*, compact: bool = True, no_peer_id: bool = False) -> Announce:
    """An announce."""
    return Announce(INFO_HASH, PEER_ID, 1, 1, "", 50, compact=compact, no_peer_id=no_peer_id)


V4 = Told(socket.inet_aton("10.1.2.3"), 258, b"p" * 20)
V6 = Told(socket.inet_pton(socket.AF_INET6, "fd00::1"), 6881)


def test_compact_answers_have_both_families_apart() -> None:
    answer = bencodepy.decode(announce_answer(asked(), Counts(1, 2, 3), [V4, V6, V4], 60))
    assert answer[b"peers"] == b"\x0a\x01\x02\x03\x01\x02" * 2
    assert answer[b"peers6"] == socket.inet_pton(socket.AF_INET6, "fd00::1") + (6881).to_bytes(2, "big")
    assert (answer[b"complete"], answer[b"incomplete"], answer[b"interval"]) == (1, 2, 60)


@pytest.mark.parametrize("no_peer_id", [False, True])
def test_plain_answers_have_dictionaries(no_peer_id: bool) -> None:
    answer = bencodepy.decode(
        announce_answer(asked(compact=False, no_peer_id=no_peer_id), Counts(0, 0, 0), [V4, V6], 60)
    )
    first, second = answer[b"peers"]
    assert (first[b"ip"], first[b"port"], second[b"ip"]) == (b"10.1.2.3", 258, b"fd00::1")
    assert first.get(b"peer id") == (None if no_peer_id else b"p" * 20)


# -- over HTTP ------------------------------------------------------------------------------------------


async def test_a_client_is_handed_the_agents_that_hold_the_blob(here: Town) -> None:
    answer = await ask(here.agent("c"), event="started")
    assert answer[b"peers"] == socket.inet_aton("127.0.0.9") + (1001).to_bytes(2, "big")
    assert (answer[b"complete"], answer[b"incomplete"]) == (1, 1)
    assert answer[b"interval"] > 0


async def test_agents_and_clients_are_handed_clients(here: Town) -> None:
    client, agent = here.agent("c", ip="127.0.0.3"), here.agent("b", 1002)
    await ask(client, event="started")
    assert wire.Peer(ip="127.0.0.3", port=7000) in (await agent.board(D)).peers
    other = here.agent("d", ip="127.0.0.4")
    (first, *_) = [p for p in (await ask(other, compact=0, port=7001))[b"peers"] if p[b"ip"] == b"127.0.0.3"]
    assert first[b"peer id"] == PEER_ID
    await ask(client, event="stopped")
    assert wire.Peer(ip="127.0.0.3", port=7000) not in (await agent.board(D)).peers


async def test_a_scrape_counts(here: Town) -> None:
    client = here.agent("c")
    await ask(client, event="started")
    await ask(client, left=0, event="completed")
    files = (await ask(client, "/scrape", peer_id=None))[b"files"]
    assert files == {INFO_HASH: {b"complete": 2, b"downloaded": 1, b"incomplete": 0}}
    unknown = await ask(client, "/scrape", info_hash=b"x" * 20)
    assert unknown == {b"files": {}}
    assert b"failure reason" in await ask(client, "/scrape", info_hash=None)


async def test_a_client_that_no_longer_announces_is_forgotten() -> None:
    async with town(interval=0.05) as here:
        a = here.agent("a", 1001)
        await a.whole(D, SIZE)
        await ask(here.agent("c"))
        swarm = here.server.cluster.swarms.get(D)
        assert swarm is not None
        await until(lambda: not swarm.announcers)
        assert swarm.pool.holders == len(swarm.pool)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"info_hash": b"y" * 20}, b"unknown torrent"),
        ({"info_hash": None}, b"info_hash"),
        ({"port": 0}, b"port"),
    ],
)
async def test_refusals_are_bencoded(here: Town, fields: dict[str, object], reason: bytes) -> None:
    assert reason in (await ask(here.agent("c"), **fields))[b"failure reason"]


async def test_an_unsealed_blob_has_no_torrent(here: Town) -> None:
    a, other = here.agent("b", 1002), digest_of("other")
    await a.bring_in(other, SIZE)
    key = info_hash(sealed_info(other, geometry(SIZE), whole_of(SIZE)))
    assert b"failure reason" in await ask(a, info_hash=key)
    assert (await a.get(f"/torrents/{other}.torrent"))[0] == 404
    await a.seal(other)
    assert b"peers" in await ask(a, info_hash=key)


async def test_an_answer_is_one_write_and_the_connection_lives_on(here: Town) -> None:
    """Two requests on one raw connection: each answer is there whole with the first read."""
    loop = asyncio.get_running_loop()
    host, port = here.server.url.removeprefix("http://").rsplit(":", 1)
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, (host, int(port)))
        for _ in range(2):
            await loop.sock_sendall(client, f"GET {target()} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
            head, _, body = (await loop.sock_recv(client, 65536)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert b"peers" in bencodepy.decode(body)


async def test_the_torrent_names_the_tracker_as_it_was_asked_for(here: Town) -> None:
    client = here.agent("c")
    status, body = await client.get(f"/torrents/{D}.torrent", Host="shoal.example:6969")
    torrent = bencodepy.decode(body)
    assert status == 200
    assert torrent[b"announce"] == b"http://shoal.example:6969/announce"
    assert info_hash(bencodepy.encode(torrent[b"info"])) == INFO_HASH
    assert (await client.get(f"/torrents/{D}.torrent", Host="a/b?c"))[0] == 403, "no name of this tracker"
    assert (await client.get("/torrents/sha256:00.torrent"))[0] == 400
    assert (await client.get(f"/torrents/{D}"))[0] == 404


async def test_the_torrent_names_holders_that_give_it_over_http_to_members_only(here: Town) -> None:
    """BEP 19. The agent that sealed it has no lane; one at 127.0.0.11 has."""
    b = here.agent("b", 1002, "127.0.0.11")
    b.me["lane"] = 1003
    await b.hello(blob=SIZE)
    client = here.agent("c")
    _, body = await client.get(f"/torrents/{D}.torrent", Host="shoal.example:6969")
    assert bencodepy.decode(body)[b"url-list"] == [b"http://127.0.0.11:1003/"]
    b.me["lane"] = 0
    await b.hello(blob=SIZE)
    _, body = await client.get(f"/torrents/{D}.torrent", Host="shoal.example:6969")
    assert b"url-list" not in bencodepy.decode(body)


@pytest.mark.needs_aria2
async def test_aria2_announces(here: Town, tmp_path: Path) -> None:
    """A BitTorrent client that knows nothing of us is understood, and becomes a peer of others."""
    port = free_port()
    torrent = tmp_path / "blob.torrent"
    torrent.write_bytes((await here.agent("c").get(f"/torrents/{D}.torrent"))[1])
    aria2 = await asyncio.create_subprocess_exec(
        "aria2c", "--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false",
        "--interface=127.0.0.1", f"--listen-port={port}", "--quiet", f"--dir={tmp_path}", str(torrent),
    )  # fmt: skip
    try:
        swarm = here.server.cluster.swarms.get(D)
        assert swarm is not None
        await until(lambda: f"127.0.0.1:{port}" in swarm.announcers)
        assert not swarm.announcers[f"127.0.0.1:{port}"].complete
        assert wire.Peer(ip="127.0.0.1", port=port) in (await here.agent("b", 1002).board(D)).peers
    finally:
        if aria2.returncode is None:
            aria2.kill()
        await aria2.wait()
