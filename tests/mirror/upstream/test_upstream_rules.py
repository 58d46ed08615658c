"""The pure decisions of the upstream client as tables: addresses, names, challenges, answers, limits."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from mirror.errors import Forbidden, RegistriesInvalid
from mirror.serve import registries_of
from mirror.settings import MirrorSettings, TagTtl
from mirror.upstream.addresses import AddressRules, networks
from mirror.upstream.answers import LONGEST_WAIT, content_range, refusal, retry_after
from mirror.upstream.auth import Challenge, challenges, token_of
from mirror.upstream.limits import SHORTEST, Breaker, Bucket, Limits, backoff
from mirror.upstream.registries import Registries, canonical, is_loopback, matches
from mirror.upstream.registryfile import load, parse
from mirror.upstream.urlrules import UrlRules, named_hosts
from swarm.blob.errors import SourceBroken, SourceBusy, SourceError

# ---------------------------------------------------------------------- addresses

NEVER = [
    "169.254.169.254",
    "169.254.170.2",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "fd20:ce::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "no address",
    "",
]
PRIVATE = ["10.0.0.1", "192.168.1.1", "172.16.0.1", "127.0.0.1", "::1", "fd12::1", "100.64.0.1", "::ffff:10.0.0.1"]
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700::1111"]


@pytest.mark.parametrize("address", NEVER)
def test_metadata_and_senseless_addresses_are_never_allowed(address: str) -> None:
    assert not AddressRules(private=True).allow(address)
    assert not AddressRules(private=False, networks=networks(["0.0.0.0/0", "::/0"])).allow(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_allowed_where_somebody_said_so(address: str) -> None:
    assert AddressRules(private=True).allow(address)
    assert not AddressRules(private=False).allow(address)
    assert AddressRules(private=False, networks=networks(["0.0.0.0/0", "::/0"])).allow(address)
    assert not AddressRules(private=False, networks=networks(["10.9.0.0/16"])).allow(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert AddressRules(private=False).allow(address)


@given(st.ip_addresses())
def test_what_the_strict_rules_allow_the_lax_ones_allow_too(address: object) -> None:
    assert AddressRules(private=True).allow(str(address)) or not AddressRules(private=False).allow(str(address))


# ---------------------------------------------------------------------- names of registries


@pytest.mark.parametrize(
    ("ns", "host"),
    [
        (None, "docker.io"),
        ("", "docker.io"),
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("registry-1.docker.io:443", "docker.io"),
        ("GHCR.io", "ghcr.io"),
        ("localhost:5000", "localhost:5000"),
        ("[::1]:5000", "[::1]:5000"),
        ("a_b.example", "a_b.example"),
    ],
)
def test_ns_means_a_host(ns: str | None, host: str) -> None:
    assert canonical(ns) == host


@pytest.mark.parametrize(
    "ns",
    [
        "a b",
        "a/b",
        "http://a",
        "a@b",
        "a:",
        "a:0",
        "a:70000",
        "a:b",
        "a?b",
        "a#b",
        "..",
        "a..b",
        ".a",
        "x" * 300,
        "a\n",
    ],
)
def test_what_is_no_host_is_forbidden(ns: str) -> None:
    with pytest.raises(Forbidden):
        canonical(ns)


def test_docker_hub_is_somewhere_else_and_has_a_library() -> None:
    hub = Registries().registry("docker.io")
    assert hub.url == "https://registry-1.docker.io"
    assert hub.repository("alpine") == "library/alpine"
    assert hub.repository("team/app") == "team/app"
    assert Registries().registry("ghcr.io").repository("alpine") == "alpine"


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("10.0.0.1:5000", False),
        ("localhost.example", False),
        ("ghcr.io", False),
    ],
)
def test_only_loopback_registries_are_plain_http_unasked(host: str, plain: bool) -> None:
    assert is_loopback(host) is plain
    assert Registries().registry(host).url == f"{'http' if plain else 'https'}://{host}"
    assert Registries(plain_http=frozenset({host})).registry(host).url == f"http://{host}"


@pytest.mark.parametrize("name", ["", "A", "a//b", "/a", "a/", "../x", "a/../b", "a b", "a?b", "a%2e", "a" * 300])
def test_a_repository_that_cannot_be_is_forbidden(name: str) -> None:
    with pytest.raises(Forbidden):
        Registries().find("ghcr.io", name)


@pytest.mark.parametrize(
    ("pattern", "host", "repository", "fits"),
    [
        ("*", "ghcr.io", "a/b", True),
        ("ghcr.io", "ghcr.io", "a/b", True),
        ("ghcr.io", "quay.io", "a/b", False),
        ("ghcr.io/a/*", "ghcr.io", "a/b/c", True),
        ("ghcr.io/a/*", "ghcr.io", "ab", False),
        ("*.example", "x.y.example:5000", "a", True),
        ("*.example:5000", "x.example:5000", "a", True),
        ("*.example:5000", "x.example:5001", "a", False),
        ("docker.io/library/*", "docker.io", "library/alpine", True),
    ],
)
def test_patterns(pattern: str, host: str, repository: str, fits: bool) -> None:
    assert matches(pattern, host, repository) is fits


def test_deny_wins_over_allow_and_the_rest_is_not_mirrored() -> None:
    registries = Registries(allow=("docker.io", "ghcr.io/team/*"), deny=("docker.io/library/secret",))
    assert registries.find(None, "alpine").host == "docker.io"
    assert registries.find("ghcr.io", "team/app").host == "ghcr.io"
    for ns, name in [("ghcr.io", "other/app"), ("docker.io", "secret"), ("quay.io", "a")]:
        with pytest.raises(Forbidden):
            registries.find(ns, name)


# ---------------------------------------------------------------------- the registries file

FILE = """
deny = ["docker.io/secret/*"]
[registry."reg.example:5000"]
url = "https://10.0.0.7:5000/"
tag-ttl = "1m"
connections = 8
rate = 20
[registry."docker.io"]
tag-ttl = "off"
[registry."plain.example"]
plain-http = true
tag-ttl = 0
"""


def test_a_file_says_what_is_special(tmp_path: Path) -> None:
    path = tmp_path / "registries.toml"
    path.write_text(FILE)
    registries = load(path, Registries(allow=("*",)))
    example, hub = registries.registry("reg.example:5000"), registries.registry(None)
    assert (example.url, example.tag_ttl) == ("https://10.0.0.7:5000", 60.0)
    assert registries.limits("reg.example:5000", Limits(connections=3, patience=1.0)) == Limits(8, 16, 20, 1.0)
    assert registries.limits("other.example", Limits(connections=3)) == Limits(3)
    assert (hub.url, hub.tag_ttl) == ("https://registry-1.docker.io", None)
    assert registries.registry("plain.example").url == "http://plain.example"
    assert registries.registry("plain.example").tag_ttl == 0.0
    assert registries.deny == ("docker.io/secret/*",)
    with pytest.raises(Forbidden):
        registries.find(None, "secret/x")


def test_the_file_in_the_guide_is_one(tmp_path: Path) -> None:
    """With files where it names some."""
    guide = (Path(__file__).parents[3] / "docs/clients.md").read_text()
    text = guide.rpartition("```toml\n")[2].partition("```")[0]
    for name in ("example.pem", "me.crt", "me.key"):
        (tmp_path / name).touch()
    path = tmp_path / "registries.toml"
    path.write_text(text.replace("/etc/ssl", str(tmp_path)))
    registries = load(path, Registries())
    assert registries.registry("registry.example:5000").tag_ttl == 60.0
    assert registries.registry("plain.example").url == "http://plain.example"


def test_what_the_file_does_not_say_is_as_the_flags_have_it(tmp_path: Path) -> None:
    """A TTL for one registry, and what is denied, are not lost because a file says something else of it."""
    path = tmp_path / "registries.toml"
    path.write_text('deny = ["ghcr.io"]\n[registry."reg.example"]\nconnections = 8\n[registry."new.example"]\n')
    ttls = (TagTtl("", 30.0), TagTtl("reg.example", None))
    flags = registries_of(MirrorSettings(tag_ttl=ttls, deny=("quay.io",)))
    registries = load(path, flags)
    assert (registries.registry("reg.example").tag_ttl, registries.registry("reg.example").connections) == (None, 8)
    assert registries.registry("new.example").tag_ttl == registries.registry("other.example").tag_ttl == 30.0
    assert [registries.allows(host, "x") for host in ("quay.io", "ghcr.io", "reg.example")] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[registry", "registries.toml"),
        ("registry = 1", "registry"),
        ("unknown = 1", "unknown"),
        ('[registry."a.example"]\nurll = "x"', "urll"),
        ('[registry."a b"]', "a b"),
        ('[registry."a.example"]\nurl = "ftp://x"', "url must be"),
        ('[registry."a.example"]\nurl = "https://user:pw@x"', "url must be"),
        ('[registry."a.example"]\nurl = "https://x"\nplain-http = true', "plain-http"),
        ('[registry."a.example"]\ntag-ttl = "soon"', "soon"),
        ('[registry."a.example"]\ntag-ttl = -1', "tag-ttl"),
        ('[registry."a.example"]\nca = "/does/not/exist"', "/does/not/exist"),
        ('[registry."a.example"]\nclient-key = "/etc/hostname"', "client-key"),
        ('[registry."a.example"]\nconnections = 0', "connections"),
        ('[registry."a.example"]\nrate = -1', "rate"),
        ("\xff", "registries.toml"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_says_why(text: str, says: str) -> None:
    with pytest.raises(RegistriesInvalid) as caught:
        parse(text.encode("latin-1"), "registries.toml", Registries())
    assert str(caught.value).startswith("registries.toml: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RegistriesInvalid, match="No such file"):
        load(tmp_path / "none.toml", Registries())


# ---------------------------------------------------------------------- streaming URLs


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://acc.blob.core.windows.net/c/x?sig=1", True),
        ("https://eus.data.azurecr.io/x", True),
        ("https://ghcr.io:443/x", True),
        ("https://ghcr.io./x", True),
        ("https://GHCR.io/x", True),
        ("https://OWN.example:9/x", True),
        ("https://b.s3.eu-west-1.amazonaws.com/x", True),
        ("https://ghcr.io:8443/x", False),
        ("https://ghcr.io.evil.example/x", False),
        ("https://blob.core.windows.net.evil.example/", False),
        ("https://127.0.0.1/x", False),
        ("http://own.example:9000/x", True),
        ("http://team.example/data/x", True),
        ("http://team.example/other/x", False),
    ],
)
def test_which_urls_may_be_fetched(url: str, allowed: bool) -> None:
    rules = UrlRules(named=("own.example", "team.example/data/*"))
    assert rules.allows(URL(url, encoded=True)) is allowed


def test_an_allow_list_of_everything_opens_nothing_to_urls() -> None:
    assert named_hosts(["*", "reg.example:5000/team/*", "docker.io"]) == ("reg.example:5000", "registry-1.docker.io")


# ---------------------------------------------------------------------- challenges and tokens


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        ('BASIC realm="a \\"b\\" c"', [Challenge("basic", {"realm": 'a "b" c'})]),
        ("Basic realm=plain", [Challenge("basic", {"realm": "plain"})]),
        ('Bearer realm = "x" , service=y', [Challenge("bearer", {"realm": "x", "service": "y"})]),
        ('Negotiate, Basic realm="x"', [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})]),
        ('Negotiate YWJj==, Basic realm="x"', [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})]),
        (
            'Basic realm="x", Bearer realm="y",error="invalid_token"',
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y", "error": "invalid_token"})],
        ),
        ("", []),
        ('="', []),
        ('Bearer realm="unfinished', [Challenge("bearer", {})]),
    ],
)
def test_challenges(value: str, found: list[Challenge]) -> None:
    assert challenges([value]) == found


@given(st.lists(st.text(alphabet='Bearer Basic="\\, realm:/\t\x00é', max_size=200), max_size=3))
def test_no_header_breaks_the_parser(values: list[str]) -> None:
    for challenge in challenges(values):
        assert challenge.scheme == challenge.scheme.lower()


@pytest.mark.parametrize(
    ("body", "token", "life"),
    [
        (b'{"token":"t"}', "t", 50.0),
        (b'{"access_token":"t","expires_in":300}', "t", 290.0),
        (b'{"token":"t","access_token":"u","expires_in":5}', "t", 1.0),
        (b'{"token":"t","expires_in":"soon"}', "t", 50.0),
        (b'{"token":"t","expires_in":-3}', "t", 50.0),
        (b'{"token":"t","expires_in":1e99}', "t", 6 * 3600.0 - 10.0),
        (b'{"token":"t","expires_in":NaN}', "t", 50.0),
    ],
)
def test_tokens(body: bytes, token: str, life: float) -> None:
    assert token_of(body, "host") == (token, life)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{}", b'{"token":1}', b'{"token":"a\\r\\nX: y"}', b"\xff"])
def test_an_answer_without_a_token_is_broken(body: bytes) -> None:
    with pytest.raises(SourceBroken):
        token_of(body, "host")


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 12 ", 12.0),
        ("99999999999999", LONGEST_WAIT),
        ("-1", None),
        ("soon", None),
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("Mon, 23 Nov 2099 12:00:00 GMT", LONGEST_WAIT),
        ("²", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, datetime(2026, 11, 23, 12, tzinfo=UTC)) == seconds


@given(
    st.sampled_from([200, 204, 206, 301, 400, 404, 416, 429, 500, 503, 999]),
    st.dictionaries(
        st.sampled_from(["Content-Length", "Content-Range", "Retry-After"]),
        st.one_of(
            st.text(max_size=20),
            st.from_regex(r"bytes [0-9]{1,3}-[0-9]{1,3}/([0-9]{1,3}|\*)", fullmatch=True),
            st.from_regex(r"[0-9]{1,4}", fullmatch=True),
        ),
    ),
    st.integers(0, 1000),
)
def test_whatever_upstream_says_is_a_place_that_makes_sense_or_our_error(
    status: int, headers: dict[str, str], start: int
) -> None:
    try:
        at = content_range(status, headers, start, "host")
    except SourceError:
        return
    assert at.offset <= start
    assert at.end is None or at.offset <= at.end
    assert at.total is None or at.end is None or at.end <= at.total


@pytest.mark.parametrize("status", range(400, 600))
def test_every_status_has_a_meaning(status: int) -> None:
    error = refusal(status, {}, "host")
    assert error.status == status
    assert isinstance(error, SourceBusy) is (status == 429)
    assert isinstance(error, SourceBroken) is ((status >= 500 and status != 501) or status in (408, 425))


# ---------------------------------------------------------------------- limits


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_bounded_on_both_sides(attempt: int, chance: float) -> None:
    assert SHORTEST <= backoff(attempt, chance, base=1.0, cap=60.0) <= 60.0


def test_backoff_doubles() -> None:
    assert [backoff(attempt, 0.5, base=1.0, cap=10.0) for attempt in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_breaker_opens_probes_and_closes() -> None:
    breaker = Breaker(threshold=3, base=1.0, cap=10.0)
    for now in (1.0, 2.0):
        assert breaker.wait(now) == 0.0
        breaker.outcome(ok=False, now=now, chance=0.5)
    breaker.outcome(ok=True, now=2.5, chance=0.5)
    for now in (3.0, 4.0, 5.0):
        assert breaker.wait(now) == 0.0
        breaker.outcome(ok=False, now=now, chance=0.5)
    assert breaker.wait(5.0) == 0.5
    assert breaker.wait(5.5) == 0.0, "the probe"
    assert breaker.wait(5.5) > 0.0, "only one"
    breaker.outcome(ok=False, now=6.0, chance=0.5)
    assert breaker.wait(6.0) == 1.0, "twice as long"
    assert breaker.wait(7.0) == 0.0
    breaker.gone()
    assert breaker.wait(7.0) == 0.0, "a probe that was given up lets the next one through"
    breaker.outcome(ok=True, now=8.0, chance=0.5)
    assert not breaker.open


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans(), st.floats(0, 1, exclude_max=True)), max_size=60))
def test_a_breaker_never_keeps_anybody_waiting_for_longer_than_its_cap(
    steps: list[tuple[float, bool, float]],
) -> None:
    breaker, now = Breaker(), 100.0
    for pause, ok, chance in steps:
        now += pause
        wait = breaker.wait(now)
        assert 0.0 <= wait <= breaker.cap
        if wait == 0.0:
            breaker.outcome(ok, now, chance)


@given(st.floats(0.5, 100.0), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=100))
def test_a_bucket_keeps_the_rate(rate: float, gaps: list[float]) -> None:
    bucket, now, sent = Bucket(rate, burst=5.0), 0.0, 0
    for gap in gaps:
        now += gap
        if bucket.wait(now) == 0.0:
            bucket.take(now)
            sent += 1
    assert sent <= 5 + rate * now + 1e-6


def test_a_bucket_without_a_rate_holds_nobody() -> None:
    bucket = Bucket(0.0)
    for _ in range(100):
        assert bucket.wait(0.0) == 0.0
        bucket.take(0.0)
