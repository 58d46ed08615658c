"""Upstreams that misbehave (docs/contract.md, "Upstream traps"), as a whole agent's client sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parts.counter import Counter, Rule
from tests.parts.fetch import fetch
from tests.parts.front import agent
from tests.parts.registry import Registry

pytestmark = pytest.mark.needs_registry

MIB = 1024 * 1024
SIZE = 9 * MIB + 123
BLOB = "GET /v2/.*/blobs/"


@pytest.mark.parametrize(
    ("rule", "copies"),
    [
        (Rule(match=BLOB, ignore_range=True), 1.02),
        (Rule(match=BLOB, ignore_range=True, then="cut", after=4 * MIB, times=1), 2.5),
        (Rule(match=BLOB, ignore_range=True, times=1), 2.0),
        (Rule(match=BLOB, then="end", after=0, times=1), 1.02),
        (Rule(match=BLOB, then="end", after=MIB, times=1), 1.3),
        (Rule(match=BLOB, then="end", after=MIB, times=1, skip=1), 1.3),
        (Rule(match=BLOB, then="cut", after=0, times=1), 1.02),
        (Rule(match=BLOB, then="cut", after=MIB, times=2), 1.3),
        (Rule(match=BLOB, then="hang", after=MIB, times=1), 1.3),
        (Rule(match=BLOB, then="flip", after=MIB, times=1), 2.1),
        (Rule(match=BLOB, status=500, times=1), 1.02),
        (Rule(match=BLOB, status=429, times=1), 1.02),
        (Rule(match=BLOB, status=429, times=1, skip=1, headers={"Retry-After": "1"}), 1.02),
        (Rule(match=BLOB, status=503, times=1, headers={"Retry-After": "1"}), 1.02),
    ],
    ids=lambda value: f"{value.then or value.status or 'whole'}" if isinstance(value, Rule) else "",
)
async def test_what_is_mended(rule: Rule, copies: float, origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """The client gets the right bytes in one answer, and upstream was not asked for much more than that."""
    blob = origin.plant("traps/mended", SIZE, 930)
    await upstream.rules(rule)
    async with agent(tmp_path, upstream_timeout=0.5) as running:
        told = await fetch(f"{running.url}/v2/{blob.repository}/blobs/{blob.digest}?ns={upstream.host}")
    assert (told.status, told.digest, told.error) == (200, blob.digest, "")
    sent = (await upstream.counts()).bytes_of("/blobs/") / SIZE
    assert sent <= copies


@pytest.mark.parametrize(
    "rule",
    [
        Rule(match=BLOB, then="end", after=0),
        Rule(match=BLOB, then="cut", after=0),
        Rule(match=BLOB, then="hang"),
        Rule(match=BLOB, status=500),
        Rule(match=BLOB, status=429, headers={"Retry-After": "300"}),
        Rule(match=BLOB, status=200, body="another file"),
        Rule(match=BLOB, status=200, body="another file", times=1),
        Rule(match=BLOB, status=200, body=""),
        Rule(match=BLOB, status=206, body="no range"),
        Rule(match=BLOB, status=302, headers={"Location": "http://127.0.0.1:1/nobody"}),
        Rule(match=BLOB, status=302, headers={"Location": "http://169.254.169.254/metadata"}),
        Rule(match=BLOB, status=302),
    ],
    ids=lambda rule: f"{rule.then or rule.status}",
)
async def test_what_cannot_be_mended_sends_the_client_elsewhere(
    rule: Rule, origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """404 before the first byte, so that containerd goes to the registry by itself; and nothing is kept of it."""
    blob = origin.plant("traps/lost", SIZE, 931)
    await upstream.rules(rule)
    async with agent(tmp_path, upstream_timeout=0.2) as running:
        url = f"{running.url}/v2/{blob.repository}/blobs/{blob.digest}?ns={upstream.host}"
        told = await fetch(url)
        assert told.status == 404, told
        await upstream.rules()
        running.front.registry.upstream.guard._hosts.clear()  # its pause and its breaker are over
        told = await fetch(url)
        assert (told.status, told.digest) == (200, blob.digest)


@pytest.mark.parametrize("after", [MIB, 5 * MIB, SIZE - 1])
async def test_wrong_bytes_are_never_a_complete_body(
    after: int, origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """Upstream's copy is rotten for good: whatever has left before, the last bytes do not, and nobody waits."""
    blob = origin.plant("traps/rotten", SIZE, 932)
    await upstream.rules(Rule(match=BLOB, then="flip", after=after, ignore_range=True))
    async with agent(tmp_path) as running:
        told = await fetch(f"{running.url}/v2/{blob.repository}/blobs/{blob.digest}?ns={upstream.host}")
    assert (told.status, told.error) == (200, "cut short")
    assert told.size < SIZE
