"""A client's own bytes never wait for the cluster: past what stands still goes a line of the client's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

PATIENCE = 1.0
"""Seconds for which the cluster's way is the only one. Less would double what upstream is asked in a healthy pull."""


async def first_good(
    cluster: Coroutine[Any, Any, Result],
    direct: Callable[[], Coroutine[Any, Any, Result]],
    patience: float = PATIENCE,
) -> Result:
    """What *cluster* gives; if that takes longer than *patience*, whichever of it and *direct* is good first.

    Raises what *cluster* raised, if that came early or both failed.
    """
    tasks = [asyncio.create_task(cluster)]
    try:
        await asyncio.wait(tasks, timeout=patience)
        if not tasks[0].done():
            tasks.append(asyncio.create_task(direct()))
            waiting = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.cancelled() and task.exception() is None:
                        return task.result()
        return await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
