"""What the chart runs on install, on uninstall and by `helm test`, for real."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web

from tests.parts.chart import CHART, Object, container, environment, render
from tests.parts.kubecluster.pki import Authority

pytestmark = pytest.mark.needs_helm


def run_as_rendered(item: Object, root: Path) -> str:
    """Run a container's command here, with the node's file system under *root*."""
    env = {"PATH": os.environ["PATH"], **environment(item), "SHOAL_HOST_ROOT": str(root)}
    mounts = {mount["name"]: mount["mountPath"] for mount in item["volumeMounts"]}
    assert mounts["certs"] == environment(item)["SHOAL_HOST_ROOT"] + environment(item)["SHOAL_CONTAINERD_CERTS"]
    command = [sys.executable, "-m", "mirror", *item["command"][1:]]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, check=False, cwd=CHART.parents[1]
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_install_writes_on_a_node_uninstall_takes_back(tmp_path: Path) -> None:
    certs = tmp_path / "etc/containerd/certs.d"
    kept = certs / "ghcr.io/hosts.toml"
    kept.parent.mkdir(parents=True)
    kept.write_text('server = "https://ghcr.io"\n\n[host."https://mine.example"]\n')
    (tmp_path / "etc/containerd/config.toml").write_text("version = 2\n")
    before = {path: path.read_bytes() for path in certs.rglob("*") if path.is_file()}
    objects = render({"agent": {"ports": {"mirror": 31000}}, "containerd": {"registries": ["ghcr.io", "docker.io"]}})
    run_as_rendered(container(objects, "DaemonSet", "shoal-agent", "containerd"), tmp_path)
    assert "http://127.0.0.1:31000" in kept.read_text()
    assert "http://127.0.0.1:31000" in (certs / "docker.io/hosts.toml").read_text()
    run_as_rendered(container(objects, "DaemonSet", "shoal-restore", "containerd"), tmp_path)
    assert {path: path.read_bytes() for path in certs.rglob("hosts.toml")} == before


def test_the_restore_is_a_hook_after_the_deletion_in_the_right_order() -> None:
    hooks = {
        (item["kind"], item["metadata"]["name"]): item["metadata"]["annotations"]
        for item in render()
        if item["metadata"].get("annotations", {}).get("helm.sh/hook", "test") != "test"
    }
    assert {note["helm.sh/hook"] for note in hooks.values()} == {"post-delete"}
    order = sorted(hooks, key=lambda key: int(hooks[key]["helm.sh/hook-weight"]))
    assert [kind for kind, _ in order][-2:] == ["DaemonSet", "Job"]
    assert all("hook-succeeded" in note["helm.sh/hook-delete-policy"] for note in hooks.values())
    left = {
        item["metadata"]["annotations"]["helm.sh/hook"]
        for item in render({"containerd": {"install": False}})
        if "annotations" in item["metadata"]
    }
    assert left == {"test"}


@pytest.mark.parametrize("comes", [True, False], ids=["all nodes", "one node is away"])
@pytest.mark.busy_loop("helm runs between two awaits")
async def test_the_uninstall_waits_for_the_nodes_but_not_for_ever(tmp_path: Path, comes: bool) -> None:
    job = container(await asyncio.to_thread(render), "Job", "shoal-restore-wait", "wait")
    python, option, script, namespace, name, _, word = job["command"]
    assert (python, option, word) == ("python", "-c", "restored")
    done = await ask_the_script(tmp_path, script, namespace, name, "30" if comes else "0.5", word, comes=comes)
    assert done.code == 0, done.err
    assert ("restored on 2 nodes" if comes else "restored on 1 of 2 nodes in time") in done.out
    assert done.asked[0].headers["Authorization"] == "Bearer a-token"
    assert done.asked[0].query["fieldSelector"] == "metadata.name=shoal-restore"
    assert done.asked[0].match_info["namespace"] == "shoal"


@pytest.mark.parametrize("comes", [True, False], ids=["all nodes", "one node is away"])
async def test_helm_test_says_whether_every_node_has_a_ready_agent(tmp_path: Path, comes: bool) -> None:
    """Helm's own --wait is content while maxUnavailable of the agents are not ready."""
    job = container(await asyncio.to_thread(render), "Job", "shoal-test", "wait")
    _, _, script, namespace, name, _, word = job["command"]
    done = await ask_the_script(tmp_path, script, namespace, name, "30" if comes else "0.5", word, comes=comes)
    assert (done.code, done.asked[0].query["fieldSelector"]) == (0 if comes else 1, "metadata.name=shoal-agent")
    assert ("ready on 2 nodes" if comes else "ready on 1 of 2 nodes in time") in done.out


STRICT = """\
import ssl
_made = ssl.create_default_context
def _strict(*args, **kwargs):
    context = _made(*args, **kwargs)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context
ssl.create_default_context = _strict
"""
"""What Python 3.13, the image's, does by itself: older ones run the tests, too."""


class Said(NamedTuple):
    """How files/wait.py ended, and what it asked."""

    code: int | None
    out: str
    err: str
    asked: list[web.Request]


def old_authority(directory: Path) -> ssl.SSLContext:
    """TLS of an API server whose CA has no key usage, as on clusters made years ago; writes ca.crt."""
    authority = Authority(directory / "pki")
    shutil.copy(authority.certificate, directory / "ca.crt")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue("server", "kube-apiserver", "127.0.0.1"))
    return tls


async def ask_the_script(tmp_path: Path, *arguments: str, comes: bool) -> Said:
    """Run files/wait.py against an API server where one of two nodes, or both, become ready."""
    script, *words = arguments
    asked: list[web.Request] = []

    async def watch(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        response = web.StreamResponse()
        await response.prepare(request)
        states = [{"desiredNumberScheduled": 2, "numberReady": ready, "observedGeneration": 1} for ready in (0, 1, 2)]
        for status in states if comes else states[1:2]:
            event = {"type": "MODIFIED", "object": {"metadata": {"generation": 1}, "status": status}}
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    tls = await asyncio.to_thread(old_authority, tmp_path)
    (tmp_path / "sitecustomize.py").write_text(STRICT)
    (tmp_path / "token").write_text("a-token")
    app = web.Application()
    app.router.add_get("/apis/apps/v1/namespaces/{namespace}/daemonsets", watch)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    env = {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(runner.addresses[0][1]),
        "SERVICE_ACCOUNT": str(tmp_path),
        "PYTHONPATH": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *words,
        env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    await runner.cleanup()
    return Said(process.returncode, out.decode(), err.decode(), asked)
