"""libtorrent in asyncio: add and remove torrents, hear of verified pieces and of bad peers.

The only file that imports libtorrent. Alerts wake the loop through a socket; every alert is copied
into plain values before the next batch is popped (docs/engine.md). Calls that would wait for
libtorrent's network thread are not used.

Above the bound of lines: libtorrent's objects and alerts end here, and a second file would have to import it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import libtorrent as lt

from swarm.base.flags import Endpoint
from swarm.blob.errors import SessionError
from swarm.blob.metainfo import info_hash as hash_of_info
from swarm.blob.metainfo import secured
from swarm.identity.tls import DH, Identity
from swarm.peer.nodelay import quicken
from swarm.peer.owner import Owner
from swarm.peer.peers import LoopbackAnnounce, PeerAddress
from swarm.peer.strangers import Door

log = logging.getLogger("shoal.swarm")

_ALERTS = (
    lt.alert.category_t.error_notification
    | lt.alert.category_t.status_notification
    | lt.alert.category_t.storage_notification
    | lt.alert.category_t.piece_progress_notification
    | lt.alert.category_t.connect_notification
    | lt.alert.category_t.peer_notification  # that a peer was banned
)
_ADD_DEADLINE = 10.0
_READ_DEADLINE = 10.0
_FLUSH_DEADLINE = 3.0
SETTLE = 0.1
"""Seconds between pausing a torrent that fetches and removing it. libtorrent 2.1 hashes blocks as they come, and
crashes if the torrent is removed meanwhile: disk_cache::remove_storage() takes for granted that nothing is "mid-hash",
but that hashing is no job that it waits for. To hash what had come takes about a millisecond."""
_DIALS_WITHIN = 0.005
"""Seconds in which dialled connections are collected, to look once over all descriptors (swarm/peer/nodelay.py)."""

MANY_OPEN = 1000
"""Connections from which on idle ones are closed: the windows of a blob of 1 GiB with four each."""


@dataclass(eq=False)
class Torrent:
    """A torrent in the session."""

    info_hash: bytes
    name: str
    """Name in the info dictionary: the digest."""
    owner: Owner
    announce_url: str = ""
    announces: bool = False
    """Whether libtorrent knows the tracker on loopback: not before others are to be dialled than at first."""
    handle: Any = None
    added: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    reads: dict[int, list[asyncio.Future[bytes]]] = field(default_factory=dict)
    removed: bool = False
    fetches: bool = False
    """Whether pieces were wanted that it had not: libtorrent may be in the middle of one."""
    flushed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when what had come until `Session.retire` is in the file."""

    async def read_piece(self, piece: int) -> bytes:
        """The verified bytes of *piece* from libtorrent's own cache or file. Raises SessionError."""
        await self.added
        waiting = self.reads.setdefault(piece, [])
        if self.removed:
            raise SessionError("torrent removed")
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting.append(future)
        if len(waiting) == 1:
            self._call(lambda handle: handle.read_piece(piece))
        try:
            async with asyncio.timeout(_READ_DEADLINE):
                return await future
        except TimeoutError:
            raise SessionError(f"piece {piece} could not be read back in time") from None

    def want(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Set (piece, priority) pairs: 0 not wanted, 1..7."""
        pairs = list(pieces)
        self.fetches = self.fetches or any(priority for _, priority in pairs)
        self._call(lambda handle: handle.prioritize_pieces(pairs))

    def give(self, piece: int, data: bytes) -> None:
        """A piece that came by another way: libtorrent checks it and offers it to the peers. No-op where it has it.

        Blocks that peers sent of it are not overwritten: libtorrent may be checking just those. Not from another
        thread: libtorrent crashes if this comes after the torrent was removed. It copies *data* (2 ms per MiB).
        """
        self.fetches = True  # it is hashed as what comes from a peer
        self._call(lambda handle: handle.add_piece(piece, data, 0))

    def reannounce(self) -> None:
        """Ask for peers again: there are new ones."""
        if self.announces:
            # libtorrent would keep 30 s between two announces: ours stay on this machine
            self._call(lambda handle: handle.force_reannounce(0, -1, lt.torrent_handle.ignore_min_interval))
        elif self.handle is not None:
            self.announces = True
            self._call(lambda handle: handle.add_tracker({"url": self.announce_url, "tier": 0}))  # announces at once

    async def received(self) -> int:
        """Payload bytes that have come from peers so far, without those that were wrong."""
        status = await self._status()
        return 0 if status is None else int(status.total_payload_download - status.total_failed_bytes)

    async def have(self) -> list[bool]:
        """For each piece, whether libtorrent has it; empty if the torrent is gone."""
        status = await self._status()
        return [] if status is None else list(status.pieces)

    async def _status(self) -> Any:
        if self.handle is None or self.removed:
            return None
        with contextlib.suppress(RuntimeError):
            return await asyncio.to_thread(self.handle.status)
        return None

    def _call(self, act: Callable[[Any], Any]) -> None:
        if self.handle is not None and not self.removed:
            with contextlib.suppress(RuntimeError):  # libtorrent dropped it meanwhile: its alert says why
                act(self.handle)


def interfaces(ip: str, port: int, *, secure: bool) -> str:
    """libtorrent's `listen_interfaces`. `::` is every address of both families. *secure*: TLS only."""
    each = ("0.0.0.0", "::") if ip == "::" else (ip,)
    return ",".join(f"{Endpoint(one, port)}{'s' if secure else ''}" for one in each)


def settings_for(listen: str) -> dict[str, Any]:
    """libtorrent settings of an agent that listens on *listen* (`ip:port`, v6 in brackets).

    Each value was measured or has its reason in ARCHITECTURE.md, "libtorrent settings".
    """
    return {
        "listen_interfaces": listen,
        "user_agent": "shoal",
        "peer_fingerprint": "-SH0100-",
        "ssrf_mitigation": False,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
        "in_enc_policy": int(lt.enc_policy.disabled),
        "out_enc_policy": int(lt.enc_policy.disabled),
        "allow_multiple_connections_per_ip": True,
        "alert_mask": int(_ALERTS),
        "alert_queue_size": 100_000,
        "tick_interval": 100,
        "connection_speed": 500,
        "connections_limit": 4000,
        "torrent_connect_boost": 60,
        "min_reconnect_time": 1,
        "close_redundant_connections": False,  # True while there are many: `Session._bound_idle`
        "max_failcount": 5,
        "unchoke_slots_limit": -1,
        "choking_algorithm": 0,
        "listen_queue_size": 512,
        "max_out_request_queue": 16,
        "max_allowed_in_request_queue": 500,
        "request_queue_time": 1,
        "whole_pieces_threshold": 5,
        "request_timeout": 8,
        "piece_timeout": 4,
        "send_buffer_watermark": 128 * 1024,
        "send_redundant_have": False,
        "max_queued_disk_bytes": 16 * 1024 * 1024,
        "aio_threads": 0,  # reads and writes in the network thread: a wakeup per 16 KiB costs more than the page cache
        "hashing_threads": 1,
        "file_pool_size": 64,
        "active_limit": -1,
        "auto_manage_interval": 3600,
        "stop_tracker_timeout": 1,
        "announce_to_all_trackers": False,
        "tracker_completion_timeout": 10,
        "tracker_receive_timeout": 5,
        "max_concurrent_http_announces": 200,
        "no_atime_storage": True,
        "peer_tos": 0,
        "mixed_mode_algorithm": 0,
        "dont_count_slow_torrents": False,
        "rate_limit_ip_overhead": False,
    }


class Session:
    """The swarm engine of an agent: one libtorrent session."""

    def __init__(
        self,
        listen: tuple[str, int],
        *,
        on_bad_peer: Callable[[bytes, str, int], None],
        identity: Identity | None = None,
    ) -> None:
        """*on_bad_peer*(info-hash, ip, port): a peer was banned because it sent wrong bytes.

        *identity*: torrents are SSL torrents; peers are those whose certificate the same authority signed.
        """
        self._identity = identity
        self._listen = listen
        self._on_bad_peer = on_bad_peer
        self._torrents: dict[bytes, Torrent] = {}
        self._going: dict[bytes, asyncio.Future[None]] = {}
        """Torrents that are paused and not removed yet: who adds one of them again waits."""
        self._announce = LoopbackAnnounce(self._peers_of)
        self._announce_url = ""
        self._session: Any = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._listening: asyncio.Future[int] | None = None
        self._quicken: asyncio.TimerHandle | None = None
        self._quick: set[int] = set()
        """Descriptors that need no second look by `quicken`: none was closed since."""
        self._closes_idle = False
        self._door: Door | None = None
        self.sent = 0
        """Payload bytes sent to peers, as of the last `count`."""

    async def start(self) -> int:
        """Listen; returns the port. Raises SessionError if the address cannot be had."""
        loop = asyncio.get_running_loop()
        ip, port = self._listen
        try:
            self._announce_url = await self._announce.start(ip)
        except OSError as error:
            raise SessionError(f"cannot listen on {ip}: {error.strerror}") from None
        params = lt.session_params()
        params.settings = settings_for(interfaces(ip, port, secure=self._identity is not None))  # type: ignore[assignment]  # a dict is taken
        params.disk_io_constructor = "pread_disk_io_constructor"
        self._listening = loop.create_future()
        self._session = lt.session(params)
        if self._identity is not None:
            self._identity.on_renew(lambda: _later(loop, self._renewed))
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        self._wake = (reading, writing)
        loop.add_reader(reading, self._on_wake)
        self._session.set_alert_fd(writing.fileno())
        self._drain()
        try:
            async with asyncio.timeout(_ADD_DEADLINE):
                listening = await self._listening
        except TimeoutError:
            raise SessionError(f"cannot listen on {ip}:{port}") from None
        self._door = Door(listening, self._drain)
        return listening

    async def limit(self, upload: int) -> None:
        """Send *upload* bytes per second at most, to all peers together; 0: no bound. At any time.

        libtorrent puts peers with private addresses into a class of their own, which the session's own limit does
        not bind (`session_handle::local_peer_class_id`): both classes get it.
        """
        if self._session is not None:
            await asyncio.to_thread(_bound, self._session, upload)  # it waits for libtorrent's network thread

    async def close(self) -> None:
        """Drop all torrents and stop. Bounded: libtorrent's own shutdown goes on in a thread."""
        session, self._session = self._session, None
        if session is None:
            return
        if self._quicken is not None:
            self._quicken.cancel()
        if self._door is not None:
            self._door.close()
        self._announce.close()  # first: libtorrent says goodbye to its tracker, and nobody needs to hear that
        session.pause()
        if self._going or any(torrent.fetches for torrent in self._torrents.values()):
            await asyncio.sleep(SETTLE)
        if self._wake is not None:
            asyncio.get_running_loop().remove_reader(self._wake[0])
        self._torrents.clear()
        last = [session]  # the thread must drop the last reference: the destructor waits for libtorrent's threads
        del session
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3.0):
                await asyncio.to_thread(last.clear)
        if self._wake is not None:
            for end in self._wake:
                end.close()

    async def add(
        self,
        info: bytes,
        *,
        path: Path,
        have: Iterable[int],
        wanted: Iterable[int],
        owner: Owner,
        priority: int = 4,
    ) -> Torrent:
        """Add the torrent of the bencoded *info* over the file *path*.

        *have*: pieces that are in the file, verified. *wanted*: pieces to fetch (and to have).
        Raises SessionError.
        """
        if self._identity is not None:
            info = secured(info, self._identity.credentials.authority)
        key = hash_of_info(info)
        while (going := self._going.get(key)) is not None:
            await asyncio.wait([going])
        if key in self._torrents:
            raise SessionError(f"the session has {key.hex()} already")
        params = lt.load_torrent_buffer(b"d4:info" + info + b"e")
        assert params.ti is not None
        count = params.ti.num_pieces()
        bits = [False] * count
        for piece in have:
            bits[piece] = True
        priorities = [0] * count
        fetches = False
        for piece in wanted:
            priorities[piece] = priority
            fetches = fetches or not bits[piece]
        params.have_pieces = bits
        params.piece_priorities = priorities
        params.save_path = str(path.parent)
        params.renamed_files = {0: path.name}
        params.storage_mode = lt.storage_mode_t.storage_mode_sparse
        # libtorrent dials those whom an SSL torrent begins with before it has its certificate: in clear.
        first = [] if self._identity is not None else list(owner.dialled())
        params.peers = first  # dialled at once, since nothing is to be verified
        params.flags = (
            lt.torrent_flags.no_verify_files
            | lt.torrent_flags.disable_dht
            | lt.torrent_flags.disable_lsd
            | lt.torrent_flags.disable_pex
            | lt.torrent_flags.override_trackers
        )
        torrent = Torrent(key, params.ti.name(), owner, self._announce_url, fetches=fetches)
        self._torrents[key] = torrent
        self._session.async_add_torrent(params)
        try:
            async with asyncio.timeout(_ADD_DEADLINE):
                await asyncio.shield(torrent.added)
        except (TimeoutError, SessionError) as error:
            self._torrents.pop(key, None)
            raise SessionError(f"cannot add torrent: {error}") from None
        except asyncio.CancelledError:
            self.remove(torrent)  # or nobody could add it again; what libtorrent adds yet is dropped by its alert
            raise
        if not set(first).issuperset(owner.dialled()):
            torrent.reannounce()  # there are others since
        return torrent

    def count(self) -> None:
        """Have `sent` brought up to date, idle connections bounded and strangers closed: a moment later."""
        if self._session is not None:
            self._session.post_session_stats()
            if self._door is not None:
                self._door.look()

    def remove(self, torrent: Torrent) -> None:
        """Take *torrent* out; its file stays. What it fetches is paused first, and goes a moment later."""
        if torrent.removed:
            return
        torrent.removed = True
        if self._torrents.get(torrent.info_hash) is torrent:
            del self._torrents[torrent.info_hash]
        if self._session is not None and torrent.handle is not None:
            if torrent.fetches:
                torrent.handle.pause()
                loop = asyncio.get_running_loop()
                self._going[torrent.info_hash] = loop.create_future()
                loop.call_later(SETTLE, self._remove_now, torrent)
            else:
                self._session.remove_torrent(torrent.handle)
        for futures in torrent.reads.values():
            for future in futures:
                if not future.done():
                    future.set_exception(SessionError("torrent removed"))
        torrent.reads.clear()

    def _remove_now(self, torrent: Torrent) -> None:
        if self._session is not None:
            with contextlib.suppress(RuntimeError):
                self._session.remove_torrent(torrent.handle)
        if (going := self._going.pop(torrent.info_hash, None)) is not None and not going.done():
            going.set_result(None)

    async def retire(self, torrent: Torrent) -> None:
        """`remove`, but wait until nothing of *torrent* is left to be written: what is written now stays."""
        leaving = self._going.setdefault(torrent.info_hash, asyncio.get_running_loop().create_future())
        torrent._call(lambda handle: handle.pause())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_DEADLINE):
                    if torrent.fetches:
                        await asyncio.sleep(SETTLE)  # what is being hashed is not flushed
                        torrent.fetches = False  # not any more: nothing to wait for once more
                    torrent._call(lambda handle: handle.flush_cache())
                    await torrent.flushed.wait()
        finally:
            if self._going.get(torrent.info_hash) is leaving:
                del self._going[torrent.info_hash]
            self.remove(torrent)
            if not leaving.done():
                leaving.set_result(None)

    def get(self, info_hash: bytes) -> Torrent | None:
        """The torrent of that info-hash, if it is in the session."""
        return self._torrents.get(info_hash)

    # -- alerts -----------------------------------------------------------------------------------

    def _peers_of(self, info_hash: bytes) -> Iterable[PeerAddress]:
        torrent = self._torrents.get(info_hash)
        return torrent.owner.dialled() if torrent is not None else ()

    def _on_wake(self) -> None:
        assert self._wake is not None
        with contextlib.suppress(BlockingIOError):
            while self._wake[0].recv(4096):
                pass
        self._drain()

    def _drain(self) -> None:
        if self._session is None:
            return
        for alert in self._session.pop_alerts():
            handler = _HANDLERS.get(type(alert))
            if handler is not None:
                handler(self, alert)

    def _torrent_of(self, alert: Any) -> Torrent | None:
        return self._torrents.get(alert.handle.info_hash().to_bytes())

    def _on_added(self, alert: Any) -> None:
        key = alert.params.info_hashes.v1.to_bytes()
        torrent = self._torrents.get(key)
        if alert.error.value():
            if torrent is not None and not torrent.added.done():
                torrent.added.set_exception(SessionError(alert.error.message()))
        elif torrent is None:
            self._session.remove_torrent(alert.handle)
        else:
            torrent.handle = alert.handle
            self._show_certificate(torrent)
            if not torrent.added.done():
                torrent.added.set_result(None)

    def _show_certificate(self, torrent: Torrent) -> None:
        if self._identity is not None:
            shown = self._identity.credentials
            pair = shown.certificate.decode(), shown.key.decode()
            torrent._call(lambda handle: handle.set_ssl_certificate_buffer(*pair, DH))

    def _renewed(self) -> None:
        """A new certificate, for connections that are made from now on."""
        for torrent in self._torrents.values():
            self._show_certificate(torrent)

    def _on_piece(self, alert: Any) -> None:
        if (torrent := self._torrent_of(alert)) is not None:
            torrent.owner.arrived(int(alert.piece_index))

    def _on_hash_failed(self, alert: Any) -> None:
        if (torrent := self._torrent_of(alert)) is not None:
            torrent.owner.mismatched(int(alert.piece_index))

    def _on_connected(self, alert: Any) -> None:
        if self._door is not None:
            self._door.proven(*alert.endpoint)
        if self._quicken is None and " outgoing " in alert.message():  # the binding does not tell the direction
            self._quicken = asyncio.get_running_loop().call_later(_DIALS_WITHIN, self._quicken_dialled)

    def _quicken_dialled(self) -> None:
        self._quicken = None
        self._quick = quicken(self._quick)

    def _on_disconnected(self, alert: Any) -> None:
        if self._door is not None:
            self._door.gone(*alert.endpoint)
        self._quick = set()  # one of them may be another connection by now

    def _bound_idle(self, connections: int) -> None:
        """Keep connections over which nothing is wanted, unless there are many.

        Where libtorrent closes them, it does so as soon as the other end has all that it wants, even if what that has
        just got is wanted here and its word of it is on the way; a second later it dials again, mostly in vain: half of
        all connections were such. And a range read from a peer took 0.96 s (median) instead of 4 ms.
        """
        many = connections > (MANY_OPEN // 2 if self._closes_idle else MANY_OPEN)
        if many != self._closes_idle and self._session is not None:
            self._closes_idle = many
            self._session.apply_settings({"close_redundant_connections": many})

    def _on_ban(self, alert: Any) -> None:
        ip, port = alert.endpoint
        self._on_bad_peer(alert.handle.info_hash().to_bytes(), str(ip), int(port))
        if (torrent := self._torrent_of(alert)) is not None:
            torrent.owner.spoiled((str(ip), int(port)))

    def _on_flushed(self, alert: Any) -> None:
        if (torrent := self._torrent_of(alert)) is not None:
            torrent.flushed.set()

    def _on_read(self, alert: Any) -> None:
        torrent = self._torrent_of(alert)
        if torrent is None:
            return
        error = alert.error if hasattr(alert, "error") else alert.ec
        data = bytes(alert.buffer) if not error.value() else b""
        for future in torrent.reads.pop(int(alert.piece), []):
            if future.done():
                continue
            if error.value():
                future.set_exception(SessionError(error.message()))
            else:
                future.set_result(data)

    def _on_stats(self, alert: Any) -> None:
        self.sent = int(alert.values["net.sent_payload_bytes"])
        self._bound_idle(int(alert.values["peer.num_peers_connected"]))

    def _on_torrent_error(self, alert: Any) -> None:
        if (torrent := self._torrent_of(alert)) is not None:
            torrent.owner.failed(alert.message())

    def _on_listening(self, alert: Any) -> None:
        if self._listening is not None and not self._listening.done():
            quicken(set())
            self._listening.set_result(int(alert.port))

    def _on_listen_failed(self, alert: Any) -> None:
        if self._listening is not None and not self._listening.done():
            self._listening.set_exception(SessionError(alert.message()))


def _later(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    """*act* on *loop*, from whatever thread; nothing once that loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(act)


_HANDLERS: dict[type, Callable[[Session, Any], None]] = {
    lt.add_torrent_alert: Session._on_added,
    lt.piece_finished_alert: Session._on_piece,
    lt.hash_failed_alert: Session._on_hash_failed,
    lt.peer_connect_alert: Session._on_connected,
    lt.peer_disconnected_alert: Session._on_disconnected,
    lt.peer_ban_alert: Session._on_ban,
    lt.cache_flushed_alert: Session._on_flushed,
    lt.read_piece_alert: Session._on_read,
    lt.session_stats_alert: Session._on_stats,
    lt.torrent_error_alert: Session._on_torrent_error,
    lt.file_error_alert: Session._on_torrent_error,
    lt.listen_succeeded_alert: Session._on_listening,
    lt.listen_failed_alert: Session._on_listen_failed,
}


def _bound(session: Any, upload: int) -> None:
    for kind in (session.global_peer_class_id, session.local_peer_class_id):
        session.set_peer_class(kind, {**session.get_peer_class(kind), "upload_limit": upload})
