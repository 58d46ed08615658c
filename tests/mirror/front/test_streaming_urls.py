"""Streaming paths: the URL behind the prefix, and the digest that it names (docs/contract.md, "Streaming")."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import UrlInvalid
from mirror.front.urls import Wanted, digest_of, parse

HEX = "0123456789abcdef" * 4
OTHER = "f" * 64
SHA = f"sha256:{HEX}"


@pytest.mark.parametrize("prefix", ["/blobs/", "/dadip2p/", "/accelerator/"])
@pytest.mark.parametrize("scheme", ["https://", "https:/", "https:///", "HTTPS://"])
def test_every_prefix_and_merged_slashes(prefix: str, scheme: str) -> None:
    """The query belongs to the URL, in the order and spelling in which it came."""
    wanted = parse(f"{prefix}{scheme}Host.example:443/a%2Fb/x?sig=a%2Bb&d=1&d=2")
    assert wanted == Wanted(
        "https://Host.example:443/a%2Fb/x?sig=a%2Bb&d=1&d=2", "host.example", "https://host.example/a%2Fb/x", None
    )


@pytest.mark.parametrize(
    ("path", "query", "digest"),
    [
        (f"/v2/a/blobs/{SHA}", "", SHA),
        (f"/v2/a/blobs/{SHA}", f"d=sha256:{OTHER}", SHA),
        (f"/x/docker/registry/v2/blobs/sha256/{HEX[:2]}/{HEX}/data", "", SHA),
        (f"/x/docker/registry/v2/blobs/sha256/00/{OTHER}/data", "", None),
        (f"/x/{SHA}", "", SHA),
        (f"/x/sha256%3A{HEX}", "", SHA),
        (f"/x/sha256%3a{HEX}/y", "", SHA),
        (f"/x/blobs/{SHA}/docker/registry/v2/blobs/sha256/ff/{OTHER}/data", "", SHA),
        ("/x", f"d={SHA}", SHA),
        ("/x", f"a=1&d=sha256%3A{HEX}&b=2", SHA),
        ("/x", f"digest={SHA}", None),
        ("/x", f"d={SHA}0", None),
        (f"/x/{SHA}0", "", None),
        (f"/x/{SHA[:-1]}", "", None),
        (f"/x/sha256:{HEX.upper()}", "", None),
        (f"/x/sha512:{HEX}{HEX}", "", None),
        (f"/x/{HEX}", "", None),
        ("/", "", None),
    ],
)
def test_the_digest_in_a_url(path: str, query: str, digest: str | None) -> None:
    """The first match of the listed forms; exactly 64 hex digits."""
    assert digest_of(path, query) == digest


@pytest.mark.parametrize(
    "target",
    [
        "/blobs/",
        "/blobs/x",
        "/blobs/ftp://host/x",
        "/blobs/file:///etc/passwd",
        "/blobs/https://",
        "/blobs/https:///",
        "/blobs/https://?x",
        "/blobs/https://user:secret@host/x",
        "/blobs/https://host:99999/x",
        "/blobs/https://host:port/x",
        "/blobs/https://[::1/x",
        "/blobs/https://host/a b",
        "/blobs/https://host/a\x01",
        "/blobs/https://host/\u00e4",
        "/blobs/https://host/" + "x" * 9000,
        "/other/https://host/x",
    ],
)
def test_what_is_no_url(target: str) -> None:
    """Refused, and the text does not repeat it: it may hold a secret."""
    with pytest.raises(UrlInvalid) as refused:
        parse(target)
    assert "secret" not in str(refused.value)


def test_what_may_be_shown_holds_no_secret() -> None:
    """Neither the place nor the repr has the query."""
    wanted = parse("/blobs/https://host/x?sig=secret")
    assert "secret" not in wanted.place
    assert "secret" not in repr(wanted)
    assert "secret" in wanted.url


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("https://h/x?a", "https://H:443/x?b", True),
        ("https://h/x", "http://h/x", False),
        ("https://h/x", "https://h/y", False),
        ("https://h/x", "https://h:8443/x", False),
        ("https://h/x", "https://h/X", False),
        ("https://h", "https://h/", True),
    ],
)
def test_files_are_told_apart_by_scheme_host_and_path(first: str, second: str, same: bool) -> None:
    """That is the key of a file without a digest: all such URLs sharing one key is how Peerd mixes files."""
    assert (parse(f"/blobs/{first}").place == parse(f"/blobs/{second}").place) is same


@given(st.text(max_size=80))
def test_nothing_breaks_it(text: str) -> None:
    """Anything is a URL or is refused."""
    for target in (f"/blobs/{text}", f"/blobs/https://{text}"):
        try:
            parse(target)
        except UrlInvalid:
            continue


@pytest.mark.parametrize(
    ("url", "word"),
    [
        (f"https://Registry.example/v2/team/app/blobs/{SHA}?sig=1", "registry.example"),
        (f"https://registry.example/v2/other/blobs/{SHA}", "registry.example"),
        (f"https://registry.example:5000/v2/a/blobs/{SHA}", "registry.example:5000"),
        (f"https://h/v2/blobs/{SHA}", f"https://h/v2/blobs/{SHA}"),
        (f"https://h/v2/a/../../mine/blobs/{SHA}", f"https://h/v2/a/../../mine/blobs/{SHA}"),
        (f"https://h/v2/%2e%2e/mine/blobs/{SHA}", f"https://h/v2/%2e%2e/mine/blobs/{SHA}"),
        (f"https://h/v2/a/blobs/{SHA}/more", f"https://h/v2/a/blobs/{SHA}/more"),
        (f"https://store.example/mine/v2/a/blobs/{SHA}?x=1", f"https://store.example/mine/v2/a/blobs/{SHA}"),
    ],
)
def test_a_registry_answers_by_its_name_and_a_store_for_one_place(url: str, word: str) -> None:
    """What is uploaded to a registry has its digest; into a store whoever has a part of it writes what he likes."""
    assert parse(f"/blobs/{url}").word == word
