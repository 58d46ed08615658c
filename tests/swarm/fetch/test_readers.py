"""What the readers of a blob on one node want of it together."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from swarm.fetch.readers import MOST_PREFERRED, Reader, Readers
from swarm.upstream.source import Body, Source


class Upstream:
    """A source that nobody opens."""

    upstream = "registry.test"

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[Body]:
        raise AssertionError("not to be asked")


def test_without_readers_nothing_is_wanted() -> None:
    none = Readers()
    assert not (none.whole or none.bulk or none.waiting or none.windows or none.pieces or none.urgent)
    assert (none.preferred(), none.source()) == ((), None)


def test_bulk_is_when_nobody_reads_ranges() -> None:
    whole, ranged = Reader(True, None), Reader(False, None)
    assert Readers({whole}).bulk
    assert not Readers({whole, ranged}).bulk
    assert Readers({whole, ranged}).whole
    assert not Readers({ranged}).whole


def test_who_waits_comes_before_who_reads_ahead() -> None:
    ahead = Reader(False, None, windows=(1, 2), pieces=(10, 20), low=True)
    waits = Reader(False, None, windows=(5, 2), pieces=(50, 21))
    both = Readers({ahead, waits})
    assert both.preferred() == (5, 2, 1)
    assert (both.windows, both.pieces, both.urgent) == ({1, 2, 5}, {10, 20, 21, 50}, {21, 50})
    assert both.waiting
    assert not Readers({ahead}).waiting


def test_a_board_is_told_of_few_windows() -> None:
    assert Readers({Reader(False, None, windows=tuple(range(1000)))}).preferred() == tuple(range(MOST_PREFERRED))


def test_a_window_is_asked_for_as_who_waits_for_it_asks() -> None:
    bulk: Source = Upstream()
    urgent: Source = Upstream()
    both = Readers({Reader(True, bulk), Reader(False, urgent, windows=(3,)), Reader(False, None, windows=(4,))})
    assert both.source(3) is urgent
    assert both.source(4) in {bulk, urgent}
