"""Who the members are: the contract that Kubernetes, DNS and static CIDRs fulfil.

A membership is a value that changes: `run` keeps it true and calls *on_change* after every change;
the questions are answered at any time from what is known, without I/O. Whoever is no member may
not announce, publish, claim or join (docs/design.md, P9).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Protocol, runtime_checkable

OnChange = Callable[[], None]
"""Called on the event loop after members or zones changed. Must not block; asks again what it needs."""


class Reason(StrEnum):
    """What an operator wants to know about an agent; the text is the reason of a Kubernetes Event."""

    JOINED = "ShoalJoined"
    """It announced itself to this tracker."""
    ACTIVE = "ShoalActive"
    """It really served bytes to a peer."""
    LOST = "ShoalLost"
    """It fell silent."""
    QUARANTINED = "ShoalQuarantined"
    """It passed on wrong bytes."""

    @property
    def kind(self) -> str:
        """`Normal` or `Warning`."""
        return "Warning" if self in (Reason.LOST, Reason.QUARANTINED) else "Normal"


class Discovery(Protocol):
    """The members of the cluster, by IP address in any textual form."""

    @property
    def ready(self) -> bool:
        """True once the members are known. They stay known when the source of them goes away."""

    def is_member(self, ip: str) -> bool:
        """Whether the agent at *ip* belongs to the cluster. False for text that is no address."""

    def zone(self, ip: str) -> str:
        """The zone of the agent at *ip* (topology.kubernetes.io/zone); "" if unknown."""

    def named(self, name: str) -> tuple[str, ...] | None:
        """The addresses of the member whose certificate, or own word, says *name* (the UID or name of its pod).

        (): there is none of that name. None: this kind of membership knows addresses only.
        """

    def name(self, ip: str) -> str:
        """`pod/<uid>` of the member at *ip*; "": names are not known."""

    def touched(self) -> frozenset[str] | None:
        """Addresses whose membership, pod or zone may have changed since this was asked last; None: any."""

    def note(self, ip: str, reason: Reason, message: str) -> None:
        """Something happened to the agent at *ip*: said where this kind of membership has a place for it."""

    async def run(self, on_change: OnChange) -> None:
        """Keep the membership true until cancelled. Returns early only if it can never change."""


@runtime_checkable
class Reviewing(Protocol):
    """A discovery that can say which member a token speaks for."""

    async def review(self, token: str, audience: str) -> str:
        """The UID of the pod that *token* is bound to, if it was made for *audience*; "": nobody's. Raises Unready."""


@runtime_checkable
class Labelled(Protocol):
    """A discovery that may know the labels of members' nodes."""

    def labels(self, ip: str) -> Mapping[str, str] | None:
        """Labels of the node of the member at *ip*; None: nodes are not known here, or that one is not."""


@lru_cache(maxsize=32_768)  # asked with every request, and for every pod of a list
def canonical(ip: str) -> str:
    """The one spelling of an address: IPv6 compressed, IPv4-mapped IPv6 as IPv4, no scope.

    A dual-stack listener sees an IPv4 peer as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2). Raises ValueError.
    """
    address = ip_address(ip.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
