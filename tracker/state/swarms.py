"""What the tracker keeps per blob: its board, who may be handed out, and who waits for news of it.

Those whose claims changed are woken at once. News for everybody goes out in waves: the first at
once, the next when as much time has passed as the wave before it costs, and a moment at least, so that a swarm
hears of many publications in one answer instead of in many. A wave through thousands goes forward in steps, and
between two of them the tracker hears what is said to it: who publishes does not wait until all others have heard.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from swarm.blob.digest import Digest
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import info_hash, sealed_info
from swarm.protocol import wire
from swarm.protocol.board import Board
from swarm.protocol.standing import NOBODY_ELSE
from swarm.protocol.standing import Trust as BoardTrust
from tracker.state.announce import Told
from tracker.state.handout import Pool
from tracker.state.offers import Offers

WAKE_COST = 0.000_2
"""Seconds of one core that answering one waiting agent takes; half go into waves.

tests/tracker/http/test_tracker_load.py measures it."""

LONGEST_WAVE = 0.5
"""Seconds between the beginnings of two waves at most, unless the first takes longer."""

STEP = 64
"""Agents that are woken at once: some ten milliseconds of work."""

SHORTEST_WAVE = 0.1
"""Seconds between waves at least, while much is missing: a window more is no news that cannot wait so long. Eight
agents on two cores took 5 % less time for 128 MiB, which enter the cluster as some eighty windows in seven seconds."""

MUCH = 8
"""Windows that are not published: fewer are not much. Whoever waits for the last ones has nothing else to do."""

ENCODED_BUDGET = 16 * 1024 * 1024
"""Bytes of encoded hashes that are kept for the next agent that is told the same."""


_NOTHING = msgspec.Raw(b"{}")


@dataclass(slots=True)
class Announcer:
    """A BitTorrent client that announces here and is no agent (BEP 3)."""

    told: Told
    zone: str
    complete: bool
    until: float
    """When it is forgotten unless it announces again."""


class Raw(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """wire.BoardAnswer with *published* and *origins* encoded already: many agents are told the same."""

    incarnation: str
    version: int
    generation: int
    serial: int = 0
    size: int | None = None
    sealed: bool = False
    vouched: bool = False
    published: msgspec.Raw = msgspec.Raw(b"{}")
    origins: msgspec.Raw = msgspec.Raw(b"{}")
    claims: tuple[int, ...] = ()
    hope: bool = True
    poisoned: bool = False
    copies: int = 0
    holders: dict[int, tuple[wire.Peer, ...]] = {}
    peers: tuple[wire.Peer, ...] = ()
    sole: wire.Peer | None = None
    available: bytes | None = None
    coming: dict[int, float] = {}


@dataclass(eq=False, slots=True)
class Swarm:
    """One blob. *incarnation*: of this board of this tracker process."""

    board: Board
    incarnation: str
    used: float
    pool: Pool = field(default_factory=Pool)
    offers: Offers = field(default_factory=Offers)
    waiters: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    """Agent -> its open poll."""
    announcers: OrderedDict[str, Announcer] = field(default_factory=OrderedDict)
    """By `ip:port`, the one that will be forgotten first in front."""
    hope_told: dict[str, bool] = field(default_factory=dict)
    wishes_heard: dict[str, frozenset[int]] = field(default_factory=dict)
    """Reader of ranges -> published windows it was told the holders of, as far as there were some with room."""
    wishes: dict[str, float] = field(default_factory=dict)
    """Agent -> since when it would bring something in, without a claim yet."""
    info_hash: bytes | None = None
    """Of the sealed torrent; None until sealed, and for a blob of 0 bytes."""
    downloaded: int = 0
    """Announces that said `completed` (BEP 48)."""
    quiet_until: float = 0.0
    """No new claims before: agents that knew another tracker say first what they hold."""
    gathering_since: float = 0.0
    gathering_until: float = 0.0
    """Agents come from another tracker meanwhile."""
    asked: str = ""
    """The agent that was asked for the hashes of its whole copy."""
    tried: set[str] = field(default_factory=set)
    """Holders that were asked for hashes."""
    news: tuple[int, bool] = (0, True)
    """(version, hope) that the board had when it was last settled."""
    wave: asyncio.TimerHandle | None = None
    """The next wave, or the next step of the one under way."""
    last_wave: float = 0.0
    unwoken: list[asyncio.Future[None]] = field(default_factory=list)
    """Open polls that the wave under way has not reached, the last first."""
    more: bool = False
    """There was news since the wave under way began."""
    arrived: int = 0
    """Bytes that came from upstream into windows that were published."""
    received: int = 0
    """Bytes of whole copies that came from peers."""
    joined: set[str] = field(default_factory=set)
    """Agents that took part and have not said yet that they have all of it."""
    rate: float = 0.0
    """Bytes per second from upstream, averaged over some ten seconds."""
    rated: float = 0.0
    serial: int = 0
    """Answers made so far."""
    published_by: dict[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """The blob's name."""
        return self.board.digest

    @property
    def idle(self) -> bool:
        """Whether nobody takes part, and nobody holds it."""
        return not self.board.participants and not self.board.holders and not self.announcers

    def forget(self, agent: str) -> None:
        """*agent* takes part no more."""
        self.hope_told.pop(agent, None)
        self.wishes_heard.pop(agent, None)
        self.wishes.pop(agent, None)

    def got_whole(self, agent: str) -> None:
        """*agent* has all of it now: what it did not bring in from upstream came from peers, if it took part."""
        if agent in self.joined and self.board.size is not None:
            self.joined.discard(agent)
            self.received += max(0, self.board.size - self.brought(agent))

    def brought(self, agent: str) -> int:
        """Bytes of the windows that *agent* brought in from upstream."""
        if agent not in self.published_by:
            return 0
        board = self.board
        return sum(board.window_length(window) for window, told in board.windows.items() if told.agent == agent)

    def wake(self, agent: str) -> None:
        """Answer the open poll of *agent*."""
        future = self.waiters.get(agent)
        if future is not None and not future.done():
            future.set_result(None)

    def spread(self, now: float) -> None:
        """There is news for everybody: answer all open polls, at once or with the next wave."""
        self.more = True
        if self.wave is not None or not self.waiters:
            return
        pause = min(LONGEST_WAVE, 2 * WAKE_COST * len(self.waiters))
        if self.board.window_count - len(self.board.windows) >= MUCH:
            pause = max(SHORTEST_WAVE, pause)
        if now - self.last_wave >= pause:
            self._break(now)
        else:
            loop = asyncio.get_running_loop()
            at = self.last_wave + pause
            self.wave = loop.call_at(at, self._break, at)

    @property
    def rolling(self) -> bool:
        """Whether a wave is under way: whoever asks now only for news, waits for the next one."""
        return bool(self.unwoken)

    def close(self) -> None:
        """Answer whoever waits; no wave comes any more."""
        if self.wave is not None:
            self.wave.cancel()
            self.wave = None
        self.unwoken.clear()
        _answer(self.waiters.values())

    def refresh_torrent(self) -> bool:
        """Make `info_hash` follow the board; whether it changed."""
        before = self.info_hash
        board = self.board
        if not board.sealed or not board.size:
            self.info_hash = None
        elif self.info_hash is None:
            self.info_hash = info_hash(self.info())
        return self.info_hash != before

    def info(self) -> bytes:
        """The info dictionary of the sealed torrent."""
        assert self.board.size is not None
        return sealed_info(self.digest, geometry(self.board.size), self.board.hashes)

    def count(self, amount: int, now: float) -> None:
        """*amount* bytes came from upstream since this was last called."""
        self.arrived += amount
        passed = now - self.rated
        keep = max(0.0, 1.0 - passed / 10.0)
        self.rate = self.rate * keep + amount / 10.0
        self.rated = now

    def rate_at(self, now: float) -> float:
        """`rate`, fallen since nothing more came."""
        return self.rate * max(0.0, 1.0 - (now - self.rated) / 10.0)

    def _break(self, now: float) -> None:
        self.last_wave = now
        self.more = False
        self.unwoken = [*reversed(self.waiters.values())]
        self._roll()

    def _roll(self) -> None:
        self.wave = None
        reached = self.unwoken[-STEP:]
        del self.unwoken[-STEP:]
        _answer(reached)
        if self.unwoken:
            self.wave = asyncio.get_running_loop().call_later(0.0, self._roll)
        elif self.more:
            self.spread(asyncio.get_running_loop().time())


class Swarms:
    """Swarms by digest, least recently used first, and by info-hash. *cap*: how many are kept."""

    def __init__(self, incarnation: str, cap: int, trust: BoardTrust = NOBODY_ELSE) -> None:
        self._incarnation = incarnation
        self._cap = cap
        self._trust = trust
        self._serial = 0
        self._swarms: OrderedDict[str, Swarm] = OrderedDict()
        self._torrents: dict[bytes, Swarm] = {}
        self._encoded: OrderedDict[tuple[str, int, int, int], tuple[bytes, bytes]] = OrderedDict()
        self._encoded_bytes = 0
        self.skipped = 0
        """Blobs that some agent holds although no swarm says so: there were too many."""

    def __len__(self) -> int:
        return len(self._swarms)

    def __iter__(self) -> Iterator[Swarm]:
        return iter(self._swarms.values())

    def get(self, digest: str) -> Swarm | None:
        """The swarm of *digest*, if there is one."""
        return self._swarms.get(digest)

    def by_info_hash(self, info_hash: bytes) -> Swarm | None:
        """The sealed swarm with this torrent."""
        return self._torrents.get(info_hash)

    def published_since(self, swarm: Swarm, since: int) -> tuple[msgspec.Raw, msgspec.Raw]:
        """JSON of {window: hashes} and {origin: windows}, of what is newer on the board of *swarm* than *since*."""
        board = swarm.board
        if since >= board.version or not board.windows:
            return _NOTHING, _NOTHING
        key = (swarm.incarnation, board.generation, board.version, since)
        encoded = self._encoded.get(key)
        if encoded is None:
            origins = {origin: wire.bitmap(windows) for origin, windows in board.origins_since(since).items()}
            encoded = msgspec.json.encode(board.published_since(since)), msgspec.json.encode(origins)
            self._encoded[key] = encoded
            self._encoded_bytes += sum(map(len, encoded))
            while self._encoded_bytes > ENCODED_BUDGET:
                _, old = self._encoded.popitem(last=False)
                self._encoded_bytes -= sum(map(len, old))
        return msgspec.Raw(encoded[0]), msgspec.Raw(encoded[1])

    def use(self, digest: Digest, now: float) -> Swarm:
        """The swarm of *digest*, new if there is none; used now."""
        swarm = self._swarms.get(digest)
        if swarm is None:
            self._serial += 1
            swarm = Swarm(Board(digest, trust=self._trust), f"{self._incarnation}.{self._serial}", now)
            self._swarms[digest] = swarm
        else:
            swarm.used = now
            self._swarms.move_to_end(digest)
        return swarm

    def excess(self) -> list[Swarm]:
        """Whom to drop to keep the cap: those unused for longest in which nobody takes part."""
        over = len(self._swarms) - self._cap
        chosen: list[Swarm] = []
        for swarm in self._swarms.values():
            if len(chosen) >= over:
                break
            if not swarm.board.participants and not swarm.waiters:
                chosen.append(swarm)
        return chosen

    def drop(self, swarm: Swarm) -> None:
        """Forget *swarm*."""
        if self._swarms.get(swarm.digest) is swarm:
            del self._swarms[swarm.digest]
            self.skipped += bool(swarm.board.holders)
        if swarm.info_hash is not None:
            self._torrents.pop(swarm.info_hash, None)
        swarm.close()

    def follow_torrent(self, swarm: Swarm) -> None:
        """Find *swarm* under the info-hash that its board has now."""
        before = swarm.info_hash
        if swarm.refresh_torrent():
            if before is not None:
                self._torrents.pop(before, None)
            if swarm.info_hash is not None:
                self._torrents[swarm.info_hash] = swarm


def _answer(polls: Iterable[asyncio.Future[None]]) -> None:
    for future in polls:
        if not future.done():
            future.set_result(None)
