"""What containerd's hosts.toml should say with and without us: pure text in, text out.

Our entry is a block between two marker lines, put in front of the first `[host."..."]` table, because
containerd tries hosts in the order in which the file names them (containerd docs/hosts.md). Everything
else stays byte for byte: `without_mirror(with_mirror(text))` is `text`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from typing import Any, NamedTuple

from mirror.errors import HostsInvalid

_BEGIN = "# --- shoal: begin (made by `shoal containerd install`, taken out by `shoal containerd uninstall`)"
_JOINED = f"{_BEGIN}; the line above had no end"
_END = "# --- shoal: end"
_BLOCK = re.compile(
    rf"(?:^{re.escape(_BEGIN)}\n|\n{re.escape(_JOINED)}\n).*?^{re.escape(_END)}\n", re.DOTALL | re.MULTILINE
)


class Certificates(NamedTuple):
    """What containerd finds by Docker's file names, but only while there is no hosts.toml (docs/hosts.md)."""

    authorities: tuple[str, ...] = ()
    """File names of CAs, `*.crt`."""

    clients: tuple[tuple[str, str], ...] = ()
    """File names of client certificate and key, `*.cert` and `*.key`."""

    def below(self, prefix: str) -> Certificates:
        """The same files under *prefix*."""
        return Certificates(
            tuple(prefix + name for name in self.authorities),
            tuple((prefix + certificate, prefix + key) for certificate, key in self.clients),
        )


def certificates(names: Sequence[str]) -> Certificates:
    """The certificates among the file *names* of one directory."""
    present = set(names)
    return Certificates(
        tuple(sorted(name for name in present if name.endswith(".crt"))),
        tuple(
            (name, f"{name.removesuffix('.cert')}.key")
            for name in sorted(present)
            if name.endswith(".cert") and f"{name.removesuffix('.cert')}.key" in present
        ),
    )


def with_mirror(text: str, url: str, found: Certificates | None = None) -> str:
    """*text* with *url* as the first host to ask; as it is where that is so already. Raises HostsInvalid.

    An older block of ours is replaced. *found* counts where *text* is empty: a hosts.toml would hide them.
    """
    bare = without_mirror(text)
    before = _parsed(bare)
    hosts = list(_hosts(before))
    if url in hosts:
        if hosts[0] == url:
            return bare
        raise HostsInvalid(f"names {url} already, but not first; take that entry out")
    if not bare:
        return _block(url, found or Certificates())
    block = _block(url, Certificates())
    # Tables cannot be told from the lines of a multi-line value by their look: try, and let a parser judge.
    starts = [match.start() for match in re.finditer(r"^[ \t]*\[", bare, re.MULTILINE)]
    for start in [*starts, len(bare)]:
        joined = start == len(bare) and not bare.endswith("\n")
        piece = "\n" + block.replace(_BEGIN, _JOINED, 1) if joined else block
        candidate = bare[:start] + piece + bare[start:]
        if _is_right(candidate, before, url):
            return candidate
    raise HostsInvalid(
        'names its hosts in a form that nothing can be put in front of; write them as [host."URL"] tables'
    )


def without_mirror(text: str) -> str:
    """*text* without the block that `with_mirror` put there."""
    return _BLOCK.sub("", text)


def has_block(text: str) -> bool:
    """Whether `with_mirror` left a block in *text*."""
    return _BLOCK.search(text) is not None


def hosts_of(text: str) -> list[str]:
    """The hosts that containerd asks before the server, in order. Raises HostsInvalid."""
    return list(_hosts(_parsed(text)))


def _block(url: str, found: Certificates) -> str:
    lines = [_BEGIN]
    if found.authorities:
        lines.append(f"ca = {json.dumps(list(found.authorities), ensure_ascii=False)}")
    if found.clients:
        lines.append(f"client = {json.dumps([list(pair) for pair in found.clients], ensure_ascii=False)}")
    lines += [f"[host.{json.dumps(url)}]", 'capabilities = ["pull", "resolve"]', _END]
    return "\n".join(lines) + "\n"


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise HostsInvalid(f"is no TOML: {problem}") from None


def _hosts(parsed: dict[str, Any]) -> dict[str, Any]:
    hosts = parsed.get("host", {})
    if not isinstance(hosts, dict):
        raise HostsInvalid("has a `host` that is no table")
    return hosts


def _is_right(candidate: str, before: dict[str, Any], url: str) -> bool:
    """Whether *candidate* says what *before* said, in its order, and *url* first."""
    try:
        after = tomllib.loads(candidate)
    except tomllib.TOMLDecodeError:
        return False
    hosts = after.get("host", {})
    if next(iter(hosts), None) != url or hosts.pop(url) != {"capabilities": ["pull", "resolve"]}:
        return False
    if list(hosts) != list(before.get("host", {})):
        return False
    if not hosts and "host" not in before:
        del after["host"]
    return after == before
