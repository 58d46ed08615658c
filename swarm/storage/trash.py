"""Files on their way out: they leave their names at once by a rename, and are deleted in a thread."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from swarm.storage import disk
from swarm.storage.workers import Workers


class Trash:
    """The trash directory of one store. *bytes*: what comes free once all that is in it is deleted."""

    def __init__(self, directory: Path, workers: Workers) -> None:
        self.bytes = 0
        self._directory = directory
        self._workers = workers
        self._count = 0
        self._going: set[asyncio.Task[Any]] = set()

    def throw_away(self, paths: list[Path], size: int) -> None:
        """Take the files from their names now, delete them in a thread. *size*: bytes that come free."""
        moved = []
        for path in paths:
            self._count += 1
            aside = self._directory / str(self._count)
            try:
                path.rename(aside)
                moved.append(aside)
            except OSError:
                # Not there; or a disk so full that it cannot even rename.
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        if moved:
            self.bytes += size
            self.await_too(self._workers.spawn(self._delete(moved, size)))

    def await_too(self, task: asyncio.Task[Any]) -> None:
        """`emptied` waits for *task* as well: it keeps a deleted file open."""
        self._going.add(task)
        task.add_done_callback(self._going.discard)

    async def emptied(self) -> None:
        """What was thrown away so far is deleted."""
        if self._going:
            await asyncio.wait(set(self._going))

    async def _delete(self, paths: list[Path], size: int) -> None:
        try:
            await self._workers.run(disk.delete, paths)
        finally:
            self.bytes -= size
