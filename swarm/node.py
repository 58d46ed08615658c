"""The swarm on one node, in one object: open a blob, read verified bytes, close it.

Wires store, containerd's content, libtorrent session, trackers and the fetches under way. The
mirror talks to nothing else in this package.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from msgspec import structs
from prometheus_client import CollectorRegistry

from swarm.blob.digest import Digest, parse
from swarm.blob.errors import DigestInvalid, TrackerError
from swarm.copies import Copies
from swarm.fetch.course import Parts
from swarm.fetch.proof import Proof
from swarm.fetches import Fetches
from swarm.giving import Accuser, offer_of
from swarm.identity.tls import Identity
from swarm.metrics import SwarmMetrics
from swarm.peer.lane.lane import Lane
from swarm.peer.lane.offers import Offer
from swarm.peer.session import Session
from swarm.protocol import wire
from swarm.reading import Blob, FetchedBlob, HeldBlob
from swarm.settings import SwarmSettings
from swarm.storage.content import BLOBS, Content
from swarm.storage.hashing import Hasher
from swarm.storage.kept import Kept
from swarm.storage.store import Store
from swarm.tracking.caller import Caller
from swarm.tracking.tags import Tags
from swarm.tracking.trackers import Link, Trackers
from swarm.upstream.source import Source

log = logging.getLogger("shoal.swarm")

EMPTY = parse("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
"""The digest of no bytes."""

COUNT_EVERY = 2.0
"""Seconds between two looks at how much was sent to peers."""


class Orders(Protocol):
    """Who acts on what trackers pass on to this agent."""

    def hold(self, host: str, seconds: float) -> None:
        """Another agent was asked by the upstream *host* to wait."""

    def preheat(self, order: wire.Preheat) -> None:
        """Somebody wants images on this node."""

    def keep(self, order: wire.KeepHere) -> None:
        """Somebody wants an image to stay on this node, or no longer."""

    def changed(self, digest: Digest, size: int | None) -> None:
        """A blob of an image that is kept is complete on this node now; *size* None: no longer."""

    def kept(self) -> tuple[wire.Kept, ...]:
        """The images that are kept here, and how far each is."""


class Node:
    """See the module."""

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
        self._hasher = Hasher()
        self.keeping = Kept(settings.store / "kept.json", settings.store_budget)
        self._store = Store(settings.store, settings.store_budget, hasher=self._hasher, spared=self.keeping)
        self._session = Session(settings.listen, on_bad_peer=self._blame_torrent, identity=identity)
        self._lane = Lane(self._give, identity)
        caller = Caller(identity, settings.address, settings.pod)
        self._trackers = Trackers(settings.trackers, settings.name, self, caller)
        self.names = Tags(settings.store / "names.json", settings.names_keep, self._trackers, identity=identity)
        accuser = self._accuser = Accuser(self._trackers, self.metrics, self._spawn)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="shoal-io")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._copies = Copies(self._store, self._session, self._lane, self.metrics, self._tell, self._spawn)
        parts = Parts(
            settings, self._session, self._store, self._trackers, self._pool, self.metrics,
            self._lane, accuser.sent_wrong,
        )  # fmt: skip
        self._fetches = Fetches(parts, self._copies, self._spawn)
        self._orders: Orders | None = None
        self._quarantined = 0.0
        self._was_member = not settings.trackers
        self._closing = False
        self._started = False

    # -- life -------------------------------------------------------------------------------------

    async def start(self, orders: Orders | None = None) -> None:
        """Open the store, listen for peers, look for trackers. Raises SwarmError, OSError.

        *orders*: who acts on what trackers pass on; None: nobody does. Have `keeping` loaded: opening evicts.
        """
        self._orders = orders
        await self._store.open()
        await self.names.load()
        port = await self._session.start()
        if self.settings.window_lane:
            self._trackers.lane = self._lane.start(self.settings.listen[0], port + 1 if port < 65535 else 0)
        if (content := self.settings.containerd_content) is not None:
            known = self.settings.store / "meta" / "containerd"
            await self._copies.use(Content(content / BLOBS, self._hasher, known))
        self._started = True
        await self._copies.offer_all()  # before anybody hears of them: a peer that dials too early is turned away
        self._membership()
        self._trackers.on_change(self._membership)
        await self._trackers.start(port)
        self._spawn(self._count_sent())
        log.info("swarm-listening", extra={"fields": {"ip": self.settings.listen[0], "port": port}})

    async def close(self) -> None:
        """Hand over claims, say goodbye to the trackers, leave the store as a restart wants it."""
        self._closing = True
        self._copies.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._fetches.close()
        await self._trackers.close()
        await self._lane.close()
        await self._session.close()
        await self.names.save()
        await self._copies.close()
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
        return 0 if digest == EMPTY else self._copies.size_of(digest)

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
        origin: str = "",
        proof: Proof = Proof.NONE,
    ) -> AsyncIterator[Blob]:
        """The blob, as soon as its size is known.

        *source*: where this agent may bring it in from, and *origin* of what it sends. *whole* False: only what is
        read is fetched; *low*: after what everybody else reads. *proof*: what this reader asks of the bytes.
        Raises BlobUnavailable within a second if nobody can bring it in, StoreFull if it does not fit, Unproven.
        """
        again = partial(self.open, digest, source, whole=whole, low=low, origin=origin, proof=proof)
        held = None if digest == EMPTY else await self._copies.get(digest)
        if held is not None or digest == EMPTY:
            try:
                yield HeldBlob(digest, held.size if held else 0, held, again)
            finally:
                if held is not None:
                    held.close()
            return
        fetch, reader = self._fetches.join(digest, source, whole, low, origin, proof)
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
        """Send *upload* bytes per second at most to other agents; 0: no bound. At any time after `start`.

        libtorrent may use all of it, and the lane what libtorrent leaves: it has only who has no lane to send to.
        """
        self._lane.limit(upload)
        await self._session.limit(upload)

    def tell_image(self, image: wire.Image) -> None:
        """A manifest went by: what it consists of, for people who look at the trackers' page."""
        lacks = any(self.held(parse(blob.digest)) is None for blob in image.blobs)
        self._trackers.tell_image(structs.replace(image, pulled=lacks))

    def tell_kept(self) -> None:
        """What is kept here has changed: let trackers know."""
        self.metrics.kept.set(self.keeping.bytes)
        self._trackers.tell_kept()

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
    def given(self) -> int:
        """Bytes sent to other agents so far; those of torrents as counted every COUNT_EVERY seconds."""
        return self._session.sent + self._lane.counts.sent

    @property
    def ready(self) -> bool:
        """Whether requests can be served by this node alone: store and swarm port are open, and it is not closing."""
        return self._started and not self._closing and not self._store.trouble

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
            "swarm": {"ip": self.settings.listen[0], "port": self.port, "lane": self._lane.port},
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
            "fetches": self._fetches.status(),
            "quarantined_seconds": self._quarantined,
        }

    # -- what trackers are told (swarm.tracking.trackers.Holdings) -----------------------------------------

    def held_blobs(self) -> Iterable[wire.CompleteBlob]:
        """All complete blobs on this node."""
        return self._copies.all()

    def known_names(self) -> Iterable[wire.Name]:
        """All known meanings of tags."""
        return self.names.known()

    def kept(self) -> tuple[wire.Kept, ...]:
        """The images that are kept here."""
        return self._orders.kept()[-wire.MAX_KEPT :] if self._orders is not None else ()

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
            "direct_streams": _value(self.metrics.direct),
            "upstream_failures": _value(self.metrics.source_failures),
        }

    async def on_answer(self, link: Link, answer: wire.AgentAnswer) -> None:
        """A tracker wants hashes, doubts a copy, or passes on that an upstream is busy."""
        if answer.quarantined and not self._quarantined:
            log.error("quarantined", extra={"fields": {"tracker": link.url, "seconds": answer.quarantined}})
        self._quarantined = answer.quarantined
        for text in answer.need:
            self._spawn(self._tell_hashes(link, text))
        for text in answer.suspect:
            self._spawn(self._copies.doubt(text))
        for name in answer.resolve:
            self._spawn(self.names.chosen(link, name))
        if self._orders is not None:
            for backoff in answer.backoff:
                self._orders.hold(backoff.host, backoff.seconds)
            for order in answer.preheat:
                self._orders.preheat(order)
            for keep in answer.keep:
                self._orders.keep(keep)

    # -- inside -----------------------------------------------------------------------------------

    def _tell(self, digest: Digest, size: int | None) -> None:
        """A blob is complete here now; *size* None: it is not any more."""
        self._trackers.tell(digest, size)
        if digest in self.keeping and self._orders is not None and not self._closing:
            self._orders.changed(digest, size)

    def _membership(self) -> None:
        """Trackers came or went: membership is a condition of its own, beside readiness."""
        self.metrics.tracker_up.set(len(self._trackers.up()))
        if self.member != self._was_member and not self._closing:
            log.log(
                logging.INFO if self.member else logging.WARNING, "cluster-joined" if self.member else "cluster-left"
            )
        self._was_member = self.member
        self.metrics.member.set(self.member)

    async def _count_sent(self) -> None:
        """Keep the counter of bytes sent to peers: libtorrent tells it only when asked."""
        torrents = lane = 0
        refused: dict[tuple[str, str], int] = {}
        while True:
            self._session.count()
            await asyncio.sleep(COUNT_EVERY)
            more, torrents = max(0, self._session.sent - torrents), self._session.sent
            self._lane.spent(more)
            given, lane = self._lane.counts.sent - lane, self._lane.counts.sent
            self.metrics.bytes_out.inc(more + given)
            before, refused = refused, self._lane.refusals
            for (by, why), count in refused.items():
                self.metrics.lane_refusals.labels(by, why).inc(count - before.get((by, why), 0))

    async def _tell_hashes(self, link: Link, text: str) -> None:
        try:
            digest = parse(text)
        except DigestInvalid:
            return
        hashes, size = await self._copies.offer(digest), self.held(digest)
        if hashes is None or size is None:
            return
        with contextlib.suppress(TrackerError):
            await link.call(
                "/v1/whole", wire.Whole(**self._trackers.me(), digest=digest, size=size, hashes=hashes), wire.Ok
            )

    def _blame_torrent(self, info_hash: bytes, ip: str, port: int) -> None:
        """The session banned a peer for wrong bytes."""
        torrent = self._session.get(info_hash)
        self._accuser.sent_wrong(torrent.name if torrent is not None else "", (ip, port))

    async def _give(self, digest: Digest) -> Offer | None:
        """A complete blob for the lane."""
        held = await self._copies.get(digest) if not self._closing else None
        if held is None:
            return None
        try:
            return offer_of(held)
        except OSError:  # no descriptor is left: others have it too
            held.close()
            return None

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task-failed", extra={"fields": {"error": repr(error)}}, exc_info=error)


def _value(counter: Any) -> float:
    """What *counter* has counted, over all its labels."""
    return float(sum(s.value for family in counter.collect() for s in family.samples if s.name.endswith("_total")))
