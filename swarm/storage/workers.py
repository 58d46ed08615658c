"""The store's threads and tasks: what blocks runs in a thread, what was begun on disk runs to its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from swarm.base.settled import settled

THREADS = 4
"""Threads per store: a slow disk holds one call each, and further calls wait their turn."""

T = TypeVar("T")


class Workers:
    """One store's threads, and its tasks that must end before it closes."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "shoal-store")
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """What *work* returns, called in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        """Call *work* in a thread, and forget it; at once if the threads have ended."""
        try:
            self._threads.submit(work, *args)
        except RuntimeError:  # a reader outlived the store
            work(*args)

    def close_fd(self, fd: int) -> None:
        """Close a descriptor in a thread: the last one of an unlinked file frees its blocks, which takes time."""
        self.submit(os.close, fd)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that `drain` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def to_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Await *work*; cancelled, still wait until it is done: what is half done on disk would stay so."""
        task = self.spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await settled(task)  # the cancellation is what is raised
            raise

    async def drain(self) -> None:
        """Until no task is left, those begun meanwhile included."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """End the threads."""
        await asyncio.to_thread(self._threads.shutdown)
