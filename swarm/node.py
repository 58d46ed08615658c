"""The swarm on one node, in one object: open a blob, read verified bytes, close it.

Wires store, containerd's content, libtorrent session, trackers and the fetches under way. The
mirror talks to nothing else in this package.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from msgspec import structs
from prometheus_client import CollectorRegistry

from swarm.blob.digest import Digest, parse
from swarm.blob.errors import BadHashes, DigestInvalid, SessionError, TrackerError
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import sealed_info
from swarm.fetch.course import Context
from swarm.fetch.fetch import Fetch
from swarm.fetch.readers import Reader
from swarm.identity.tls import Identity
from swarm.metrics import SwarmMetrics
from swarm.peer.session import Session, Torrent
from swarm.protocol import wire
from swarm.reading import Blob, FetchedBlob, HeldBlob
from swarm.settings import SwarmSettings
from swarm.storage.content import BLOBS, Content
from swarm.storage.hashing import Hasher
from swarm.storage.held import Held
from swarm.storage.store import Store
from swarm.tracking.caller import Caller
from swarm.tracking.tags import Names
from swarm.tracking.trackers import Link, Trackers
from swarm.upstream.source import Source

log = logging.getLogger("shoal.swarm")

EMPTY = parse("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
"""The digest of no bytes."""

COUNT_EVERY = 2.0
"""Seconds between two looks at how much was sent to peers."""


class Node:
    """See the module.

    Above the bound of methods: it is what trackers, session, store and fetches call back, one short method each. To
    give these to a second object would give two objects one state.
    """

    def __init__(
        self,
        settings: SwarmSettings,
        registry: CollectorRegistry | None = None,
        *,
        identity: Identity | None = None,
    ) -> None:
        """*identity*: agents and trackers know each other by key, and speak by TLS only."""
        self.settings = settings
        self.metrics = SwarmMetrics(registry or CollectorRegistry())
        self.on_backoff: Callable[[str, float], None] = lambda host, seconds: None
        self.on_preheat: Callable[[wire.Preheat], None] = lambda order: None
        """Another agent was asked by an upstream to wait."""
        self._hasher = Hasher()
        self._store = Store(settings.store, settings.store_budget, hasher=self._hasher)
        self._content: Content | None = None
        self._session = Session(settings.listen, on_bad_peer=self._bad_peer, identity=identity)
        caller = Caller(identity, settings.address, settings.pod)
        self._trackers = Trackers(settings.trackers, settings.name, self, caller)
        self.names = Names(settings.store / "names.json", settings.names_keep, self._trackers, identity=identity)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="shoal-io")
        self._fetches: dict[Digest, Fetch] = {}
        self._seeds: dict[Digest, Torrent] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._quarantined = 0.0
        self._was_member = not settings.trackers
        self._closing = False
        self._context: Context | None = None

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store, listen for peers, look for trackers. Raises SwarmError, OSError."""
        self._store.on_lost = self._lost
        self._store.on_found = lambda digest, size: self._spawn(self._found(digest, size))
        await self._store.open()
        await self.names.load()
        port = await self._session.start()
        if self.settings.containerd_content is not None:
            self._content = Content(
                self.settings.containerd_content / BLOBS,
                self._hasher,
                self.settings.store / "meta" / "containerd",
                on_add=self._found_outside,
                on_gone=self._lost,
            )
            await self._content.open()
        self._context = Context(
            settings=self.settings,
            session=self._session,
            store=self._store,
            trackers=self._trackers,
            pool=self._pool,
            metrics=self.metrics,
            on_finished=self._finished,
            on_closed=self._closed,
            entering=lambda: sum(fetch.enters for fetch in self._fetches.values()),
            on_entering=self._entering,
            on_full=self._make_way,
        )
        await self._seed_all()  # before anybody hears of them: a peer that dials too early is turned away
        self._membership()
        self._trackers.on_change(self._membership)
        await self._trackers.start(port)
        self._spawn(self._count_sent())
        log.info("swarm-listening", extra={"fields": {"ip": self.settings.listen[0], "port": port}})

    async def close(self) -> None:
        """Hand over claims, say goodbye to the trackers, leave the store as a restart wants it."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(fetch.close() for fetch in list(self._fetches.values())), return_exceptions=True)
        await self._trackers.close()
        await self._session.close()
        await self.names.save()
        if self._content is not None:
            await self._content.close()
        await self._store.close()
        self._hasher.close()
        self._pool.shutdown(wait=False)

    # -- for the mirror ---------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The swarm port that this agent listens on."""
        return self._trackers.port

    def held(self, digest: Digest) -> int | None:
        """Size in bytes if the blob is complete on this node."""
        if digest == EMPTY:
            return 0
        size = self._store.size_of(digest)
        if size is None and self._content is not None:
            size = self._content.size_of(digest)
        return size

    @property
    def room(self) -> int:
        """Bytes that the store can take without giving anything up."""
        return self._store.budget - self._store.used

    @contextlib.asynccontextmanager
    async def open(
        self,
        digest: Digest,
        source: Source | None,
        *,
        whole: bool = True,
        low: bool = False,
    ) -> AsyncIterator[Blob]:
        """The blob, as soon as its size is known.

        *source*: where this agent may bring it in from. *whole* False: only what is read is fetched; *low*: after
        what everybody else reads.
        Raises BlobUnavailable within a second if nobody can bring it in, StoreFull if it does not fit.
        """
        again = partial(self.open, digest, source, whole=whole, low=low)
        held = None if digest == EMPTY else await self._held(digest)
        if held is not None or digest == EMPTY:
            try:
                yield HeldBlob(digest, held.size if held else 0, held, self.metrics, again)
            finally:
                if held is not None:
                    held.close()
            return
        fetch, reader = self._join(digest, source, whole, low)
        try:
            yield FetchedBlob(digest, await fetch.sized(), fetch, reader, again)
        finally:
            fetch.part(reader)

    async def tell_backoff(self, host: str, seconds: float) -> None:
        """An upstream asked this agent to wait: let the others know."""
        message = wire.BackoffTold(**self._trackers.me(), host=host, seconds=seconds)
        for link in self._trackers.up():
            with contextlib.suppress(TrackerError):
                await link.call("/v1/backoff", message, wire.Ok)

    async def limit(self, upload: int) -> None:
        """Send *upload* bytes per second at most to other agents; 0: no bound. At any time after `start`."""
        await self._session.limit(upload)

    def tell_image(self, image: wire.Image) -> None:
        """A manifest went by: what it consists of, for people who look at the trackers' page."""
        lacks = any(self.held(parse(blob.digest)) is None for blob in image.blobs)
        self._trackers.tell_image(structs.replace(image, pulled=lacks))

    async def tell_preheat(
        self, identity: str, state: str, done: int, total: int, sources: dict[str, int], error: str = ""
    ) -> None:
        """How far an order is on this node, said to every tracker: whoever ordered may have changed to another."""
        message = wire.PreheatTold(
            **self._trackers.me(), id=identity, state=state, done=done, total=total, sources=sources, error=error[:300]
        )
        for link in self._trackers.up():
            with contextlib.suppress(TrackerError):
                await link.call("/v1/preheat", message, wire.Ok)

    @property
    def ready(self) -> bool:
        """Whether requests can be served by this node alone: store and swarm port are open, and it is not closing."""
        return self._context is not None and not self._closing and not self._store.trouble

    def tracker_urls(self) -> list[str]:
        """`scheme://host:port` of every tracker that is known, whether it answers or not."""
        return [link.url for link in self._trackers.links()]

    @property
    def member(self) -> bool:
        """Whether this agent is a member of the cluster: some tracker takes it, or none is configured."""
        return not self.settings.trackers or self._trackers.ready.is_set()

    def status(self) -> dict[str, Any]:
        """For the agent's /status."""
        return {
            "name": self.settings.name,
            "swarm": {"ip": self.settings.listen[0], "port": self.port},
            "member": self.member,
            "trackers": {link.url: link.up for link in self._trackers.links()},
            "refused": {link.url: link.refused for link in self._trackers.links() if link.refused},
            "store": {
                "bytes": self._store.used,
                "budget": self._store.budget,
                "evictions": self._store.evictions,
                "trouble": self._store.trouble,
            },
            "held": sum(1 for _ in self.held_blobs()),
            "fetches": [fetch.status() for fetch in self._fetches.values()],
            "quarantined_seconds": self._quarantined,
        }

    # -- what trackers are told (swarm.tracking.trackers.Holdings) -----------------------------------------

    def held_blobs(self) -> Iterable[wire.Held]:
        """All complete blobs on this node."""
        seen: set[Digest] = set()
        for digest, size in self._store.complete():
            seen.add(digest)
            yield wire.Held(digest=digest, size=size)
        if self._content is not None:
            for digest, size in self._content.complete():
                if digest not in seen:
                    yield wire.Held(digest=digest, size=size)

    def known_names(self) -> Iterable[wire.Name]:
        """All known meanings of tags."""
        return self.names.known()

    def stats(self) -> dict[str, float]:
        """Counters for the tracker's page."""
        received = self.metrics.bytes_in
        return {
            "store_bytes": float(self._store.used),
            "store_budget": float(self._store.budget),
            "upstream_bytes": _value(received.labels("upstream")),
            "peer_bytes_in": _value(received.labels("peer")),
            "peer_bytes_out": _value(self.metrics.bytes_out),
            "fetches": float(len(self._fetches)),
            "bad_pieces": _value(self.metrics.bad_pieces),
            "banned_peers": _value(self.metrics.banned_peers),
            "stalls": _value(self.metrics.stalls),
            "rejections": _value(self.metrics.rejections),
            "upstream_failures": sum(
                sample.value
                for metric in self.metrics.source_failures.collect()
                for sample in metric.samples
                if sample.name.endswith("_total")
            ),
        }

    async def on_answer(self, link: Link, answer: wire.AgentAnswer) -> None:
        """A tracker wants hashes, doubts a copy, or passes on that an upstream is busy."""
        if answer.quarantined and not self._quarantined:
            log.error("quarantined", extra={"fields": {"tracker": link.url, "seconds": answer.quarantined}})
        self._quarantined = answer.quarantined
        for text in answer.need:
            self._spawn(self._tell_hashes(link, text))
        for text in answer.suspect:
            self._spawn(self._doubt(text))
        for backoff in answer.backoff:
            self.on_backoff(backoff.host, backoff.seconds)
        for name in answer.resolve:
            self._spawn(self.names.chosen(link, name))
        for order in answer.preheat:
            self.on_preheat(order)

    # -- inside -----------------------------------------------------------------------------------

    def _membership(self) -> None:
        """Trackers came or went: membership is a condition of its own, beside readiness."""
        self.metrics.tracker_up.set(len(self._trackers.up()))
        if self.member != self._was_member and not self._closing:
            log.log(
                logging.INFO if self.member else logging.WARNING, "cluster-joined" if self.member else "cluster-left"
            )
        self._was_member = self.member
        self.metrics.member.set(self.member)

    async def _held(self, digest: Digest) -> Held | None:
        held = await self._store.get_checked(digest)
        if held is None and self._content is not None:
            held = await self._content.get_checked(digest)
        return held

    def _join(self, digest: Digest, source: Source | None, whole: bool, low: bool) -> tuple[Fetch, Reader]:
        assert self._context is not None, "start() first"
        fetch = self._fetches.get(digest)
        if fetch is None or fetch.error is not None or fetch.closing or fetch.is_lost:
            old, fetch = fetch, Fetch(digest, self._context, after=fetch.closed if fetch is not None else None)
            if old is not None and old.is_lost:
                self._spawn(old.close())
            self._fetches[digest] = fetch
            self.metrics.fetches.set(len(self._fetches))
            self._trackers.stir()
        return fetch, fetch.join(whole, source, low=low)

    async def _make_way(self) -> bool:
        """The store is full: what was read in ranges and has no reader now is closed, so that its windows may go."""
        idle = [fetch for fetch in self._fetches.values() if not fetch.readers and not fetch.is_verified]
        await asyncio.gather(*(fetch.close() for fetch in idle))
        return bool(idle)

    def _entering(self) -> None:
        for fetch in self._fetches.values():
            fetch.tell_wish()

    async def _finished(self, fetch: Fetch) -> None:
        if fetch.is_kept and fetch.size is not None:
            await self._found(fetch.digest, fetch.size)

    def _closed(self, fetch: Fetch) -> None:
        if self._fetches.get(fetch.digest) is fetch:
            del self._fetches[fetch.digest]
        self.metrics.fetches.set(len(self._fetches))
        if fetch.is_verified and not self._closing:
            self._spawn(self._seed(fetch.digest))  # a blob of one window was offered by the fetch until now

    async def _found(self, digest: Digest, size: int) -> None:
        """A blob is complete on this node: offer it, and then tell of it."""
        if self._closing:
            return
        await self._seed(digest)
        if self._store.size_of(digest) is not None:  # not evicted meanwhile
            self._trackers.tell(digest, size)

    def _found_outside(self, digest: Digest, size: int) -> None:
        """containerd has a blob: offer it; its bytes are read when a tracker needs the hashes."""
        self._trackers.tell(digest, size)

    def _lost(self, digest: Digest) -> None:
        """A blob is no longer complete on this node."""
        if self._store.size_of(digest) is not None or (self._content and self._content.size_of(digest) is not None):
            return
        self._trackers.tell(digest, None)
        torrent = self._seeds.pop(digest, None)
        if torrent is not None:
            self._session.remove(torrent)
        self.metrics.held.set(len(self._seeds))

    async def _count_sent(self) -> None:
        """Keep the counter of bytes sent to peers: libtorrent tells it only when asked."""
        told = 0
        while True:
            self._session.count()
            await asyncio.sleep(COUNT_EVERY)
            sent = self._session.sent
            self.metrics.bytes_out.inc(max(0, sent - told))
            told = sent

    async def _seed_all(self) -> None:
        for blob in list(self.held_blobs()):
            await self._seed(parse(blob.digest), known_only=True)

    async def _seed(self, digest: Digest, known_only: bool = False) -> bytes | None:
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
                cut = geometry(held.size)
                every = range(cut.pieces)
                with contextlib.suppress(SessionError, BadHashes):
                    info = sealed_info(digest, cut, hashes)
                    self._seeds[digest] = await self._session.add(
                        info,
                        path=held.path,
                        have=every,
                        wanted=every,
                        on_piece=lambda _piece: None,
                        on_error=lambda text: self._seed_failed(digest, text),
                    )
                    self.metrics.held.set(len(self._seeds))
            return hashes

    def _seed_failed(self, digest: Digest, text: str) -> None:
        log.error("seed-failed", extra={"fields": {"digest": digest, "error": text}})
        torrent = self._seeds.pop(digest, None)
        if torrent is not None:
            self._session.remove(torrent)
        self._spawn(self._store.check(digest))  # a copy that cannot be read is no longer offered

    async def _tell_hashes(self, link: Link, text: str) -> None:
        try:
            digest = parse(text)
        except DigestInvalid:
            return
        hashes, size = await self._seed(digest), self.held(digest)
        if hashes is None or size is None:
            return
        with contextlib.suppress(TrackerError):
            await link.call(
                "/v1/whole", wire.Whole(**self._trackers.me(), digest=digest, size=size, hashes=hashes), wire.Ok
            )

    async def _doubt(self, text: str) -> None:
        """Others say that our copy is corrupt: read it again."""
        with contextlib.suppress(DigestInvalid):
            digest = parse(text)
            size = self._store.size_of(digest)
            right = await self._store.check(digest)
            log.warning("copy-checked", extra={"fields": {"digest": digest, "right": right}})
            if right and size is not None:
                self._trackers.tell(digest, size)

    def _bad_peer(self, info_hash: bytes, ip: str, port: int) -> None:
        """The session banned a peer for wrong bytes: name it to the tracker."""
        self.metrics.banned_peers.inc()
        torrent = self._session.get(info_hash)
        digest = torrent.name if torrent is not None else ""
        log.error("peer-banned", extra={"fields": {"peer": f"{ip}:{port}", "digest": digest}})
        if digest:
            self._spawn(self._tell_corrupt(digest, ip, port))

    async def _tell_corrupt(self, digest: str, ip: str, port: int) -> None:
        link = self._trackers.pick(digest)
        if link is not None:
            with contextlib.suppress(TrackerError):
                message = wire.Corrupt(**self._trackers.me(), digest=digest, peer_ip=ip, peer_port=port)
                await link.call("/v1/corrupt", message, wire.Ok)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task-failed", extra={"fields": {"error": repr(error)}}, exc_info=error)


def _value(counter: Any) -> float:
    (family,) = counter.collect()
    return next((float(s.value) for s in family.samples if s.name.endswith("_total")), 0.0)
