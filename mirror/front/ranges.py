"""What a Range header asks for, and which bytes of a blob of known size that is (RFC 9110, 14). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mirror.errors import RangeUnsatisfiable

_ONE = re.compile(r"(\d{0,19})\s*-\s*(\d{0,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Range:
    """One range as asked. `first` None: the last `last` bytes. `last` None: to the end. *last* is inclusive."""

    first: int | None
    last: int | None

    @property
    def open_ended(self) -> bool:
        """Whether the range is `a-`: its reader may leave at any byte."""
        return self.last is None


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Bytes [start, stop) of a blob of *size* bytes. *partial*: to be answered with 206."""

    start: int
    stop: int
    size: int
    partial: bool

    @property
    def length(self) -> int:
        """Bytes in the body."""
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        """The Content-Range header (RFC 9110, 14.4)."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def parse(header: str | None) -> Range | None:
    """The single range that *header* asks for; None: the whole blob.

    RFC 9110, 14.2: a server may ignore the field, and must ignore a unit that it does not know. So what is
    malformed, in another unit, or several ranges at once is answered whole: correct for every client.
    """
    if header is None:
        return None
    unit, equals, text = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    # RFC 9110, 5.6.1: empty elements of a list do not count.
    parts = [part for part in (part.strip() for part in text.split(",")) if part]
    match = _ONE.fullmatch(parts[0]) if len(parts) == 1 else None
    if match is None or not any(match.groups()):
        return None
    first, last = (int(group) if group else None for group in match.groups())
    if first is not None and last is not None and last < first:
        return None
    return Range(first, last)


def resolve(asked: Range | None, size: int) -> ContentRange:
    """The bytes that *asked* means in a blob of *size* bytes. Raises RangeUnsatisfiable.

    No range fits into an empty blob. `bytes=0-` is answered whole, as registries do it: clients that send it with
    every request would otherwise fail over the empty file.
    """
    if asked is None or (not size and asked == Range(0, None)):
        return ContentRange(0, size, size, partial=False)
    if asked.first is None:
        # RFC 9110, 14.1.2: a suffix longer than the blob is the whole of it; one of length 0 is unsatisfiable.
        if not asked.last or not size:
            raise RangeUnsatisfiable(f"bytes */{size}")
        return ContentRange(max(0, size - asked.last), size, size, partial=True)
    if asked.first >= size:
        raise RangeUnsatisfiable(f"bytes */{size}")
    stop = size if asked.last is None else min(asked.last + 1, size)
    return ContentRange(asked.first, stop, size, partial=True)
