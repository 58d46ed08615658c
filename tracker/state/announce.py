"""Announce and scrape as pure functions: query bytes in, bencode out (BEP 3, 7, 23, 48).

`info_hash` is 20 bytes of anything, percent-encoded, so queries are taken apart as bytes. A `+`
stands for itself: it means a blank in forms only (RFC 1866), and no BitTorrent client sends one for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import unquote_to_bytes

import bencodepy

from tracker.errors import Malformed

MAX_QUERY = 8 * 1024
"""Bytes of the longest query: a scrape of 100 info-hashes."""

MAX_NUMWANT = 200
"""Peers in an answer at most, whatever was asked for."""

_EVENTS = {b"": "", b"started": "started", b"completed": "completed", b"stopped": "stopped", b"paused": ""}


@dataclass(frozen=True, slots=True)
class Announce:
    """What a client says (BEP 3). *left* in bytes; None if it did not say."""

    info_hash: bytes
    peer_id: bytes
    port: int
    left: int | None
    event: str
    numwant: int
    compact: bool
    no_peer_id: bool


@dataclass(frozen=True, slots=True)
class Told:
    """A peer in an announce answer. *packed*: the address in network order, 4 or 16 bytes."""

    packed: bytes
    port: int
    peer_id: bytes = b""
    compact: bytes = field(init=False)
    """Address and port, made once: 6 or 18 bytes (BEP 23, BEP 7)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "compact", self.packed + self.port.to_bytes(2, "big"))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many hold the whole blob, how many seek it, how many ever finished (BEP 48)."""

    complete: int
    incomplete: int
    downloaded: int


def parse_query(raw: str) -> dict[str, list[bytes]]:
    """The values of every key of the query of request target *raw*, percent-decoded. Raises Malformed."""
    query = raw.partition("?")[2].partition("#")[0]
    if len(query) > MAX_QUERY:
        raise Malformed("query too long")
    values: dict[str, list[bytes]] = {}
    for part in query.split("&"):
        if part:
            key, _, value = part.partition("=")
            values.setdefault(key, []).append(_unquote(value))
    return values


def parse_announce(raw: str, numwant: int) -> Announce:
    """The announce that request target *raw* spells; *numwant*: peers if it does not say. Raises Malformed."""
    query = parse_query(raw)
    info_hash = _one(query, "info_hash")
    if info_hash is None or len(info_hash) != 20:
        raise Malformed("info_hash must be 20 bytes, percent-encoded")
    peer_id = _one(query, "peer_id")
    if peer_id is None or len(peer_id) != 20:
        raise Malformed("peer_id must be 20 bytes, percent-encoded")
    port = _number(query, "port")
    if port is None or not 0 < port < 65536:
        raise Malformed("port must be 1 to 65535")
    event = _EVENTS.get(_one(query, "event") or b"")
    if event is None:
        raise Malformed("event must be started, completed or stopped")
    for counter in ("uploaded", "downloaded"):
        _number(query, counter)
    wanted = _number(query, "numwant", negative=True)
    if wanted is None or wanted < 0:
        wanted = numwant
    return Announce(
        info_hash=info_hash,
        peer_id=peer_id,
        port=port,
        left=_number(query, "left"),
        event=event,
        numwant=min(wanted, MAX_NUMWANT),
        compact=_one(query, "compact") != b"0",
        no_peer_id=_one(query, "no_peer_id") == b"1",
    )


def parse_scrape(raw: str) -> list[bytes]:
    """The info-hashes that a scrape asks for (BEP 48). Raises Malformed."""
    hashes = parse_query(raw).get("info_hash", [])
    if not hashes:
        raise Malformed("a scrape must name at least one info_hash")
    if any(len(info_hash) != 20 for info_hash in hashes):
        raise Malformed("info_hash must be 20 bytes, percent-encoded")
    return hashes


def announce_answer(asked: Announce, counts: Counts, peers: Iterable[Told], interval: float) -> bytes:
    """The bencoded answer. Compact (BEP 23, `peers6` of BEP 7) unless the client refused it."""
    answer: dict[bytes, object] = {
        b"complete": counts.complete,
        b"incomplete": counts.incomplete,
        b"interval": int(interval),
        b"min interval": max(1, int(interval) // 4),
    }
    if asked.compact:
        compact = [peer.compact for peer in peers]
        answer[b"peers"] = b"".join([peer for peer in compact if len(peer) == 6])
        if v6 := b"".join([peer for peer in compact if len(peer) != 6]):
            answer[b"peers6"] = v6
    else:
        answer[b"peers"] = [_entry(peer, with_id=not asked.no_peer_id) for peer in peers]
    return _encode(answer)


def scrape_answer(files: dict[bytes, Counts]) -> bytes:
    """The bencoded answer of a scrape: info-hash -> counts (BEP 48)."""
    return _encode(
        {
            b"files": {
                info_hash: {
                    b"complete": counts.complete,
                    b"downloaded": counts.downloaded,
                    b"incomplete": counts.incomplete,
                }
                for info_hash, counts in files.items()
            }
        }
    )


def failure(reason: str) -> bytes:
    """The bencoded refusal (BEP 3)."""
    return _encode({b"failure reason": reason.encode()})


def _entry(peer: Told, *, with_id: bool) -> dict[bytes, object]:
    entry: dict[bytes, object] = {b"ip": str(ip_address(peer.packed)).encode(), b"port": peer.port}
    if with_id:
        entry[b"peer id"] = peer.peer_id or bytes(20)
    return entry


def _encode(value: dict[bytes, object]) -> bytes:
    encoded: bytes = bencodepy.encode(value)
    return encoded


def _unquote(value: str) -> bytes:
    # Bytes that came unescaped are surrogates here (aiohttp decodes targets with surrogateescape).
    plain = value.encode("utf-8", "surrogateescape")
    return unquote_to_bytes(plain) if "%" in value else plain


def _one(query: dict[str, list[bytes]], key: str) -> bytes | None:
    values = query.get(key)
    if values is None:
        return None
    if len(values) > 1:
        raise Malformed(f"{key} was given {len(values)} times")
    return values[0]


def _number(query: dict[str, list[bytes]], key: str, *, negative: bool = False) -> int | None:
    text = _one(query, key)
    if text is None or text == b"":
        return None
    digits = text.removeprefix(b"-") if negative else text
    if not digits.isdigit() or len(digits) > 20:
        raise Malformed(f"{key} must be a number")
    return int(text)
