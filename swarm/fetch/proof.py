"""Whose word the bytes of a blob are, and whether a reader of ranges may be given them. Pure.

Who reads a whole blob finds a lie out by its sha256. Who reads ranges cannot: until somebody has seen the sha256, the
hashes on the board are the word of who told them first, and he may have asked a place where somebody keeps another
file under that digest. So bytes have an *origin*: a fingerprint of the place that they were asked of. A node says it
with the hashes that it publishes, and a reader of ranges is given, until the blob is sealed, bytes of its own origin
alone.
"""

from __future__ import annotations

import hashlib
from enum import Enum


class Proof(Enum):
    """What a reader asks of the bytes that it is given."""

    NONE = "none"
    """Nothing: it reads the whole blob, or passes nothing on."""
    ORIGIN = "origin"
    """They are of its own origin, or of a sealed blob."""
    OWN = "own"
    """This process had them from its own upstream, or two members have seen the sha256."""


def origin_of(place: str) -> str:
    """The origin of what is asked of *place*: no secret, and nobody learns the place from it who does not know it."""
    return hashlib.blake2b(place.encode(), digest_size=20).hexdigest()


def suffices(
    proof: Proof, origin: str, *, mine: str, had: str | None, told: str | None, sealed: bool, vouched: bool
) -> bool:
    """Whether a piece may be given, or waited for.

    *origin*: of the reader. *mine*: of what this node asks of upstream. *had*: where the piece came from
    (swarm/fetch/pieces.py), None if it is not here. *told*: of which origin the board says that it is ("": of several,
    or not known), None if it says nothing, or has other hashes than the piece. *sealed*: somebody has seen the sha256
    of what the board says; *vouched*: two members have.
    """
    if proof is Proof.NONE:
        return True
    if told is not None and (vouched if proof is Proof.OWN else sealed):
        return True
    if had is None:
        return told is None or (told == origin and proof is Proof.ORIGIN)
    if proof is Proof.OWN:
        return had == "upstream" and mine == origin
    return (told if had == "peer" else mine) == origin
