"""How much a body asks of sendfile at once: less after a call that kept the loop, more after quick ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mirror.front.sending import FIRST_STEP, SLOW, SMALL, STEP, _Pace


async def test_quick_calls_are_followed_by_longer_ones_and_slow_ones_by_shorter_ones() -> None:
    pace = _Pace()
    assert pace.step == FIRST_STEP
    for _ in range(8):
        pace.begins(asyncio.get_running_loop())
        await asyncio.sleep(0)
    assert pace.step == STEP
    pace._took(SLOW * 2)
    assert pace.step == STEP // 4
    for _ in range(8):
        pace._took(SLOW * 2)
    assert pace.step == SMALL


async def test_the_wait_for_a_slow_client_is_not_the_time_of_a_call(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * STEP))
    loop, pace = asyncio.get_running_loop(), _Pace()

    async def slow_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(slow_client, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    with path.open("rb") as file:
        for offset in range(0, 8 * STEP, STEP):
            pace.begins(loop)
            await loop.sendfile(writer.transport, file, offset, STEP, fallback=False)
    writer.close()
    await writer.wait_closed()
    server.close()
    assert pace.step >= FIRST_STEP
