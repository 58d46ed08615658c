"""What is said on the lane: heads of HTTP/1.1 requests and answers, as pure values (RFC 9110, RFC 9112, BEP 19)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from swarm.blob.digest import Digest, parse
from swarm.blob.errors import DigestInvalid, Malformed

MOST_HEAD = 8 * 1024
"""Bytes of the longest head, of a request or an answer. Ours have about 300."""

END = b"\r\n\r\n"

URGENT = "priority"
"""Header of a request that somebody waits for: urgency 0 (RFC 9218, 4.1)."""

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")

REASONS = {
    200: "OK",
    206: "Partial Content",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    416: "Range Not Satisfiable",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}

WHY = "shoal-why"
"""Header of a refusal: "unknown" (no such blob here), "lacking" (the body says what is here) or "busy"."""

REFUSALS = ("unknown", "lacking", "busy")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. *start*, *stop* in bytes, *stop* exclusive; None: no range, or one that is open."""

    method: str
    digest: Digest | None
    start: int | None = None
    stop: int | None = None
    keep: bool = True
    """Whether the connection is kept afterwards."""
    urgent: bool = False
    """Somebody waits for just these bytes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer. *length* in bytes of its body."""

    status: int
    length: int
    start: int = 0
    """Offset in the blob of the body's first byte (206)."""
    total: int | None = None
    """Size of the blob, if the answer says it."""
    why: str = ""
    keep: bool = True


def read_request(head: bytes) -> Request:
    """The request that *head* (without its empty line) spells. Raises Malformed."""
    lines = _text(head).split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Malformed("no HTTP/1 request line")
    method, target, version = words
    headers = _headers(lines[1:])
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise Malformed("a request here has no body")
    start = stop = None
    # RFC 9110, 14.2: a Range that is not understood is ignored. So are several at once.
    if method == "GET" and (match := _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))):
        start = int(match[1])
        stop = int(match[2]) + 1 if match[2] else None
        if stop is not None and stop <= start:
            start = stop = None
    urgent = headers.get(URGENT, "").replace(" ", "").startswith("u=0")
    return Request(method, _digest(target), start, stop, _keeps(version, headers), urgent)


def _digest(target: str) -> Digest | None:
    # A BEP 19 client appends the torrent's name, quoted as it likes.
    name = unquote(target.partition("?")[0].rpartition("/")[2])
    try:
        return parse(name)
    except DigestInvalid:
        return None


def request(host: str, digest: Digest, start: int, stop: int, *, urgent: bool = False) -> bytes:
    """A request for bytes [start, stop) of *digest* from *host*. *urgent*: somebody waits for just these."""
    priority = "Priority: u=0\r\n" if urgent else ""
    return (
        f"GET /{quote(digest, safe='')} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={start}-{stop - 1}\r\n"
        f"User-Agent: shoal\r\n{priority}\r\n"
    ).encode()


def answer(status: int, length: int, *, start: int | None = None, total: int | None = None, why: str = "") -> bytes:
    """The head of an answer. 206: *start* and *total* make its Content-Range; 416: *total* does."""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"Content-Length: {length}"]
    if status in (200, 206):
        lines += ["Content-Type: application/octet-stream", "Accept-Ranges: bytes"]
    if start is not None:
        lines.append(f"Content-Range: bytes {start}-{start + length - 1}/{total}")
    elif status == 416:
        lines.append(f"Content-Range: bytes */{total}")
    if why:
        lines.append(f"{WHY}: {why}")
    if status == 405:
        lines.append("Allow: GET, HEAD")
    if status in (400, 405, 431):
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_answer(head: bytes) -> Answer:
    """The answer that *head* (without its empty line) spells. Raises Malformed."""
    lines = _text(head).split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not (len(words[1]) == 3 and words[1].isdigit()):
        raise Malformed("no HTTP/1 status line")
    headers = _headers(lines[1:])
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 19) or "transfer-encoding" in headers:
        raise Malformed("no Content-Length")
    start, total = 0, None
    if match := _CONTENT_RANGE.fullmatch(headers.get("content-range", "")):
        start, total = int(match[1]), None if match[3] == "*" else int(match[3])
        if int(match[2]) - start + 1 != int(length):
            raise Malformed("Content-Range and Content-Length differ")
    elif words[1] == "206":
        raise Malformed("no Content-Range")
    return Answer(int(words[1]), int(length), start, total, headers.get(WHY, ""), _keeps(words[0], headers))


def _keeps(version: str, headers: dict[str, str]) -> bool:
    said = headers.get("connection", "").lower()
    return said != "close" if version != "HTTP/1.0" else said == "keep-alive"


def _text(head: bytes) -> str:
    if len(head) > MOST_HEAD:
        raise Malformed("the head is too long")
    try:
        return head.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("the head is not ASCII") from None


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise Malformed("a header line has no name")
        headers[name.lower()] = value.strip()
    return headers
