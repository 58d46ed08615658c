"""Upstreams that misbehave, each with the outcome that a reader should get (docs/contract.md, "Upstream traps")."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import client_exceptions, http_exceptions, web
from yarl import URL

from mirror.errors import Forbidden
from mirror.upstream.addresses import AddressRules
from mirror.upstream.auth import Credential
from mirror.upstream.client import Upstream
from mirror.upstream.guard import Guard
from mirror.upstream.registries import Registries
from mirror.upstream.sources import UpstreamSource
from mirror.upstream.transport import Deadlines, Request, Transport, translated
from mirror.upstream.urlrules import UrlRules
from swarm.blob.digest import parse
from swarm.blob.errors import SourceBroken, SourceBusy, SourceError, SourceRefused
from tests.parts import data

REPOSITORY = "team/app"
CONTENT = data.blob(200_000, 5)
DIGEST = parse(data.digest_of(CONTENT))
PATH = f"/v2/{REPOSITORY}/blobs/{DIGEST}"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers everything with *answer*; remembers what it was asked."""

    def __init__(self, answer: Handler) -> None:
        self.answer = answer
        self.host = ""
        self.asked: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        self.asked.append(request)
        return await self.answer(request)


@asynccontextmanager
async def serving(answer: Handler, address: str = "127.0.0.1") -> AsyncIterator[Server]:
    """A server at *address*; 127.0.0.2 is another host than 127.0.0.1."""
    server = Server(answer)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, 0).start()
        server.host = f"{address}:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def speaking(reply: bytes, *, hang: bool = False) -> AsyncIterator[str]:
    """A socket that answers each connection's first request with *reply*, then closes, or hangs. Yields its host."""
    ended = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
            await writer.drain()
            if hang:
                await ended.wait()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        ended.set()
        server.close()
        await server.wait_closed()


def ranged(request: web.Request, content: bytes = CONTENT) -> web.Response:
    """What a registry in good order answers."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if match is None:
        return web.Response(body=content)
    start, stop = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
    if start >= len(content):
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
    return web.Response(
        status=206,
        body=content[start:stop],
        headers={"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"},
    )


async def read(source: UpstreamSource, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of *source*."""
    async with source.open(start, stop) as body:
        content = b"".join([chunk async for chunk in body.chunks()])
        return content[start - body.offset :]


def fixed(**kwargs: object) -> Handler:
    """Always answers web.Response(**kwargs)."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(**kwargs)  # type: ignore[arg-type]

    return answer


async def good(request: web.Request) -> web.Response:
    """A registry in good order."""
    return ranged(request)


QUICK = Deadlines(connect=5.0, first_byte=0.2, stall=0.2)
"""For servers that never answer: the deadline is what is tested, not its length."""


async def test_a_registry_that_ignores_ranges_is_read_from_its_first_byte() -> None:
    async with serving(fixed(body=CONTENT)) as server, Upstream() as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        async with source.open(1000, 2000) as body:
            assert (body.total, body.offset, body.whole) == (len(CONTENT), 0, True)
            assert b"".join([chunk async for chunk in body.chunks()]) == CONTENT[:2000]
        async with source.open(1000, 2000) as body:
            assert b"".join([chunk async for chunk in body.chunks(everything=True)]) == CONTENT


async def test_a_range_past_the_end_is_nothing_and_tells_the_size() -> None:
    async with (
        serving(good) as server,
        Upstream() as upstream,
        upstream.blob(server.host, REPOSITORY, DIGEST).open(len(CONTENT), None) as body,
    ):
        assert (body.total, body.offset) == (len(CONTENT), len(CONTENT))
        assert [chunk async for chunk in body.chunks() if chunk] == []


async def test_a_body_without_length_is_measured() -> None:
    async def chunked(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        for at in range(0, len(CONTENT), 30_000):
            await answer.write(CONTENT[at : at + 30_000])
        return answer

    async with serving(chunked) as server, Upstream() as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        async with source.open(0, None) as body:
            assert body.total == len(CONTENT)
            assert b"".join([chunk async for chunk in body.chunks()]) == CONTENT


async def test_a_chunked_answer_to_a_range_is_read_like_any_other() -> None:
    async def chunked(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(status=206, headers={"Content-Range": f"bytes 0-99999/{len(CONTENT)}"})
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        for at in range(0, 100_000, 10_000):
            await answer.write(CONTENT[at : at + 10_000])
        return answer

    async with serving(chunked) as server, Upstream() as upstream:
        assert await read(upstream.blob(server.host, REPOSITORY, DIGEST), 0, 100_000) == CONTENT[:100_000]


HEAD = b"HTTP/1.1 206 Partial Content\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (OK + b"Content-Length: 0\r\n\r\n", "empty body"),
        (OK + b"Content-Length: 200000\r\n\r\n" + CONTENT[:50], "short"),
        (OK + b"\r\n", "empty body"),
        (HEAD + b"Content-Length: 10\r\nContent-Range: bytes 0-99/200000\r\n\r\n" + CONTENT[:10], "contradicts"),
        (HEAD + b"Content-Length: 10\r\nContent-Range: bytes 5-14/200000\r\n\r\n" + CONTENT[:10], "another range"),
        (HEAD + b"Content-Length: 10\r\nContent-Range: bytes 0-9/5\r\n\r\n" + CONTENT[:10], "another range"),
        (HEAD + b"Content-Length: 10\r\nContent-Range: bytes 0-9/*\r\n\r\n" + CONTENT[:10], "how large"),
        (HEAD + b"Content-Length: 10\r\n\r\n" + CONTENT[:10], "usable Content-Range"),
        (HEAD + b"Content-Length: 10\r\nContent-Range: bytes 0-9/200000\r\n\r\n" + CONTENT[:10], "less than"),
        (HEAD + b"Content-Length: 100\r\nContent-Range: bytes 0-99/200000\r\n\r\n" + CONTENT[:10], "short"),
        (OK + b"Content-Length: 10\r\nContent-Encoding: gzip\r\n\r\n" + CONTENT[:10], "coding"),
        (OK + b"Content-Length: 10\r\nContent-Encoding: x-secret\r\n\r\n" + CONTENT[:10], "coding"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "204"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "500"),
        (b"HTTP/1.1 416 No\r\nContent-Length: 0\r\nContent-Range: bytes */200000\r\n\r\n", "inside the blob"),
        (b"", "disconnected"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "127.0.0.1"),
        (b"HTTP/1.1 307 There\r\nContent-Length: 0\r\nLocation: gopher://x/\r\n\r\n", "no URL"),
        (b"HTTP/1.1 307 There\r\nContent-Length: 0\r\nLocation: http://u:p@x/\r\n\r\n", "no URL"),
        (b"HTTP/1.1 307 There\r\nContent-Length: 0\r\nLocation: http://x:y/\r\n\r\n", "no URL"),
        (b"HTTP/1.1 307 There\r\nContent-Length: 0\r\nLocation: /same\r\n\r\n", "without end|cut|disconn"),
        (OK + b"Content-Length: many\r\n\r\n", "127.0.0.1"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_broken_and_never_a_foreign_exception(reply: bytes, why: str) -> None:
    async with speaking(reply) as host, Upstream() as upstream:
        with pytest.raises(SourceBroken, match=why):
            await read(upstream.blob(host, REPOSITORY, DIGEST), 0, 100)


@pytest.mark.parametrize("reply", [b"", OK, OK + b"Content-Length: 200000\r\n\r\n" + CONTENT[:1000]])
async def test_an_upstream_that_stalls_is_broken(reply: bytes) -> None:
    async with speaking(reply, hang=True) as host, Upstream(deadlines=QUICK) as upstream:
        with pytest.raises(SourceBroken, match="in time"):
            await read(upstream.blob(host, REPOSITORY, DIGEST))


@pytest.mark.parametrize(
    ("status", "headers", "kind", "wait"),
    [
        (401, {}, SourceRefused, None),
        (403, {}, SourceRefused, None),
        (404, {}, SourceRefused, None),
        (451, {}, SourceRefused, None),
        (429, {"Retry-After": "7"}, SourceBusy, 7.0),
        (429, {}, SourceBusy, None),
        (503, {"Retry-After": "3"}, SourceBusy, 3.0),
        (503, {}, SourceBroken, None),
        (502, {}, SourceBroken, None),
    ],
)
async def test_what_a_status_means(status: int, headers: dict[str, str], kind: type[SourceError], wait: float) -> None:
    async with serving(fixed(status=status, headers=headers)) as server, Upstream() as upstream:
        with pytest.raises(kind) as caught:
            await read(upstream.blob(server.host, REPOSITORY, DIGEST))
        assert (caught.value.status, caught.value.retry_after) == (status, wait)
        assert type(caught.value) is kind


async def test_after_a_429_nothing_is_asked_until_the_time_is_over_and_the_cluster_is_told() -> None:
    told: list[tuple[str, float]] = []
    guard = Guard(on_backoff=lambda host, seconds: told.append((host, seconds)))
    async with serving(fixed(status=429, headers={"Retry-After": "7"})) as server, Upstream(guard=guard) as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        for _ in range(5):
            with pytest.raises(SourceBusy):
                await read(source)
        assert len(server.asked) == 1
        assert told == [(server.host, 7.0)]


async def test_a_pause_that_the_cluster_tells_is_kept() -> None:
    async with serving(good) as server, Upstream() as upstream:
        upstream.guard.hold(server.host, 60.0)
        with pytest.raises(SourceBusy) as caught:
            await read(upstream.blob(server.host, REPOSITORY, DIGEST))
        assert caught.value.retry_after == pytest.approx(60.0, abs=5.0)
        assert server.asked == []


async def test_a_host_that_keeps_failing_is_left_alone() -> None:
    async with serving(fixed(status=500)) as server, Upstream() as upstream:
        for _ in range(9):
            with pytest.raises(SourceBroken):
                await read(upstream.blob(server.host, REPOSITORY, DIGEST))
        assert len(server.asked) == 5


# ---------------------------------------------------------------------- redirects


@asynccontextmanager
async def redirecting(store: Handler, *, status: int = 307) -> AsyncIterator[tuple[Server, Server]]:
    """A registry that wants a password and sends to a store on another host with a fresh signature each time."""

    async def send(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") is None:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        signed = sum("Authorization" in asked.headers for asked in registry.asked)
        return web.Response(status=status, headers={"Location": f"http://{there.host}/data?signature=secret-{signed}"})

    async with serving(store, "127.0.0.2") as there, serving(send) as registry:
        yield registry, there


class Purse:
    """One credential."""

    async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
        """It."""
        return None if skip else Credential("robot", "right")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_signed_url_is_followed_without_authorization_and_used_again_for_the_next_windows(status: int) -> None:
    async with redirecting(good, status=status) as (registry, store), Upstream(credentials=Purse()) as upstream:
        source = upstream.blob(registry.host, REPOSITORY, DIGEST)
        got = [await read(source, at, at + 50_000) for at in range(0, len(CONTENT), 50_000)]
        assert b"".join(got) == CONTENT
        assert len(registry.asked) == 2, "the challenge and one redirect"
        assert len(store.asked) == 4
        assert not any("Authorization" in asked.headers for asked in store.asked)


async def test_a_signed_url_that_ran_out_is_asked_for_again_once() -> None:
    valid = "secret-1"

    async def signed(request: web.Request) -> web.Response:
        return ranged(request) if request.query["signature"] == valid else web.Response(status=403)

    async with redirecting(signed) as (registry, _), Upstream(credentials=Purse()) as upstream:
        source = upstream.blob(registry.host, REPOSITORY, DIGEST)
        assert await read(source, 0, 10) == CONTENT[:10]
        valid = "secret-2"
        assert await read(source, 10, 20) == CONTENT[10:20]
        valid = "none"
        with pytest.raises(SourceRefused) as caught:
            await read(source, 20, 30)
        assert caught.value.status == 403
        assert "secret" not in str(caught.value)


async def test_the_callers_authorization_goes_to_the_named_host_only() -> None:
    async with redirecting(good) as (registry, store):
        rules = UrlRules(named=(registry.host, store.host))
        async with Upstream(url_rules=rules) as upstream:
            source = upstream.url(
                f"http://{registry.host}{PATH}?q=1", {"Authorization": "Bearer theirs", "Cookie": "x"}
            )
            assert await read(source, 5, 10) == CONTENT[5:10]
        assert registry.asked[0].headers["Authorization"] == "Bearer theirs"
        assert registry.asked[0].query_string == "q=1"
        assert "Authorization" not in store.asked[0].headers
        assert "Cookie" not in registry.asked[0].headers


async def test_two_callers_do_not_share_a_redirect() -> None:
    rules = UrlRules(named=("127.0.0.*",))
    async with redirecting(good) as (registry, _), Upstream(url_rules=rules) as upstream:
        url = f"http://{registry.host}{PATH}"
        await read(upstream.url(url, {"Authorization": "Bearer theirs"}), 0, 1)
        with pytest.raises(SourceRefused) as caught:
            await read(upstream.url(url), 0, 1)
        assert caught.value.status == 401


# ---------------------------------------------------------------------- where it does not go


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:5000/x",
        "http://localhost/x",
        "http://[::1]/x",
        "http://2130706433/x",
        "https://example.org/x",
        "https://ghcr.io:22/x",
        "https://evil.example/.ghcr.io",
        "https://user:pw@ghcr.io/x",
        "file:///etc/passwd",
        "ghcr.io/x",
        "http:///x",
        "https://ghcr.io/x y",
        "https://ghcr.io/x\r\nEvil: 1",
        "https://ghcr.io:99999/x",
        "https://ghcr.io\\@127.0.0.1/x",
    ],
)
async def test_a_url_that_is_not_on_the_list_is_forbidden(url: str) -> None:
    async with Upstream() as upstream:
        with pytest.raises(Forbidden) as caught:
            upstream.url(url)
        assert caught.value.status == 403


async def test_a_name_whose_dns_gives_a_private_address_is_not_contacted() -> None:
    async with serving(good) as server, Transport(AddressRules(private=False), Deadlines()) as transport:
        url = URL(f"http://localhost:{server.host.rpartition(':')[2]}/x")
        with pytest.raises(Forbidden):
            async with transport.exchange(Request("GET", url)):
                pass
        assert server.asked == []


async def test_a_redirect_to_a_private_address_is_not_followed_for_a_url() -> None:
    async with redirecting(good) as (registry, store):
        async with Upstream(url_rules=UrlRules(named=(registry.host,))) as upstream:
            with pytest.raises(Forbidden):
                await read(upstream.url(f"http://{registry.host}{PATH}", {"Authorization": "x"}))
        assert store.asked == []


async def test_metadata_addresses_are_never_contacted_not_even_for_a_registry_or_a_redirect() -> None:
    async def to_metadata(_request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://169.254.169.254/token"})

    async with serving(to_metadata) as server, Upstream() as upstream:
        with pytest.raises(Forbidden):
            await read(upstream.blob(server.host, REPOSITORY, DIGEST))
        with pytest.raises(Forbidden):
            await read(upstream.blob("169.254.169.254", REPOSITORY, DIGEST))
        with pytest.raises(Forbidden):
            await read(upstream.blob("[fd00:ec2::254]:80", REPOSITORY, DIGEST))


async def test_a_token_service_at_a_metadata_address_is_not_asked() -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://169.254.169.254/token",service="x"'}
    async with serving(fixed(status=401, headers=challenge)) as server, Upstream() as upstream:
        with pytest.raises(SourceError):
            await read(upstream.blob(server.host, REPOSITORY, DIGEST))


async def test_private_addresses_of_registries_can_be_switched_off() -> None:
    async with serving(good) as server, Upstream(private=AddressRules(private=False)) as upstream:
        with pytest.raises(Forbidden):
            await read(upstream.blob(server.host, REPOSITORY, DIGEST))


# ---------------------------------------------------------------------- manifests and hand-ons


async def test_a_manifest_whose_head_says_nothing_is_fetched_and_hashed() -> None:
    manifest = b'{"schemaVersion":2,"config":{},"layers":[]}'

    async def answer(request: web.Request) -> web.Response:
        assert "application/vnd.oci.image.index.v1+json" in request.headers["Accept"]
        if request.method == "HEAD":
            return web.Response(status=405) if request.path.endswith("405") else web.Response()
        return web.Response(body=manifest, content_type="application/vnd.oci.image.manifest.v1+json")

    async with serving(answer) as server, Upstream() as upstream:
        for tag in ("v1", "405"):
            meaning = await upstream.head_manifest(server.host, REPOSITORY, tag)
            assert meaning.digest == data.digest_of(manifest)
            assert meaning.size == len(manifest)
            assert meaning.media_type == "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize("reference", ["..", "../../x", "a/b", "a b", "a?b", "", "x" * 200, "sha256:../x", "a\n"])
async def test_a_reference_that_cannot_be_is_not_asked_for(reference: str) -> None:
    async with serving(good) as server, Upstream() as upstream:
        with pytest.raises(Forbidden):
            await upstream.head_manifest(server.host, REPOSITORY, reference)
        assert server.asked == []


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced_unseen() -> None:
    async with serving(good) as server, Upstream() as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        assert await read(source, 0, 10) == CONTENT[:10]
        transport = server.asked[-1].transport
        assert transport is not None
        transport.abort()
        assert await read(source, 10, 20) == CONTENT[10:20]


async def test_certificate_files_that_cannot_be_used_are_broken_and_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "reg.example").mkdir()
    (tmp_path / "reg.example" / "bad.crt").write_text("no certificate")
    async with Upstream(Registries(certs=tmp_path)) as upstream:
        with pytest.raises(SourceBroken, match="certificate files"):
            await read(upstream.blob("reg.example", REPOSITORY, DIGEST))


async def test_an_endless_manifest_is_refused() -> None:
    async with serving(fixed(body=bytes(5 << 20))) as server, Upstream() as upstream:
        with pytest.raises(SourceRefused):
            await upstream.head_manifest(server.host, REPOSITORY, "v1")


async def test_only_what_a_mirror_may_hand_on_is_handed_on_with_headers_that_say_nothing_else() -> None:
    headers = {
        "Link": '<https://upstream.example/v2/team/app/tags/list?last=b>; rel="next"',
        "Set-Cookie": "session=1",
        "OCI-Subject": "sha256:00",
    }
    async with serving(fixed(body=b"{}", headers=headers)) as server, Upstream() as upstream:
        async with upstream.passthrough(
            server.host, "GET", f"/v2/{REPOSITORY}/tags/list?n=1", {"Cookie": "x"}
        ) as answer:
            assert answer.links == (headers["Link"],)
            assert "Link" not in answer.headers
            assert answer.headers["OCI-Subject"] == "sha256:00"
            assert "Set-Cookie" not in answer.headers
        assert server.asked[0].path_qs == f"/v2/{REPOSITORY}/tags/list?n=1"
        assert "Cookie" not in server.asked[0].headers
        for method, path in [("GET", "/v2/_catalog"), ("DELETE", f"/v2/{REPOSITORY}/tags/list"), ("GET", "/secret")]:
            with pytest.raises(Forbidden):
                async with upstream.passthrough(server.host, method, path):
                    pass


async def test_leaving_early_closes_the_connection_and_reading_to_the_end_keeps_it() -> None:
    connections: set[object] = set()
    large = bytes(4 << 20)

    async def answer(request: web.Request) -> web.Response:
        connections.add(request.transport)
        return ranged(request, large)

    async with serving(answer) as server, Upstream() as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        for at in range(0, 100_000, 10_000):
            await read(source, at, at + 10_000)
        assert len(connections) == 1
        async with source.open(0, None) as body:
            async for _ in body.chunks():
                break
        await read(source, 0, 1)
        assert len(connections) == 2
        assert upstream.guard.status()[server.host]["inflight"] == 0


async def test_no_secret_is_in_an_error_or_a_repr() -> None:
    async with serving(fixed(status=403)) as server, Upstream(url_rules=UrlRules(named=(server.host,))) as upstream:
        source = upstream.url(f"http://{server.host}/x?sig=hush", {"Authorization": "Bearer hush"})
        assert "hush" not in repr(source._target)
        with pytest.raises(SourceRefused) as caught:
            await read(source)
        assert "hush" not in repr(caught.value)
        assert caught.value.__cause__ is None
    async with Upstream(url_rules=UrlRules(named=(server.host,))) as upstream:
        with pytest.raises(SourceBroken) as gone:
            await read(upstream.url(f"http://{server.host}/x?sig=hush", {"Authorization": "Bearer hush"}))
        assert "hush" not in str(gone.value)


URL_WITH_SECRET = "https://reg.example/x?sig=hush"


def foreign() -> list[BaseException]:
    """One of each exception that aiohttp, ssl and the system can raise."""
    raised: list[BaseException] = [
        TimeoutError(),
        ConnectionResetError(104, "reset"),
        OSError("no number"),
        ssl.SSLCertVerificationError(1, "hush"),
        ssl.SSLError(1, "hush"),
        ValueError("hush"),
        UnicodeError("hush"),
        socket.gaierror(-2, "hush"),
    ]
    for module in (client_exceptions, http_exceptions):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(
                kind, (client_exceptions.ClientError, http_exceptions.HttpProcessingError)
            ):
                error = kind.__new__(kind, URL_WITH_SECRET)
                if isinstance(error, client_exceptions.ClientConnectorError):
                    error._os_error = OSError(111, "refused")
                raised.append(error)
    return raised


@pytest.mark.parametrize("error", foreign(), ids=lambda error: type(error).__name__)
def test_no_foreign_exception_crosses_the_wall(error: BaseException) -> None:
    with pytest.raises(SourceError) as caught, translated("reg.example"):
        raise error
    assert str(caught.value).startswith("reg.example")
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_an_upstream_that_was_closed_leaves_no_descriptor() -> None:
    """Each resolver has a thread, two pipes and an inotify instance: a test run ended with 1,024 open files."""
    before = watches()
    for _ in range(8):
        async with Upstream():
            assert watches() > before
    async with asyncio.timeout(5):
        while watches() > before:  # noqa: ASYNC110  # a thread of c-ares closes them, and tells nobody
            await asyncio.sleep(0.01)


def watches() -> int:
    """Inotify instances of this process."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += "inotify" in str(descriptor.readlink())
    return found
