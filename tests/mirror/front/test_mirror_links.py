"""Next pages of a list, in every form in which registries write Link headers (RFC 8288)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import LinkInvalid
from mirror.front.links import next_page, parse
from mirror.front.oci import Route

TAGS = Route("tags", "a/b")
NEXT = '</v2/a/b/tags/list?last=x&n=2&ns=r.io>; rel="next"'


@pytest.mark.parametrize(
    "link",
    [
        '</v2/a/b/tags/list?last=x&n=2>; rel="next"',
        '<https://r.io/v2/a/b/tags/list?last=x&n=2>; rel="next"',
        '<//cdn.r.io/v2/a/b/tags/list?last=x&n=2>; rel="next"',
        '<http://r.io/artifactory/api/docker/v2/a/b/tags/list?last=x&n=2>; rel="next"',
        '<list?last=x&n=2>; rel="next"',
        '<?last=x&n=2>; rel="next"',
        "</v2/a/b/tags/list?last=x&n=2>; rel=next",
        "</v2/a/b/tags/list?last=x&n=2>;REL=Next",
        '</v2/a/b/tags/list?last=x&n=2>; rel="last next"',
        '</v2/a/b/tags/list?last=x&n=2>; title="a, b; rel=no"; rel="next"',
        "</v2/a/b/tags/list?last=x&n=2> ; title*=UTF-8''a ; rel=\"next\" ; ; x",
        '</v2/a/b/tags/list?n=2>; rel="first", </v2/a/b/tags/list?last=x&n=2>; rel="next"',
        ', </v2/a/b/tags/list?last=x&n=2>; rel="next" ,',
        '<#top>; rel=help, </v2/a%2Fb/tags/list?last=x&n=2&ns=evil.example>; rel="next"',
    ],
)
def test_every_form_of_a_next_page_is_asked_of_this_mirror(link: str) -> None:
    """Whatever upstream's path is, the client gets ours, its query, and the registry that it belongs to."""
    assert next_page([link], "https://r.io/v2/a/b/tags/list?n=2", TAGS, "r.io") == NEXT


def test_several_lines_count_as_one_list() -> None:
    lines = ['</v2/a/b/tags/list?n=2>; rel="first"', '</v2/a/b/tags/list?last=x&n=2>; rel="next"']
    assert next_page(lines, "https://r.io/", TAGS, "r.io") == NEXT


@pytest.mark.parametrize(
    "lines",
    [[], [""], ['</v2/a/b/tags/list?n=2>; rel="prev"'], ['</v2/a/b/tags/list?n=2>; rel="next"; anchor="/other"']],
)
def test_without_a_next_page_the_list_ends(lines: list[str]) -> None:
    assert next_page(lines, "https://r.io/", TAGS, "r.io") is None


@pytest.mark.parametrize(
    "line",
    ["nonsense", "</v2/a", '<https://r.io/elsewhere?x=1>; rel="next"', '<list>; rel="next"', "<http://[::1>; rel=next"],
)
def test_a_next_page_that_cannot_be_followed_is_an_error_and_never_the_end_of_the_list(line: str) -> None:
    with pytest.raises(LinkInvalid):
        next_page([line], "https://r.io/v2/a/b/tags/list", TAGS, "r.io")


@given(st.text(max_size=60))
def test_no_header_breaks_it(text: str) -> None:
    """Links, or our own error."""
    try:
        parse([text])
    except LinkInvalid:
        return
