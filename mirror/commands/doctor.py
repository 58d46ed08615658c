"""`shoal doctor`: one line for each thing that is wrong on a node, and the command that mends it."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import aiohttp
import click
import msgspec

from mirror.commands.asking import place, secured
from mirror.commands.containerd import MIRROR
from mirror.doctor import agent, canary, kubectl, node, runtimes
from mirror.doctor.finding import Finding, failed, line, note
from mirror.settings import MirrorSettings
from mirror.setup import containerd as setup
from mirror.upstream.reference import Image, parse_image
from swarm.base.flags import PATH, TEXT, Flag, options, setting

IMAGE = Flag("IMAGE", parse_image)


@dataclass(frozen=True)
class DoctorSettings:
    """Every flag of `shoal doctor` that has an environment twin, beside those of an agent."""

    mirror: str = setting(
        "http://127.0.0.1:30000",
        MIRROR,
        "The agent that the node's runtimes shall ask first.",
        unit="URL",
        reason="Where `shoal agent` listens unless told otherwise.",
    )
    containerd_certs: Path = setting(
        setup.DEFAULT_CERTS,
        PATH,
        "containerd's config_path: one directory per registry.",
        unit="directory",
        reason="The path in containerd's documentation and in every managed Kubernetes.",
    )
    containerd_config: Path = setting(
        setup.DEFAULT_CONFIG,
        PATH,
        "containerd's configuration, which is only read.",
        unit="file",
        reason="containerd's own default.",
    )
    host_root: Path = setting(
        Path("/"),
        PATH,
        "Where the node's file system is mounted; the two paths above are below it.",
        unit="directory",
        reason="In a container the node's files are under a mount.",
    )
    release_namespace: str = setting(
        "shoal",
        TEXT,
        "With --kubectl: the namespace of the release.",
        unit="namespace",
        reason="The one that the README installs into.",
    )
    agent_selector: str = setting(
        "app.kubernetes.io/name=shoal,app.kubernetes.io/component=agent",
        TEXT,
        "With --kubectl: label selector of the agents' pods.",
        unit="label selector",
        reason="The labels that the chart gives them.",
    )


@click.command()
@click.argument("images", nargs=-1, type=IMAGE, metavar="[IMAGE]...")
@click.option("--canary", "pulls", is_flag=True, help="Pull each IMAGE through the node's real runtime, too.")
@click.option("--kubectl", "by_kubectl", is_flag=True, help="Examine every agent of a cluster, from here.")
@click.option("--json", "as_json", is_flag=True, help="The findings as a JSON list, for programs.")
@options(DoctorSettings)
@options(MirrorSettings)
def doctor(
    images: tuple[Image, ...], *, pulls: bool, by_kubectl: bool, as_json: bool, **values: Any
) -> Coroutine[Any, Any, None]:
    """Say what is wrong here, and what mends it. Exits 1 if anything is."""
    if pulls and not images:
        raise click.UsageError("--canary needs an IMAGE to pull")
    own = DoctorSettings(**{field.name: values.pop(field.name) for field in fields(DoctorSettings)})
    return _doctor(own, MirrorSettings(**values), images, pulls=pulls, by_kubectl=by_kubectl, as_json=as_json)


async def _doctor(
    own: DoctorSettings,
    settings: MirrorSettings,
    images: tuple[Image, ...],
    *,
    pulls: bool,
    by_kubectl: bool,
    as_json: bool,
) -> None:
    if by_kubectl:
        names = [str(image) for image in images]
        found = await kubectl.check(own.release_namespace, own.agent_selector, names)
        if pulls:
            port = settings.metrics_listen.port
            found += await kubectl.canaries(own.release_namespace, own.agent_selector, names, port)
    else:
        found = await _here(own, settings, images)
        if pulls:
            found += await _canaries(own, settings, images)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        for finding in found:
            click.echo(line(finding))
    if failed(found):
        raise SystemExit(1)


async def _here(own: DoctorSettings, settings: MirrorSettings, images: tuple[Image, ...]) -> list[Finding]:
    """Every check of this node."""
    found = list(_runtimes(own))
    found += node.disk(settings.store, settings.store_budget)
    hosts = [agent.host_of(url) for url in settings.tracker] + [image.registry.partition(":")[0] for image in images]
    found += await node.names(hosts)
    proxy = node.proxy_of(os.environ)
    for registry in dict.fromkeys(image.registry for image in images) if proxy else ():
        found += await node.proxy(proxy, registry if ":" in registry else f"{registry}:443")
    async with aiohttp.ClientSession() as session:
        answers = await agent.mirror(session, own.mirror)
        status, told = await agent.status(session, _site(settings))
        found += answers + told
        known = list(status.trackers) if status is not None else []
        how = secured(settings.tls_ca)
        named = [place(url, how) for url in settings.tracker if not url.startswith("dns+")]
        for url in dict.fromkeys([*named, *known]):
            found += await agent.tracker(session, url, how)
        for image in images:
            found += await agent.image(session, settings, own.mirror, image)
    return found


def _runtimes(own: DoctorSettings) -> list[Finding]:
    if "KUBERNETES_SERVICE_HOST" in os.environ and own.host_root == Path("/"):
        return [note("runtime", "the node's files are not seen from this pod: run shoal doctor on the node for them")]
    root = own.host_root
    certs, config = (
        path if root == Path("/") else root / str(path).lstrip("/")
        for path in (own.containerd_certs, own.containerd_config)
    )
    return list(runtimes.check(root, certs, config, own.mirror))


async def _canaries(own: DoctorSettings, settings: MirrorSettings, images: tuple[Image, ...]) -> list[Finding]:
    client = canary.client_here()
    if not client:
        return [note("canary", f"none of {', '.join(canary.RUNTIMES)} is on PATH here")]
    found = []
    async with aiohttp.ClientSession() as session:
        for image in images:
            before = await agent.counters(session, _site(settings))
            failure = await canary.pull(client, str(image), own.containerd_certs)
            after = await agent.counters(session, _site(settings))
            found.append(canary.judge(client, str(image), failure, before, after))
    return found


def _site(settings: MirrorSettings) -> str:
    """Where this node's agent has its /status."""
    host, port = settings.metrics_listen
    near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{near}:{port}"
