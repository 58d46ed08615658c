"""How fast the pure parts are, on one core: hashes, torrents, boards, messages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from swarm.blob.digest import parse
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import info_hash, sealed_info, window_info
from swarm.protocol import wire
from swarm.protocol.board import Board
from swarm.storage import hashing

MIB = 1024 * 1024
GIB = 1024 * MIB
DIGEST = parse("sha256:" + hashlib.sha256(b"bench").hexdigest())


def hashes_of(size: int) -> bytes:
    """Random piece hashes of a blob of *size* bytes."""
    return os.urandom(20 * geometry(size).pieces)


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[int]:
    """A file of 64 MiB of random bytes, open."""
    path = tmp_path / "blob"
    path.write_bytes(os.urandom(64 * MIB))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_hash_pieces_and_whole(benchmark: BenchmarkFixture, blob: int) -> None:
    """SHA-1 per piece and SHA-256 over all in one pass, from the page cache: 64 MiB per round."""
    benchmark.extra_info["bytes"] = 64 * MIB
    benchmark(hashing.sums, blob, geometry(64 * MIB))


@pytest.mark.parametrize("size", [128 * MIB, GIB], ids=["128MiB", "1GiB"])
def test_torrent_of_a_window(benchmark: BenchmarkFixture, size: int) -> None:
    """Info dictionary and info-hash of the last window: once per window and agent."""
    layout = geometry(size)
    window = layout.windows[-1]
    told = hashes_of(size)[: 20 * window.pieces]
    benchmark(lambda: info_hash(window_info(DIGEST, layout, window, told)))


def test_sealed_torrent(benchmark: BenchmarkFixture) -> None:
    """Info dictionary and info-hash of a blob of 1 GiB: once per blob and agent."""
    layout, told = geometry(GIB), hashes_of(GIB)
    benchmark(lambda: info_hash(sealed_info(DIGEST, layout, told)))


@pytest.mark.parametrize("agents", [8, 100])
def test_one_blob_through_a_board(benchmark: BenchmarkFixture, agents: int) -> None:
    """A cold pull of 128 MiB by all agents, from the first join to sealed: joins, claims, publications, views."""
    size = 128 * MIB
    layout, told = geometry(size), hashes_of(size)

    def whole() -> Board:
        board = Board(DIGEST)
        names = [f"n{place}" for place in range(agents)]
        now = 0.0
        for name in names:
            board.join(name, now, size=size, want=4)
            board.assign(now)
        while not board.complete:
            now += 0.01
            for window, claim in list(board.claims.items()):
                part = layout.windows[window]
                given = told[20 * part.first_piece : 20 * (part.last_piece + 1)]
                board.publish(claim.agent, now, generation=0, size=size, window=window, hashes=given)
                board.assign(now)
                for name in names:
                    board.view(name, board.version - 1, 0)
        board.seal(names[0], 0)
        return board

    assert benchmark(whole).sealed


def test_join_of_a_busy_board(benchmark: BenchmarkFixture) -> None:
    """One join, assign and view on a board of 1,000 agents: what a long-poll costs the tracker."""
    board = Board(DIGEST)
    for place in range(1000):
        board.join(f"n{place}", 0.0, size=GIB, want=4)
    clock = count()

    def one() -> None:
        now = next(clock) * 1e-3
        board.join("n500", now, want=4)
        board.assign(now)
        board.view("n500", 0, 0)

    benchmark(one)


def test_board_message(benchmark: BenchmarkFixture) -> None:
    """A poll decoded and an answer with two windows and 20 peers encoded."""
    poll = wire.encode(
        wire.BoardPoll(node="n1", port=6881, session="s" * 16, digest=DIGEST, want=4, have=b"\xff" * 32, wait=25.0)
    )
    answer = wire.BoardAnswer(
        incarnation="i" * 16, version=7, generation=0, size=GIB,
        published={3: os.urandom(320), 4: os.urandom(320)},
        peers=tuple(wire.Peer(ip=f"198.18.0.{place}", port=6881) for place in range(20)),
    )  # fmt: skip
    benchmark(lambda: (wire.decode(poll, wire.BoardPoll), wire.encode(answer)))
