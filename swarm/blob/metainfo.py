"""Torrents of a blob: the sealed one and one per window (BEP 3, BEP 27), as pure functions.

All are functions of (digest, size, piece hashes), so every node that has the bytes arrives at the
same info-hash. The torrent of a window names the whole blob file; the pieces outside the window
carry FILLER instead of a hash and are never asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import bencodepy

from swarm.blob.digest import Digest
from swarm.blob.errors import BadHashes
from swarm.blob.geometry import Geometry, Window

HASH_LENGTH = 20
"""Bytes of one piece hash (SHA-1, BEP 3)."""

FILLER = bytes(HASH_LENGTH)
"""Stands where the hash of a piece outside the window would be."""


def check_hashes(hashes: bytes, pieces: int) -> bytes:
    """*hashes* if it has exactly *pieces* entries and no filler. Raises BadHashes."""
    if len(hashes) != pieces * HASH_LENGTH:
        raise BadHashes(f"{len(hashes)} bytes of hashes for {pieces} pieces")
    if FILLER in hashes and any(hashes[i : i + HASH_LENGTH] == FILLER for i in range(0, len(hashes), HASH_LENGTH)):
        raise BadHashes("a piece hash is all zeros")
    return hashes


def sealed_info(digest: Digest, geometry: Geometry, hashes: bytes) -> bytes:
    """The bencoded info dictionary of the whole blob. *hashes*: 20 bytes per piece, in order."""
    return _info(digest, geometry, check_hashes(hashes, geometry.pieces))


def window_info(digest: Digest, geometry: Geometry, window: Window, hashes: bytes) -> bytes:
    """The bencoded info dictionary of one window. *hashes*: 20 bytes per piece of the window."""
    check_hashes(hashes, window.pieces)
    before = FILLER * window.first_piece
    after = FILLER * (geometry.pieces - window.first_piece - window.pieces)
    return _info(digest, geometry, before + hashes + after)


def info_hash(info: bytes) -> bytes:
    """The 20-byte info-hash of a bencoded info dictionary (BEP 3)."""
    return hashlib.sha1(info, usedforsecurity=False).digest()


def torrent_file(info: bytes, announce: Sequence[str], seeds: Sequence[str] = ()) -> bytes:
    """A .torrent around *info* with the tracker URLs *announce*, each a tier of its own (BEP 12).

    *seeds*: URLs under which HTTP servers give the file by its name, each with a slash at its end (BEP 19).
    """
    head: dict[bytes, object] = {b"info": bencodepy.decode(info), b"created by": b"shoal"}
    if announce:
        head[b"announce"] = announce[0].encode()
    if len(announce) > 1:
        head[b"announce-list"] = [[url.encode()] for url in announce]
    if seeds:
        head[b"url-list"] = [url.encode() for url in seeds]
    encoded: bytes = bencodepy.encode(head)
    return encoded


def _info(digest: Digest, geometry: Geometry, pieces: bytes) -> bytes:
    if not geometry.size:
        raise BadHashes("a blob of 0 bytes has no torrent")
    encoded: bytes = bencodepy.encode(
        {
            b"length": geometry.size,
            b"name": digest.encode(),
            b"piece length": geometry.piece_length,
            b"pieces": pieces,
            b"private": 1,
        }
    )
    return encoded


def secured(info: bytes, authority: bytes) -> bytes:
    """The bencoded *info* as that of an SSL torrent: its peers show certificates that *authority* (PEM) signed.

    Of several certificates the first counts (libtorrent.org/manual-ref.html, "SSL torrents"). The key is last in order.
    """
    mark = b"-----END CERTIFICATE-----"
    authority = authority.partition(mark)[0].lstrip() + mark + b"\n"
    return info[:-1] + b"8:ssl-cert" + b"%d:" % len(authority) + authority + b"e"
