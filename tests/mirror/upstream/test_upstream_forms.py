"""Registries in every form in which people run them: refusing gateways, stores that fail, prefixes, second tokens."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import Callable

import pytest
from aiohttp import web

from mirror.errors import Forbidden
from mirror.upstream.auth import Chain, Credential, token_of
from mirror.upstream.client import Upstream
from mirror.upstream.dockerconfig import find, parse
from mirror.upstream.registries import Registries, Registry
from mirror.upstream.transport import HOP_HEADER, Deadlines
from swarm.blob.errors import SourceBroken, SourceRefused
from tests.mirror.upstream.test_upstream_traps import CONTENT, DIGEST, PATH, REPOSITORY, Handler, ranged, read, serving
from tests.parts import data

OCI = "application/vnd.oci.image.manifest.v1+json"
MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode()


def manifest() -> web.Response:
    """A manifest as a registry in good order sends it."""
    return web.Response(body=MANIFEST, headers={"Content-Type": OCI, "Docker-Content-Digest": data.digest_of(MANIFEST)})


# -- what is a manifest ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 405, 406, 501])
async def test_a_gateway_that_lets_only_get_through_is_asked_by_get(status: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status) if request.method == "HEAD" else manifest()

    async with serving(answer) as server, Upstream() as upstream:
        meaning = await upstream.head_manifest(server.host, REPOSITORY, "v1")
        assert (meaning.digest, meaning.media_type) == (data.digest_of(MANIFEST), OCI)
        path = f"/v2/{REPOSITORY}/referrers/{DIGEST}"
        async with upstream.passthrough(server.host, "HEAD", path) as passed:
            assert passed.status == 200


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<html>back soon</html>", {"Content-Type": "text/html"}),
        (b'{"errors":[{"code":"DENIED"}]}', {"Content-Type": "application/json"}),
        (b"[]", {"Content-Type": OCI}),
        (b"", {"Content-Type": OCI}),
        (b"<html>" * 9, {"Content-Type": OCI}),
        (MANIFEST, {"Content-Type": OCI, "Docker-Content-Digest": f"sha256:{'0' * 64}"}),
        (MANIFEST, {"Content-Type": OCI, "Docker-Content-Digest": f"sha512:{'0' * 128}"}),
        (MANIFEST[:-2], {"Content-Type": OCI}),
    ],
    ids=["page", "error", "list", "empty", "page as manifest", "digest", "other digest", "cut"],
)
async def test_what_is_no_manifest_means_nothing(body: bytes, headers: dict[str, str]) -> None:
    """A portal, an error that says 200, bytes that do not fit: upstream is broken, and what was known stays known."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers if request.method == "GET" else {"Content-Type": "text/html"})

    async with serving(answer) as server, Upstream() as upstream:
        with pytest.raises(SourceBroken):
            await upstream.head_manifest(server.host, REPOSITORY, "v1")


# -- codings --------------------------------------------------------------------------------------


def _bare(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", lambda content: gzip.compress(content[:100]) + gzip.compress(content[100:])),
        ("deflate", zlib.compress),
        ("deflate", _bare),
    ],
)
async def test_a_coding_that_nobody_asked_for_is_undone(coding: str, pack: Callable[[bytes], bytes]) -> None:
    async def answer(request: web.Request) -> web.Response:
        content = CONTENT if "/blobs/" in request.path else MANIFEST
        return web.Response(body=pack(content), headers={"Content-Encoding": coding, "Content-Type": OCI})

    async with serving(answer) as server, Upstream() as upstream:
        assert await read(upstream.blob(server.host, REPOSITORY, DIGEST)) == CONTENT
        assert (await upstream.head_manifest(server.host, REPOSITORY, "v1")).size == len(MANIFEST)
        async with upstream.passthrough(server.host, "GET", f"/v2/{REPOSITORY}/tags/list") as passed:
            assert b"".join([chunk async for chunk in passed.chunks()]) == MANIFEST
            assert not {"Content-Length", "Content-Encoding"} & passed.headers.keys()


@pytest.mark.parametrize(
    ("coding", "body"),
    [("snappy", b"x"), ("gzip", b"no gzip"), ("gzip", gzip.compress(MANIFEST)[:-4]), ("gzip, gzip", b"x")],
)
async def test_a_coding_that_cannot_be_undone_is_refused(coding: str, body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": coding})

    async with serving(answer) as server, Upstream() as upstream:
        with pytest.raises(SourceBroken, match="coding"):
            await read(upstream.blob(server.host, REPOSITORY, DIGEST))


async def test_a_kilobyte_that_stands_for_a_gigabyte_is_not_unpacked() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(bytes(64 << 20), 9), headers={"Content-Encoding": "gzip"})

    async with serving(answer) as server, Upstream() as upstream:
        with pytest.raises(SourceRefused, match="more than"):
            await read(upstream.blob(server.host, REPOSITORY, DIGEST))


# -- ranges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 405, 406, 412, 416, 501])
async def test_a_store_that_refuses_ranges_gives_the_whole(status: int) -> None:
    """And is not asked for a range again for a while."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status) if "Range" in request.headers else web.Response(body=CONTENT)

    async with serving(answer) as server, Upstream() as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        for start in (1000, 2000):
            async with source.open(start, start + 10) as body:
                assert (body.whole, body.offset, body.total) == (True, 0, len(CONTENT))
        assert ["Range" in request.headers for request in server.asked] == [True, False, False]


async def test_a_range_past_the_end_is_the_truth_and_not_a_refusal() -> None:
    async def answer(request: web.Request) -> web.Response:
        return ranged(request)

    async with serving(answer) as server, Upstream() as upstream:
        async with upstream.blob(server.host, REPOSITORY, DIGEST).open(len(CONTENT), None) as body:
            assert body.total == len(CONTENT)
        assert len(server.asked) == 1


# -- below a path ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "override", "asked"),
    [
        ("http://{}", False, "/v2/library/app/"),
        ("http://{}/artifactory/api/docker/main", False, "/artifactory/api/docker/main/v2/library/app/"),
        ("http://{}/v2/hub-proxy", False, "/v2/hub-proxy/library/app/"),
        ("http://{}/mirror/v2", False, "/mirror/v2/library/app/"),
        ("http://{}/proxy/hub", True, "/proxy/hub/library/app/"),
    ],
)
async def test_a_registry_below_a_path(url: str, override: bool, asked: str) -> None:
    """As containerd reads a host's URL, with and without `override_path`."""

    async def answer(request: web.Request) -> web.Response:
        return ranged(request)

    async with serving(answer) as server:
        known = Registry("docker.io", url.format(server.host), override_path=override)
        async with Upstream(Registries(configured={"docker.io": known})) as upstream:
            assert await read(upstream.blob(None, "app", DIGEST), 0, 10) == CONTENT[:10]
        assert server.asked[0].path == f"{asked}blobs/{DIGEST}"


# -- credentials ----------------------------------------------------------------------------------


def guarded(password: str, then: Handler, scheme: str = 'Basic realm="x"') -> Handler:
    """Lets only *password* in."""
    right = "Basic " + base64.b64encode(password.encode()).decode()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == right:
            return await then(request)
        return web.Response(status=401, headers={"WWW-Authenticate": scheme})

    return answer


async def good(request: web.Request) -> web.StreamResponse:
    """A registry in good order."""
    return ranged(request)


class Ring:
    """Credentials in the order in which they are to be tried."""

    def __init__(self, *credentials: Credential) -> None:
        self.credentials = credentials

    async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
        """One of them."""
        return self.credentials[skip] if skip < len(self.credentials) else None


@pytest.mark.parametrize("refusal", [401, 403, 404])
async def test_credentials_that_fit_are_tried_from_the_narrowest_on(refusal: int) -> None:
    """One that was revoked does not hide the next; what opened the door is used from then on."""
    right = "Basic " + base64.b64encode(b"group:works").decode()
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}

    async def answer(request: web.Request) -> web.StreamResponse:
        sent = request.headers.get("Authorization")
        if sent is None:
            return web.Response(status=401, headers=challenge)
        return ranged(request) if sent == right else web.Response(status=refusal, headers=challenge)

    ring = Chain(Ring(Credential("old", "revoked")), Ring(Credential("other", "no"), Credential("group", "works")))
    async with serving(answer) as server, Upstream(credentials=ring) as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        assert await read(source, 0, 10) == CONTENT[:10]
        assert len(server.asked) == 4
        assert await read(source, 10, 20) == CONTENT[10:20]
        assert len(server.asked) == 5


async def test_when_all_credentials_are_refused_that_is_the_answer() -> None:
    async with serving(guarded("nobody:x", good)) as server:
        ring = Ring(*(Credential(f"user{n}", "x") for n in range(20)))
        async with Upstream(credentials=ring) as upstream:
            with pytest.raises(SourceRefused):
                await read(upstream.blob(server.host, REPOSITORY, DIGEST))
        assert len(server.asked) <= 10, "a bound: registries lock accounts out"


async def test_a_missing_blob_keeps_the_token() -> None:
    """A 404 to the only credential is about the blob."""
    tokens = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal tokens
        if request.path == "/token":
            tokens += 1
            return web.json_response({"token": f"t{tokens}", "expires_in": 300})
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{server.host}/token"'})
        return web.Response(status=404)

    async with serving(answer) as server, Upstream(credentials=Ring(Credential("a", "b"))) as upstream:
        for _ in range(3):
            with pytest.raises(SourceRefused):
                await read(upstream.blob(server.host, REPOSITORY, DIGEST))
    assert tokens == 1


async def test_a_redirect_to_a_registry_with_a_token_of_its_own() -> None:
    """Its challenge is answered, with the credentials that were configured for it, and never with the first one's."""

    async def second(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"token": "second"})
        if request.headers.get("Authorization") != "Bearer second":
            challenge = f'Bearer realm="http://{real.host}/token",scope="repository:{REPOSITORY}:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return manifest() if "/manifests/" in request.path else ranged(request)

    async def vanity(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"http://{real.host}{request.path}"})

    class OnlyFirst:
        async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
            return Credential("first", "secret") if host == first.host and not skip else None

    async with serving(second, "127.0.0.2") as real, serving(guarded("first:secret", vanity)) as first:
        async with Upstream(credentials=OnlyFirst()) as upstream:
            assert (await upstream.head_manifest(first.host, REPOSITORY, "v1")).media_type == OCI
            assert await read(upstream.blob(first.host, REPOSITORY, DIGEST)) == CONTENT
        shown = {request.headers.get("Authorization") for request in real.asked}
        assert shown == {None, "Bearer second"}


def test_auth_texts_as_kubelet_and_docker_read_them() -> None:
    """Without padding, wrapped, with a newline at the end."""
    plain = base64.b64encode(("robot$a+b:" + "p" * 61).encode()).decode()
    assert plain.endswith("=")
    for text in (plain, plain.rstrip("="), f"{plain[:76]}\n{plain[76:]}\n", f"{plain}\r\n", f"\ufeff{plain}"[1:]):
        config = parse(json.dumps({"auths": {"[fd00::5]:5000": {"auth": text}}}), "file")
        assert find([config], "[fd00::5]:5000", "x") == [Credential("robot$a+b", "p" * 61)]
        assert find([config], "[fd00::6]:5000", "x") == []


# -- remembered redirects -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["503", "403", "404", "429", "page", "silent", "closed", "short"])
async def test_a_remembered_redirect_that_went_bad_is_asked_for_anew(how: str) -> None:
    """The registry names a good place meanwhile; who reads on hears nothing of it."""
    bad = asyncio.Event()
    ended = asyncio.Event()

    async def edge(request: web.Request) -> web.StreamResponse:
        if bad.is_set():
            if how == "page":
                return web.Response(text="<html>", content_type="text/html")
            if how == "silent":
                await ended.wait()
            if how in ("closed", "short"):
                assert request.transport is not None
                request.transport.abort()
            return web.Response(status=int(how) if how.isdigit() else 500)
        return ranged(request)

    async def send(_: web.Request) -> web.StreamResponse:
        place = second if bad.is_set() else first
        return web.Response(status=307, headers={"Location": f"http://{place.host}/data?signature=s"})

    async with serving(edge, "127.0.0.2") as first, serving(good, "127.0.0.3") as second, serving(send) as registry:
        quick = Deadlines(first_byte=30.0)
        async with Upstream(deadlines=quick) as upstream:
            source = upstream.blob(registry.host, REPOSITORY, DIGEST)
            assert await read(source, 0, 10) == CONTENT[:10]
            assert await read(source, 10, 20) == CONTENT[10:20]
            assert len(registry.asked) == 1
            bad.set()
            assert await read(source, 20, 30) == CONTENT[20:30]
            assert await read(source, 30, 40) == CONTENT[30:40]
            assert len(registry.asked) == 2
            ended.set()


# -- addresses ------------------------------------------------------------------------------------


async def test_every_request_of_an_agent_carries_the_mark_by_which_rings_end() -> None:
    async with serving(good) as server, Upstream() as upstream:
        await read(upstream.blob(server.host, REPOSITORY, DIGEST), 0, 10)
        assert server.asked[0].headers[HOP_HEADER] == "1"


async def test_a_registry_may_not_lead_to_the_services_of_its_node() -> None:
    """Another port of 127.0.0.1 is another service; one that somebody named may be gone to."""

    async def send(request: web.Request) -> web.StreamResponse:
        if "/tags/" in request.path:
            return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{inner.host}/token"'})
        return web.Response(status=307, headers={"Location": f"http://{inner.host}{PATH}"})

    async with serving(good) as inner, serving(send) as registry:
        async with Upstream() as upstream:
            with pytest.raises(Forbidden):
                await read(upstream.blob(registry.host, REPOSITORY, DIGEST))
            with pytest.raises(Forbidden):
                async with upstream.passthrough(registry.host, "GET", f"/v2/{REPOSITORY}/tags/list"):
                    pass
        assert inner.asked == []
        async with Upstream(Registries(plain_http=frozenset({inner.host}))) as upstream:
            assert await read(upstream.blob(registry.host, REPOSITORY, DIGEST)) == CONTENT


@pytest.mark.parametrize(
    ("pattern", "host", "fits"),
    [
        ("[fd00::5]:5000", "[fd00::5]:5000", True),
        ("[FD00:0:0::5]:5000", "[fd00::5]:5000", True),
        ("fd00::5", "[fd00::5]:5000", True),
        ("[fd00::5]", "[fd00::5]:5000", True),
        ("[fd00::5]:5000/team/*", "[fd00::5]:5000", True),
        ("[fd00::5]:*", "[fd00::5]:5000", True),
        ("*:5000", "[fd00::5]:5000", True),
        ("[fd00::5]:5001", "[fd00::5]:5000", False),
        ("[fd00::6]", "[fd00::5]:5000", False),
        ("[f]", "f", False),
    ],
)
def test_an_ipv6_address_in_a_pattern_is_an_address(pattern: str, host: str, fits: bool) -> None:
    assert Registries(allow=(pattern,)).allows(host, "team/app") is fits
    assert Registries(deny=(pattern,)).allows(host, "team/app") is not fits


async def test_a_repository_that_asked_for_a_token_once_wrongly_is_asked_plainly_again() -> None:
    """A registry or a gateway in front of it that was set up wrongly, and mended since."""
    mended = False

    async def answer(request: web.Request) -> web.StreamResponse:
        if mended and request.path != "/nothing":
            return ranged(request)
        realm = f"http://{request.host}/nothing"
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    async with serving(answer) as server, Upstream() as upstream:
        with pytest.raises(SourceRefused):
            await read(upstream.blob(server.host, REPOSITORY, DIGEST))
        mended = True
        assert await read(upstream.blob(server.host, REPOSITORY, DIGEST), 0, 10) == CONTENT[:10]


def test_a_token_that_is_nested_without_end_is_none() -> None:
    with pytest.raises(SourceBroken):
        token_of(b"[" * 200_000, "registry.example")
