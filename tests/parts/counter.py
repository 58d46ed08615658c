"""A reverse proxy that counts what an upstream sends, slows it down, and makes it fail on demand.

It runs as a process of its own (`python -m tests.parts.counter`), so that it neither shares the loop of
a test nor steals its time. The other half, `Counter`, is the test's handle on it.

Bytes are counted when they are written towards the client: what a client that hangs up no longer takes is
not counted, up to what the kernel had buffered. A `Rule` says what is to go wrong, and for which requests.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict

from tests.parts.procs import Process, free_port, python

CHUNK = 256 * 1024
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One fault for the requests whose `METHOD /path?query` *match* (a regular expression) is found in."""

    match: str = ""
    times: int = 1_000_000_000
    """How many requests it is for; afterwards it is spent."""
    skip: int = 0
    """How many matching requests pass unharmed before."""
    delay: float = 0.0
    """Seconds before the head of the answer."""
    status: int = 0
    """Answer this at once, without asking upstream; *headers* and *body* with it."""
    headers: dict[str, str] = {}
    """Set on the answer."""
    body: str = ""
    ignore_range: bool = False
    """Upstream never sees the Range header: 200 and everything."""
    after: int = 0
    """Body bytes that pass before *then*."""
    then: str = ""
    """`cut` the connection, `hang` until the client leaves, `end` the body early but cleanly (the length
    told is that of the short body), `flip` every byte that follows."""


class Seen(msgspec.Struct, kw_only=True):
    """One request, as far as it has gone."""

    method: str
    path: str
    query: str
    range: str
    client: int
    """TCP port of the client: which process it is."""
    status: int = 0
    sent: int = 0
    """Body bytes."""
    done: bool = False
    headers: dict[str, str] = {}
    """Of the request, names in lower case."""


class Counts(msgspec.Struct, kw_only=True):
    """Everything since the last reset."""

    seen: list[Seen] = []
    sent: int = 0
    """Body bytes in all."""
    peak: int = 0
    """Most requests at once."""

    def bytes_of(self, part: str) -> int:
        """Body bytes sent for GET requests whose path contains *part*."""
        return sum(entry.sent for entry in self.of(part))

    def of(self, part: str, method: str = "GET") -> list[Seen]:
        """The requests whose path contains *part*."""
        return [entry for entry in self.seen if entry.method == method and part in entry.path]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes per second that bodies may have; 0: no limit."""

    connection: float = 0.0
    total: float = 0.0


@dataclass
class Bucket:
    """When the next bytes may go, at *rate* bytes per second."""

    rate: float
    free_at: float = 0.0

    def wait(self, count: int, now: float) -> float:
        """Seconds to wait before *count* bytes are sent."""
        if not self.rate:
            return 0.0
        start = max(self.free_at, now)
        self.free_at = start + count / self.rate
        return start - now


# -- the process -----------------------------------------------------------------------------------


@dataclass
class Proxy:
    """State of the proxy process."""

    upstream: str
    session: aiohttp.ClientSession
    counts: Counts = field(default_factory=Counts)
    rules: list[Rule] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    shape: Shape = field(default_factory=Shape)
    total: Bucket = field(default_factory=lambda: Bucket(0.0))
    active: int = 0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)
    _waiting: int = 0

    def rule_for(self, request: web.Request) -> Rule:
        """The first rule that matches and is not spent."""
        line = f"{request.method} {request.raw_path}"
        for position, rule in enumerate(self.rules):
            if not re.search(rule.match, line):
                continue
            self.used[position] += 1
            if rule.skip < self.used[position] <= rule.skip + rule.times:
                return rule
        return Rule()

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Handle one request."""
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        seen = Seen(
            method=request.method,
            path=request.path,
            query=request.query_string,
            range=request.headers.get("Range", ""),
            client=peer[1],
            headers={name.lower(): value for name, value in request.headers.items()},
        )
        self.counts.seen.append(seen)
        self.active += 1
        self.counts.peak = max(self.counts.peak, self.active)
        try:
            return await self._answer(request, self.rule_for(request), seen)
        finally:
            self.active -= 1
            seen.done = True
            await self.tell()

    async def _answer(self, request: web.Request, rule: Rule, seen: Seen) -> web.StreamResponse:
        if rule.delay:
            await asyncio.sleep(rule.delay)
        if rule.status:
            seen.status = rule.status
            return web.Response(status=rule.status, headers=rule.headers, body=rule.body.encode())
        # pairs, not a dict: skopeo sends one Accept line per media type
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in HOP)
        if rule.ignore_range:
            headers.pop("Range", None)
        body = request.content if request.body_exists else None
        try:
            async with self.session.request(
                request.method,
                self.upstream + request.raw_path,
                headers=headers,
                data=body,
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
            ) as origin:
                return await self._relay(request, origin, rule, seen)
        except aiohttp.ClientConnectorError:
            # as if upstream itself were not there
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)

    async def _relay(
        self, request: web.Request, origin: aiohttp.ClientResponse, rule: Rule, seen: Seen
    ) -> web.StreamResponse:
        answer = web.StreamResponse(status=origin.status)
        for name, value in origin.headers.items():
            if name.lower() not in HOP:
                answer.headers.add(name, value)
        answer.headers.update(rule.headers)
        seen.status = origin.status
        length = int(origin.headers.get("Content-Length", "0"))
        if rule.then == "end" and length > rule.after:
            answer.headers["Content-Length"] = str(rule.after)
        await answer.prepare(request)
        bucket = Bucket(self.shape.connection)
        if request.method == "HEAD":
            return answer
        async for chunk in origin.content.iter_chunked(self._step()):
            left = rule.after - seen.sent
            if rule.then in ("cut", "hang", "end") and left <= len(chunk):
                await self._send(answer, chunk[:left], bucket, seen)
                return await self._stop(request, answer, rule.then)
            if rule.then == "flip" and left < len(chunk):
                keep = max(left, 0)
                chunk = chunk[:keep] + chunk[keep:].translate(_FLIP)
            await self._send(answer, chunk, bucket, seen)
        await answer.write_eof()
        return answer

    def _step(self) -> int:
        """Bytes per write: small enough that a rate limit is smooth."""
        rates = [rate for rate in (self.shape.connection, self.shape.total) if rate]
        return max(1024, min(CHUNK, int(min(rates) / 50))) if rates else CHUNK

    async def _send(self, answer: web.StreamResponse, chunk: bytes, bucket: Bucket, seen: Seen) -> None:
        if not chunk:
            return
        now = asyncio.get_running_loop().time()
        if (pause := max(bucket.wait(len(chunk), now), self.total.wait(len(chunk), now))) > 0:
            await asyncio.sleep(pause)
        await answer.write(chunk)
        seen.sent += len(chunk)
        self.counts.sent += len(chunk)
        if self._waiting:
            await self.tell()

    async def _stop(self, request: web.Request, answer: web.StreamResponse, how: str) -> web.StreamResponse:
        await self.tell()
        transport = request.transport
        if transport is None or how == "end":
            await answer.write_eof()
            return answer
        if how == "hang":
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()  # the server cancels the handler when the client leaves
        # everything written so far goes out first: close, not abort
        transport.close()
        return answer

    # -- control -----------------------------------------------------------------------------------

    async def tell(self) -> None:
        """Wake those who wait for counts."""
        async with self.moved:
            self.moved.notify_all()

    async def counted(self, request: web.Request) -> web.Response:
        """GET /counts?bytes=n&part=path: at once, or as soon as n body bytes were sent for such paths."""
        need, part = int(request.query.get("bytes", "0")), request.query.get("part", "")
        requests = int(request.query.get("requests", "0"))
        self._waiting += 1
        try:
            async with self.moved:
                await self.moved.wait_for(
                    lambda: self.counts.bytes_of(part) >= need and len(self.counts.of(part)) >= requests
                )
        finally:
            self._waiting -= 1
        return web.Response(body=msgspec.json.encode(self.counts), content_type="application/json")

    async def set_rules(self, request: web.Request) -> web.Response:
        """POST /rules: these rules instead of the former."""
        self.rules = msgspec.json.decode(await request.read(), type=list[Rule])
        self.used = [0] * len(self.rules)
        return web.Response()

    async def set_shape(self, request: web.Request) -> web.Response:
        """POST /shape: new limits, also for the bodies under way."""
        self.shape = msgspec.json.decode(await request.read(), type=Shape)
        self.total = Bucket(self.shape.total)
        return web.Response()

    async def reset(self, request: web.Request) -> web.Response:
        """POST /reset: forget counts, rules and limits."""
        self.counts, self.rules, self.used = Counts(), [], []
        self.shape, self.total = Shape(), Bucket(0.0)
        return web.Response()


_FLIP = bytes(value ^ 0xFF for value in range(256))


async def serve(upstream: str, port: int, control: int) -> None:
    """Run until cancelled."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(
        connector=connector, auto_decompress=False, timeout=timeout, read_bufsize=2 * CHUNK
    ) as session:
        proxy = Proxy(upstream, session)
        front = web.Application(client_max_size=1 << 40)
        front.router.add_route("*", "/{path:.*}", proxy.forward)
        back = web.Application()
        back.router.add_get("/counts", proxy.counted)
        back.router.add_post("/rules", proxy.set_rules)
        back.router.add_post("/shape", proxy.set_shape)
        back.router.add_post("/reset", proxy.reset)
        runners = []
        for app, where in ((front, port), (back, control)):
            runner = web.AppRunner(app, access_log=None, handler_cancellation=True, auto_decompress=False)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", where, backlog=1024).start()
            runners.append(runner)
        print("counter ready", flush=True)
        await asyncio.Event().wait()


def main(arguments: list[str]) -> None:
    """`python -m tests.parts.counter --upstream URL --port P --control P`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control", type=int, required=True)
    given = parser.parse_args(arguments)
    asyncio.run(serve(given.upstream, given.port, given.control))


# -- the test's handle -----------------------------------------------------------------------------


@dataclass
class Counter:
    """A running counter in front of *upstream*."""

    upstream: str
    port: int
    control: int
    process: Process

    @property
    def host(self) -> str:
        """`127.0.0.1:<port>`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://{self.host}"

    async def counts(self, *, part: str = "", sent: int = 0, requests: int = 0, deadline: float = 30.0) -> Counts:
        """The counts, as soon as *sent* body bytes and *requests* GETs of paths containing *part* were seen.
        Raises TimeoutError at the deadline (seconds)."""
        query = {"part": part, "bytes": str(sent), "requests": str(requests)}
        url = f"http://127.0.0.1:{self.control}/counts"
        async with (
            asyncio.timeout(deadline),
            aiohttp.ClientSession() as session,
            session.get(url, params=query) as answer,
        ):
            answer.raise_for_status()
            return msgspec.json.decode(await answer.read(), type=Counts)

    async def rules(self, *rules: Rule) -> None:
        """What is to go wrong from now on."""
        await self._post("rules", msgspec.json.encode(list(rules)))

    async def shape(self, *, connection: float = 0.0, total: float = 0.0) -> None:
        """Limit bodies to bytes per second, each and together."""
        await self._post("shape", msgspec.json.encode(Shape(connection=connection, total=total)))

    async def reset(self) -> None:
        """Forget counts, rules and limits."""
        await self._post("reset", b"")

    async def _post(self, verb: str, body: bytes) -> None:
        url = f"http://127.0.0.1:{self.control}/{verb}"
        async with asyncio.timeout(10), aiohttp.ClientSession() as session, session.post(url, data=body) as answer:
            answer.raise_for_status()


@asynccontextmanager
async def counter(upstream: str, directory: Path, *, name: str = "counter") -> AsyncIterator[Counter]:
    """A counting proxy in front of *upstream* (`http://host:port`)."""
    port, control = free_port(), free_port()
    argv = python("tests.parts.counter", "--upstream", upstream, "--port", str(port), "--control", str(control))
    part = Process(argv, name=name, log=directory / f"{name}.log")
    part.start()
    try:
        await part.says("counter ready")
        yield Counter(upstream, port, control, part)
    finally:
        # kill, not stop: it has nothing to tidy up
        await part.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
