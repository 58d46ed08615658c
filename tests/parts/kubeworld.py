"""Two Kubernetes APIs with the same handles: the fake of `kubeapi`, and a real control plane.

A test that is run against both says that the fake is like the real one. Pods and nodes are objects only: no kubelet
looks after them, so each is what the test says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from tests.parts import kubeapi
from tests.parts.kubeapi import KubeApi, kube_api
from tests.parts.kubecluster import binaries
from tests.parts.kubecluster.cluster import CHART, KubeCluster, kube_cluster
from tests.parts.kubecluster.control import SERVER
from tests.parts.procs import run

Object = dict[str, Any]
NAMESPACE = "shoal"
SELECTOR = "app=shoal-agent"

COMPACT = """
import json, sys, urllib.request
body = json.dumps({"revision": sys.argv[1], "physical": True}).encode()
urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:2379/v3/kv/compaction", body), timeout=20).read()
"""
"""Asks etcd to forget every revision before one (etcd.io/docs/latest/dev-guide/api_grpc_gateway)."""


class World(Protocol):
    """An API, and what may happen to it. Every pod is in NAMESPACE and matches SELECTOR unless told otherwise."""

    @property
    def kubeconfig(self) -> Path:
        """Of a tracker: its service account's token, and no other right than the chart's."""
        ...

    async def put_pod(self, name: str, ip: str, *, node: str = "node-1", phase: str = "Running") -> None:
        """Create a pod, or change its status."""
        ...

    async def terminate(self, name: str) -> None:
        """Delete a pod with a grace period: it stays, and has a deletionTimestamp."""
        ...

    async def delete_pod(self, name: str) -> None:
        """A pod is gone."""
        ...

    async def put_node(self, name: str, zone: str) -> None:
        """Create a node, or move it to another zone."""
        ...

    async def taint(self, name: str, *keys: str) -> None:
        """Give a node taints with the effect NoSchedule."""
        ...

    async def taints(self, name: str) -> set[str]:
        """The keys of a node's taints."""
        ...

    async def uid(self, name: str) -> str:
        """Of a pod."""
        ...

    async def outage(self) -> None:
        """The API server dies, and is back when this returns."""
        ...

    async def forget(self) -> None:
        """Every watch breaks, and no version that anybody knows is known to the server any more (410)."""
        ...

    async def rotate(self) -> None:
        """The token of before is worth nothing, a new one is in the kubeconfig, and every watch breaks."""
        ...

    async def move_on(self) -> str:
        """The collection of pods has a new version, though none of our pods changed. Returns that version."""
        ...

    async def described(self, pod: str) -> str:
        """What `kubectl describe` says of a pod's events."""
        ...


class FakeWorld:
    """The fake API server."""

    def __init__(self, api: KubeApi, directory: Path) -> None:
        self._api = api
        self._directory = directory
        self.kubeconfig = api.kubeconfig(directory / "kubeconfig")

    async def put_pod(self, name: str, ip: str, *, node: str = "node-1", phase: str = "Running") -> None:
        await self._api.put("pods", kubeapi.pod(name, ip, node=node, phase=phase))

    async def terminate(self, name: str) -> None:
        item = self._api.object("pods", name)
        item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await self._api.put("pods", item)

    async def delete_pod(self, name: str) -> None:
        await self._api.delete("pods", name)

    async def put_node(self, name: str, zone: str) -> None:
        await self._api.put("nodes", kubeapi.node(name, zone))

    async def taint(self, name: str, *keys: str) -> None:
        item = self._api.object("nodes", name)
        item["spec"] = {"taints": [{"key": key, "effect": "NoSchedule"} for key in keys]}
        await self._api.put("nodes", item)

    async def taints(self, name: str) -> set[str]:
        return {taint["key"] for taint in self._api.object("nodes", name)["spec"]["taints"]}

    async def uid(self, name: str) -> str:
        return str(self._api.object("pods", name)["metadata"]["uid"])

    async def outage(self) -> None:
        self._api.statuses = {"pods": [(503, {})], "nodes": [(503, {})]}
        self._api.cut()

    async def forget(self) -> None:
        self._api.compact("pods")
        self._api.compact("nodes")
        self._api.cut()

    async def rotate(self) -> None:
        self._api.token = "the-next-token"
        self._api.kubeconfig(self.kubeconfig, token=self._api.token)
        self._api.cut()

    async def move_on(self) -> str:
        await self._api.until(lambda: self._api.watching("pods") == 1)
        version = await self._api.bookmark("pods")
        self._api.end()
        return version

    async def described(self, pod: str) -> str:
        def found() -> list[Object]:
            return [event for event in self._api.events if event["involvedObject"]["name"] == pod]

        await self._api.until(lambda: bool(found()))
        return "\n".join(f"{event['reason']} {event['message']}" for event in found())


class RealWorld:
    """etcd and a kube-apiserver. `begin` it first."""

    def __init__(self, cluster: KubeCluster) -> None:
        self._cluster = cluster
        self._account = ""
        self.kubeconfig = cluster.base / "tracker.kubeconfig"

    async def begin(self) -> None:
        """The chart's own permissions, and nothing else of the chart's."""
        await self._cluster.lan.uplink()
        await self._cluster.kubectl("create", "namespace", NAMESPACE)
        words = ["template", "shoal", str(CHART), "--namespace", NAMESPACE, "--show-only", "templates/rbac.yaml"]
        words += ["--kube-version", binaries.kubernetes_version(), "--set", "tracker.settings.liftTaint=true"]
        objects = [item for item in yaml.safe_load_all(await self._cluster.helm(*words)) if item]
        (account,) = [item for item in objects if item["kind"] == "ServiceAccount"]
        self._account = account["metadata"]["name"]
        await self._cluster.apply(*objects)
        await self._token()
        for namespace in (NAMESPACE, "default"):
            await self._cluster.kubectl("wait", "sa/default", "-n", namespace, "--for=create", "--timeout=60s")

    async def put_pod(self, name: str, ip: str, *, node: str = "node-1", phase: str = "Running") -> None:
        await self._pod(name, NAMESPACE, node)
        status = {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]}
        patch = json.dumps({"status": status})
        await self._kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)

    async def terminate(self, name: str) -> None:
        await self._kubectl("delete", "pod", name, "--wait=false")

    async def delete_pod(self, name: str) -> None:
        await self._kubectl("delete", "pod", name, "--grace-period=0", "--force")

    async def put_node(self, name: str, zone: str) -> None:
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}
        item = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        await self._cluster.apply(item)

    async def taint(self, name: str, *keys: str) -> None:
        await self._cluster.kubectl("taint", "node", name, *(f"{key}=:NoSchedule" for key in keys))

    async def taints(self, name: str) -> set[str]:
        (node,) = await self._cluster.get("node", name)
        return {taint["key"] for taint in node["spec"].get("taints", ())}

    async def uid(self, name: str) -> str:
        return (await self._kubectl("get", "pod", name, "-o", "jsonpath={.metadata.uid}")).strip()

    async def outage(self) -> None:
        await self._cluster.control.parts["kube-apiserver"].kill()
        await self._cluster.control.start("kube-apiserver")

    async def forget(self) -> None:
        version = await self.move_on()
        words = self._cluster.lan.enter("control", sys.executable, "-c", COMPACT, version)
        await self._cluster.control.parts["kube-apiserver"].kill()
        await run(words)
        await self._cluster.control.start("kube-apiserver")

    async def rotate(self) -> None:
        manifest = json.loads(await self._kubectl("get", "sa", self._account, "-o", "json"))
        manifest["metadata"] = {key: manifest["metadata"][key] for key in ("name", "namespace", "labels")}
        await self._kubectl("delete", "sa", self._account)
        await self._cluster.apply(manifest)
        await self._token()
        await self.outage()

    async def move_on(self) -> str:
        await self._pod("elsewhere", "default", "node-1")
        await self._cluster.kubectl("delete", "pod", "elsewhere", "--grace-period=0", "--force")
        listed = json.loads(await self._cluster.kubectl("get", "--raw", "/api/v1/namespaces/default/pods"))
        return str(listed["metadata"]["resourceVersion"])

    async def described(self, pod: str) -> str:
        return await self._kubectl("describe", "pod", pod)

    async def _token(self) -> None:
        """A fresh token of the service account, in the kubeconfig."""
        token = (await self._kubectl("create", "token", self._account)).strip()
        authority = str(self._cluster.authority.certificate)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "tracker"}}],
            "clusters": [{"name": "here", "cluster": {"server": SERVER, "certificate-authority": authority}}],
            "users": [{"name": "tracker", "user": {"token": token}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(document))

    async def _pod(self, name: str, namespace: str, node: str) -> None:
        spec = {"nodeName": node, "containers": [{"name": "agent", "image": "none"}]}
        meta = {"name": name, "namespace": namespace, "labels": dict([SELECTOR.split("=")])}
        await self._cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})

    async def _kubectl(self, *words: str) -> str:
        return await self._cluster.kubectl("-n", NAMESPACE, *words)


@asynccontextmanager
async def fake_world(directory: Path) -> AsyncIterator[World]:
    """The fake."""
    async with kube_api() as api:
        yield FakeWorld(api, directory)


@asynccontextmanager
async def real_world() -> AsyncIterator[World]:
    """The real one."""
    async with kube_cluster(nodes=0) as cluster:
        world = RealWorld(cluster)
        await world.begin()
        yield world
