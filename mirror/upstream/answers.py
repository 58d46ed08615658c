"""What an upstream's answer means: its status as an error, its headers as a place in the blob. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from swarm.blob.errors import SourceBroken, SourceBusy, SourceError, SourceRefused

LONGEST_WAIT = 3600.0
"""Seconds: an upstream that asks for a longer pause gets this one. Its header must not disable us for a day."""

_CONTENT_RANGE = re.compile(r"\s*bytes\s+(?:(\d+)\s*-\s*(\d+)|\*)\s*/\s*(\d+|\*)\s*", re.IGNORECASE)


_NO_RANGES = frozenset({400, 405, 406, 412, 413, 422, 501})
"""What gateways and stores that do no ranges answer to one. 403 and 404 are about the blob."""


@dataclass(frozen=True)
class ContentRange:
    """Where in the blob the bytes of an answer belong."""

    total: int | None
    """Size of the blob in bytes; None: upstream did not say (a chunked body, or `/*`)."""

    offset: int
    """Offset of the first byte."""

    end: int | None
    """Offset after the last byte; None: where the body ends."""

    whole: bool
    """Whether upstream sends the blob from its first to its last byte, whatever was asked."""


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3), bounded; None: absent or nonsense."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), LONGEST_WAIT)


def refusal(status: int, headers: Mapping[str, str], host: str) -> SourceError:
    """The error that an answer other than success is. Its text names host and status, nothing else."""
    wait = retry_after(headers.get("Retry-After"))
    text = f"{host} answered {status}"
    if status == 429 or (status == 503 and wait is not None):
        return SourceBusy(text, status=status, retry_after=wait)
    if status in (408, 425) or (status >= 500 and status != 501):
        return SourceBroken(text, status=status, retry_after=wait)
    if 400 <= status < 500 or status == 501:  # RFC 9110, 15.6.2: it is not able to, now or later
        return SourceRefused(text, status=status)
    return SourceBroken(f"{text}, which no range request expects", status=status)


def content_range(status: int, headers: Mapping[str, str], start: int, host: str) -> ContentRange:
    """Where the bytes of the answer to "bytes from *start*" belong.

    Raises SourceBroken if status and headers contradict each other or the request, and what
    `refusal` says for every other status than 200, 206 and 416.
    """
    length = _length(headers.get("Content-Length"), host)
    if status == 200:
        return ContentRange(total=length, offset=0, end=length, whole=True)
    if status not in (206, 416):
        raise refusal(status, headers, host)
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None:
        raise SourceBroken(f"{host} answered {status} without a usable Content-Range", status=status)
    first, last, size = match.groups()
    total = None if size == "*" else int(size)
    if status == 416:
        # RFC 9110, 15.5.17: the size comes as `bytes */size`. Nothing is left from there on, which is no error.
        if first is None and total is not None and start >= total:
            return ContentRange(total=total, offset=total, end=total, whole=False)
        raise SourceBroken(f"{host} refused a range that lies inside the blob", status=status)
    if first is None:
        raise SourceBroken(f"{host} sent a Content-Range without a range", status=status)
    offset, end = int(first), int(last) + 1
    if offset > start or end <= start or (total is not None and end > total):
        raise SourceBroken(f"{host} sent another range than the one asked", status=status)
    if length is not None and length != end - offset:
        raise SourceBroken(f"{host} sent a Content-Length that contradicts its Content-Range", status=status)
    return ContentRange(total=total, offset=offset, end=end, whole=offset == 0 and end == total)


def _length(value: str | None, host: str) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()):
        raise SourceBroken(f"{host} sent a Content-Length that is no number")
    return int(value)


def is_range_refused(status: int, headers: Mapping[str, str], start: int) -> bool:
    """Whether an answer refuses the range rather than the blob, which may be had whole then."""
    if status == 416:
        # RFC 9110, 15.5.17: with `bytes */size` and a start at or past it, it is the truth.
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        return match is None or match[1] is not None or not match[3].isdigit() or start < int(match[3])
    return status in _NO_RANGES
