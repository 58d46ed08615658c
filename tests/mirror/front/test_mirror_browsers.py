"""What a browser on the same machine is kept from."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from mirror.front.browsers import content_type, foreign, is_ours
from tests.mirror.upstream.test_upstream_traps import serving
from tests.parts.front import file_agent


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:30000", True),
        ("[::1]:30000", True),
        ("10.0.0.7", True),
        ("localhost:30000", True),
        ("Node-7:30000", True),
        ("", True),
        ("evil.example:30000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("1.1.1.1.nip.io:30000", False),
        ("other", False),
    ],
)
def test_a_name_that_was_bent_to_this_address_is_not_ours(host: str, ours: bool) -> None:
    assert is_ours(host, {"node-7"}) is ours


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:30000"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://127.0.0.1:8080"}, False),
    ],
)
def test_pages_of_other_sites_are_not_answered(headers: dict[str, str], answered: bool) -> None:
    assert (foreign("127.0.0.1:30000", headers, ()) is None) is answered


@pytest.mark.parametrize(
    "told",
    [
        "text/html",
        "TEXT/HTML; charset=utf-8",
        "image/svg+xml",
        "application/xhtml+xml",
        "text/javascript",
        "a/b\x01",
        "",
        "application/javascript",
        "application/xml; x",
        "application/pdf",
        "multipart/x-mixed-replace",
    ],
)
def test_what_a_browser_would_run_is_told_as_plain_bytes(told: str) -> None:
    assert content_type(told) == "application/octet-stream"


@pytest.mark.parametrize(
    "told",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/octet-stream",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ],
)
def test_what_registries_send_is_upstreams_word(told: str) -> None:
    assert content_type(told) == told


async def test_every_answer_of_the_mirror_does_nothing_in_a_browser(tmp_path: Path) -> None:
    """Content, a refusal, and a page that an upstream wrote."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<script>alert(1)</script>", content_type="text/html", headers={"Set-Cookie": "a=b"})

    async with serving(page) as upstream, file_agent(tmp_path) as (agent, swarm):
        digest = swarm.add(b"content")
        paths = [f"/v2/a/blobs/{digest}", "/v2/a/blobs/x", "/elsewhere", f"/v2/a/tags/list?ns={upstream.host}", "/v2/"]
        for path in paths:
            _, headers, _ = await agent.ask(path)
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "sandbox" in headers["Content-Security-Policy"]
            assert "html" not in headers["Content-Type"]
            assert "Access-Control-Allow-Origin" not in headers
            assert "Set-Cookie" not in headers
        for bent in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            status, _, body = await agent.ask(f"/v2/a/blobs/{digest}", headers=bent)
            assert status == 403
            assert b"content" not in body.replace(b"registry content", b"")
