"""Range headers: what is asked, which bytes that is, and what is answered whole (RFC 9110, 14)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import RangeUnsatisfiable
from mirror.front.ranges import ContentRange, Range, parse, resolve

WHOLE = None


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        (None, WHOLE),
        ("bytes=0-0", Range(0, 0)),
        ("bytes=5-", Range(5, None)),
        ("bytes=-5", Range(None, 5)),
        ("Bytes = 1-2", Range(1, 2)),
        ("bytes=1 - 2", Range(1, 2)),
        ("bytes=1-2,", Range(1, 2)),
        ("bytes=0-0,5-9", WHOLE),
        ("bytes=9-5", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes=", WHOLE),
        ("bytes", WHOLE),
        ("items=0-5", WHOLE),
        ("bytes=a-b", WHOLE),
        ("bytes=--5", WHOLE),
        ("bytes=1-2-3", WHOLE),
        ("bytes=\u0661-\u0662", WHOLE),
        ("bytes=" + "9" * 30 + "-", WHOLE),
    ],
)
def test_what_a_header_asks_for(header: str | None, asked: Range | None) -> None:
    """One well-formed range counts; everything else is answered whole, which every client must understand."""
    assert parse(header) == asked


@pytest.mark.parametrize(
    ("asked", "size", "expected"),
    [
        (WHOLE, 10, ContentRange(0, 10, 10, partial=False)),
        (WHOLE, 0, ContentRange(0, 0, 0, partial=False)),
        (Range(0, 0), 10, ContentRange(0, 1, 10, partial=True)),
        (Range(9, 9), 10, ContentRange(9, 10, 10, partial=True)),
        (Range(5, 100), 10, ContentRange(5, 10, 10, partial=True)),
        (Range(5, None), 10, ContentRange(5, 10, 10, partial=True)),
        (Range(0, None), 10, ContentRange(0, 10, 10, partial=True)),
        (Range(None, 3), 10, ContentRange(7, 10, 10, partial=True)),
        (Range(None, 30), 10, ContentRange(0, 10, 10, partial=True)),
    ],
)
def test_which_bytes_that_is(asked: Range | None, size: int, expected: ContentRange) -> None:
    """A range is cut at the blob's end; a suffix longer than the blob is all of it."""
    assert resolve(asked, size) == expected


@pytest.mark.parametrize(
    ("asked", "size"),
    [(Range(10, None), 10), (Range(10, 20), 10), (Range(None, 0), 10), (Range(0, 0), 0), (Range(None, 1), 0)],
)
def test_what_lies_outside_is_unsatisfiable(asked: Range, size: int) -> None:
    """416, and its Content-Range tells the size."""
    with pytest.raises(RangeUnsatisfiable, match=rf"^bytes \*/{size}$"):
        resolve(asked, size)


@given(st.binary(max_size=50), st.integers(0, 60), st.integers(0, 60) | st.none())
def test_a_range_is_what_python_slices(content: bytes, first: int, last: int | None) -> None:
    """For every satisfiable range the bytes are those of the slice, and Content-Range names them."""
    if last is not None and last < first:
        return
    try:
        place = resolve(parse(f"bytes={first}-{'' if last is None else last}"), len(content))
    except RangeUnsatisfiable:
        assert first >= len(content)
        assert content or last is not None or first
        return
    if not content:
        assert (first, last, place) == (0, None, ContentRange(0, 0, 0, partial=False)), "as registries answer it"
        return
    expected = content[first : None if last is None else last + 1]
    assert content[place.start : place.stop] == expected
    assert place.content_range == f"bytes {first}-{first + len(expected) - 1}/{len(content)}"


@given(st.text(max_size=30))
def test_no_header_breaks_it(header: str) -> None:
    """Whatever a client sends: a range inside the blob, everything, or unsatisfiable."""
    try:
        place = resolve(parse(f"bytes={header}"), 100)
    except RangeUnsatisfiable:
        return
    assert 0 <= place.start < place.stop <= 100
