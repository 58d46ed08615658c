"""Log lines of every process: an event with fields, as `key=value` or as JSON, with secrets taken out last.

Callers never log a secret in the first place; `redact` is the last line of defence for what a foreign
library puts into its messages and tracebacks.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from typing import IO, Any

HIDDEN = "<redacted>"

_HARMLESS_QUERY = frozenset({"ns", "n", "last", "service", "scope", "artifactType", "comp", "blob", "window", "wait"})
"""Query keys whose values may be read; every other value of a URL's query is taken out."""

_NAMES = (
    r"(?:[\w-]*(?:authorization|passw(?:or)?d|passwd|secret|cookie|credentials?|signature|api[-_]?key|private[-_]?key|[-_]token)"
    r"|(?:access|refresh|identity|registry|bearer|id)?token|auth|sig|jwt)"
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_SECRET_PAIR = re.compile(
    rf"""(?P<name>(?<![\w-])["']?{_NAMES}["']?\s*[=:]\s*)(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?:(?:bearer|basic|digest|negotiate)\s+)?[^\s,;&'"}}\])>]+)""",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"\b(bearer|basic|negotiate)\s+(?!realm\b)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*)?")
_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s?#@'\"]+@", re.IGNORECASE)
_QUERY = re.compile(r"(?<=[^\s?])\?(?P<query>[\w%~.-][^\s'\"<>#]*)")


def redact(text: str) -> str:
    """*text* without credentials: Authorization, tokens, passwords, userinfo and query values of URLs."""
    text = _USERINFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY.sub(_bare_query, text)
    text = _SECRET_PAIR.sub(rf"\g<name>{HIDDEN}", text)
    text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    return _JWT.sub(HIDDEN, text)


def _bare_query(match: re.Match[str]) -> str:
    pairs = []
    for pair in match["query"].split("&"):
        key, equals, value = pair.partition("=")
        if key in _HARMLESS_QUERY or (equals and not value):
            pairs.append(pair)
        elif equals:
            pairs.append(f"{key}={HIDDEN}")
        else:
            pairs.append(HIDDEN)  # a key without a value may itself be the secret
    return f"?{'&'.join(pairs)}"


def redact_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """*fields* as plain JSON values, redacted by name and by content."""
    return {str(name): HIDDEN if _SECRET_NAME.fullmatch(str(name)) else _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)  # JSON has no infinity
        case Mapping():
            return redact_fields(value)
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case bytes():
            return value.hex()
        case _:
            return redact(str(value))


class Formatter(logging.Formatter):
    """One line a record: time (UTC, ms), level, logger, event, then the fields of `extra={"fields": ...}`."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, whatever it holds; a traceback becomes the field `exception`."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {
            "time": stamp,
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": redact(record.getMessage()),
        }
        fields = redact_fields(getattr(record, "fields", None) or {})
        if record.exc_info:
            fields["exception"] = redact(self.formatException(record.exc_info))
        # A field never overwrites what the line itself says.
        line |= {f"{name}_" if name in line else name: value for name, value in fields.items()}
        if self._as_json:
            return json.dumps(line, separators=(",", ":"))
        head = f"{stamp} {line.pop('level'):<7} {line.pop('logger')} {_word(line.pop('event'))}"
        del line["time"]
        return " ".join([head, *(f"{name}={_word(value)}" for name, value in line.items())])


def _word(value: Any) -> str:
    """A value as one shell-like word; quoted as JSON where it is not plain."""
    if isinstance(value, str):
        return value if re.fullmatch(r"[^\s\"'=\x00-\x1f\x7f-\x9f]+", value) else json.dumps(value)
    return json.dumps(value, separators=(",", ":"))


def configure(level: str, log_format: str, stream: IO[str] | None = None) -> None:
    """Sends every record of this process at *level* or above to *stream* (stderr), in *log_format* `text` or `json`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter(as_json=log_format == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line per request would be the most expensive part of a warm pull; our own events say what matters.
    logging.getLogger("aiohttp.access").setLevel(max(logging.WARNING, root.level))
    logging.getLogger("aiohttp.server").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Whoever sends what is no HTTP has made a mistake; aiohttp logs it as if the server had."""
    problem = type(record.exc_info[1]) if record.exc_info else type(None)
    if problem.__module__ == "aiohttp.http_exceptions":  # by name: commands that serve nothing do not load aiohttp
        record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
        record.fields = {"problem": problem.__name__}
    return logging.getLogger().isEnabledFor(record.levelno)
