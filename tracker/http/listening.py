"""One listener of the tracker: aiohttp's low-level server behind a bound on who may connect and say nothing."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from swarm.base.listener import Listener
from tracker.errors import TrackerError

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_KEEPALIVE = 75.0
"""Seconds for which an idle connection is kept: longer than an agent pauses between two polls."""


class Listening:
    """`start`, then `close`."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_body: int,
        stop: float,
        known: Callable[[str], bool],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """*max_body*: bytes of a request. *stop*: seconds for open requests at the end. *known*: see Listener."""
        self._handler = handler
        self._max_body = max_body
        server = web.Server(
            self._handle,
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=_KEEPALIVE,
            lingering_time=0.0,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=stop)
        self.listener = Listener(server, known=known, tls=tls)
        self.url = ""
        self._scheme = "https" if tls is not None else "http"

    async def start(self, host: str, port: int) -> None:
        """Listen; `url` says where. Raises TrackerError if the address cannot be had."""
        await self._runner.setup()
        try:
            ip, bound = self.listener.start(host, port, backlog=4096)
        except OSError as error:
            await self._runner.cleanup()
            raise TrackerError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        self.url = f"{self._scheme}://{f'[{ip}]' if ':' in ip else ip}:{bound}"

    async def close(self) -> None:
        """No new connections; open requests have some seconds."""
        self.listener.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        with self.listener.busy(request.transport):
            return await self._handler(request)

    def _request(
        self,
        message: web.RawRequestMessage,  # type: ignore[name-defined]
        payload: object,
        protocol: object,
        writer: object,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message,
            payload,  # type: ignore[arg-type]
            protocol,  # type: ignore[arg-type]
            writer,  # type: ignore[arg-type]
            task,
            asyncio.get_running_loop(),
            client_max_size=self._max_body,
        )
