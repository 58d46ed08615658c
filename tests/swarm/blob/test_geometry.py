"""The cut of a blob into pieces and windows is a function of its size alone, and covers every byte once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.blob.geometry import FIRST_WINDOW, MAX_WINDOWS, geometry

GIB = 1024**3
sizes = st.one_of(st.integers(0, 20 * 1024**2), st.integers(0, 100 * GIB))


@given(sizes)
def test_windows_cover_every_byte_once_and_in_order(size: int) -> None:
    layout = geometry(size)
    offset = piece = 0
    for index, window in enumerate(layout.windows):
        assert (window.index, window.offset, window.first_piece) == (index, offset, piece)
        assert window.length > 0
        offset, piece = window.end, window.last_piece + 1
    assert (offset, piece) == (size, layout.pieces)
    assert len(layout.windows) <= MAX_WINDOWS + 128  # the shorter ones at both ends


@given(sizes)
def test_windows_begin_where_pieces_begin(size: int) -> None:
    layout = geometry(size)
    assert all(window.offset == window.first_piece * layout.piece_length for window in layout.windows)
    if layout.pieces:
        assert sum(layout.piece_span(layout.pieces - 1)) == size


@given(st.integers(1, 100 * GIB))
def test_the_first_window_does_not_depend_on_the_size(size: int) -> None:
    assert geometry(size).windows[0].length == min(size, FIRST_WINDOW)


@given(st.integers(1, 10 * GIB), st.data())
def test_a_byte_is_in_the_window_that_is_found_for_it(size: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, size - 1))
    window = geometry(size).window_at(offset)
    assert window.offset <= offset < window.end


@pytest.mark.parametrize(
    ("size", "pieces", "windows"),
    [
        (0, 0, 0),
        (1, 1, 1),
        (256 * 1024, 1, 1),
        (1024**2, 4, 1),
        (1024**2 + 1, 5, 2),
        (64 * 1024**2, 256, 120),
        (128 * 1024**2, 256, 137),
        (2 * GIB, 4096, 191),
    ],
)
def test_sizes_that_people_ask_about(size: int, pieces: int, windows: int) -> None:
    layout = geometry(size)
    assert (layout.pieces, len(layout.windows)) == (pieces, windows)


def test_windows_of_a_range() -> None:
    layout = geometry(20 * 1024**2)
    assert [w.index for w in layout.windows_of(0, 1)] == [0]
    assert [w.index for w in layout.windows_of(FIRST_WINDOW - 1, FIRST_WINDOW + 1)] == [0, 1]
    assert layout.windows_of(5, 5) == ()
    assert layout.windows_of(0, layout.size) == layout.windows


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        geometry(-1)
    with pytest.raises(IndexError):
        geometry(10).window_at(10)
