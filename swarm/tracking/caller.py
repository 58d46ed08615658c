"""Who speaks to trackers: the key, and the pod, beside what each message says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swarm.identity.name import Role
from swarm.identity.tls import Identity


@dataclass(frozen=True)
class Caller:
    """An agent, as every request to a tracker shows it."""

    identity: Identity | None = None
    """None: in clear, known by address."""
    address: str = ""
    """IP under which other agents reach this one, where a tracker sees another (hostNetwork, NAT); "": the same."""
    pod: str = ""
    """UID of this pod; "": none."""

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        said = {"X-Shoal-Address": self.address, "X-Shoal-Pod": self.pod}
        return {"Content-Type": "application/json"} | {name: value for name, value in said.items() if value}

    def secure(self) -> dict[str, Any]:
        """How aiohttp is to connect."""
        if self.identity is None:
            return {}
        return {"ssl": self.identity.client_context(), "server_hostname": Role.TRACKER.host}

    def url(self, url: str) -> str:
        """*url*, with TLS where there is an identity."""
        return url.replace("http://", "https://", 1) if self.identity is not None else url
