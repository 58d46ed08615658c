"""Whom to ask next: the least busy of those who hold it. Pure, with time passed in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

Address = tuple[str, int]
"""IP address and port of an agent's lane."""

MOST_OF_ONE = 4
"""Requests of this agent to one holder at once: more share the same link, and take others' places there."""

FAILED_FOR = 5.0
"""Seconds for which a holder that was silent, slow or unreachable is asked only where nobody else is."""

GIVEN_UP_AFTER = 3
"""Failures without a byte between them after which a holder is not asked at all for FAILED_FOR. A firewall between two
agents may let BitTorrent pass and nothing else: each dial that ends in silence costs seconds."""

WANTED_FOR = 30.0
"""Seconds for which one that is given up is looked after, since it was wanted last."""

MOST_KNOWN = 4096
"""Holders that are remembered; those that nothing is known of any more go first."""


@dataclass(slots=True)
class _Standing:
    busy: int = 0
    """Requests of ours that are under way."""
    failures: int = 0
    """Since the last byte that came from it."""
    failed_until: float = 0.0
    busy_until: float = 0.0
    """It said that it has enough to do."""
    gone: bool = False
    """Nobody listened there when it failed last."""
    wanted: float = 0.0
    """When it was wanted last, while it is given up."""

    def given_up(self, now: float) -> bool:
        """Whether it is not asked at all."""
        return self.failures >= GIVEN_UP_AFTER and now < self.failed_until


class Holders:
    """What this agent knows of the holders that it asks."""

    def __init__(self) -> None:
        self._known: dict[Address, _Standing] = {}

    def pick(self, candidates: Sequence[Address], now: float, *, named: Collection[Address] = ()) -> Address | None:
        """The one to ask now, earlier candidates first where they are equally busy; None: none can be asked now.

        *named*: those of them that are known to have it. The others are asked where all of these have failed: while
        one only has its requests, it is waited for, since whoever is asked by chance mostly refuses.
        """
        best: tuple[tuple[bool, bool, int], Address] | None = None
        full = False
        for address in candidates:
            known = self._known.get(address) or _Standing()
            failed = now < known.failed_until
            if known.busy >= MOST_OF_ONE:
                full = full or (address in named and not failed)
                continue
            if known.given_up(now):
                known.wanted = now
                continue
            if now < known.busy_until:
                continue
            rank = (failed, address not in named, known.busy)
            if best is None or rank < best[0]:
                best = rank, address
        if best is None or (full and best[0][1]):
            return None
        return best[1]

    def hopeless(self, candidates: Iterable[Address], now: float) -> bool:
        """Whether none of *candidates* is worth waiting for: all failed, one time after the other."""
        return all((known := self._known.get(address)) and known.given_up(now) for address in candidates)

    def free_at(self, candidates: Iterable[Address], now: float) -> float | None:
        """When the first of *candidates* that asked to be left alone may be asked again; None: none did."""
        known = [self._known[address].busy_until for address in candidates if address in self._known]
        return min((until for until in known if until > now), default=None)

    def doubted(self, address: Address, now: float) -> bool:
        """Whether it has failed a moment ago, and given nothing since."""
        known = self._known.get(address)
        return known is not None and known.failures > 0 and now < known.failed_until

    def better(self, address: Address, candidates: Iterable[Address], now: float) -> bool:
        """Whether one of *candidates* is worth leaving *address* for, which brings little."""
        others = [self._known.get(other) or _Standing() for other in candidates if other != address]
        return any(now >= other.failed_until and other.busy < MOST_OF_ONE for other in others)

    def began(self, address: Address) -> None:
        """A request to it is under way."""
        self._of(address).busy += 1

    def ended(self, address: Address) -> None:
        """One less."""
        known = self._of(address)
        known.busy = max(0, known.busy - 1)

    def dead(self, now: float, *, gone: bool = True) -> frozenset[Address]:
        """Those that are given up: they could not be connected to, or were silent time and again.

        *gone*: with those that have ended, of which the tracker hears as well.
        """
        return frozenset(
            address for address, known in self._known.items() if (gone or not known.gone) and known.given_up(now)
        )

    def still_fails(self, address: Address, now: float) -> bool:
        """It was tried, and gives nothing yet; whether anybody has wanted it lately."""
        known = self._of(address)
        known.failed_until = now + FAILED_FOR
        return now - known.wanted < WANTED_FOR

    def failed(self, address: Address, now: float, *, unreached: bool = False, gone: bool = False) -> bool:
        """It was silent, slow, or sent what is wrong. *unreached*: it could not be connected to; *gone*: it has ended.

        Whether it is given up.
        """
        known = self._of(address)
        known.gone = gone
        known.wanted = now
        known.failures += GIVEN_UP_AFTER if unreached else 1
        known.failed_until = now + FAILED_FOR
        return known.given_up(now)

    def gave(self, address: Address) -> None:
        """Bytes came from it."""
        self._of(address).failures = 0

    def well(self, address: Address) -> None:
        """It was tried, and gives: nothing is held against it."""
        self.gave(address)
        self._of(address).failed_until = 0.0

    def said_busy(self, address: Address, until: float) -> None:
        """It asked to be left alone *until* then."""
        self._of(address).busy_until = until

    def _of(self, address: Address) -> _Standing:
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                idle = [other for other, standing in self._known.items() if not standing.busy]
                for other in idle[: MOST_KNOWN // 8]:
                    del self._known[other]
            known = self._known[address] = _Standing()
        return known
