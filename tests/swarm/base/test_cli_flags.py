"""What may be written after a flag: sizes, durations, addresses, patterns; and how each is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.commands.containerd import parse_host, parse_mirror
from mirror.settings import TagTtl, parse_pattern, parse_registry, parse_tag_ttl
from swarm.base import flags
from swarm.base.flags import Endpoint


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (flags.parse_size, "20GiB", 20 << 30),
        (flags.parse_size, "20gi", 20 << 30),
        (flags.parse_size, "1.5 KiB", 1536),
        (flags.parse_size, "500MB", 500_000_000),
        (flags.parse_size, "0", 0),
        (flags.parse_size, "7b", 7),
        (flags.parse_duration, "10s", 10.0),
        (flags.parse_duration, "1h30m", 5400.0),
        (flags.parse_duration, "250ms", 0.25),
        (flags.parse_duration, "2", 2.0),
        (flags.parse_duration, "1.5d", 129600.0),
        (flags.parse_endpoint, "127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        (flags.parse_endpoint, "[::1]:80", Endpoint("::1", 80)),
        (flags.parse_endpoint, "[0:0::1]:0", Endpoint("::1", 0)),
        (flags.parse_endpoint, "a_b-c.example:65535", Endpoint("a_b-c.example", 65535)),
        (flags.parse_network, "10.1.2.3/8", "10.0.0.0/8"),
        (flags.parse_network, "fd00::1", "fd00::1/128"),
        (flags.parse_tracker, "http://t:6969/", "http://t:6969"),
        (flags.parse_tracker, "dns+http://shoal.ns.svc:6969", "dns+http://shoal.ns.svc:6969"),
        (flags.parse_log_level, "WARNING", "warning"),
        (flags.parse_count, "16", 16),
        (flags.parse_number, "0.5", 0.5),
        (parse_tag_ttl, "10s", TagTtl("", 10.0)),
        (parse_tag_ttl, "off", TagTtl("", None)),
        (parse_tag_ttl, "Reg.example:5000=0", TagTtl("reg.example:5000", 0.0)),
        (parse_registry, "Reg.Example:5000", "reg.example:5000"),
        (parse_registry, "[::1]:5000", "[::1]:5000"),
        (parse_pattern, "*.example:*/team/*", "*.example:*/team/*"),
        (parse_mirror, "http://127.0.0.1:30000/", "http://127.0.0.1:30000"),
        (parse_host, "_default", "_default"),
    ],
)
def test_what_is_meant(parse: Callable[[str], Any], text: str, value: object) -> None:
    """Text to value."""
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (flags.parse_size, ""), (flags.parse_size, "-1"), (flags.parse_size, "1e3"), (flags.parse_size, "3 parsecs"),
        (flags.parse_size, "٣GiB"), (flags.parse_duration, ""), (flags.parse_duration, "1h 30"),
        (flags.parse_duration, "-1s"), (flags.parse_duration, "nan"), (flags.parse_duration, "s"),
        (flags.parse_endpoint, "host"), (flags.parse_endpoint, ":80"), (flags.parse_endpoint, "::1:80"),
        (flags.parse_endpoint, "[::1]"), (flags.parse_endpoint, "[::1]80"), (flags.parse_endpoint, "h:65536"),
        (flags.parse_endpoint, "h:-1"), (flags.parse_endpoint, "h:\uff18\uff10"), (flags.parse_endpoint, "a b:1"),
        (flags.parse_endpoint, "u@h:1"), (flags.parse_endpoint, "h/x:1"), (flags.parse_endpoint, "[v1.x]:1"),
        (flags.parse_network, "10.0.0.0/33"), (flags.parse_network, "nodes"), (flags.parse_tracker, "host:6969"),
        (flags.parse_tracker, "ftp://h:1"), (flags.parse_tracker, "http://u:p@h:1"), (flags.parse_tracker, "http://h:1/x"),
        (flags.parse_tracker, "http://h:99999"), (flags.parse_tracker, "http://[::1"), (flags.parse_log_level, "loud"),
        (flags.parse_log_format, "xml"), (flags.parse_count, "-1"), (flags.parse_count, "1.5"),
        (flags.parse_number, "x"),
        (parse_tag_ttl, "=1s"), (parse_tag_ttl, "never"), (parse_tag_ttl, "a b=1s"), (parse_registry, "a/b"),
        (parse_registry, ""), (parse_pattern, "a b"), (parse_pattern, ""), (parse_pattern, "https://x"),
        (parse_mirror, "127.0.0.1:30000"), (parse_mirror, 'http://x"y'), (parse_mirror, "http://h/v2"),
    ],
)  # fmt: skip
def test_what_is_refused(parse: Callable[[str], Any], text: str) -> None:
    """One line that names the text and says what would be right."""
    with pytest.raises(ValueError, match=re.escape(repr(text))) as refused:
        parse(text)
    assert "\n" not in str(refused.value)


@given(st.integers(0, 1 << 60))
def test_sizes_are_written_as_they_are_read(count: int) -> None:
    """For the documentation, and for `shoal up`, which passes settings on as flags."""
    assert flags.parse_size(flags.format_size(count)) == count


@given(st.integers(0, 10**9))
def test_durations_are_written_as_they_are_read(milliseconds: int) -> None:
    """To the millisecond."""
    seconds = milliseconds / 1000
    assert flags.parse_duration(flags.format_duration(seconds)) == pytest.approx(seconds, abs=1e-6, rel=1e-9)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_addresses_are_written_as_they_are_read(address: object, port: int) -> None:
    """Both families."""
    if "%" in str(address):
        return
    endpoint = flags.parse_endpoint(str(Endpoint(str(address), port)))
    assert endpoint.port == port
    assert str(flags.parse_endpoint(str(endpoint))) == str(endpoint)


@given(st.text())
@pytest.mark.parametrize(
    "parse",
    [flags.parse_size, flags.parse_duration, flags.parse_endpoint, flags.parse_network, flags.parse_tracker,
     parse_tag_ttl, parse_pattern, parse_mirror],
)  # fmt: skip
def test_any_text_is_understood_or_refused(parse: Callable[[str], Any], text: str) -> None:
    """Nothing but ValueError comes out."""
    with suppress(ValueError):
        parse(text)
