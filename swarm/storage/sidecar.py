"""The small files beside blobs: what was verified about a complete one, which pieces a partial one has.

`Meta` is JSON. The piece log is binary: a header, then one record per piece as it arrives; a record
that was torn by a crash fails its checksum, and ends the log. The log is a hint: whoever reads it
checks the pieces against the blob file. One record more, in the place of a piece that no blob has, says of
which origin they all are (swarm/fetch/proof.py).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from swarm.blob.metainfo import FILLER, HASH_LENGTH

_HEADER = struct.Struct("<8sQ")
_MAGIC = b"shoallg1"
_BODY = struct.Struct(f"<I{HASH_LENGTH}s")
_CHECK = struct.Struct("<I")

HEADER = _HEADER.size
"""Bytes of a piece log's header."""

RECORD = _BODY.size + _CHECK.size
"""Bytes of one record of a piece log."""


OWNER = (1 << 32) - 1
"""The number of the record that says of which origin the pieces are; FILLER: of several, or of none that is known."""


class Stamp(NamedTuple):
    """What identifies the state of a file without reading it. *size* in bytes, *mtime_ns* of the last write."""

    size: int
    mtime_ns: int
    inode: int


class Meta(msgspec.Struct, frozen=True):
    """A blob whose sha256 matched when its file had this stamp. *hashes*: 20 bytes per piece."""

    size: int
    mtime_ns: int
    inode: int
    hashes: bytes

    @property
    def stamp(self) -> Stamp:
        """The stamp of the file when it was verified."""
        return Stamp(self.size, self.mtime_ns, self.inode)


def stamp_of(stat: os.stat_result) -> Stamp:
    """The stamp in the answer of fstat or stat."""
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def encode_meta(stamp: Stamp, hashes: bytes) -> bytes:
    """The text of a Meta."""
    return msgspec.json.encode(Meta(stamp.size, stamp.mtime_ns, stamp.inode, hashes))


def decode_meta(data: bytes) -> Meta | None:
    """The Meta that *data* spells; None if it spells none."""
    try:
        return msgspec.json.decode(data, type=Meta)
    except (msgspec.MsgspecError, ValueError):
        return None


def log_header(size: int) -> bytes:
    """The header of the piece log of a blob of *size* bytes."""
    return _HEADER.pack(_MAGIC, size)


def log_records(pieces: Mapping[int, bytes]) -> bytes:
    """Records saying that *pieces* (index -> SHA-1) are in the file."""
    return b"".join(_record(piece, sha1) for piece, sha1 in pieces.items())


def log_owner(origin: str) -> dict[int, bytes]:
    """The record of *origin*, among pieces; none for "": of several, or of none that is known."""
    return {OWNER: bytes.fromhex(origin)} if origin else {}


def take_owner(pieces: dict[int, bytes]) -> str:
    """Take the record of an origin out of *pieces*, as parsed; "" if there is none."""
    return pieces.pop(OWNER, b"").hex()


def log_removals(pieces: Iterable[int]) -> bytes:
    """Records saying that *pieces* are no longer in the file."""
    return b"".join(_record(piece, FILLER) for piece in pieces)


def parse_log(data: bytes) -> tuple[int, dict[int, bytes]] | None:
    """(size of the blob, pieces that it may have: index -> SHA-1); None if *data* is no piece log.

    Reading ends at the first record that is short or fails its checksum.
    """
    if len(data) < HEADER:
        return None
    magic, size = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return None
    pieces: dict[int, bytes] = {}
    for at in range(HEADER, len(data) - RECORD + 1, RECORD):
        piece, sha1 = _BODY.unpack_from(data, at)
        (check,) = _CHECK.unpack_from(data, at + _BODY.size)
        if check != zlib.crc32(data[at : at + _BODY.size]):
            break
        if sha1 == FILLER:
            pieces.pop(piece, None)
        else:
            pieces[piece] = sha1
    return size, pieces


def _record(piece: int, sha1: bytes) -> bytes:
    body = _BODY.pack(piece, sha1)
    return body + _CHECK.pack(zlib.crc32(body))
