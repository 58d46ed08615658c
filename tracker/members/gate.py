"""Who may speak to the tracker: members, known by key where there are keys, else by what discovery says of an address.

Every request has an identity, `Visitor.identity`: `agent/<name>` if a certificate proved it, `pod/<uid>` if discovery
knows the pod, else the address. What one member may do at most is counted by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from swarm.identity.name import Role, name_of, role_of
from tracker.members.discovery import Discovery, canonical

_MOST = 65_536


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says of its sender, beside the address that it comes from."""

    proven: str = ""
    """Identity in the certificate that the connection showed; "": none."""
    ip: str = ""
    """Address under which other agents reach it, in its own words: behind a NAT the connection's is another."""
    pod: str = ""
    """UID of its pod, in its own words. Discovery has to know it at *ip*: who says nothing true wins nothing."""


NOTHING = Claim()


@dataclass(frozen=True, slots=True)
class Visitor:
    """An address that speaks to the tracker, in canonical form, and what is known of it."""

    ip: str
    """Where other agents reach it."""
    member: bool
    zone: str
    packed: bytes = b""
    """The address in network order."""
    identity: str = ""
    """Whose word it is; quotas are kept by it."""


class Gate:
    """Answers by remote address and claim, remembered until membership changes."""

    def __init__(self, discovery: Discovery, *, by_key: bool = False) -> None:
        """*by_key*: only certificates make members; addresses alone do not."""
        self._discovery = discovery
        self._by_key = by_key
        self._known: dict[tuple[str, Claim], Visitor] = {}
        self._at: dict[str, set[tuple[str, Claim]]] = {}
        """Address -> what is known that has to do with it."""
        self._came: dict[str, tuple[str, Claim]] = {}
        """Address of a member -> how it came here last."""

    def visitor(self, remote: str, claim: Claim = NOTHING) -> Visitor:
        """Who speaks from *remote*, the address of a connection."""
        visitor = self._known.get((remote, claim))
        if visitor is None:
            if len(self._known) >= _MOST:
                self.forget()
            visitor = self._known[remote, claim] = self._ask(remote, claim)
            for ip in {visitor.ip, _plain(remote), _plain(claim.ip)}:
                self._at.setdefault(ip, set()).add((remote, claim))
            if visitor.member and claim != NOTHING:
                if len(self._came) >= _MOST:
                    self._came.clear()
                self._came[visitor.ip] = (remote, claim)
        return visitor

    def still(self, ip: str) -> Visitor:
        """What is known now of the member that is reached at *ip*."""
        return self.visitor(*self._came.get(ip, (ip, NOTHING)))

    def forget(self, changed: Iterable[str] | None = None) -> None:
        """Membership changed, for these addresses; None: for any."""
        if changed is None:
            self._known.clear()
            self._at.clear()
            return
        for ip in changed:
            for key in self._at.pop(ip, ()):
                self._known.pop(key, None)

    def _ask(self, remote: str, claim: Claim) -> Visitor:
        try:
            ip = canonical(remote)
            stated = canonical(claim.ip) if claim.ip else ""
        except ValueError:
            return Visitor(remote, member=False, zone="")
        if claim.proven:
            return self._proven(ip, stated, claim.proven)
        if not self._by_key and stated and claim.pod and stated in (self._discovery.named(claim.pod) or ()):
            return self._made(stated, f"pod/{claim.pod}", member=True)
        return self._made(ip, self._discovery.name(ip) or ip, member=not self._by_key and self._discovery.is_member(ip))

    def _proven(self, ip: str, stated: str, identity: str) -> Visitor:
        """A certificate names it: the address only says where it is reached."""
        if role_of(identity) is not Role.AGENT:
            return self._made(ip, identity, member=False)
        ips = self._discovery.named(name_of(identity))
        if ips is None:  # this kind of discovery knows addresses only: the certificate is the membership
            return self._made(stated or ip, identity, member=True)
        if not ips:
            return self._made(ip, identity, member=False)
        reached = next((one for one in (stated, ip) if one in ips), ips[0])
        return self._made(reached, identity, member=True)

    def _made(self, ip: str, identity: str, *, member: bool) -> Visitor:
        return Visitor(ip, member, self._discovery.zone(ip), ip_address(ip).packed, identity)


def _plain(text: str) -> str:
    """*text* as the address that it spells, if it spells one."""
    try:
        return canonical(text)
    except ValueError:
        return text
