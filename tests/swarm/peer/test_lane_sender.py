"""What a node gives on the lane: verified pieces, at once or not at all, to many, and to nobody who stands still."""

from __future__ import annotations

import asyncio
import http.client
import os
import queue
import resource
import socket
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swarm.blob.digest import Digest
from swarm.blob.metainfo import sealed_info, torrent_file
from swarm.peer.lane import sender as sending
from swarm.peer.lane import serving, throttle
from swarm.peer.lane.offers import Offer
from swarm.peer.lane.sender import Sender
from tests.parts.lane import Sample, sample
from tests.parts.talk import until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return sample(tmp_path_factory.mktemp("lane"), 3 * MIB + 12345)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """More than what the kernel holds for who does not read."""
    return sample(tmp_path_factory.mktemp("lane-large"), 40 * MIB)


class Stored:
    """Complete blobs of a store."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, Sample] = {}
        self.asked: list[Digest] = []

    async def find(self, digest: Digest) -> Offer | None:
        self.asked.append(digest)
        found = self.blobs.get(digest)
        return found.offer() if found is not None else None


@pytest.fixture
async def stored() -> Stored:
    return Stored()


@pytest.fixture
async def sender(stored: Stored) -> AsyncIterator[tuple[Sender, int]]:
    made = Sender(stored.find)
    yield made, made.start("127.0.0.1")
    await made.close()


Answer = tuple[int, dict[str, str], bytes]


def ask(port: int, path: str, headers: dict[str, str], method: str) -> Answer:
    """One request with the standard library's client. Blocks."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        link.request(method, path, headers=headers)
        answer = link.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        link.close()


async def get(port: int, path: str, asked: str = "", method: str = "GET") -> Answer:
    return await asyncio.to_thread(ask, port, path, {"Range": asked} if asked else {}, method)


async def test_a_complete_blob_is_given_whole_and_in_ranges(
    sender: tuple[Sender, int], stored: Stored, blob: Sample
) -> None:
    stored.blobs[blob.digest] = blob
    port = sender[1]
    for path in (f"/{blob.digest}", f"/{blob.digest.replace(':', '%3A')}", f"/any/where/{blob.digest}?x=1"):
        status, headers, body = await get(port, path)
        assert (status, body == blob.data, headers["accept-ranges"]) == (200, True, "bytes")
    for asked, start, stop in (("0-0", 0, 1), ("5-1000004", 5, 1_000_005), ("3000000-", 3_000_000, blob.cut.size)):
        status, headers, body = await get(port, f"/{blob.digest}", f"bytes={asked}")
        assert (status, body == blob.data[start:stop]) == (206, True)
        assert headers["content-range"] == f"bytes {start}-{stop - 1}/{blob.cut.size}"
    assert (await get(port, f"/{blob.digest}", f"bytes={blob.cut.size}-"))[0] == 416
    assert (await get(port, f"/{blob.digest}", method="HEAD"))[:1] == (200,)
    assert stored.asked == [blob.digest]  # the event loop was asked once
    assert sender[0].counts.sent > 3 * blob.cut.size


async def test_what_is_not_verified_here_is_refused_at_once_and_the_answer_says_what_is(
    sender: tuple[Sender, int], blob: Sample
) -> None:
    offer, length = blob.offer([0, 1, 5]), blob.cut.piece_length
    sender[0].offer(offer)
    port = sender[1]
    status, headers, body = await get(port, f"/{blob.digest}", f"bytes={2 * length}-{3 * length - 1}")
    assert (status, headers["shoal-why"], int.from_bytes(body, "little")) == (503, "lacking", 0b100011)
    assert (await get(port, f"/{blob.digest}"))[0] == 503  # not whole
    status, headers, body = await get(port, f"/{blob.digest}", f"bytes=10-{4 * length}")
    assert (status, body == blob.data[10 : 2 * length]) == (206, True)  # as far as it is verified
    offer.add([2])
    assert (await get(port, f"/{blob.digest}", f"bytes=10-{4 * length}"))[2] == blob.data[10 : 3 * length]
    offer.drop()
    assert (await get(port, f"/{blob.digest}", "bytes=0-9"))[0] == 503
    status, headers, _ = await get(port, "/sha256:" + "0" * 64, "bytes=0-9")
    assert (status, headers["shoal-why"]) == (404, "unknown")
    assert (await get(port, "/passwd"))[0] == 404


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"POST /x HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"400"),
        (b"\x13BitTorrent protocol\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n: no name\r\n\r\n", b"400"),
    ],
)
async def test_nonsense_gets_an_answer_in_http(sender: tuple[Sender, int], said: bytes, status: bytes) -> None:
    def talk() -> bytes:
        with socket.create_connection(("127.0.0.1", sender[1]), timeout=10) as sock:
            sock.sendall(said)
            return sock.recv(1000)

    assert (await asyncio.to_thread(talk)).startswith(b"HTTP/1.1 " + status)


async def test_requests_on_one_connection_are_answered_in_order_also_unasked(
    sender: tuple[Sender, int], stored: Stored, blob: Sample
) -> None:
    stored.blobs[blob.digest] = blob

    def talk() -> bytes:
        with socket.create_connection(("127.0.0.1", sender[1]), timeout=10) as sock:
            one = f"GET /{blob.digest} HTTP/1.1\r\nRange: bytes="
            sock.sendall(f"{one}0-4\r\n\r\n{one}5-9\r\nConnection: close\r\n\r\n".encode())
            said = b""
            while data := sock.recv(10_000):
                said += data
            return said

    said = await asyncio.to_thread(talk)
    first, second = said.split(b"HTTP/1.1 206 Partial Content\r\n")[1:]
    assert first.endswith(b"\r\n\r\n" + blob.data[:5])
    assert second.endswith(b"\r\n\r\n" + blob.data[5:10])


async def test_two_hundred_ask_one_holder_and_it_gives_to_a_few_at_a_time(
    sender: tuple[Sender, int], stored: Stored, large: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MOST_OF_ONE", 400)  # all of them have one address here
    monkeypatch.setattr(sending, "MOST_SENDING_TO_ONE", 400)
    monkeypatch.setattr(serving, "HEAD_DEADLINE", 60)  # two hundred threads share this process with the sender
    stored.blobs[large.digest] = large
    go = threading.Event()

    def client() -> bytes:
        with socket.create_connection(("127.0.0.1", sender[1]), timeout=30) as sock:
            sock.sendall(f"GET /{large.digest} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            first = sock.recv(12)
            if first.endswith(b"200"):
                go.wait(30)
            return first[-3:]

    found: queue.Queue[bytes] = queue.Queue()
    threads = [threading.Thread(target=lambda: found.put(client()), daemon=True) for _ in range(200)]
    for thread in threads:
        thread.start()
    refused = [await asyncio.to_thread(found.get, True, 30) for _ in range(200 - throttle.BODIES)]
    assert set(refused) == {b"503"}
    go.set()
    assert {await asyncio.to_thread(found.get, True, 30) for _ in range(throttle.BODIES)} == {b"200"}
    for thread in threads:
        await asyncio.to_thread(thread.join, 30)


async def test_who_stands_still_is_dropped(
    sender: tuple[Sender, int], stored: Stored, large: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SLOW", 0.5)
    monkeypatch.setattr(serving, "HEAD_DEADLINE", 0.5)
    stored.blobs[large.digest] = large

    def never_asks() -> bytes:
        with socket.create_connection(("127.0.0.1", sender[1]), timeout=30) as sock:
            sock.sendall(b"GET /sha2")  # a slow loris
            return sock.recv(100)

    def never_reads() -> int:
        with socket.create_connection(("127.0.0.1", sender[1]), timeout=30) as sock:
            sock.sendall(f"GET /{large.digest} HTTP/1.1\r\n\r\n".encode())
            while sender[0].counts.dropped < 2:
                threading.Event().wait(0.02)
            count = 0
            try:
                while data := sock.recv(1 << 20):
                    count += len(data)
            except ConnectionResetError:
                pass
            return count

    loris, read = await asyncio.gather(asyncio.to_thread(never_asks), asyncio.to_thread(never_reads))
    assert loris == b""
    assert read < large.cut.size


async def test_a_copy_found_wrong_is_not_sent_to_its_end(
    sender: tuple[Sender, int], stored: Stored, large: Sample
) -> None:
    stored.blobs[large.digest] = large

    def reads() -> int:
        with socket.create_connection(("127.0.0.1", sender[1]), timeout=30) as sock:
            sock.sendall(f"GET /{large.digest} HTTP/1.1\r\n\r\n".encode())
            count = len(sock.recv(1))
            found.set()
            lost.wait(30)
            while data := sock.recv(1 << 20):
                count += len(data)
            return count

    found, lost = threading.Event(), threading.Event()
    reading = asyncio.create_task(asyncio.to_thread(reads))
    await asyncio.to_thread(found.wait, 30)
    stored.blobs.clear()
    sender[0].withdraw(large.digest, lost=True)
    lost.set()
    assert await reading < large.cut.size
    assert (await get(sender[1], f"/{large.digest}", "bytes=0-9"))[0] == 404


@pytest.mark.needs_aria2
async def test_aria2_takes_a_sealed_blob_from_holders_as_web_seeds(
    sender: tuple[Sender, int], stored: Stored, blob: Sample, tmp_path: Path
) -> None:
    stored.blobs[blob.digest] = blob
    info = sealed_info(blob.digest, blob.cut, b"".join(blob.sums[p] for p in range(blob.cut.pieces)))
    (tmp_path / "x.torrent").write_bytes(torrent_file(info, [], [f"http://127.0.0.1:{sender[1]}/"]))
    argv = [
        "aria2c", "--seed-time=0", "--enable-dht=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false",
        "--file-allocation=none", "--check-integrity=true", f"--dir={tmp_path}", str(tmp_path / "x.torrent"),
    ]  # fmt: skip
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / blob.digest).read_bytes() == blob.data


async def test_who_comes_new_takes_the_place_of_who_was_idle_for_longest(
    sender: tuple[Sender, int], stored: Stored, blob: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents keep connections. Five hundred that ask nothing would shut out the next one."""
    stored.blobs[blob.digest] = blob
    monkeypatch.setattr(sending, "MOST_CONNECTIONS", 3)
    links = [http.client.HTTPConnection("127.0.0.1", sender[1], timeout=20) for _ in range(4)]

    def read(link: http.client.HTTPConnection) -> bytes:
        link.request("GET", f"/{blob.digest}", headers={"Range": "bytes=0-9"})
        return link.getresponse().read()

    for link in links:
        assert await asyncio.to_thread(read, link) == blob.data[:10]
    assert await asyncio.to_thread(links[0].sock.recv, 1) == b"", "closed"
    assert await asyncio.to_thread(read, links[1]) == blob.data[:10], "kept"
    for link in links:
        link.close()


async def test_where_no_descriptor_is_left_who_comes_is_served_when_there_is_one_again(
    sender: tuple[Sender, int], stored: Stored, blob: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    stored.blobs[blob.digest] = blob
    await get(sender[1], f"/{blob.digest}", "bytes=0-9")  # the offer is open from now on
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_connection(("127.0.0.1", sender[1]), timeout=30) as kept, socket.socket() as late:
        ask_on = f"GET /{blob.digest} HTTP/1.1\r\nRange: bytes=0-9\r\n\r\n".encode()
        late.settimeout(30)
        kept.sendall(ask_on)
        assert (await asyncio.to_thread(kept.recv, 4096)).endswith(blob.data[:10])
        os.close(lowest := os.dup(late.fileno()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                blob.offer()
            late.connect(("127.0.0.1", sender[1]))
            late.sendall(ask_on)
            await until(lambda: "lane-accept-failed" in caplog.text)
            kept.sendall(ask_on)
            assert (await asyncio.to_thread(kept.recv, 4096)).endswith(blob.data[:10]), "others go on"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await asyncio.to_thread(late.recv, 4096)).endswith(blob.data[:10])
