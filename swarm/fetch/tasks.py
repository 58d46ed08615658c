"""The tasks that a fetch started: none of them outlasts it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any


class Tasks:
    """See the module. *on_failed*: a task ended with an error."""

    def __init__(self, on_failed: Callable[[BaseException], None]) -> None:
        self._on_failed = on_failed
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work*; it is cancelled by `close`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self, main: asyncio.Task[None] | None, others: Callable[[], Awaitable[None]]) -> None:
        """Cancel *main*, what *others* ends, and all tasks but the one that closes.

        What ends may have begun something else meanwhile: so until nothing is left.
        """
        ended = {asyncio.current_task()}
        while under_way := {*self._tasks, *([main] if main is not None else [])} - ended:
            for task in under_way:
                task.cancel()
            await others()
            await asyncio.gather(*under_way, return_exceptions=True)
            ended |= under_way
        await others()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failed(error)
