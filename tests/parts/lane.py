"""Holders on the window lane: real ones, and ones that are slow, silent, wrong or short, over real sockets."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from swarm.blob.digest import Digest
from swarm.blob.geometry import Geometry, geometry
from swarm.peer.lane import message
from swarm.peer.lane.holders import Address
from swarm.peer.lane.lane import Lane
from swarm.peer.lane.offers import Offer


async def nothing(_digest: Digest) -> Offer | None:
    """This node holds no complete blob."""
    return None


def no_lane() -> Lane:
    """The lane of a node that gives and takes nothing over it."""
    return Lane(nothing)


@dataclass
class Sample:
    """A blob on disk, with its piece hashes."""

    path: Path
    data: bytes
    digest: Digest
    cut: Geometry
    sums: dict[int, bytes]

    def offer(self, pieces: list[int] | None = None) -> Offer:
        """What a sender gives of it."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return Offer(self.digest, self.cut, fd, pieces)
        finally:
            os.close(fd)

    @contextmanager
    def empty(self) -> Iterator[int]:
        """A descriptor of a file to bring it into."""
        path = self.path.with_suffix(".in")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.ftruncate(fd, self.cut.size)
        try:
            yield fd
        finally:
            os.close(fd)


def sample(directory: Path, size: int) -> Sample:
    """A blob of *size* random bytes."""
    data = os.urandom(size)
    path = directory / "blob"
    path.write_bytes(data)
    cut = geometry(size)
    spans = (cut.piece_span(piece) for piece in range(cut.pieces))
    sums = {piece: hashlib.sha1(data[at : at + length]).digest() for piece, (at, length) in enumerate(spans)}
    return Sample(path, data, Digest(f"sha256:{hashlib.sha256(data).hexdigest()}"), cut, sums)


Behaviour = Callable[[socket.socket, message.Request, int], bool]
"""(connection, request, how many came before) -> whether the connection goes on."""


class Odd:
    """A holder that does with each request what *behaves* says. Threads of its own; `close` ends them."""

    def __init__(self, behaves: Behaviour, port: int = 0) -> None:
        self.requests: list[message.Request] = []
        self.behaves = behaves
        self._listener = socket.create_server(("127.0.0.1", port))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> Address:
        """Where it listens."""
        ip, port = self._listener.getsockname()[:2]
        return str(ip), int(port)

    def close(self) -> None:
        """End it. May be called again."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while head := _head(sock):
                    request = message.read_request(head)
                    self.requests.append(request)
                    if not self.behaves(sock, request, len(self.requests) - 1):
                        return
            except OSError:
                return


def _head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            return b""
        head += byte
    return head[:-4]


def honest(blob: Sample) -> Behaviour:
    """Gives what is asked."""

    def behave(sock: socket.socket, request: message.Request, _count: int) -> bool:
        body = asked(blob, request)
        sock.sendall(head_of(blob, request) + body)
        return True

    return behave


def lacking(pieces: int) -> Behaviour:
    """Has only *pieces* (bit p: piece p), and none of what it is asked for."""

    def behave(sock: socket.socket, _request: message.Request, _count: int) -> bool:
        body = pieces.to_bytes(2, "little")
        sock.sendall(message.answer(503, len(body), total=0, why="lacking") + body)
        return True

    return behave


def asked(blob: Sample, request: message.Request) -> bytes:
    """The bytes that *request* asks for."""
    return blob.data[request.start or 0 : request.stop]


def head_of(blob: Sample, request: message.Request) -> bytes:
    """The head of an honest answer."""
    return message.answer(206, len(asked(blob, request)), start=request.start or 0, total=blob.cut.size)
