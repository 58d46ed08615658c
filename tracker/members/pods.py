"""Members from the Kubernetes API: the running pods behind a label selector, and the zones of their nodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from swarm.base.seldom import Seldom
from tracker.errors import ApiError, Unready
from tracker.members.backoff import USUAL, Backoff
from tracker.members.discovery import OnChange, Reason, canonical
from tracker.members.events import Events
from tracker.members.kube import Kube, connect
from tracker.members.podset import Member, Node, NodeZones, Pod, PodSet
from tracker.members.reflector import Reflector
from tracker.members.taints import Taints

log = logging.getLogger("shoal.tracker")


class KubernetesDiscovery:
    """The pods of *namespace* that match *selector*; zones if *zones* and the API server allows it.

    Zones are a help, not a condition: without the permission to list nodes there are none, and it
    is asked for again at the pace of `Backoff.longest`.
    """

    def __init__(
        self,
        namespace: str,
        selector: str,
        *,
        zones: bool = True,
        kubeconfig: Path | None = None,
        context: str | None = None,
        events: Events | None = None,
        taints: Taints | None = None,
        backoff: Backoff = USUAL,
    ) -> None:
        self._namespace = namespace
        self._selector = selector
        self._with_zones = zones
        self._kubeconfig = kubeconfig
        self._context = context
        self._events = events
        self._taints = taints
        self._backoff = backoff
        self._kube: Kube | None = None
        self._seldom = Seldom()
        self._pods = PodSet()
        self._zones = NodeZones()
        self._zoned = True
        """Zones may have changed since `touched` was asked last, or nobody has asked yet."""
        self._reflectors: dict[str, Reflector[Pod] | Reflector[Node]] = {}

    @property
    def ready(self) -> bool:
        """True after the first whole list of pods. Zones are not waited for."""
        pods = self._reflectors.get("pods")
        return pods is not None and pods.ready

    @property
    def counts(self) -> dict[str, int]:
        """How often each collection was listed and watched: "pods_lists", "pods_watches", "nodes_..."."""
        return {
            f"{name}_{what}": count
            for name, reflector in self._reflectors.items()
            for what, count in (("lists", reflector.lists), ("watches", reflector.watches))
        }

    def member(self, ip: str) -> Member | None:
        """The pod at *ip*, if it is a member."""
        try:
            return self._pods.at(canonical(ip))
        except ValueError:
            return None

    def is_member(self, ip: str) -> bool:
        return self.member(ip) is not None

    def zone(self, ip: str) -> str:
        found = self.member(ip)
        return self._zones.zone(found.node) if found else ""

    def labels(self, ip: str) -> Mapping[str, str] | None:
        """Labels of the node of the member at *ip*; None without the right to list nodes."""
        found = self.member(ip)
        return self._zones.labels(found.node) if found else None

    def named(self, name: str) -> tuple[str, ...] | None:
        found = self._pods.named(name)
        return found.ips if found else ()

    def name(self, ip: str) -> str:
        found = self.member(ip)
        return f"pod/{found.uid}" if found else ""

    def touched(self) -> frozenset[str] | None:
        zoned, self._zoned = self._zoned, False
        touched = self._pods.take_touched()
        return None if zoned else touched

    def note(self, ip: str, reason: Reason, message: str) -> None:
        if self._taints is not None and reason is Reason.JOINED and (found := self.member(ip)) is not None:
            self._taints.note(found.node)
        if self._events is not None:
            self._events.note(self.member(ip), reason, message, asyncio.get_running_loop().time())

    async def review(self, token: str, audience: str) -> str:
        """The UID of the pod that *token* is bound to; "": nobody's. Raises Unready if the API does not answer."""
        if self._kube is None:
            raise Unready("the Kubernetes API is not connected yet")
        try:
            return await self._kube.review(token, audience)
        except (ApiError, msgspec.MsgspecError) as error:
            reason = f"{error.status} {error.reason}" if isinstance(error, ApiError) else "malformed"
            if (before := self._seldom.due(reason, asyncio.get_running_loop().time())) is not None:
                log.warning("token_not_reviewed", extra={"fields": {"reason": reason, "held_back": before}})
            raise Unready("the Kubernetes API does not say whose token it is") from None

    def ips(self) -> set[str]:
        """Every address that counts."""
        return self._pods.ips()

    async def run(self, on_change: OnChange) -> None:
        """Follow the API until cancelled. Raises DiscoveryError if it is not configured."""
        async with connect(self._kubeconfig, self._context) as kube, asyncio.TaskGroup() as tasks:
            pods = Reflector(
                "pods",
                kube.pods(self._namespace, self._selector),
                Pod,
                self._pods,
                on_change,
                backoff=self._backoff,
            )
            self._kube = kube
            self._reflectors = {"pods": pods}
            tasks.create_task(pods.run())
            if self._with_zones:

                def rezoned() -> None:
                    self._zoned = True
                    on_change()

                nodes = Reflector("nodes", kube.nodes(), Node, self._zones, rezoned, backoff=self._backoff)
                self._reflectors["nodes"] = nodes
                tasks.create_task(nodes.run())
            if self._events is not None:
                tasks.create_task(self._events.run(kube.post))
            if self._taints is not None:
                tasks.create_task(self._taints.run(kube.lift))
