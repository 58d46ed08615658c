"""One tree of errors, and no foreign exception across a wall of the mirror."""

from __future__ import annotations

import ast
import json
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mirror
from mirror import errors
from mirror.errors import MirrorError
from mirror.front import links, oci, ranges, urls
from mirror.setup import hoststoml
from mirror.upstream import coding, dockerconfig, kubelet, proxies, registryfile
from mirror.upstream.registries import Registries
from mirror.upstream.transport import translated
from swarm.blob.errors import SourceError, SwarmError

ROOT = Path(mirror.__path__[0])
ELSEWHERE = {"AddressRefused": "an OSError, since aiohttp passes nothing else on; it never leaves transport.py"}


def test_every_error_is_in_the_tree_and_the_tree_is_drawn() -> None:
    """A class that is raised lives in mirror/errors.py, and the docstring there shows each."""
    drawn = [line.strip("│├└─ ").split(" ")[0] for line in (errors.__doc__ or "").splitlines()]
    known = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert known - {"SourceRefused", "SourceSilent"} <= set(drawn)
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                foreign = {base for base in bases if base.endswith(("Error", "Exception", "Invalid"))} | (bases & known)
                assert not foreign or node.name in ELSEWHERE, f"{path.name}: {node.name}"


@pytest.mark.parametrize(
    "foreign",
    [
        aiohttp.ClientError("https://host/?sig=secret"),
        aiohttp.ClientPayloadError("secret"),
        aiohttp.InvalidURL("https://host/?sig=secret"),
        aiohttp.ServerDisconnectedError("secret"),
        aiohttp.ServerTimeoutError("secret"),
        aiohttp.http_exceptions.HttpProcessingError(message="secret"),
        ssl.SSLCertVerificationError("secret"),
        ConnectionResetError("secret"),
        TimeoutError("secret"),
        OSError("secret"),
        ValueError("secret"),
        UnicodeError("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_network_raises_becomes_our_own_without_its_words(foreign: Exception) -> None:
    with pytest.raises(SourceError) as caught, translated("host"):
        raise foreign
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


READERS: dict[str, Callable[[str], object]] = {
    "registries file": lambda text: registryfile.parse(text.encode(), "file", Registries()),
    "config.json": lambda text: dockerconfig.parse(text, "file"),
    "config.json, bytes": lambda text: dockerconfig.parse(text.encode("utf-16"), "file"),
    "providers": lambda text: kubelet.parse(text.encode(), "file"),
    "hosts.toml": lambda text: hoststoml.with_mirror(text, "http://127.0.0.1:30000"),
    "streaming URL": lambda text: urls.parse(f"/blobs/{text}"),
    "path": lambda text: oci.route("GET", f"/v2/{text}"),
    "ns": oci.registry,
    "range": lambda text: ranges.resolve(ranges.parse(f"bytes={text}"), 10),
    "link": lambda text: links.next_page([text], "http://host/", oci.Route("tags", "a"), "host"),
    "coding": coding.decoder,
    "coded bytes": lambda text: coding.decoder("gzip").feed(text.encode()),
    "proxy": lambda text: proxies.from_environment({"HTTPS_PROXY": text, "NO_PROXY": text}),
}


@pytest.mark.parametrize("reader", READERS)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text('[]{}":/.,=<>%#@\\\n0a', max_size=30),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["auths", "credHelpers", "providers", "kind", "apiVersion", "x"]), inner
                )
            ),
            max_leaves=8,
        ).map(json.dumps),
    )
)
def test_what_others_wrote_is_read_or_refused_with_an_error_of_ours(reader: str, text: str) -> None:
    """Files, headers, paths and variables: a value, or one of the tree, in one line."""
    told = "a value"
    try:
        READERS[reader](text)
    except (MirrorError, SwarmError) as error:
        told = str(error)
    assert told
    assert "\n" not in told
