"""The name of a blob: an OCI digest (OCI image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import re
from typing import NewType

from swarm.blob.errors import DigestInvalid

Digest = NewType("Digest", str)
"""A canonical `sha256:<64 lowercase hex>`; only `parse` makes one."""

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_ANY = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[A-Za-z0-9=_-]+")
_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}


def parse(text: str) -> Digest:
    """The sha256 digest that *text* spells. Raises DigestInvalid for anything else."""
    if not _SHA256.fullmatch(text):
        raise DigestInvalid(f"not a sha256 digest: {text[:100]!r}")
    return Digest(text)


def from_hex(hex_text: str) -> Digest:
    """The digest whose 64 hex digits are *hex_text*. Raises DigestInvalid."""
    return parse(f"sha256:{hex_text}")


def hex_of(digest: Digest) -> str:
    """The 64 hex digits of *digest*: its file name in every store."""
    return digest.removeprefix("sha256:")


def is_well_formed(text: str) -> bool:
    """Whether *text* is a digest of any algorithm (those other than sha256 pass without a swarm)."""
    if not _ANY.fullmatch(text):
        return False
    algorithm, _, encoded = text.partition(":")
    length = _HEX_LENGTH.get(algorithm)
    return length is None or re.fullmatch(f"[0-9a-f]{{{length}}}", encoded) is not None
