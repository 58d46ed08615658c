"""The agent's HTTP sites: the front end that clients ask, and the small site for Prometheus and probes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mirror.errors import BodyAborted, Refusal
from mirror.front.browsers import HEADERS, foreign
from mirror.front.quiet import Quiet
from mirror.front.requestlog import REQUEST_LOG, RequestLog
from mirror.front.streaming import StreamingFront
from mirror.front.urls import PREFIXES
from mirror.front.v2 import RegistryFront
from mirror.metrics import FrontMetrics
from mirror.upstream.transport import HOP_HEADER

log = logging.getLogger("shoal.mirror")

MOST_REQUESTS = 4096
"""Requests under way at once. 32 layers read 16 wide by four images at once are half of it; each costs about 50 KB."""

MOST_WITHIN = 3600.0
"""Seconds for which /idle waits at most."""

MOST_WAITING = 16
"""Who may wait at /idle at once: kubelet, and somebody who looks. Each holds a connection."""


@dataclass
class Front:
    """What answers: by the path's beginning. *most*: bound on requests under way."""

    registry: RegistryFront
    streaming: StreamingFront
    metrics: FrontMetrics
    names: frozenset[str] = frozenset()
    """By which clients may call this server, beside addresses and `localhost`."""

    most: int = MOST_REQUESTS
    quiet: Quiet = field(default_factory=Quiet)

    @property
    def under_way(self) -> int:
        """Requests that are being answered."""
        return self.quiet.under_way

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, whatever it is: an answer, a cut connection, but never a traceback."""
        raw_path = _raw_path(request)
        account = RequestLog("other", request.method, raw_path.partition("?")[0][:1000], self.metrics)
        request[REQUEST_LOG] = account
        status = 499  # the client left before there was an answer
        self.quiet.began()
        self.metrics.in_flight.set(self.under_way)
        try:
            response = await self._answer(request, account, raw_path)
            status = response.status
            return response
        except BodyAborted:
            status = 200
            return _nothing(request)
        except ConnectionError:
            account.outcome = "left"
            return _nothing(request)
        except asyncio.CancelledError:
            account.outcome = "left"
            raise
        finally:
            self.quiet.ended()
            self.metrics.in_flight.set(self.under_way)
            account.close(status)

    async def _answer(self, request: web.Request, account: RequestLog, raw_path: str) -> web.StreamResponse:
        try:
            if self.under_way > self.most:
                self.metrics.refused.inc()
                raise Refusal("TOOMANYREQUESTS", "too many requests at once", headers={"Retry-After": "1"})
            if (why := foreign(request.host, request.headers, self.names)) is not None:
                raise Refusal("DENIED", why)
            path = raw_path.partition("?")[0]
            if HOP_HEADER in request.headers and path not in ("/v2", "/v2/"):
                # An agent asks an agent: itself, or one of a ring. Whoever is really asked goes to the registry.
                raise Refusal("NAME_UNKNOWN", "agents are no registries for one another")
            if path == "/v2" or path.startswith("/v2/"):
                return await self.registry.answer(request, path)
            if path.startswith(PREFIXES):
                return await self.streaming.answer(request, raw_path)
            raise Refusal("UNSUPPORTED", "no such endpoint", status=404)
        except Refusal as refusal:
            account.note = account.note or str(refusal)
            return _refused(request, refusal)
        except (ConnectionError, BodyAborted):
            raise
        except Exception:
            log.exception("request-failed", extra={"fields": {"path": account.path}})
            account.outcome = "broken"
            return _refused(request, Refusal("UNAVAILABLE", "a defect in the agent; its log says more", status=500))


def _nothing(request: web.Request) -> web.Response:
    """The answer on a connection that is gone. An exception instead would be logged by aiohttp as a defect."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _refused(request: web.Request, refusal: Refusal) -> web.Response:
    response = web.Response(
        status=refusal.status, body=refusal.body(), headers={**refusal.headers, "Content-Type": "application/json"}
    )
    if request.can_read_body:
        # What is being uploaded is not read: the connection has no further use.
        response.force_close()
    return response


def _raw_path(request: web.Request) -> str:
    """Path and query exactly as sent; without scheme and host if the request named them (RFC 9112, 3.2.2)."""
    target = request.raw_path
    if target.lower().startswith(("http://", "https://")):
        _, _, rest = target.partition("://")
        slash = rest.find("/")
        return rest[slash:] if slash >= 0 else "/"
    return target


def make_app(front: Front) -> web.Application:
    """The application that clients ask. One route: names hold slashes, and URLs hold everything."""
    app = web.Application(client_max_size=64 * 1024)
    app.router.add_route("*", "/{path:.*}", front.handle)
    app.on_response_prepare.append(_kept_from_browsers)
    return app


async def _kept_from_browsers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def make_site(
    metrics: FrontMetrics,
    ready: Callable[[], bool],
    status: Callable[[], dict[str, Any]],
    quiet: Quiet,
) -> web.Application:
    """The site for Prometheus, probes and people: /metrics, /healthz, /readyz, /status, and /idle.

    /idle answers once no client asked the mirror for anything for QUIET seconds, or after `?within=` seconds:
    Kubernetes waits for it before it stops an agent. Asking changes nothing.
    """

    async def show_metrics(_: web.Request) -> web.Response:
        content = await asyncio.to_thread(generate_latest, metrics.registry)
        return web.Response(body=content, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ready\n") if ready() else web.Response(text="not ready\n", status=503)

    async def idle(request: web.Request) -> web.Response:
        try:
            within = float(request.query.get("within", "0"))
        except ValueError:
            within = -1.0
        if not 0 <= within <= MOST_WITHIN:
            return web.Response(text=f"within is a number of seconds, at most {MOST_WITHIN:.0f}\n", status=400)
        if quiet.waiting >= MOST_WAITING:
            return web.Response(text="too many wait already\n", status=503)
        busy = not await quiet.comes(within)
        return web.Response(text=f"{quiet.under_way} requests are under way\n" if busy else "idle\n")

    async def show_status(_: web.Request) -> web.Response:
        return web.json_response(status())

    @web.middleware
    async def at_home(request: web.Request, handler: Handler) -> web.StreamResponse:
        # By any name: Prometheus may know this pod by one. But no page of another site.
        if (why := foreign("", request.headers, ())) is not None:
            raise web.HTTPForbidden(text=f"{why}\n")
        return await handler(request)

    app = web.Application(middlewares=[at_home])
    app.on_response_prepare.append(_kept_from_browsers)
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/status", show_status)
    app.router.add_get("/idle", idle)
    return app
