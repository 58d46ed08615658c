"""The same checks from a laptop: `shoal doctor` inside each agent's pod, and what only the cluster's API shows."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from mirror.doctor import canary
from mirror.doctor.agent import counted
from mirror.doctor.finding import Finding, note, ok, wrong

WITHIN = 60.0
"""Seconds for one kubectl: an exec runs every check of a node."""

AT_ONCE = 8
"""Pods asked at once: each is a stream through the API server."""


MOST_CANARIES = 20
"""Nodes on which a canary is tried: what they show, the others show as well."""

PAUSE = 1.0
"""Seconds between two looks at a canary's pod."""

_NO_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "RegistryUnavailable"})
_STARTED = frozenset({"CreateContainerError", "RunContainerError", "CreateContainerConfigError", "CrashLoopBackOff"})
"""What kubelet says of a container whose image it has, and which does not start: nothing of a canary's is run."""


async def kubectl(*words: str) -> bytes:
    """Output of `kubectl WORDS`. Raises click.ClickException with its last line, except where it printed JSON."""
    try:
        process = await asyncio.create_subprocess_exec(
            "kubectl", *words,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise click.ClickException("kubectl is not on PATH") from None
    try:
        async with asyncio.timeout(WITHIN):
            out, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise click.ClickException(f"kubectl {words[0]} did not end within {WITHIN:g} s") from None
    if process.returncode and not out.lstrip().startswith(b"["):
        lines = errors.decode(errors="replace").strip().splitlines()
        raise click.ClickException(f"kubectl: {lines[-1][:300] if lines else process.returncode}")
    return out


async def nodes(selector: str) -> list[str]:
    """Names of the nodes with these labels. Raises click.ClickException."""
    found = _items(await kubectl("get", "nodes", "-l", selector, "-o", "json"))
    return [str(one["metadata"]["name"]) for one in found]


async def check(namespace: str, selector: str, images: Sequence[str]) -> list[Finding]:
    """Every agent of the cluster. Raises click.ClickException if the cluster cannot be asked."""
    pods = _items(await kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json"))
    nodes = _items(await kubectl("get", "nodes", "-o", "json"))
    findings = list(_pods(namespace, selector, pods, nodes))
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(pod: dict[str, Any]) -> list[Finding]:
        async with gate:
            return await _inside(namespace, pod, images)

    running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
    for found in await asyncio.gather(*(one(pod) for pod in running)):
        findings += found
    return findings


async def canaries(namespace: str, selector: str, images: Sequence[str], port: int) -> list[Finding]:
    """Each image pulled by the kubelet of every agent's node, and who served its bytes.

    *port*: of the agents' metrics, read through the API server. Raises click.ClickException if it cannot be asked.
    """
    pods = _items(await kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json"))
    running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(pod: dict[str, Any]) -> list[Finding]:
        async with gate:
            return [await _canary(namespace, pod, image, port) for image in images]

    chosen = running[:MOST_CANARIES]
    findings = [found for several in await asyncio.gather(*(one(pod) for pod in chosen)) for found in several]
    if len(running) > len(chosen):
        findings.append(note("canary", f"tried on {len(chosen)} of {len(running)} nodes"))
    return findings


async def _canary(namespace: str, pod: dict[str, Any], image: str, port: int) -> Finding:
    node = str(pod.get("spec", {}).get("nodeName", ""))
    name = f"shoal-canary-{secrets.token_hex(4)}"
    before = await _counters(namespace, pod["metadata"]["name"], port)
    try:
        overrides = json.dumps(_canary_pod(name, node, image))
        await kubectl(
            "-n", namespace, "run", name, f"--image={image}", "--restart=Never", f"--overrides={overrides}"
        )  # fmt: skip
        try:
            failure = await _pulled(namespace, name)
        finally:
            await kubectl("-n", namespace, "delete", "pod", name, "--wait=false", "--ignore-not-found")
    except click.ClickException as problem:
        failure = problem.format_message()
    after = await _counters(namespace, pod["metadata"]["name"], port)
    return msgspec.structs.replace(canary.judge("kubelet", image, failure, before, after), where=node)


def _canary_pod(name: str, node: str, image: str) -> dict[str, Any]:
    """A pod that has *image* pulled on *node*, and runs nothing of it (restricted Pod Security Standard)."""
    rights = {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
        "runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    container = {
        "name": name, "image": image, "imagePullPolicy": "Always", "command": ["/there-is-no-such-program"],
        "securityContext": rights,
        "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "spec": {
            "nodeName": node, "containers": [container], "automountServiceAccountToken": False,
            "enableServiceLinks": False, "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0,
        },
    }  # fmt: skip


async def _pulled(namespace: str, name: str) -> str:
    """Until kubelet has pulled; why it could not, or ""."""
    said = "kubelet has not begun"
    try:
        async with asyncio.timeout(canary.WITHIN):
            while True:
                pod = json.loads(await kubectl("-n", namespace, "get", "pod", name, "-o", "json"))
                outcome = pulled(pod)
                if outcome is not None:
                    return outcome
                said = str(pod.get("status", {}).get("phase", said))
                await asyncio.sleep(PAUSE)
    except TimeoutError:
        return f"it did not end within {canary.WITHIN:g} s ({said})"
    except (ValueError, AttributeError):
        return "kubectl printed no pod"


def pulled(pod: dict[str, Any]) -> str | None:
    """What a canary's pod tells: "" once its image is there, why it cannot be had, None: not known yet. Pure."""
    for one in pod.get("status", {}).get("containerStatuses", []):
        state = one.get("state", {})
        waiting = state.get("waiting", {})
        reason = str(waiting.get("reason", ""))
        if reason in _NO_IMAGE:
            return " ".join(f"{reason}: {waiting.get('message', '')}".split())[:300]
        if one.get("imageID") or "running" in state or "terminated" in state or reason in _STARTED:
            return ""
    return None


async def _counters(namespace: str, pod: str, port: int) -> dict[str, float] | None:
    try:
        out = await kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics")
        return counted(out.decode(errors="replace"))
    except (click.ClickException, ValueError):
        return None


def _pods(
    namespace: str, selector: str, pods: Sequence[dict[str, Any]], nodes: Sequence[dict[str, Any]]
) -> list[Finding]:
    """What the API says of the agents' pods. Pure."""
    if not pods:
        mend = f"helm -n {namespace} status shoal, or name its namespace with --namespace"
        return [wrong("pod", f"no agent in {namespace} with {selector}", mend)]
    findings = []
    served = set()
    for pod in pods:
        name, node = pod["metadata"]["name"], pod.get("spec", {}).get("nodeName", "")
        status = pod.get("status", {})
        ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions", []))
        served.add(node)
        if not ready:
            waiting = [
                state["waiting"].get("reason", "")
                for one in status.get("containerStatuses", [])
                if (state := one.get("state", {})).get("waiting")
            ]
            why = ", ".join(filter(None, waiting)) or status.get("phase", "unknown")
            mend = f"kubectl -n {namespace} describe pod {name}; kubectl -n {namespace} logs {name} --all-containers"
            finding = wrong("pod", f"{name} is not ready ({why})", mend)
            findings.append(msgspec.structs.replace(finding, where=node))
    bare = [one["metadata"]["name"] for one in nodes if one["metadata"]["name"] not in served]
    findings += [
        msgspec.structs.replace(
            wrong("pod", "no agent runs on this node", f"kubectl describe node {name}: a taint? set agent.tolerations"),
            where=name,
        )
        for name in bare
    ]
    return findings or [ok("pod", f"{len(pods)} agents are ready, one on each node")]


async def _inside(namespace: str, pod: dict[str, Any], images: Sequence[str]) -> list[Finding]:
    name, node = pod["metadata"]["name"], pod.get("spec", {}).get("nodeName", "")
    try:
        out = await kubectl(
            "-n", namespace, "exec", name, "-c", "agent", "--", "shoal", "doctor", "--json", *images
        )  # fmt: skip
        found = msgspec.json.decode(out, type=list[Finding])
    except (click.ClickException, msgspec.MsgspecError) as problem:
        said = problem.format_message() if isinstance(problem, click.ClickException) else str(problem)
        mend = f"kubectl -n {namespace} exec {name} -c agent -- shoal doctor"
        found = [wrong("pod", f"{name} cannot be examined: {said}", mend)]
    return [msgspec.structs.replace(finding, where=node) for finding in found]


def _items(out: bytes) -> list[dict[str, Any]]:
    try:
        found = json.loads(out)["items"]
    except (ValueError, KeyError, TypeError):
        raise click.ClickException("kubectl printed no list") from None
    return [item for item in found if isinstance(item, dict)]
