"""Who is told of whom: the policy by which peers are handed out. No I/O, no clock, chance passed in.

Holders of the whole blob come before seekers, the own zone before others; but a fifth of the
places is kept for other zones, because a wall between zones would strand one that has nothing.
Among equals chance decides, so no seed is everybody's first choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

OUTSIDE_SHARE = 5
"""One place in so many is for another zone, if anybody is there."""


class Pool:
    """Those who may be handed out for one blob, by key. Changing and asking cost no walk over all of them."""

    __slots__ = ("_holders", "_place", "_seekers")

    def __init__(self) -> None:
        self._holders = _Tier()
        self._seekers = _Tier()
        self._place: dict[str, tuple[bool, str]] = {}

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    @property
    def holders(self) -> int:
        """How many in it hold the whole blob."""
        return self._holders.count

    def put(self, key: str, *, zone: str, holder: bool) -> None:
        """*key* may be handed out from now on; *zone* "" if unknown."""
        place = (holder, zone)
        if self._place.get(key) == place:
            return
        self.remove(key)
        self._place[key] = place
        self._tier(holder).add(zone, key)

    def remove(self, key: str) -> None:
        """*key* is handed to nobody any more."""
        if (place := self._place.pop(key, None)) is not None:
            holder, zone = place
            self._tier(holder).discard(zone, key)

    def pick(self, asker: str, zone: str, limit: int, chance: Random, *, walled: bool = False) -> list[str]:
        """At most *limit* keys for *asker* in *zone*, best first, never *asker* itself. *walled*: none from outside."""
        if limit <= 0:
            return []
        if walled:
            holders = self._holders.inside(zone, limit, asker, chance)
            return [*holders, *self._seekers.inside(zone, limit - len(holders), asker, chance)]
        others = len(self._place) - (asker in self._place)
        if others <= limit:
            return [*self._all(asker, zone, chance)]
        reserve = min(max(1, limit // OUTSIDE_SHARE) if limit > 1 else 0, self._outside(zone))
        holders_in = self._holders.inside(zone, limit - reserve, asker, chance)
        holders_out = self._holders.outside(zone, limit - len(holders_in), asker, chance)
        room = limit - len(holders_in) - len(holders_out)
        kept = max(0, min(room, reserve - len(holders_out)))
        seekers_in = self._seekers.inside(zone, room - kept, asker, chance)
        seekers_out = self._seekers.outside(zone, room - len(seekers_in), asker, chance)
        chosen = [*holders_in, *holders_out, *seekers_in, *seekers_out]
        if len(chosen) < limit:
            taken = {*chosen, asker}
            spare = [key for key in self._all(asker, zone, chance) if key not in taken]
            chosen += spare[: limit - len(chosen)]
        return chosen

    def pick_holders(self, asker: str, zone: str, limit: int, chance: Random, *, walled: bool = False) -> list[str]:
        """At most *limit* who hold the whole blob, the own zone first. *walled*: none from outside."""
        inside = self._holders.inside(zone, limit, asker, chance)
        return inside if walled else [*inside, *self._holders.outside(zone, limit - len(inside), asker, chance)]

    def _tier(self, holder: bool) -> _Tier:
        return self._holders if holder else self._seekers

    def _outside(self, zone: str) -> int:
        return self._holders.outsiders(zone) + self._seekers.outsiders(zone)

    def _all(self, asker: str, zone: str, chance: Random) -> Iterator[str]:
        for tier in (self._holders, self._seekers):
            yield from tier.inside(zone, tier.count, asker, chance)
            yield from tier.outside(zone, tier.count, asker, chance)


class _Tier:
    """Keys by zone; each zone a list that is drawn from by index."""

    __slots__ = ("_at", "_zones", "count")

    def __init__(self) -> None:
        self._zones: dict[str, list[str]] = {}
        self._at: dict[str, int] = {}
        self.count = 0

    def add(self, zone: str, key: str) -> None:
        keys = self._zones.setdefault(zone, [])
        self._at[key] = len(keys)
        keys.append(key)
        self.count += 1

    def discard(self, zone: str, key: str) -> None:
        keys = self._zones[zone]
        at, last = self._at.pop(key), keys.pop()
        if last != key:
            keys[at] = last
            self._at[last] = at
        if not keys:
            del self._zones[zone]
        self.count -= 1

    def outsiders(self, zone: str) -> int:
        return self.count - len(self._zones.get(zone, ()))

    def inside(self, zone: str, limit: int, asker: str, chance: Random) -> list[str]:
        return _draw(self._zones.get(zone, []), limit, asker, chance)

    def outside(self, zone: str, limit: int, asker: str, chance: Random) -> list[str]:
        if limit <= 0 or not (total := self.outsiders(zone)):
            return []
        others = [keys for name, keys in self._zones.items() if name != zone]
        if len(others) == 1:
            return _draw(others[0], limit, asker, chance)
        drawn: list[str] = []
        for place in _places(total, min(limit + 1, total), chance):
            for keys in others:
                if place < len(keys):
                    drawn.append(keys[place])
                    break
                place -= len(keys)
        return [key for key in drawn if key != asker][:limit]


def _draw(keys: list[str], limit: int, asker: str, chance: Random) -> list[str]:
    if limit <= 0:
        return []
    places = _places(len(keys), min(limit + 1, len(keys)), chance)  # one more: the asker may be among them
    return [key for place in places if (key := keys[place]) != asker][:limit]


def _places(total: int, count: int, chance: Random) -> list[int]:
    """*count* different places of *total*, each equally likely: from a place by chance on, in steps by chance.

    Places drawn one by one would be ten times as dear, and this is most of what an answer costs.
    """
    if not count:
        return []
    start = int(chance.random() * total)
    step = 1 + int(chance.random() * (total // count))
    return [place % total for place in range(start, start + count * step, step)]
