"""Which network addresses the agent may contact: pure rules, asked for every connection after DNS."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEVER: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local: the metadata service of AWS, Azure, GCP, OpenStack and most others
        "fe80::/10",  # link-local
        "fd00:ec2::/32",  # AWS metadata, DNS and time over IPv6
        "fd20:ce::254/128",  # GCP metadata over IPv6
        "fd00:42::42/128",  # Scaleway metadata over IPv6
        "100.100.100.200/32",  # Alibaba Cloud metadata
        "168.63.129.16/32",  # Azure's wire server
        "192.0.0.192/32",  # Oracle Cloud's former metadata address
        "0.0.0.0/8",  # "this host": connects to loopback on Linux
        "::/128",
        "224.0.0.0/4",  # multicast
        "ff00::/8",
        "255.255.255.255/32",
    )
)
_WITH_IPV4 = (
    ipaddress.IPv6Network("64:ff9b::/96"),  # NAT64 (RFC 6052)
    ipaddress.IPv6Network("64:ff9b:1::/48"),  # NAT64 of one's own (RFC 8215)
    ipaddress.IPv6Network("::/96"),  # "IPv4-compatible" (RFC 4291, 2.5.5.1), given up long ago
)


def embedded(address: Address) -> Address:
    """The IPv4 address inside a mapped, compatible, 6to4, Teredo or NAT64 address; else the address itself."""
    if isinstance(address, ipaddress.IPv4Address) or address.is_loopback or address.is_unspecified:
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _WITH_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_never_allowed(address: Address) -> bool:
    """Whether *address* belongs to a cloud's metadata services, or is no host at all."""
    return any(address in network or embedded(address) in network for network in _NEVER)


def is_public(address: Address) -> bool:
    """Whether *address* is a host on the public internet."""
    return address.is_global and embedded(address).is_global


@dataclass(frozen=True)
class AddressRules:
    """The addresses that one kind of request may reach."""

    private: bool
    """Whether every private address may be contacted (registries are often inside the cluster)."""

    networks: tuple[Network, ...] = ()
    """Private networks that may be contacted although *private* is off."""

    refused: tuple[Network, ...] = ()
    """Networks that may not be contacted, whatever else is said."""

    own: frozenset[tuple[str, int]] = frozenset()
    """IP addresses and ports at which this agent itself listens: it must not ask itself."""

    def allow(self, text: str, port: int = 0) -> bool:
        """Whether a connection to the IP address *text* and *port* may be made. No IP address: no."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        if is_never_allowed(address) or (str(embedded(address)), port) in self.own:
            return False
        if any(address in network or embedded(address) in network for network in self.refused):
            return False
        if self.private or is_public(address):
            return True
        return any(address in network or embedded(address) in network for network in self.networks)


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """The networks that *texts* (CIDRs or single addresses) spell. Raises ValueError with one clear line."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


LOOPBACK: tuple[Network, ...] = networks(("127.0.0.0/8", "::1/128"))
"""This machine."""

NODE_SERVICES: tuple[Network, ...] = networks(("127.0.0.1/32", "::1/128"))
"""Where a node's own services listen."""


class Place(enum.IntEnum):
    """Where a host is, as seen from here; greater: further inside."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2


def place_of_address(text: str) -> Place:
    """Where the IP address *text* is. What is no address counts as public: it is trusted least."""
    try:
        address = embedded(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return Place.PUBLIC
    if address.is_loopback:
        return Place.LOOPBACK
    return Place.PUBLIC if is_public(address) else Place.PRIVATE
