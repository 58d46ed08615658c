"""Whether clients ask this agent for anything, and a way to wait until they do not."""

from __future__ import annotations

import asyncio

QUIET = 2.0
"""Seconds without a request after which nobody pulls: between two layers of an image there is less."""


class Quiet:
    """Counts requests under way."""

    def __init__(self, quiet: float = QUIET) -> None:
        """*quiet*: seconds without a request that count as quiet."""
        self.under_way = 0
        """Requests that are being answered."""
        self.waiting = 0
        """How many wait for quiet."""
        self._quiet = quiet
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
        """Wait until there was no request for a while, *within* seconds at most. Whether that came."""
        self.waiting += 1
        try:
            async with asyncio.timeout(within):
                while await self._busy():
                    pass
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
