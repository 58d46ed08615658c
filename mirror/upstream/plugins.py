"""Programs that give credentials: started, asked on standard input, and ended within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

DEADLINE = 10.0
"""Seconds that a program may take: those of clouds ask a network service."""

OUTPUT = 64 << 10
"""Bytes of its answer that are read."""


@dataclass(frozen=True)
class Said:
    """What a program said. *failure*: why it said nothing of use, without its own words; "" if it did."""

    output: bytes = field(default=b"", repr=False)
    failure: str = ""


async def ask(
    command: Sequence[str], text: bytes, *, environment: Mapping[str, str] | None = None, deadline: float = DEADLINE
) -> Said:
    """Run *command* with *text* on its standard input. Its output may hold secrets and is never logged here."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=OUTPUT,
            env=environment,
        )
    except OSError as error:
        return Said(failure=str(error.strerror))
    try:
        async with asyncio.timeout(deadline):
            output, _ = await process.communicate(text)
    except TimeoutError:
        return Said(failure=f"nothing in {deadline:g} s")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    if process.returncode != 0:
        return Said(output[:OUTPUT], f"exit code {process.returncode}")
    return Said(output[:OUTPUT])
