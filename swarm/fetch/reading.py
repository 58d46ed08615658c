"""How a reader gets its bytes out of a blob that is still coming: in order, verified, the last piece last."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from swarm.blob.errors import Unproven
from swarm.fetch.partial import Partial
from swarm.fetch.readers import Reader
from swarm.fetch.verifier import HASH_RUN


@dataclass(frozen=True, slots=True)
class Span:
    """Verified bytes: [offset, offset+count) of the open file *fd*."""

    fd: int
    offset: int
    count: int
    origin: str
    """"disk", "containerd", "peer" or "upstream"."""


class Supply(Protocol):
    """What a reader asks of the fetch."""

    @property
    def is_verified(self) -> bool:
        """Whether the sha256 has matched."""

    async def wait_verified(self) -> None:
        """Until it has. Raises SwarmError."""

    def need(self, reader: Reader, position: int, stop: int) -> None:
        """*reader* waits for bytes [position, stop) of its range."""

    async def hurry(self, reader: Reader, piece: int) -> None:
        """Until *piece* is ready, whatever it takes. Raises SwarmError."""

    def suffices(self, reader: Reader, piece: int) -> bool:
        """Whether *reader* may be given *piece*, or wait for it."""


async def spans(partial: Partial, supply: Supply, reader: Reader, start: int, stop: int) -> AsyncGenerator[Span, None]:
    """Bytes [start, stop) in order, as they become readable; the blob's last piece only when its sha256 matched.

    Raises BlobCorrupt if bytes that were given out turned out to be wrong; Unproven where *reader* may not be given
    what comes next.
    """
    layout, pieces = partial.layout, partial.pieces
    position, epoch = start, partial.epoch
    first = start // layout.piece_length
    run = max(1, HASH_RUN // layout.piece_length)
    through = reader.whole or start == 0
    # A span names a descriptor: it stays open until this reader is done, however the fetch ends.
    with partial.file.share() as file:
        while position < stop:
            piece = position // layout.piece_length
            if not supply.suffices(reader, piece):
                raise Unproven(f"nobody has seen the sha256 of what is there of {partial.digest}")
            supply.need(reader, position, stop)
            await supply.hurry(reader, piece)
            if piece == layout.pieces - 1 and through:
                await supply.wait_verified()
            if epoch != partial.epoch:
                epoch = await partial.same_bytes(epoch, first, piece)
                continue
            count = pieces.run(piece, run)
            count = next((n for n in range(count) if not supply.suffices(reader, piece + n)), count)
            if not count:
                continue
            if piece + count == layout.pieces and not supply.is_verified and through and count > 1:
                count -= 1
            end = min(stop, (piece + count) * layout.piece_length)
            origin = "disk" if reader.late else pieces.origin(piece)
            partial.touch(position, end)
            yield Span(file.fd, position, end - position, origin)
            position = end
