"""Link headers (RFC 8288): which page of a list comes next, told in this mirror's own address. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit

from mirror.errors import LinkInvalid
from mirror.front.oci import Route, without_ns

_TARGET = re.compile(r"[\s,]*<([^>]*)>")
_PARAMETER = re.compile(r'\s*;\s*([!#$&+\-.^_`|~0-9A-Za-z]+\*?)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*)))?')
_EMPTY = re.compile(r"\s*;(?=\s*(?:[;,]|$))")
_END = re.compile(r"\s*(?:,|$)")


@dataclass(frozen=True, slots=True)
class Link:
    """One link. *relations*: in lower case; *anchored*: it is about another resource than the one that carried it."""

    target: str
    relations: frozenset[str]
    anchored: bool


def parse(values: Iterable[str]) -> list[Link]:
    """The links of the header lines *values*, in order (RFC 8288, 3 and B.2). Raises LinkInvalid."""
    links = []
    for value in values:
        position = 0
        while value[position:].strip(" \t,"):
            target = _TARGET.match(value, position)
            if target is None:
                raise LinkInvalid("a Link header that is none")
            position = target.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(value, position) or _EMPTY.match(value, position):
                position = parameter.end()
                if parameter.re is _PARAMETER:
                    quoted, plain = parameter[2], parameter[3] or ""
                    text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                    parameters.setdefault(parameter[1].lower(), text)  # RFC 8288, 3.3: the first `rel` counts
            if not _END.match(value, position):
                raise LinkInvalid("a Link header that is none")
            relations = frozenset(parameters.get("rel", "").lower().split())
            links.append(Link(target[1], relations, "anchor" in parameters))
    return links


def next_page(values: Iterable[str], base: str, route: Route, ns: str) -> str | None:
    """The `Link` header that takes a client of this mirror to the next page; None: this page is the last.

    *base*: the URL that upstream answered. The next page is one of the same list, so its query alone is needed:
    below which path upstream keeps the list is not the client's business. Raises LinkInvalid.
    """
    following = [link for link in parse(values) if "next" in link.relations and not link.anchored]
    if not following:
        return None
    try:
        parts = urlsplit(urljoin(base, following[0].target.strip()))
    except ValueError:
        raise LinkInvalid("a next page that is no URL") from None
    endpoint = route.path.removeprefix(f"/v2/{route.name}/")
    if not unquote(parts.path).endswith(f"/{endpoint}") or not parts.query:
        raise LinkInvalid("a next page that is another list")
    query = urlencode([*parse_qsl(without_ns(parts.query), keep_blank_values=True), ("ns", ns)])
    return f'<{route.path}?{query}>; rel="next"'
