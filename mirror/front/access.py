"""What upstream said yes to, and when: the memory behind share-private and the streaming door. Pure."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Hashable
from enum import Enum


class Standing(Enum):
    """How a former yes counts now."""

    FRESH = "fresh"
    OLD = "old"
    NONE = "none"


class AuthCache:
    """Keys that were accepted: fresh for *ttl* seconds, old until *keep*, then forgotten; at most *bound* of them."""

    def __init__(self, ttl: float, *, keep: float = 0.0, bound: int = 65536) -> None:
        self._ttl = ttl
        self._keep = max(ttl, keep)
        self._bound = bound
        self._when: OrderedDict[Hashable, float] = OrderedDict()

    def note(self, key: Hashable, now: float) -> None:
        """*key* was accepted at *now*."""
        self._when[key] = now
        self._when.move_to_end(key)
        while len(self._when) > self._bound:
            self._when.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        """*key* was refused."""
        self._when.pop(key, None)

    def standing(self, key: Hashable, now: float) -> Standing:
        """How *key* stands at *now*."""
        when = self._when.get(key)
        if when is None:
            return Standing.NONE
        if now - when < self._ttl:
            return Standing.FRESH
        if now - when < self._keep:
            return Standing.OLD
        del self._when[key]
        return Standing.NONE

    def __len__(self) -> int:
        return len(self._when)


_SALT = secrets.token_bytes(16)


def fingerprint(*secret: str, salt: bytes = _SALT) -> bytes:
    """16 bytes that stand for credentials without holding them; without *salt*, different in every process."""
    keyed = hashlib.blake2b(key=salt, digest_size=16)
    for text in secret:
        content = text.encode("utf-8", "surrogateescape")
        keyed.update(len(content).to_bytes(8, "big") + content)
    return keyed.digest()
