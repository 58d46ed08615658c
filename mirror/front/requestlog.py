"""What is noted about one request while it is answered, for its log line and the metrics."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from mirror.metrics import FrontMetrics

log = logging.getLogger("shoal.mirror")


@dataclass
class RequestLog:
    """One request. Times in seconds of the monotonic clock; nothing here holds a query or a header."""

    kind: str
    method: str
    path: str
    metrics: FrontMetrics
    began: float = field(default_factory=time.monotonic)
    origins: Counter[str] = field(default_factory=Counter)
    upstream: str = ""
    outcome: str = "whole"
    note: str = ""
    first_byte: float | None = None

    def sent(self, origin: str, count: int) -> None:
        """*count* more bytes of the body left, that came from *origin*."""
        if self.first_byte is None:
            self.first_byte = time.monotonic() - self.began
            self.metrics.first_byte.labels(self.kind).observe(self.first_byte)
        self.origins[origin] += count
        self.metrics.bytes.labels(self.kind, origin).inc(count)

    def close(self, status: int) -> None:
        """The request is over: one log line, and the counts."""
        self.metrics.requests.labels(self.kind, self.method, str(status)).inc()
        self.metrics.outcomes.labels(self.kind, self.outcome).inc()
        fields: dict[str, Any] = {
            "kind": self.kind,
            "method": self.method,
            "path": self.path,
            "status": status,
            "bytes": sum(self.origins.values()),
            "seconds": round(time.monotonic() - self.began, 4),
            "outcome": self.outcome,
            **{f"from_{origin}": count for origin, count in self.origins.items()},
        }
        if self.upstream:
            fields["upstream"] = self.upstream
        if self.note:
            fields["note"] = self.note
        level = logging.WARNING if self.outcome == "broken" or status >= 500 else logging.INFO
        log.log(level, "request", extra={"fields": fields})


REQUEST_LOG = web.RequestKey("log", RequestLog)
"""Where a request keeps its log."""
