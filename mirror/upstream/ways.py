"""What is known of how threads may ask for ranges of one file, and one range that is asked for so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import aiohttp

from mirror.upstream.pouring import Pouring, Way
from mirror.upstream.registries import place_of
from mirror.upstream.transport import ALWAYS, Request, Transport
from swarm.base.settled import settled
from swarm.upstream.source import Sink


@dataclass(frozen=True)
class Known:
    """A way, and who tells when an answer takes too long."""

    way: Way = field(repr=False)
    transport: Transport = field(repr=False)
    request: Request = field(repr=False)


class Counted:
    """A Sink that counts what another one gets."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.count = 0
        """Bytes so far."""

    @property
    def room(self) -> int:
        """See Sink."""
        return self._sink.room

    def put(self, data: memoryview) -> None:
        """See Sink."""
        self.count += len(data)
        self._sink.put(data)


def learned(
    transport: Transport, request: Request, response: aiohttp.ClientResponse, first_byte: float | None
) -> Known | None:
    """The way that *request* went, which *response* answers; None: threads cannot go it.

    *first_byte*: see Request. A small body is here before anybody looks, and its connection gone: that is no way.
    """
    url, connection = request.url, response.connection
    if "Range" not in request.headers or request.proxy is not None:
        return None
    if connection is None or connection.transport is None:
        return None
    sock, address = (connection.transport.get_extra_info(name) for name in ("socket", "peername"))
    if sock is None or address is None:
        return None
    sent = {"Host": url.host_port_subcomponent or "", **ALWAYS, **request.headers}
    del sent["Range"]
    way = Way(
        place_of(url), url.raw_host or "", (sock.family, address), transport.rules, url.scheme == "https",
        request.tls, url.raw_path_qs, sent,
        connect=transport.deadlines.connect, stall=transport.deadlines.stall, patience=transport.deadlines.slow,
    )  # fmt: skip
    return Known(way, transport, replace(request, first_byte=first_byte))


async def poured(
    pouring: Pouring, known: Known, start: int, stop: int, total: int, sink: Sink, begun: Callable[[], None]
) -> None:
    """Give bytes [start, stop) to *sink*, and call *begun* when the answer has begun, in time. Raises as `pour`."""
    answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def heard(answer: bool) -> None:
        if not answered.done():
            answered.set_result(answer)

    job = asyncio.ensure_future(pouring.pour(known.way, start, stop, total, sink, partial(heard, True)))
    job.add_done_callback(lambda _: heard(False))
    try:
        if await known.transport.in_time(known.request, answered):
            begun()
        await asyncio.shield(job)
    finally:
        job.cancel()
        await settled(job)
