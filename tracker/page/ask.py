"""What somebody wants to see: the path and query of a view, as a value. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlencode

from tracker.errors import Malformed, Unknown

ROOT = "/api/v1/cluster"
"""Where the views are."""

MAX_LIMIT = 500
"""Rows of one answer at most."""

LIMIT = 50
"""Rows unless asked otherwise: more than a screen shows."""

LISTS = ("images", "swarms", "agents")


@dataclass(frozen=True, slots=True)
class Ask:
    """*kind*: "cluster", "search", or a list ("images", "swarms", "agents") or one of it, which *name* says.

    *part*: what this tracker alone knows, for another tracker that merges it.
    """

    kind: str = "cluster"
    name: str = ""
    q: str = ""
    state: str = ""
    zone: str = ""
    offset: int = 0
    limit: int = LIMIT
    part: bool = False

    def path(self, *, offset: int | None = None, limit: int | None = None, part: bool | None = None) -> str:
        """The path and query that ask this, with other rows or for a part if said so."""
        words = {
            "q": self.q,
            "state": self.state,
            "zone": self.zone,
            "offset": self.offset if offset is None else offset,
            "limit": self.limit if limit is None else limit,
            "part": int(self.part if part is None else part),
        }
        match self.kind:
            case "cluster":
                place = ""
            case "image" | "swarm" | "agent":
                place = f"/{self.kind}s/{quote(self.name, safe=':[]')}"
            case _:
                place = f"/{self.kind}"
        return f"{ROOT}{place}?{urlencode({key: value for key, value in words.items() if value})}"


def parse_ask(path: str) -> Ask:
    """The view that *path* (still percent-encoded, with its query) asks for. Raises Unknown, Malformed."""
    place, _, query = path.partition("?")
    try:
        values = parse_qs(query, keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise Malformed(f"query: {error}") from None
    words = unquote(place).removeprefix(ROOT).strip("/").split("/", 1)
    kind, name = words[0] or "cluster", words[1] if len(words) > 1 else ""
    if name and kind in LISTS:
        kind = kind.removesuffix("s")
    elif name or kind not in ("cluster", "search", *LISTS):
        raise Unknown("no such view")
    return Ask(
        kind=kind,
        name=name[:200],
        q=_text(values, "q").strip().lower(),
        state=_text(values, "state"),
        zone=_text(values, "zone"),
        offset=_number(values, "offset", 0),
        limit=min(MAX_LIMIT, _number(values, "limit", LIMIT)),
        part=_text(values, "part") == "1",
    )


def _text(values: dict[str, list[str]], key: str) -> str:
    return values.get(key, [""])[0][:200]


def _number(values: dict[str, list[str]], key: str, default: int) -> int:
    text = _text(values, key)
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Malformed(f"{key} must be a number")
    return int(text)
