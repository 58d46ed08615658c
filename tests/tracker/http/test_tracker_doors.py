"""Which door a request may come in by: members, readers, browsers and strangers at tracker and mirror."""

from __future__ import annotations

import asyncio
import base64
from typing import cast
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from mirror.front.app import Front, make_app, make_site
from mirror.front.streaming import StreamingFront
from mirror.front.v2 import RegistryFront
from mirror.metrics import FrontMetrics
from mirror.serve import listening
from swarm.base.flags import Endpoint
from swarm.blob.geometry import MIB
from tests.parts.procs import free_port
from tests.parts.talk import JSON, digest_of, town
from tracker.http import server
from tracker.members.static import StaticDiscovery

SIZE = 3 * MIB
READ = ("/", "/api/v1/state", "/api/v1/agents", "/api/v1/boards", "/api/v1/cluster", "/metrics")
EVIL = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}


async def status(url: str, headers: dict[str, str] | None = None, *, method: str = "GET", data: bytes = b"") -> int:
    """What an HTTP client hears."""
    async with aiohttp.ClientSession() as http, http.request(method, url, headers=headers, data=data or None) as answer:
        return answer.status


async def test_a_torrent_is_for_members_only() -> None:
    """Its piece hashes are all that a stranger needs to join a swarm."""
    name = digest_of("secret")
    async with town(StaticDiscovery(["127.0.0.2/32"])) as here:
        holder = here.agent("holder", ip="127.0.0.2")
        await holder.hello(secret=SIZE)
        await holder.whole(name, SIZE)
        assert (await holder.get(f"/torrents/{name}.torrent"))[0] == 200
        assert await status(f"{here.server.url}/torrents/{name}.torrent") == 403
        assert await status(f"{here.server.url}/healthz") == 200


async def test_with_a_token_readers_show_it_as_bearer_or_as_password() -> None:
    async with town(page_token="sesame") as here:
        basic = "Basic " + base64.b64encode(b"me:sesame").decode()
        for path in READ:
            url = here.server.url + path
            assert await status(url) == 401, path
            unnamed = "Basic " + base64.b64encode(b"sesame").decode()
            for wrong in ("Bearer open", "Basic open", unnamed, "sesame", "Bearer"):
                assert await status(url, {"Authorization": wrong}) == 401, (path, wrong)
            assert await status(url, {"Authorization": "Bearer sesame"}) == 200, path
            assert await status(url, {"Authorization": basic}) == 200, path
        assert await status(f"{here.server.url}/healthz") == 200
        assert await status(f"{here.server.url}/readyz") == 200


async def test_a_page_apart_is_read_there_and_nowhere_else() -> None:
    page, metrics = free_port(), free_port()
    async with town(page_listen=("127.0.0.1", page), metrics_listen=("127.0.0.1", metrics)) as here:
        for path in READ:
            assert await status(here.server.url + path) == 403, path
            assert await status(f"http://127.0.0.1:{page}{path}") == 200, path
            assert await status(f"http://127.0.0.1:{metrics}{path}") == (200 if path == "/metrics" else 403), path
        for port in (page, metrics):
            assert await status(f"http://127.0.0.1:{port}/v1/agent", JSON, method="POST", data=b"{}") == 403
            assert await status(f"http://127.0.0.1:{port}/announce") == 403
            assert await status(f"http://127.0.0.1:{port}/readyz") == 200


@pytest.mark.parametrize("path", ["/v1/name/told", "/v1/backoff", "/v1/agent"])
async def test_a_web_page_cannot_speak_as_a_member(path: str) -> None:
    """A member's browser has the member's address: the address is not what counts."""
    async with town() as here:
        url = here.server.url + path
        simple = {"Content-Type": "text/plain;charset=UTF-8"}
        assert await status(url, simple | EVIL, method="POST", data=b"{}") == 403
        assert await status(url, JSON | EVIL, method="POST", data=b"{}") == 403
        assert await status(url, simple, method="POST", data=b"{}") == 415
        assert await status(url, JSON, method="POST", data=b"{}") == 400


async def test_a_web_page_cannot_read_by_a_name_that_suddenly_means_this_address() -> None:
    async with town(hosts=("Shoal.Example.com",)) as here:
        for path in READ:
            assert await status(here.server.url + path, {"Host": "evil.example"}) == 403, path
            assert await status(here.server.url + path, {"Host": "shoal.example.com"}) == 200, path


async def test_every_answer_says_that_its_type_is_not_to_be_guessed() -> None:
    async with town() as here, aiohttp.ClientSession() as http:
        for path in (*READ, "/healthz", "/nothing", "/announce"):
            async with http.get(here.server.url + path) as answer:
                assert answer.headers["X-Content-Type-Options"] == "nosniff", path
                assert "Access-Control-Allow-Origin" not in answer.headers


async def test_the_body_of_a_verb_is_waited_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY", 0.05)
    async with town() as here:
        parts = urlsplit(here.server.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(
            b"POST /v1/agent HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert await status(f"{here.server.url}/v1/agent", JSON, method="POST", data=b"{}") == 400
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_the_mirror_says_that_what_it_sends_is_data() -> None:
    """HTML of a registry, opened in a browser, runs no script as the mirror; and other names are refused."""
    metrics = FrontMetrics(CollectorRegistry())
    front = Front(cast("RegistryFront", None), cast("StreamingFront", None), metrics)
    site = make_site(metrics, lambda: True, dict, front.quiet)
    for app, good in ((make_app(front), "/elsewhere"), (site, "/status")):
        where = Endpoint("127.0.0.1", free_port())
        async with listening(app, where, grace=0.1), aiohttp.ClientSession() as http:
            async with http.get(f"http://{where}{good}") as answer:
                assert answer.status != 403
                assert "sandbox" in answer.headers["Content-Security-Policy"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert await status(f"http://{where}{good}", EVIL) == 403
