"""Who may speak to the tracker: members, asked of discovery once per address and change."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from tracker.members.discovery import Discovery, canonical

_MOST = 65_536


@dataclass(frozen=True, slots=True)
class Visitor:
    """An address that speaks to the tracker, in canonical form, and what is known of it."""

    ip: str
    member: bool
    zone: str
    packed: bytes = b""
    """The address in network order."""


class Gate:
    """Answers by remote address, remembered until membership changes."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._known: dict[str, Visitor] = {}

    def visitor(self, remote: str) -> Visitor:
        """Who speaks from *remote*, the address of a connection."""
        visitor = self._known.get(remote)
        if visitor is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            visitor = self._known[remote] = self._ask(remote)
        return visitor

    def forget(self) -> None:
        """Membership changed."""
        self._known.clear()

    def _ask(self, remote: str) -> Visitor:
        try:
            ip = canonical(remote)
        except ValueError:
            return Visitor(remote, member=False, zone="")
        return Visitor(
            ip, member=self._discovery.is_member(ip), zone=self._discovery.zone(ip), packed=ip_address(ip).packed
        )
