"""Images that stay on this node because somebody ordered it: brought in, spared by the store, and told to trackers.

Trackers choose who keeps what (tracker.state.keeps); an agent does what it is told, says how far it is, and remembers
it over a restart. It tries once: where it fails, trackers choose another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Protocol

from mirror.front.gathering import Arrived, Parts, own_platform
from mirror.front.images import Part
from mirror.upstream.reference import Image, parse_image
from swarm.blob import digest as digests
from swarm.blob.digest import Digest
from swarm.blob.errors import SourceBroken, SourceBusy, StoreFull, SwarmError
from swarm.protocol import wire
from swarm.storage.kept import Kept, KeptImage

log = logging.getLogger("shoal.mirror")

SETTLE = 30.0
"""Seconds after its last byte in which a blob becomes complete on the disk: else the disk does not take it."""


class Gathers(Protocol):
    """Has images on this node: mirror.front.gathering.Gathering."""

    async def resolved(self, image: Image) -> Digest: ...

    async def parts(self, image: Image, digest: Digest, wanted: str, arrived: Arrived) -> Parts: ...

    async def blob(self, image: Image, part: Part, arrived: Arrived) -> bool: ...

    def has(self, digest: Digest) -> bool: ...


@dataclass(eq=False)
class _State:
    """How far one order is here."""

    keep: wire.Keep
    state: str = "fetching"
    digest: str = ""
    error: str = ""
    task: asyncio.Task[None] | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def said(self) -> wire.Kept:
        return wire.Kept(keep=self.keep, state=self.state, digest=self.digest, error=self.error[:300])


class Keeper:
    """See the module. *tell*: what trackers should know has changed. *settle*: see SETTLE."""

    def __init__(self, gathering: Gathers, kept: Kept, tell: Callable[[], None], settle: float = SETTLE) -> None:
        self._gathering, self._kept, self._tell, self._settle = gathering, kept, tell, settle
        self._states: dict[str, _State] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Know what a former process kept, before the store makes room."""
        for keep, reason in await self._kept.load():
            self._states[keep.name] = _State(keep, "failed", error=reason)
            log.warning("not-kept", extra={"fields": {"image": keep.image, "reason": reason}})
        for name, image in self._kept.images().items():
            state = "fetching" if image.keep.copies else "none"
            self._states[name] = _State(image.keep, state, image.digest)

    def start(self) -> None:
        """Look whether all of it is still here, and bring in what is not."""
        for state in self._states.values():
            if state.state == "fetching" and state.task is None:
                self._begin(state, state.digest)
        self._tell()

    def take(self, order: wire.KeepHere) -> None:
        """A tracker wants an image to stay here, or no longer. An older order than the one known does nothing."""
        known = self._states.get(order.keep.name)
        if known is not None and self._knows(known, order):
            self._tell()
            return
        state = self._states[order.keep.name] = _State(order.keep, digest=order.digest)
        if known is not None and known.task is not None:
            known.task.cancel()
        if order.here and order.keep.copies:
            self._begin(state, order.digest, known)
        else:
            self._spawn(state, self._let_go(state, known))
        self._trim()

    def changed(self, digest: Digest, size: int | None) -> None:
        """A blob that is kept is complete here now; *size* None: no longer."""
        for name, state in self._states.items():
            image = self._kept.images().get(name)
            if image is None or digest not in image.blobs:
                continue
            if size is not None:
                state.news.set()
            elif state.state == "whole":
                state.state = "fetching"
                self._begin(state, state.digest)
                self._tell()

    def kept(self) -> tuple[wire.Kept, ...]:
        """All orders that are known, for trackers."""
        return tuple(state.said for state in self._states.values())

    async def close(self) -> None:
        """Stop; the next process goes on."""
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    # -- inside -----------------------------------------------------------------------------------

    def _knows(self, known: _State, order: wire.KeepHere) -> bool:
        """Whether *order* says nothing new."""
        if known.keep.serial != order.keep.serial:
            return known.keep.serial > order.keep.serial
        if not order.here or not order.keep.copies:
            return known.state == "none"
        return known.state in ("fetching", "whole") and order.digest in ("", known.digest)

    def _begin(self, state: _State, digest: str, before: _State | None = None) -> None:
        self._spawn(state, self._keep(state, digest, before))

    def _spawn(self, state: _State, work: Coroutine[None, None, None]) -> None:
        task = state.task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _let_go(self, state: _State, before: _State | None) -> None:
        """Nobody keeps it any more: remembered, since others may still think so. Or only this agent does not."""
        await _ended(before)
        if state.keep.copies:
            await self._kept.drop(state.keep.name)
            if self._states.get(state.keep.name) is state:
                del self._states[state.keep.name]
        else:
            state.state, state.digest = "none", ""
            await self._kept.put(KeptImage(state.keep))
        log.info("let-go", extra={"fields": {"image": state.keep.image, "copies": state.keep.copies}})
        self._tell()

    async def _keep(self, state: _State, digest: str, before: _State | None) -> None:
        """Have all of the image here. Where that fails, what was kept under its name before is kept on."""
        await _ended(before)
        old = self._kept.images().get(state.keep.name)
        try:
            await self._fetched(state, digest, old)
            state.state, state.error = "whole", ""
        except (SwarmError, OSError, ValueError) as error:
            state.state, state.error = "failed", " ".join(str(error).split())
            if old is not None and old.keep.copies and old.keep.serial < state.keep.serial:
                await self._kept.put(old)
            else:
                await self._kept.drop(state.keep.name)
        fields = {"image": state.keep.image, "state": state.state, "digest": state.digest, "reason": state.error}
        log.log(logging.INFO if not state.error else logging.WARNING, "keeps", extra={"fields": fields})
        self._tell()

    async def _fetched(self, state: _State, digest: str, old: KeptImage | None) -> None:
        """Raises SwarmError, OSError, ValueError."""
        image = parse_image(state.keep.image)
        found = digests.parse(digest) if digest else await self._resolved(image, old)
        state.digest = found
        blobs = old.blobs if old is not None and old.digest == found else {}
        if not blobs or not self._has(blobs):
            wanted = state.keep.platform or own_platform()
            blobs = (await self._gathering.parts(image, found, wanted, _unheeded)).all
        await self._kept.put(KeptImage(state.keep, found, blobs))
        self._tell()
        work = [self._gathering.blob(image, Part(digests.parse(one), size), _unheeded) for one, size in blobs.items()]
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        await self._settled(state, blobs)

    async def _resolved(self, image: Image, old: KeptImage | None) -> Digest:
        """What *image* means; while upstream is away, what it meant. Raises SwarmError."""
        try:
            return await self._gathering.resolved(image)
        except (SourceBroken, SourceBusy):
            if old is None or not old.digest:
                raise
            return digests.parse(old.digest)

    async def _settled(self, state: _State, blobs: dict[str, int]) -> None:
        """Until all of them are complete on the disk. Raises StoreFull."""
        try:
            async with asyncio.timeout(self._settle):
                while not self._has(blobs):
                    state.news.clear()
                    await state.news.wait()
        except TimeoutError:
            raise StoreFull("its blobs came, and did not stay on this node's disk") from None

    def _has(self, blobs: dict[str, int]) -> bool:
        return all(self._gathering.has(digests.parse(digest)) for digest in blobs)

    def _trim(self) -> None:
        """Forget the oldest of those that failed or ended, beyond the bound."""
        ended = sorted(
            (name for name, one in self._states.items() if one.state in ("failed", "none")),
            key=lambda name: (self._states[name].state != "failed", self._states[name].keep.serial),
        )
        for name in ended[: max(0, len(self._states) - wire.MAX_KEPT)]:
            del self._states[name]


async def _ended(before: _State | None) -> None:
    """Until the work for an earlier order, cancelled by now, has ended."""
    if before is not None and before.task is not None:
        await asyncio.gather(before.task, return_exceptions=True)


def _unheeded(_origin: str, _count: int) -> None:
    """Nobody counts the bytes of what is kept."""
