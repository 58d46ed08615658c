"""Upstreams behind a proxy: which one, by which rules, and through a proxy that really forwards."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from yarl import URL

from mirror.errors import Forbidden, ProxyInvalid
from mirror.upstream.client import Upstream
from mirror.upstream.proxies import Proxies, from_environment
from mirror.upstream.registries import Registries, Registry, Tls
from swarm.blob.errors import SourceError
from tests.mirror.upstream.test_upstream_traps import CONTENT, DIGEST, REPOSITORY, ranged, read, serving


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://ghcr.io/", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://ghcr.io/", "http://p:3128"),
        ({"https_proxy": "p:3128"}, "https://ghcr.io/", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://ghcr.io/", None),
        ({"HTTP_PROXY": "http://p:3128"}, "http://ghcr.io/", "http://p:3128"),
        ({"ALL_PROXY": "https://p"}, "https://ghcr.io/", "https://p"),
        ({"HTTP_PROXY": "http://p:1"}, "http://127.0.0.1:5000/", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://localhost:5000/", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://[::1]:5000/", None),
    ],
)
def test_which_proxy_an_url_is_asked_by(environment: dict[str, str], url: str, proxy: str | None) -> None:
    """As Go's programs read it: containerd and kubelet beside us mean the same by it."""
    assert from_environment(environment).find(URL(url)) == (proxy and URL(proxy))


@pytest.mark.parametrize(
    ("entry", "url", "direct"),
    [
        ("*", "https://ghcr.io/", True),
        ("ghcr.io", "https://ghcr.io/", True),
        ("ghcr.io", "https://pkg.ghcr.io/", True),
        ("ghcr.io", "https://notghcr.io/", False),
        (".ghcr.io", "https://pkg.ghcr.io/", True),
        (".ghcr.io", "https://ghcr.io/", False),
        ("*.ghcr.io", "https://pkg.ghcr.io/", True),
        ("GHCR.io", "https://GHCR.IO./", True),
        ("ghcr.io:443", "https://ghcr.io/", True),
        ("ghcr.io:5000", "https://ghcr.io/", False),
        ("10.0.0.0/8", "http://10.1.2.3:5000/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("10.0.0.0/8", "http://name/", False),
        ("10.1.2.3", "http://10.1.2.3:5000/", True),
        ("10.1.2.3:80", "http://10.1.2.3:5000/", False),
        ("fd00::/8", "http://[fd00::5]:5000/", True),
        ("fd00::5", "http://[fd00::5]:5000/", True),
        ("[fd00::5]:5000", "http://[fd00::5]:5000/", True),
        ("a, ,svc.cluster.local", "http://registry.infra.svc.cluster.local/", True),
        ("not/a/network", "http://name/", False),
    ],
)
def test_what_no_proxy_covers(entry: str, url: str, direct: bool) -> None:
    proxies = from_environment({"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:1", "NO_PROXY": entry})
    assert (proxies.find(URL(url)) is None) is direct


@pytest.mark.parametrize("text", ["socks5://p:1080", "http://", "http://p:port", "ftp://p"])
def test_what_is_no_proxy_is_one_line_without_its_password(text: str) -> None:
    with pytest.raises(ProxyInvalid) as caught:
        from_environment({"HTTPS_PROXY": text.replace("//", "//user:secret@")})
    assert "secret" not in str(caught.value)


def test_a_proxys_password_is_not_shown() -> None:
    proxies = from_environment({"HTTPS_PROXY": "http://user:secret@p:3128"})
    assert proxies.places == ["http://p:3128"]
    assert "secret" not in repr(proxies)


@dataclass
class Proxy:
    """A proxy that forwards everything to *target*, whatever name it is asked for."""

    url: str = ""
    target: tuple[str, int] = ("", 0)
    asked: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            method, place, _ = head.split(" ", 2)
            self.asked.append(f"{method} {place}")
            if f"Basic {base64.b64encode(b'user:secret').decode()}" not in head:
                writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            inner_reader, inner_writer = await asyncio.open_connection(*self.target)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Established\r\n\r\n")
            else:
                inner_writer.write(head.encode())
            await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes from one end to the other."""
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def proxying() -> AsyncIterator[Proxy]:
    """A running proxy that wants a password."""
    proxy = Proxy()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()


async def good(request: web.Request) -> web.StreamResponse:
    """A registry in good order."""
    return ranged(request)


async def test_plain_http_goes_by_the_proxy_with_its_password() -> None:
    """The registry's name is one that only the proxy can look up; its password is shown to the proxy alone."""
    async with serving(good) as server, proxying() as proxy:
        name, _, port = server.host.partition(":")
        proxy.target = (name, int(port))
        registries = Registries(plain_http=frozenset({"registry.invalid:5000"}))
        async with Upstream(registries, proxies=Proxies(http=URL(proxy.url))) as upstream:
            assert await read(upstream.blob("registry.invalid:5000", REPOSITORY, DIGEST)) == CONTENT
        assert proxy.asked == [f"GET http://registry.invalid:5000/v2/{REPOSITORY}/blobs/{DIGEST}"]
        wrong = Proxies(http=URL(proxy.url).with_password("wrong"))
        async with Upstream(registries, proxies=wrong) as upstream:
            with pytest.raises(SourceError) as caught:
                await read(upstream.blob("registry.invalid:5000", REPOSITORY, DIGEST))
            assert "wrong" not in str(caught.value)


async def test_https_goes_through_a_tunnel_and_is_verified_end_to_end(tmp_path: Path) -> None:
    """CONNECT; the certificate is the registry's, by the authority that its configuration names."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("registry.invalid").configure_cert(context)
    runner = web.AppRunner(app := web.Application(), access_log=None, shutdown_timeout=0.1)
    app.router.add_get("/{path:.*}", good)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        async with proxying() as proxy:
            proxy.target = runner.addresses[0][:2]
            known = Registry("registry.invalid", "https://registry.invalid", tls=Tls(ca=(tmp_path / "ca.pem",)))
            registries = Registries(configured={"registry.invalid": known})
            async with Upstream(registries, proxies=Proxies(https=URL(proxy.url))) as upstream:
                assert await read(upstream.blob("registry.invalid", REPOSITORY, DIGEST)) == CONTENT
            assert proxy.asked == ["CONNECT registry.invalid:443"]
            assert REPOSITORY not in "".join(proxy.heads), "what is asked is not the proxy's business"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("host", ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]"])
async def test_addresses_are_judged_before_a_proxy_is_asked_for_them(host: str) -> None:
    async with proxying() as proxy:
        url = URL(proxy.url)
        async with Upstream(proxies=Proxies(http=url, https=url)) as upstream:
            with pytest.raises(Forbidden):
                await read(upstream.blob(host, REPOSITORY, DIGEST))
        assert proxy.asked == []
