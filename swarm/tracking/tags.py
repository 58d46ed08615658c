"""What a tag means: resolved upstream once per cluster and TTL, remembered for when upstream is down."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from swarm.blob.digest import Digest, parse
from swarm.blob.errors import SourceBroken, SourceBusy, SourceError, SourceRefused, TrackerError
from swarm.identity.tls import Identity
from swarm.protocol import wire
from swarm.tracking.trackers import Link, Trackers
from swarm.tracking.witness import Witness

MOST_NAMES = 10_000
"""Names remembered; the one that was confirmed longest ago goes first."""

TELL_DEADLINE = 1.0
"""Seconds for a tracker to take what upstream said: the client has its answer after that."""

WAIT = 5.0
"""Seconds to wait for another agent that asks upstream."""

MOST_CHOSEN = 32
"""Names that this agent asks for at once because a tracker chose it to."""


@dataclass(frozen=True)
class Meaning:
    """The manifest that a tag (or digest) names at upstream."""

    digest: Digest
    media_type: str
    size: int
    """Bytes of the manifest."""


@dataclass(frozen=True)
class Resolved:
    """A meaning and how far it can be trusted."""

    meaning: Meaning
    stale: bool
    """True: upstream could not be asked; this is the last known one."""
    age: float
    """Seconds since upstream said so."""


class _Saved(msgspec.Struct):
    digest: str
    media_type: str
    size: int
    asked: float
    """Seconds since the epoch at which upstream was asked: what it said is no newer than that."""
    own: bool = True
    """Whether this agent heard it from upstream itself: only that is told to trackers."""


class Tags:
    """Meanings of tags. *path*: where they survive a restart. *keep*: seconds for which a stale one answers."""

    def __init__(
        self,
        path: Path,
        keep: float,
        trackers: Trackers,
        clock: Callable[[], float] = time.time,
        identity: Identity | None = None,
    ) -> None:
        """*identity*: what this agent says is signed, and what a tracker passes on must be."""
        self.ask_upstream: Callable[[str], Awaitable[Meaning]] = _may_not
        """Asks upstream for any name, where a tracker chose this agent to. Raises SourceError."""
        self._witness = Witness(identity) if identity is not None else None
        self._chosen: set[str] = set()
        self._path = path
        self._keep = keep
        self._trackers = trackers
        self._clock = clock
        self._known: dict[str, _Saved] = {}
        self._saving: asyncio.Task[None] | None = None
        self._unsaved = False
        self._one_writer = asyncio.Lock()
        self._asking: dict[str, asyncio.Task[Resolved]] = {}

    async def load(self) -> None:
        """Read what a former process knew; a torn or strange file counts as empty."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            data = await asyncio.to_thread(self._path.read_bytes)
            self._known = msgspec.json.decode(data, type=dict[str, _Saved])
        now = self._clock()
        for saved in self._known.values():
            saved.asked = min(saved.asked, now)  # a clock that was wrong then must not pin a digest now

    async def save(self) -> None:
        """Write all down, atomically. A full disk loses it and harms nothing else."""
        self._unsaved = True
        async with self._one_writer:
            while self._unsaved:
                self._unsaved = False
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(_replace, self._path, msgspec.json.encode(self._known))

    def known(self, *, own: bool = True) -> Iterable[wire.Name]:
        """All meanings not older than *keep*; *own*: those heard from upstream by this agent, as trackers are told."""
        now = self._clock()
        for name, saved in self._known.items():
            if (saved.own or not own) and now - saved.asked <= self._keep:
                yield wire.Name(
                    name=name,
                    digest=saved.digest,
                    media_type=saved.media_type,
                    size=saved.size,
                    age=max(0.0, now - saved.asked),
                )

    async def resolve(self, name: str, ttl: float, ask: Callable[[], Awaitable[Meaning]]) -> Resolved:
        """What *name* means. *ask* asks upstream; it raises SourceRefused, SourceBusy or SourceBroken.

        Asked at most once per *ttl* seconds in the cluster. If upstream is busy or broken the last known
        meaning answers (`stale`); without one, or if upstream refuses, what *ask* raised is raised.
        """
        while True:
            task = self._asking.get(name)
            if task is None:
                task = asyncio.create_task(self._resolve(name, ttl, ask))
                self._asking[name] = task
                task.add_done_callback(lambda done: self._forget_task(name, done))
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise

    def _forget_task(self, name: str, task: asyncio.Task[Resolved]) -> None:
        if self._asking.get(name) is task:
            del self._asking[name]
        if not task.cancelled():
            task.exception()

    async def _resolve(self, name: str, ttl: float, ask: Callable[[], Awaitable[Meaning]]) -> Resolved:
        link = self._trackers.pick(name)
        if link is not None:
            with contextlib.suppress(TrackerError):
                return await self._with_tracker(link, name, ttl, ask)
        saved = self._known.get(name)
        if saved is not None and 0.0 <= self._clock() - saved.asked < ttl:
            return self._resolved(saved, stale=False)
        asked = self._clock()
        try:
            meaning = await ask()
        except (SourceBusy, SourceBroken) as error:
            return self._last_known(name, error)
        self._remember(name, meaning, asked)
        return Resolved(meaning, stale=False, age=0.0)

    async def _with_tracker(self, link: Link, name: str, ttl: float, ask: Callable[[], Awaitable[Meaning]]) -> Resolved:
        me = self._trackers.me()
        began = self._clock()
        answer = await link.ask("/v1/name", wire.NameLookup(**me, name=name, ttl=ttl, wait=WAIT), wire.NameAnswer, WAIT)
        if answer.known is not None and await self._proven(link, name, answer, began - ttl):
            self._take(answer.known)
            if answer.fresh:
                return self._resolved(self._known[name], stale=False)
            if not answer.resolve:
                return self._last_known(name)
        asked = self._clock()
        try:
            meaning = await ask()
        except SourceError as error:
            await self._tell_failed(link, name, error, declined=False)
            if isinstance(error, SourceRefused):
                raise
            return self._last_known(name, error)
        self._remember(name, meaning, asked)
        await self._tell(link, name, meaning, asked)
        return Resolved(meaning, stale=False, age=0.0)

    async def chosen(self, link: Link, name: str) -> None:
        """A tracker chose this agent to ask upstream what *name* means, for others: ask, and tell it."""
        if name in self._chosen:
            return
        if len(self._chosen) >= MOST_CHOSEN:
            await self._tell_failed(link, name, SourceBusy("this agent asks for many names already"), declined=True)
            return
        self._chosen.add(name)
        try:
            asked = self._clock()
            meaning = await self.ask_upstream(name)
        except SourceError as error:
            await self._tell_failed(link, name, error, declined=isinstance(error, SourceRefused))
        else:
            self._remember(name, meaning, asked)
            await self._tell(link, name, meaning, asked)
        finally:
            self._chosen.discard(name)

    async def _tell(self, link: Link, name: str, meaning: Meaning, asked: float) -> None:
        told = wire.NameTold(
            **self._trackers.me(),
            name=name,
            digest=meaning.digest,
            media_type=meaning.media_type,
            size=meaning.size,
            proof=await self._signed(name, meaning, asked),
        )
        with contextlib.suppress(TrackerError):
            await link.call("/v1/name/told", told, wire.Ok, patience=TELL_DEADLINE)

    async def _signed(self, name: str, meaning: Meaning, asked: float) -> wire.Proof | None:
        if self._witness is None:
            return None
        said = wire.Name(name=name, digest=meaning.digest, media_type=meaning.media_type, size=meaning.size, age=0.0)
        return await self._witness.give(said, asked)

    async def _proven(self, link: Link, name: str, answer: wire.NameAnswer, earliest: float) -> bool:
        """Whether a tracker's answer counts: that of one without keys does. *earliest*: of what is fresh."""
        if answer.known is None or answer.known.name != name:
            return False
        if self._witness is None:
            return True
        now = self._clock()
        since = earliest if answer.fresh else now - self._keep
        return await self._witness.holds(link.url, answer.known, answer.proofs, since, now)

    async def _tell_failed(self, link: Link, name: str, error: SourceError, *, declined: bool) -> None:
        gone = isinstance(error, SourceRefused) and error.status == 404
        failed = wire.NameFailed(**self._trackers.me(), name=name, gone=gone, declined=declined and not gone)
        with contextlib.suppress(TrackerError):
            await link.call("/v1/name/failed", failed, wire.Ok, patience=TELL_DEADLINE)

    def _take(self, told: wire.Name) -> None:
        """What a tracker knows, unless we know something newer (from before the clock was set back, nothing is)."""
        now = self._clock()
        asked = now - told.age
        known = self._known.get(told.name)
        if known is not None and known.digest == told.digest:
            known.asked = max(known.asked, asked)
        elif known is None or not asked < known.asked <= now:
            self._remember(told.name, Meaning(parse(told.digest), told.media_type, told.size), asked, own=False)

    def _remember(self, name: str, meaning: Meaning, asked: float, *, own: bool = True) -> None:
        self._known.pop(name, None)
        self._known[name] = _Saved(meaning.digest, meaning.media_type, meaning.size, asked, own)
        while len(self._known) > MOST_NAMES:
            others = (known for known in self._known if known != name)
            del self._known[min(others, key=lambda known: self._known[known].asked)]
        self._unsaved = True
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self.save())

    def _last_known(self, name: str, error: SourceError | None = None) -> Resolved:
        saved = self._known.get(name)
        if saved is None or self._clock() - saved.asked > self._keep:
            raise error or SourceBroken(f"nobody knows what {name} means")
        return self._resolved(saved, stale=True)

    def _resolved(self, saved: _Saved, stale: bool) -> Resolved:
        meaning = Meaning(parse(saved.digest), saved.media_type, saved.size)
        return Resolved(meaning, stale, max(0.0, self._clock() - saved.asked))


async def _may_not(_name: str) -> Meaning:
    raise SourceRefused("this agent asks upstream for nobody else")


def _replace(path: Path, data: bytes) -> None:
    """Write *data* to *path*: all of it, or nothing. Blocks."""
    beside = path.with_suffix(".new")
    beside.write_bytes(data)
    beside.replace(path)
