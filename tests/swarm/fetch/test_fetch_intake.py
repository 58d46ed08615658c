"""What a fetch does with what comes: when the board hears of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from swarm.blob.errors import SwarmError
from swarm.fetch.course import Course
from swarm.fetch.intake import Intake
from tests.swarm.fetch.test_fetch_partial import partial, sha1


async def test_the_board_hears_of_windows_from_peers_soon_and_of_single_pieces_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of ranges get pieces. A session of them asked the tracker four times a second for each of 32 blobs."""
    polls: list[int] = []
    async with partial(tmp_path) as here:
        course = SimpleNamespace(
            partial=here, closing=False, heard_peers=True,
            stalls=SimpleNamespace(moved=lambda _now: None),
            claims=SimpleNamespace(arrived=lambda _window, _count: None),
            transfers=SimpleNamespace(mode=None, arrived=lambda _window: None),
            follower=SimpleNamespace(shared=True, sealed=True, poll=lambda: polls.append(here.have)),
            parts=SimpleNamespace(metrics=SimpleNamespace(bytes_in=_Counter()), lane=SimpleNamespace(port=6882)),
            trace=lambda *_event, **_fields: None, want=lambda: None,
        )  # fmt: skip

        def fail(error: SwarmError) -> None:
            raise AssertionError(error)

        async def reject(reason: str) -> None:
            raise AssertionError(reason)

        intake = Intake(cast("Course", course), fail, reject)
        monkeypatch.setattr("swarm.fetch.intake.TELL_WITHIN", 0.0)
        for piece in (0, 1, 2, 8):
            intake.came_from_peer(piece, sha1(str(piece)))
            await _turns()
        assert polls == []
        intake.came_from_peer(3, sha1("3"))
        for piece in (9, 10, 11):
            intake.came_from_peer(piece, sha1(str(piece)))
        await _turns()
        assert polls == [0b101], "once for both windows"


@pytest.mark.parametrize(
    ("told", "sealed", "mixed"), [("aa", False, 0), ("bb", False, 1), ("", False, 1), ("bb", True, 0)]
)
async def test_a_piece_of_another_origin_from_a_peer_is_no_longer_told_apart(
    tmp_path: Path, told: str, sealed: bool, mixed: int
) -> None:
    """Who reads all of the blob takes what others asked of other places; readers of ranges are not given that."""
    times: list[None] = []
    async with partial(tmp_path) as here:
        course = SimpleNamespace(
            partial=here, origin="aa", heard_peers=True, mixed=lambda: times.append(None),
            stalls=SimpleNamespace(moved=lambda _now: None),
            claims=SimpleNamespace(arrived=lambda _window, _count: None),
            follower=SimpleNamespace(sealed=sealed, origins={0: told} if told else {}),
            parts=SimpleNamespace(metrics=SimpleNamespace(bytes_in=_Counter())),
        )  # fmt: skip
        intake = Intake(cast("Course", course), lambda _error: None, _nobody_rejects)
        intake.came_from_peer(0, sha1("0"))
        assert len(times) == mixed


async def _nobody_rejects(reason: str) -> None:
    raise AssertionError(reason)


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class _Counter:
    def labels(self, _source: str) -> _Counter:
        return self

    def inc(self, _count: float) -> None:
        return None
