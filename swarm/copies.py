"""The complete blobs of this node, in its store and in containerd's content, and the torrents that offer them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from swarm.blob.digest import Digest, parse
from swarm.blob.errors import BadHashes, DigestInvalid, SessionError
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import sealed_info
from swarm.metrics import SwarmMetrics
from swarm.peer.lane.lane import Lane
from swarm.peer.owner import Owner
from swarm.peer.session import Session, Torrent
from swarm.protocol import wire
from swarm.storage.changes import Listener
from swarm.storage.content import Content
from swarm.storage.held import BlobHandle
from swarm.storage.store import Store

log = logging.getLogger("shoal.swarm")


class Copies:
    """See the module. *tell*: the trackers, of what this node holds and holds no longer. *spawn* starts a task."""

    def __init__(
        self,
        store: Store,
        session: Session,
        lane: Lane,
        metrics: SwarmMetrics,
        tell: Listener,
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self._store = store
        self._session = session
        self._lane = lane
        self._metrics = metrics
        self._tell = tell
        self._spawn = spawn
        self._content: Content | None = None
        self._seeds: dict[Digest, Torrent] = {}
        self._closing = False
        store.on_change(self._changed)

    # -- what is here -----------------------------------------------------------------------------

    def size_of(self, digest: Digest) -> int | None:
        """Size in bytes of a blob that is complete on this node."""
        size = self._store.size_of(digest)
        if size is None and self._content is not None:
            size = self._content.size_of(digest)
        return size

    def all(self) -> Iterable[wire.CompleteBlob]:
        """All of them."""
        seen: set[Digest] = set()
        for digest, size in self._store.complete():
            seen.add(digest)
            yield wire.CompleteBlob(digest=digest, size=size)
        if self._content is not None:
            for digest, size in self._content.complete():
                if digest not in seen:
                    yield wire.CompleteBlob(digest=digest, size=size)

    async def get(self, digest: Digest) -> BlobHandle | None:
        """The blob, open, once it is known to be right; None: it is not here."""
        held = await self._store.get_checked(digest)
        if held is None and self._content is not None:
            held = await self._content.get_checked(digest)
        return held

    # -- what is offered --------------------------------------------------------------------------

    async def use(self, content: Content) -> None:
        """Offer what lies in containerd's *content* as well, once trackers want the hashes."""
        self._content = content
        content.on_change(self._changed_outside)
        await content.open()

    async def offer_all(self) -> None:
        """Offer what is known to be right without reading it again."""
        for blob in list(self.all()):
            await self.offer(parse(blob.digest), known_only=True)

    async def offer(self, digest: Digest, known_only: bool = False) -> bytes | None:
        """Offer a complete blob in the session; returns its piece hashes. *known_only*: do not hash it for that."""
        held = self._store.get(digest)
        if held is None and not known_only:
            held = await self._store.get_checked(digest)
            if held is None and self._content is not None and await self._content.hashes(digest, idle=False):
                held = self._content.get(digest)
        if held is None:
            return None
        with held:
            hashes = held.hashes
            if not hashes:
                return None
            if digest not in self._seeds and held.size:
                layout = geometry(held.size)
                every = range(layout.pieces)
                with contextlib.suppress(SessionError, BadHashes):
                    info = sealed_info(digest, layout, hashes)
                    self._seeds[digest] = await self._session.add(
                        info, path=held.path, have=every, wanted=every, owner=_Seed(self, digest)
                    )
                    self._metrics.held.set(len(self._seeds))
            return hashes

    async def found(self, digest: Digest, size: int) -> None:
        """A blob is complete in the store: offer it, and then tell of it."""
        if self._closing:
            return
        await self.offer(digest)
        if self._store.size_of(digest) is not None:  # not evicted meanwhile
            self._tell(digest, size)

    async def doubt(self, text: str) -> None:
        """Others say that the copy of the blob named *text* is corrupt: read it again."""
        with contextlib.suppress(DigestInvalid):
            digest = parse(text)
            size = self._store.size_of(digest)
            right = await self._store.check(digest)
            log.warning("copy-checked", extra={"fields": {"digest": digest, "right": right}})
            if right and size is not None:
                self._tell(digest, size)

    def failed(self, digest: Digest, text: str) -> None:
        """The torrent that offers a blob met an error."""
        log.error("seed-failed", extra={"fields": {"digest": digest, "error": text}})
        self._withdraw(digest)
        self._spawn(self._store.check(digest))  # a copy that cannot be read is no longer offered

    def stop(self) -> None:
        """Nothing is offered any more that is not yet."""
        self._closing = True

    async def close(self) -> None:
        """End, after the session and before the store."""
        if self._content is not None:
            await self._content.close()

    # -- inside -----------------------------------------------------------------------------------

    def _changed(self, digest: Digest, size: int | None) -> None:
        if size is None:
            self._lost(digest)
        else:
            self._spawn(self.found(digest, size))

    def _changed_outside(self, digest: Digest, size: int | None) -> None:
        """containerd has a blob, or no longer: its bytes are read when a tracker needs the hashes."""
        if size is None:
            self._lost(digest)
        else:
            self._tell(digest, size)

    def _lost(self, digest: Digest) -> None:
        """A blob is no longer complete in one of the two places."""
        if self.size_of(digest) is None:
            self._tell(digest, None)
            self._lane.withdraw(digest, lost=True)
            self._withdraw(digest)

    def _withdraw(self, digest: Digest) -> None:
        if (torrent := self._seeds.pop(digest, None)) is not None:
            self._session.remove(torrent)
        self._metrics.held.set(len(self._seeds))


class _Seed(Owner):
    """Owner of the torrent that offers a complete blob: peers dial it, and nothing comes by it."""

    def __init__(self, copies: Copies, digest: Digest) -> None:
        self._copies = copies
        self._digest = digest

    def failed(self, text: str) -> None:
        self._copies.failed(self._digest, text)
