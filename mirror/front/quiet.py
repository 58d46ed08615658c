"""Whether clients ask this agent for anything, or other agents do, and a way to wait until they do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

QUIET = 2.0
"""Seconds without a request after which nobody pulls: between two layers of an image there is less."""

GIVING = 20.0
"""Seconds for which an agent that nobody on its node asks goes on for others. Who brought most of a blob in is done
first, and alone has what the others still fetch: without it they take that from upstream again. In a large cluster
somebody always fetches something, and a rolling upgrade must end."""


class Quiet:
    """Counts requests under way. *given*: bytes that this agent has sent to others. *clock*: seconds."""

    def __init__(
        self,
        quiet: float = QUIET,
        *,
        given: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*quiet*: seconds without a request, or without a byte for others, that count as quiet."""
        self.under_way = 0
        """Requests that are being answered."""
        self.waiting = 0
        """How many wait for quiet."""
        self._quiet = quiet
        self._given, self._clock = given, clock
        self._none = asyncio.Event()
        self._none.set()
        self._some = asyncio.Event()

    def began(self) -> None:
        """A request has come."""
        self.under_way += 1
        self._none.clear()
        self._some.set()

    def ended(self) -> None:
        """A request is answered, or its client has left."""
        self.under_way -= 1
        if not self.under_way:
            self._none.set()

    async def comes(self, within: float) -> bool:
        """Wait until there was no request for a while, *within* seconds at most. Whether that came.

        Others that fetch from here are waited for, too, but not for longer than GIVING.
        """
        self.waiting += 1
        until: float | None = None
        try:
            async with asyncio.timeout(within):
                while True:
                    before = self._given()
                    if await self._busy():
                        until = None
                        continue
                    now = self._clock()
                    until = now + GIVING if until is None else until
                    if self._given() == before or now >= until:
                        break
        except TimeoutError:
            return False
        finally:
            self.waiting -= 1
        return True

    async def _busy(self) -> bool:
        """Wait for the end of what is under way. Whether more has come soon after it."""
        await self._none.wait()
        self._some.clear()
        try:
            async with asyncio.timeout(self._quiet):
                await self._some.wait()
        except TimeoutError:
            return False
        return True
