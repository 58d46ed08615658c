"""The tasks of a fetch end with it, and so do those that they begin while they end."""

from __future__ import annotations

import asyncio

from swarm.fetch.tasks import Tasks


async def test_what_ends_may_begin_something_that_ends_too() -> None:
    failures: list[BaseException] = []
    tasks, ended = Tasks(failures.append), list[str]()

    async def late() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("late")

    async def early() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.spawn(late())
            ended.append("early")

    tasks.spawn(early())
    await asyncio.sleep(0)
    await tasks.close(None, lambda: asyncio.sleep(0))
    assert ended[0] == "early"
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not failures


async def test_an_error_is_told_once() -> None:
    failures: list[BaseException] = []
    tasks, error = Tasks(failures.append), OSError("disk")

    async def fails() -> None:
        raise error

    await asyncio.wait([tasks.spawn(fails())])
    await tasks.close(None, lambda: asyncio.sleep(0))
    assert failures == [error]
