"""An HTTP answer that is read whole into memory, and never more of it than was allowed."""

from __future__ import annotations

import aiohttp

_STEP = 256 * 1024


async def read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The body of *answer*, of *most* bytes at most.

    Raises ValueError where it is longer: the rest is not read, and the connection is closed. Raises what aiohttp
    raises where the connection breaks (aiohttp.ClientError, TimeoutError, OSError).
    """
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_chunked(_STEP):
        size += len(part)
        if size > most:
            answer.close()
            raise ValueError(f"an answer of more than {most} bytes")
        parts.append(part)
    return b"".join(parts)
