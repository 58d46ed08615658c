"""Which pods are members: events of the Kubernetes API in, a set of IP addresses out. Pure.

A pod counts while it is Running. Anything else (deleted, failed, another IP) takes it out with the
very event that says so. Whether it is Ready does not matter: an agent becomes Ready by itself, and
one slow probe must not throw it out of the cluster. Nor does a deletion that has only begun: such an
agent still finishes what its node pulls, and hands over what it brings in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tracker.members.discovery import canonical

ZONE_LABEL = "topology.kubernetes.io/zone"
"""Well-known label of a node (kubernetes.io/docs/reference/labels-annotations-taints)."""


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """ObjectMeta, as far as we look."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None


class PodIP(msgspec.Struct, frozen=True):
    ip: str = ""


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str = ""


class PodStatus(msgspec.Struct, frozen=True):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: tuple[PodIP, ...] | None = msgspec.field(name="podIPs", default=None)


class Pod(msgspec.Struct, frozen=True):
    """A core/v1 Pod, as far as we look. Fields that the API leaves out are empty."""

    metadata: Meta = Meta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Node(msgspec.Struct, frozen=True):
    """A core/v1 Node or the PartialObjectMetadata of one."""

    metadata: Meta = Meta()


class Member(msgspec.Struct, frozen=True):
    """A pod that counts."""

    namespace: str
    name: str
    uid: str
    node: str
    ips: tuple[str, ...]
    """Canonical addresses, one per family for a dual-stack pod."""

    going: bool = False
    """Whether its deletion has begun (metadata.deletionTimestamp)."""


def member(pod: Pod) -> Member | None:
    """The member that *pod* is now, if it is one."""
    status = pod.status
    if status.phase != "Running":
        return None
    texts = [entry.ip for entry in status.pod_ips or ()] or [status.pod_ip]
    ips = []
    for text in texts:
        try:
            ips.append(canonical(text))
        except ValueError:
            continue
    if not ips:
        return None
    meta = pod.metadata
    going = meta.deletion_timestamp is not None
    return Member(meta.namespace, meta.name, meta.uid, pod.spec.node_name, tuple(dict.fromkeys(ips)), going)


class PodSet:
    """The members, kept by pod and by address.

    Several pods may have one address: on the network of their node, or while the old pod of an
    address is still known as the new one starts. The address counts as long as one of them does.
    """

    def __init__(self) -> None:
        self._members: dict[tuple[str, str], Member] = {}
        self._by_ip: dict[str, dict[tuple[str, str], Member]] = {}
        self._touched: set[str] = set()
        self._by_uid: dict[str, Member] = {}
        self._by_name: dict[str, Member] = {}

    def __len__(self) -> int:
        return len(self._members)

    def at(self, ip: str) -> Member | None:
        """The member at *ip* (canonical spelling); of several, one that stays."""
        there = self._by_ip.get(ip)
        return min(there.values(), key=lambda found: found.going) if there else None

    def named(self, name: str) -> Member | None:
        """The member whose pod has the UID, or the name, *name*."""
        return self._by_uid.get(name) or self._by_name.get(name)

    def ips(self) -> set[str]:
        """Every address that counts."""
        return set(self._by_ip)

    def put(self, pod: Pod) -> bool:
        """*pod* was added or modified. True if the members changed."""
        return self._set((pod.metadata.namespace, pod.metadata.name), member(pod))

    def drop(self, pod: Pod) -> bool:
        """*pod* was deleted. True if the members changed."""
        return self._set((pod.metadata.namespace, pod.metadata.name), None)

    def replace(self, pods: Iterable[Pod]) -> bool:
        """*pods* are all there are. True if the members changed."""
        new = {(pod.metadata.namespace, pod.metadata.name): member(pod) for pod in pods}
        changed = [self._set(key, None) for key in list(self._members) if key not in new]
        changed += [self._set(key, value) for key, value in new.items()]
        return any(changed)

    def take_touched(self) -> frozenset[str]:
        """The addresses whose members changed since this was called last."""
        touched, self._touched = frozenset(self._touched), set()
        return touched

    def _set(self, key: tuple[str, str], new: Member | None) -> bool:
        old = self._members.get(key)
        if old == new:
            return False
        for one in (old, new):
            self._touched.update(one.ips if one is not None else ())
        if old is not None:
            del self._members[key]
            if self._by_uid.get(old.uid) is old:
                del self._by_uid[old.uid]
            if self._by_name.get(old.name) is old:
                del self._by_name[old.name]
            for ip in old.ips:
                del self._by_ip[ip][key]
                if not self._by_ip[ip]:
                    del self._by_ip[ip]
        if new is not None:
            self._members[key] = new
            if new.uid:
                self._by_uid[new.uid] = new
            self._by_name[new.name] = new
            for ip in new.ips:
                self._by_ip.setdefault(ip, {})[key] = new
        return True


class NodeZones:
    """Node name -> zone, and all its labels."""

    def __init__(self) -> None:
        self._zones: dict[str, str] = {}
        self._labels: dict[str, dict[str, str]] = {}

    def labels(self, node: str) -> Mapping[str, str] | None:
        """The labels of *node*; None: it is not known."""
        return self._labels.get(node)

    def zone(self, node: str) -> str:
        """The zone of *node*; "" if unknown."""
        return self._zones.get(node, "")

    def put(self, node: Node) -> bool:
        """*node* was added or modified. True if a zone changed."""
        labels = self._labels[node.metadata.name] = node.metadata.labels or {}
        zone = labels.get(ZONE_LABEL, "")
        if not zone:
            return self._zones.pop(node.metadata.name, None) is not None
        changed = self._zones.get(node.metadata.name) != zone
        self._zones[node.metadata.name] = zone
        return changed

    def drop(self, node: Node) -> bool:
        """*node* was deleted. True if a zone changed."""
        self._labels.pop(node.metadata.name, None)
        return self._zones.pop(node.metadata.name, None) is not None

    def replace(self, nodes: Iterable[Node]) -> bool:
        """*nodes* are all there are. True if a zone changed."""
        before = dict(self._zones)
        self._zones.clear()
        self._labels.clear()
        for node in nodes:
            self.put(node)
        return self._zones != before
