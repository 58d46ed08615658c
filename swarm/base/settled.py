"""To wait for what must not be left half done."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any


async def settled(job: asyncio.Future[Any]) -> None:
    """Until *job* has ended, however often who waits is cancelled meanwhile. Its error counts as told."""
    while not job.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([job])
    if not job.cancelled():
        job.exception()
