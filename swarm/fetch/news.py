"""What a board has told so far, and what another answer adds to it. Pure: answers in, events out.

An answer counts whole or not at all. It counts if its serial is not below that of the last one that
counted. It moves the cursor only if it carries all the news since the cursor: the answer to a
question that named a later version, or none, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from swarm.blob.errors import TrackerError
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import HASH_LENGTH
from swarm.fetch.events import (
    ClaimsChanged,
    Event,
    Holder,
    HoldersNamed,
    Hopeless,
    ModeChanged,
    PeerAddress,
    PeersChanged,
    Poisoned,
    Published,
    Restarted,
    SizeConflict,
    Sized,
)
from swarm.protocol import wire


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question to the board named. *since* None: its answer carries no news of windows."""

    since: int | None


class News:
    """See the module. *sums*: the hashes of a window that is here, or None."""

    def __init__(self, sums: Callable[[int], bytes | None]) -> None:
        self.incarnation = ""
        self.generation = 0
        self.since = 0
        """Version of the board up to which its publications are known."""
        self.hope = True
        self.sealed = False
        self.vouched = False
        """Two members have seen the sha256 of what the board tells."""
        self.sole: PeerAddress | None = None
        self.available: int | None = None
        self.peers: tuple[PeerAddress, ...] = ()
        self.coming: dict[int, float] = {}
        """Windows that others bring in from upstream, as of the last answer."""
        self._size: int | None = None
        self._serial = 0
        self._sums = sums
        self._hashes: dict[int, bytes] = {}
        self._origins: dict[int, str] = {}
        self._told: set[int] = set()
        self._banned: set[PeerAddress] = set()
        self._rejected: int | None = None
        self._whole = False
        self._holders = HoldersNamed({}, (), None, strangers=False)

    @property
    def hashes(self) -> Mapping[int, bytes]:
        """Window -> piece hashes, of all windows that are published, for reading."""
        return MappingProxyType(self._hashes)

    @property
    def origins(self) -> Mapping[int, str]:
        """Window -> of which origin its bytes are, of those windows that are published and of one, for reading."""
        return MappingProxyType(self._origins)

    @property
    def size(self) -> int | None:
        """Bytes of the blob, once this node or the board knows them."""
        return self._size

    @property
    def rejected(self) -> bool:
        """Whether this node has rejected the generation that the board is still in."""
        return self._rejected == self.generation

    def sized(self, size: int) -> None:
        """This node knows the size itself."""
        self._size = size

    def moved(self) -> None:
        """Another board is followed from now on: it has been told nothing."""
        self.incarnation, self.since, self._told, self.coming = "", 0, set(), {}

    def again(self) -> None:
        """Have everything told once more: something may have been missed."""
        self.since = 0

    def knows(self, window: int) -> bool:
        """Whether the board knows *window*, or is being told."""
        return window in self._told

    def tell(self, window: int, hashes: bytes, origin: str = "") -> None:
        """This node is about to publish *window*, whose bytes are of *origin*."""
        self._told.add(window)
        if self._hashes.setdefault(window, hashes) == hashes and origin:
            self._origins.setdefault(window, origin)

    def untell(self, window: int) -> None:
        """The publication of *window* did not arrive."""
        self._told.discard(window)

    def reject(self) -> None:
        """This node has found the generation to be wrong."""
        self._rejected = self.generation

    def ban(self, peer: PeerAddress) -> None:
        """*peer* sent wrong bytes: nothing is fetched from it any more."""
        self._banned.add(peer)
        self.peers = tuple(other for other in self.peers if other != peer)

    def prefer_all_peers(self) -> None:
        """From now on the blob is fetched from everybody, whatever the board says of a sole seed."""
        self._whole = True
        self.sole = None

    def apply(self, answer: wire.BoardAnswer, asked: Asked) -> Iterator[Event]:
        """What *answer* changes, in the order to act on. Raises TrackerError if it does not fit the blob."""
        if not self._counts(answer):
            return
        if self._begins_again(answer):
            yield Restarted(answer.generation)
        self._serial = answer.serial
        self.coming = dict(answer.coming)
        yield from self._take_peers(answer)
        if answer.poisoned:
            yield Poisoned()
            return
        if answer.size is not None and self._size is None:
            self._size = answer.size
            yield Sized(answer.size)
        elif answer.size is not None and answer.size != self._size:
            yield SizeConflict(answer.size)
            return
        yield from self._take_hashes(answer, asked)
        holders = self._take_holders(answer)
        if self._size is not None and holders != self._holders:
            self._holders = holders
            yield holders
        yield from self._take_mode(answer)
        sole = self.sole is not None
        claims = frozenset(answer.claims) if sole or not (self._whole and answer.sole is not None) else frozenset()
        yield ClaimsChanged(claims, sole)
        self.hope = answer.hope
        if not answer.hope:
            yield Hopeless()

    def _counts(self, answer: wire.BoardAnswer) -> bool:
        return answer.incarnation != self.incarnation or answer.serial >= self._serial

    def _begins_again(self, answer: wire.BoardAnswer) -> bool:
        """Bring incarnation and generation up to date; whether what was known is void."""
        if answer.incarnation != self.incarnation:
            known, void = bool(self.incarnation), self.rejected
            if known:
                self.since, self._told = 0, set()
            self.incarnation, self.generation = answer.incarnation, answer.generation
            if not void:
                return False
        elif answer.generation <= self.generation:
            return False
        self.generation, self.since, self._told, self._rejected = answer.generation, 0, set(), None
        self._hashes.clear()
        self._origins.clear()
        self.vouched = False
        self._holders = HoldersNamed({}, (), None, strangers=False)
        self.sealed, self.sole, self.available = False, None, None
        return True

    def _take_peers(self, answer: wire.BoardAnswer) -> Iterator[Event]:
        told = tuple(peer for p in answer.peers if (peer := (p.ip, p.port)) not in self._banned)
        if told and told != self.peers:
            before, self.peers = self.peers, told
            yield PeersChanged(told, more=bool(set(told) - set(before)))

    def _take_hashes(self, answer: wire.BoardAnswer, asked: Asked) -> Iterator[Event]:
        if self._size is None:
            return
        windows, new = geometry(self._size).windows, []
        origins = {origin: wire.from_bitmap(told) for origin, told in answer.origins.items() if origin}
        for window, hashes in answer.published.items():
            if not 0 <= window < len(windows) or len(hashes) != windows[window].pieces * HASH_LENGTH:
                raise TrackerError("the board does not fit the blob")
            mine = None if self.rejected else self._sums(window)
            if mine is not None and mine != hashes:
                continue  # two truths: publishing ours makes the board begin again
            new.append(window)
            if self._hashes.get(window) != hashes:
                self._origins.pop(window, None)
            self._hashes[window] = hashes
            if origin := next((origin for origin, told in origins.items() if told >> window & 1), ""):
                self._origins[window] = origin
            self._told.add(window)
        if self._carries_all(asked):
            self.since = max(self.since, answer.version)
        if new:
            yield Published(tuple(new))

    def _take_holders(self, answer: wire.BoardAnswer) -> HoldersNamed:
        named = {window: found for window, told in answer.holders.items() if (found := self._lanes(told))}
        sole = self._lanes((answer.sole,)) if answer.sole is not None and not self._whole else ()
        strangers = any(not peer.lane for peer in answer.peers)
        return HoldersNamed(named, self._lanes(answer.peers), sole[0] if sole else None, strangers)

    def _lanes(self, told: Iterable[wire.Peer]) -> tuple[Holder, ...]:
        return tuple(Holder((p.ip, p.port), p.lane) for p in told if p.lane and (p.ip, p.port) not in self._banned)

    def _carries_all(self, asked: Asked) -> bool:
        return asked.since is not None and asked.since <= self.since

    def _take_mode(self, answer: wire.BoardAnswer) -> Iterator[Event]:
        sole = (answer.sole.ip, answer.sole.port) if answer.sole is not None else None
        available = None if answer.available is None else wire.from_bitmap(answer.available)
        sealed = answer.sealed
        if sole is not None and self._whole:  # asked before this fetch turned to all peers
            sole, available, sealed = None, None, True
        self.sealed, self.sole, self.available = sealed, sole, available
        self.vouched = answer.vouched
        yield ModeChanged(sealed, sole, available)
