"""Members by a fixed list of networks: plain machines, and everything on one machine."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from tracker.members.discovery import OnChange, Reason, canonical

Network = IPv4Network | IPv6Network


class StaticDiscovery:
    """Everybody in one of *networks* is a member. *zones* names the zone of a network."""

    ready = True

    def __init__(self, networks: Iterable[str], zones: dict[str, str] | None = None) -> None:
        """*networks*: CIDRs or addresses. *zones*: CIDR -> zone, the longest prefix wins. Raises ValueError."""
        self._networks = tuple(ip_network(text, strict=False) for text in networks)
        named = [(ip_network(text, strict=False), zone) for text, zone in (zones or {}).items()]
        self._zones: list[tuple[Network, str]] = sorted(named, key=lambda pair: -pair[0].prefixlen)

    def is_member(self, ip: str) -> bool:
        try:
            address = ip_address(canonical(ip))
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def zone(self, ip: str) -> str:
        try:
            address = ip_address(canonical(ip))
        except ValueError:
            return ""
        return next((zone for network, zone in self._zones if address in network), "")

    def named(self, name: str) -> tuple[str, ...] | None:
        return None

    def name(self, ip: str) -> str:
        return ""

    def touched(self) -> frozenset[str] | None:
        return None

    def note(self, ip: str, reason: Reason, message: str) -> None:
        """There is no place for it but the log, which has it already."""

    async def run(self, on_change: OnChange) -> None:
        """Nothing ever changes."""
