"""The page, its live data and the schema of it, over HTTP. Translates, decides nothing.

Everything that the page loads comes from this tracker, nothing is inline, and all addresses in it are relative,
so that it works behind `kubectl proxy` too.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from pathlib import Path
from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from tracker.errors import Malformed, Unknown
from tracker.page import report
from tracker.page.ask import ROOT, Ask, parse_ask
from tracker.page.live import Live
from tracker.page.replicas import KINDS

WRITE_WITHIN = 10.0
"""Seconds for a listener to take an event; then its connection is closed, and the browser asks again."""

_FILES = Path(__file__).with_name("static")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_EVENTS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_encode = msgspec.json.encode


class Page:
    """The files of the page, read once, and the views behind it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._files = {path.name: _File(path) for path in sorted(_FILES.iterdir()) if path.is_file()}
        self._schema = _encode(schema())

    def file(self, request: web.BaseRequest) -> web.Response:
        """`/` and `/page/<file>`. Raises Unknown."""
        name = "index.html" if request.path == "/" else request.path.removeprefix("/page/")
        file = self._files.get(name)
        if file is None:
            raise Unknown("no such file")
        headers = {**_HEADERS, "ETag": file.tag, "Content-Type": file.kind}
        if request.headers.get("If-None-Match") == file.tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, headers=headers)

    def schema(self) -> web.Response:
        """`/api/v1/schema`: JSON Schema of every answer under /api/v1."""
        return web.Response(body=self._schema, headers={"Content-Type": "application/schema+json"})

    async def view(self, request: web.BaseRequest) -> web.StreamResponse:
        """`/api/v1/cluster...`: a view, or the stream of one. Raises Unknown, Malformed, Unready."""
        if request.path == f"{ROOT}/live":
            return await self._stream(request)
        ask = parse_ask(request.raw_path)
        if ask.part:
            return _json(_encode(self._live.part(ask)))
        view, _ = await self._live.view(ask)
        return _json(_encode(view))

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        """`/api/v1/cluster/live?view=<path below /api/v1/cluster>`: server-sent events (WHATWG HTML, section 9.2)."""
        query = parse_qs(request.rel_url.raw_query_string, keep_blank_values=True, max_num_fields=10)
        ask: Ask = parse_ask(f"{ROOT}/{query.get('view', [''])[0].lstrip('/')}")
        if ask.part:
            raise Malformed("a part has no stream")
        events = self._live.follow(ask)
        try:
            kind, data = await anext(events)  # refused before anything was sent
            response = web.StreamResponse(headers=_EVENTS)
            await response.prepare(request)
            await response.write(b"retry: 2000\n\n" + _event(kind, data))
            async for kind, data in events:
                async with asyncio.timeout(WRITE_WITHIN):
                    await response.write(_event(kind, data))
        except (TimeoutError, ConnectionError):
            response.force_close()
        except StopAsyncIteration:
            return web.Response(status=503)
        finally:
            await events.aclose()
        return response


class _File:
    """One file of the page."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.tag = f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        self.kind = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def schema() -> dict[str, object]:
    """JSON Schema: `$defs` of all values, and under `answers` which of them each path answers with."""
    answers: dict[str, type] = {
        "/api/v1/state": report.State,
        "/api/v1/agents": report.AgentPage,
        "/api/v1/boards": report.BoardsPage,
        "/api/v1/boards/{digest}": report.BoardPage,
        "/api/v1/cluster": KINDS["cluster"],
        "/api/v1/cluster/search": KINDS["search"],
        "/api/v1/cluster/images": KINDS["images"],
        "/api/v1/cluster/images/{manifest}": KINDS["image"],
        "/api/v1/cluster/swarms": KINDS["swarms"],
        "/api/v1/cluster/swarms/{digest}": KINDS["swarm"],
        "/api/v1/cluster/agents": KINDS["agents"],
        "/api/v1/cluster/agents/{key}": KINDS["agent"],
    }
    refs, parts = msgspec.json.schema_components(list(answers.values()), ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What a Shoal tracker answers",
        "answers": dict(zip(answers, refs, strict=True)),
        "$defs": parts,
    }


def _event(kind: str, data: dict[str, object]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode(data) + b"\n\n"


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
