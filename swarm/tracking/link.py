"""One tracker over HTTP: a call, its deadline, and whether the tracker is alive at all.

A call that begins something a client waits for must not wait for a tracker that is frozen or cut off. After a moment
without an answer it is found out with a request of its own, on another connection, whether anybody answers there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import aiohttp

from swarm.base import bounded
from swarm.blob.errors import NotAMember, TrackerError, TrackerRefused
from swarm.protocol import wire
from swarm.tracking.caller import Caller

CALL_DEADLINE = 2.0
"""Seconds for an answer to anything but a long-poll: then the next tracker is asked."""

LAST_DEADLINE = 8.0
"""The same for the only tracker that is up: without it every agent goes upstream alone, so a slow one is better."""

BUSY_DEADLINE = 20.0
"""The same for its first answer about a blob, while it is late with everything."""

CONNECT_DEADLINE = 3.5
"""Seconds to connect. A SYN that was lost is sent again after one second, and after three."""

OTHERWISE = 1.5
"""Seconds for an answer that a client waits for where the tracker answers others at once: it never comes then."""

DOUBT = 0.4
"""Seconds without an answer after which it is asked whether the tracker answers at all..."""

SIGN_OF_LIFE = 1.6
"""... and seconds for the answer to that, where another tracker is up."""

LAST_SIGN_OF_LIFE = 4.0
"""The same for the only tracker that is up. On a busy machine it may be slow, and eight agents that took it for dead
after a second brought in eight copies. Whatever it answers to anybody here is a sign of life as well: a question on a
new connection may wait behind five hundred others."""

QUICK = 0.3
"""Seconds within which a sign of life shows that the tracker is not busy: what it does not answer then, it never will.
A busy one is late with everything, and is waited for where it is the only one."""

LATE = 0.2
"""Seconds by which this process may wake up too late before it takes itself for slow, and not the tracker."""

MOST_SMALL = 1024 * 1024
"""Bytes of the longest answer that carries no hashes."""

A = TypeVar("A", bound=wire.Wire)


class Watcher(Protocol):
    """Who decides which trackers are up."""

    async def silent(self) -> None:
        """A call has waited for DOUBT seconds: returns once it is known who is alive."""

    def failed(self, link: Link, digest: str = "") -> None:
        """A call about a blob (its *digest*) failed."""


@dataclass(eq=False)
class Link:
    """One tracker."""

    url: str
    """Base URL without a slash at the end."""
    http: aiohttp.ClientSession
    watcher: Watcher | None = None
    """Who looks after the tracker; None: nobody does."""
    caller: Caller = field(default_factory=Caller)
    up: bool = False
    changes: dict[str, int | None] = field(default_factory=dict)
    """Digest -> size (None: no longer held) that the tracker has not been told yet."""
    images: dict[str, wire.Image] = field(default_factory=dict)
    """By manifest, images that the tracker has not been told yet."""
    kept: bool = False
    """The tracker has not been told yet what this node keeps now."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    again: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a tracker that is down is to be tried now, and not only after a pause."""
    full: bool = True
    refused: str = ""
    """Why this tracker refuses the agent; "" while it does not."""
    patience: float = LAST_DEADLINE
    """Seconds for an answer, beside what it is told to wait."""
    wait: float = 0.0
    """Seconds for which the open poll may be held."""
    hold: float = wire.MAX_WAIT
    """Seconds for which the tracker would hold it, while there is no news."""
    heard: float = float("-inf")
    """When it answered anything last, by the loop's clock."""
    pulse: float = float("inf")
    """Seconds that the last sign of life took; infinity: there was none."""

    async def call(
        self, path: str, message: wire.Wire, kind: type[A], wait: float = 0.0, patience: float | None = None
    ) -> A:
        """POST *message*; the answer. *wait*: seconds that the tracker may hold it. Raises TrackerError."""
        total = wait + (self.patience if patience is None else patience)
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=CONNECT_DEADLINE)
        try:
            async with self.http.post(
                self.url + path, data=wire.encode(message), timeout=timeout, headers=self.caller.headers,
                **self.caller.secure(),
            ) as response:  # fmt: skip
                self.heard = asyncio.get_running_loop().time()
                body = await bounded.read(response, wire.MAX_BODY if kind is wire.BoardAnswer else MOST_SMALL)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TrackerError(f"tracker {self.url}: {type(error).__name__}") from None
        except ValueError as error:
            raise TrackerError(f"tracker {self.url}: {error}") from None
        try:
            if response.status == 200:
                return wire.decode(body, kind)
            problem = wire.decode(body, wire.Problem)
        except ValueError as error:
            raise TrackerError(f"tracker {self.url}: {response.status}, {error}") from None
        if response.status == 403:
            raise NotAMember(f"tracker {self.url}: {problem.message}")
        if response.status < 500:
            raise TrackerRefused(f"tracker {self.url}: {problem.message}")
        raise TrackerError(f"tracker {self.url}: {problem.message}")

    async def ask(self, path: str, message: wire.Wire, kind: type[A], wait: float = 0.0) -> A:
        """As `call`, where a client waits: given up as soon as nobody is alive there. Raises TrackerError.

        After OTHERWISE it is given up as well where the tracker answers others at once.
        """
        patience = max(self.patience, BUSY_DEADLINE) if self.patience >= LAST_DEADLINE else self.patience
        return await self._doubted(self.call(path, message, kind, wait, patience), wait + OTHERWISE)

    async def tell(self, path: str, message: wire.Wire, kind: type[A]) -> A:
        """As `call`, for what is answered at once: given up as soon as nobody is alive there. Raises TrackerError."""
        return await self._doubted(self.call(path, message, kind), float("inf"))

    async def _doubted(self, asked: Coroutine[Any, Any, A], otherwise: float) -> A:
        """What *asked* returns. It is given *otherwise* seconds where the tracker answers others at once."""
        call = asyncio.ensure_future(asked)
        loop = asyncio.get_running_loop()
        late = loop.time() + otherwise
        try:
            while True:
                began = loop.time()
                await asyncio.wait((call,), timeout=DOUBT)
                if call.done():
                    return call.result()
                if loop.time() - began > DOUBT + LATE or self.watcher is None:
                    continue
                await self.watcher.silent()
                if not self.up and not call.done():
                    raise TrackerError(f"tracker {self.url}: does not answer")
                if self.pulse < QUICK and loop.time() > late and not call.done():
                    raise TrackerError(f"tracker {self.url}: answers others, but not this")
        finally:
            if not call.done():
                call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def alive(self) -> bool:
        """Whether anybody answers there, with whatever, to this question or to an earlier one."""
        last, began = self.patience >= LAST_DEADLINE, asyncio.get_running_loop().time()
        self.pulse = float("inf")
        timeout = aiohttp.ClientTimeout(total=LAST_SIGN_OF_LIFE if last else SIGN_OF_LIFE)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self.http.get(f"{self.url}/healthz", timeout=timeout, **self.caller.secure()):
                self.pulse = asyncio.get_running_loop().time() - began
                return True
        return self.heard >= began

    def failed(self, digest: str) -> None:
        """A call about *digest* failed."""
        if self.watcher is not None:
            self.watcher.failed(self, digest)
