"""A member of the cluster that lies: it claims windows, publishes hashes of wrong bytes, and seeds those bytes.

It speaks the real wire protocol and seeds with a real libtorrent session, so what it offers looks right
until somebody has the whole blob. Run as a process of its own: `python -m tests.parts.liar`. It prints
`published N` for each window, and `told ...` for what the tracker says to it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp

from swarm.blob.digest import parse
from swarm.blob.geometry import Window, geometry
from swarm.blob.metainfo import window_info
from swarm.peer.owner import Owner
from swarm.peer.session import Session, Torrent
from swarm.protocol import wire
from tests.parts import data
from tests.parts.procs import Process, python
from tests.parts.talk import JSON

A = TypeVar("A", bound=wire.Wire)


class Liar:
    """State of the process."""

    def __init__(
        self, tracker: str, digest: str, size: int, directory: Path, origin: str, http: aiohttp.ClientSession
    ) -> None:
        self.origin = origin
        self.tracker, self.digest, self.size = tracker, parse(digest), size
        self.http = http
        self.path = directory / "wrong"
        self.session = Session(("127.0.0.1", 0), on_bad_peer=lambda *_: None)
        self.me: dict[str, object] = {}
        self.have = 0
        self.published: set[int] = set()
        self.torrents: list[Torrent] = []

    async def run(self) -> None:
        """Lie until killed."""
        data.write(self.path, self.size, 666)
        port = await self.session.start()
        self.me = {"node": "liar", "port": port, "session": "lies"}
        async with asyncio.TaskGroup() as group:
            group.create_task(self._stay())
            group.create_task(self._take_part())

    async def _say(self, verb: str, message: wire.Wire, kind: type[A]) -> A:
        async with self.http.post(f"{self.tracker}/v1/{verb}", data=wire.encode(message), headers=JSON) as answer:
            body = await answer.read()
            if answer.status != 200:
                print(f"told {verb} {answer.status} {body.decode()}", flush=True)
                raise ValueError(body.decode())
            return wire.decode(body, kind)

    async def _stay(self) -> None:
        """Be a living agent that holds nothing."""
        wait, quarantined = 0.0, False
        while True:
            poll = wire.AgentPoll(**self.me, full=True, wait=wait)  # type: ignore[arg-type]
            answer = await self._say("agent", poll, wire.AgentAnswer)
            wait = wire.MAX_WAIT
            if answer.quarantined and not quarantined:
                quarantined = True
                print("told quarantined", flush=True)

    async def _take_part(self) -> None:
        layout = geometry(self.size)
        claims: tuple[int, ...] = ()
        since, incarnation, generation, wait = 0, "", 0, 0.0
        while True:
            poll = wire.BoardPoll(
                **self.me,  # type: ignore[arg-type]
                digest=self.digest,
                incarnation=incarnation,
                generation=generation,
                since=since,
                wait=wait,
                size=self.size,
                want=8,
                claims=claims,
                have=wire.bitmap(self.have),
            )
            answer = await self._say("board", poll, wire.BoardAnswer)
            since, incarnation, wait = answer.version, answer.incarnation, wire.MAX_WAIT
            if answer.generation != generation:
                generation, self.have = answer.generation, 0
                self.published.clear()
            claims = answer.claims
            for index in answer.claims:
                if index not in self.published:
                    await self._publish(layout.windows[index], incarnation, generation)
            if answer.claims:
                since, wait = 0, 0.0
                claims = ()

    async def _publish(self, window: Window, incarnation: str, generation: int) -> None:
        layout = geometry(self.size)
        hashes = b""
        with self.path.open("rb") as file:
            for piece in window.span:
                offset, length = layout.piece_span(piece)
                file.seek(offset)
                hashes += hashlib.sha1(file.read(length), usedforsecurity=False).digest()
        span = window.span
        info = window_info(self.digest, layout, window, hashes)
        self.torrents.append(await self.session.add(info, path=self.path, have=span, wanted=span, owner=_Careless()))
        self.published.add(window.index)
        self.have |= 1 << window.index
        message = wire.Publish(
            **self.me,  # type: ignore[arg-type]
            digest=self.digest,
            incarnation=incarnation,
            generation=generation,
            size=self.size,
            window=window.index,
            hashes=hashes,
            origin=self.origin,
        )
        await self._say("publish", message, wire.BoardAnswer)
        print(f"published {window.index} of {len(layout.windows)}", flush=True)


class _Careless(Owner):
    """Owner of what is offered: it has every piece, and need not hear of any."""


async def _main(tracker: str, digest: str, size: int, directory: Path, origin: str) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        await Liar(tracker, digest, size, directory, origin, http).run()


def main(arguments: list[str]) -> None:
    """`python -m tests.parts.liar --tracker URL --digest D --size N --directory DIR [--origin O]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tracker", required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--origin", default="")
    given = parser.parse_args(arguments)
    asyncio.run(_main(given.tracker, given.digest, given.size, given.directory, given.origin))


@asynccontextmanager
async def liar(tracker: str, digest: str, size: int, directory: Path, *, origin: str = "") -> AsyncIterator[Process]:
    """A liar that has published its first window when the block is entered. *origin*: of what it says that it is."""
    place = directory / "liar"
    place.mkdir()
    argv = python(
        "tests.parts.liar", "--tracker", tracker, "--digest", digest, "--size", str(size), "--directory", str(place),
        "--origin", origin,
    )  # fmt: skip
    part = Process(argv, name="liar", log=directory / "liar.log")
    part.start()
    try:
        await part.says("published 0")
        yield part
    finally:
        await part.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
