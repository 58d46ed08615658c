"""Whether the agent of this node answers, whether trackers take it, and whether it may pull a named image."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from mirror.doctor import node
from mirror.doctor.finding import Finding, note, ok, wrong
from mirror.errors import DockerConfigInvalid, RegistriesInvalid, SettingsInvalid
from mirror.serve import upstream_of
from mirror.settings import MirrorSettings
from mirror.upstream.reference import Image
from swarm.blob.errors import SwarmError

WITHIN = 3.0
"""Seconds for an answer of this node's agent or of a tracker."""

PULL_WITHIN = 30.0
"""Seconds for an agent to have a manifest: it may have to ask upstream."""

MOST = 1 << 20
"""Bytes of an answer that are read."""

_RESTART = "kubectl -n shoal get pods -o wide, or systemctl status shoal-agent; its log says why it does not listen"


class Status(NamedTuple):
    """What the agent's /status says that matters here."""

    member: bool
    trackers: Mapping[str, bool]
    refused: Mapping[str, str]
    trouble: str


async def mirror(session: aiohttp.ClientSession, url: str) -> list[Finding]:
    """Whether the mirror answers where runtimes ask it: on the host, that is the pod's hostPort."""
    try:
        async with session.get(f"{url}/v2/", timeout=aiohttp.ClientTimeout(total=WITHIN)) as answer:
            if answer.status == 200:
                return [ok("agent", f"answers at {url}")]
            said = f"HTTP {answer.status}"
    except TimeoutError:
        said = f"no answer within {WITHIN:g} s: something swallows what is sent there"
    except (aiohttp.ClientError, OSError) as problem:
        said = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
    return [
        wrong(
            "agent",
            f"no agent answers at {url} ({said}), so every pull goes upstream",
            f"{_RESTART}; if the pod runs, its CNI has no hostPort (portmap): set agent.hostNetwork=true",
        )
    ]


async def status(session: aiohttp.ClientSession, url: str) -> tuple[Status | None, list[Finding]]:
    """The agent's own account, from `url`/status."""
    try:
        async with session.get(f"{url}/status", timeout=aiohttp.ClientTimeout(total=WITHIN)) as answer:
            told = await answer.json() if answer.status == 200 else {}
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None, [note("agent", f"{url}/status is not reached from here: name it with --metrics-listen")]
    found = _status(told)
    if found is None:
        return None, [wrong("agent", f"{url}/status is none of an agent", "name the agent's own with --metrics-listen")]
    return found, _judged(found)


def _status(told: Any) -> Status | None:
    if not isinstance(told, dict) or not isinstance(told.get("trackers"), dict):
        return None
    refused, store = told.get("refused", {}), told.get("store", {})
    return Status(bool(told.get("member")), told["trackers"], refused, str(store.get("trouble") or ""))


def _judged(found: Status) -> list[Finding]:
    """What follows from the agent's account. Pure."""
    findings = []
    for url, reason in found.refused.items():
        said = reason.removeprefix(f"tracker {url}: ")
        if "both announce" in said:
            what, _, mend = said.partition(": ")
            findings.append(wrong("conflict", what, mend))
        else:
            findings.append(
                wrong(
                    "tracker",
                    f"{url} refuses this agent: {said}",
                    "see that the tracker's --member, --member-name or --selector covers this agent's address",
                )
            )
    for url, up in found.trackers.items():
        if not up and url not in found.refused:
            findings.append(
                wrong(
                    "tracker", f"{url} does not answer this agent", f"curl -m 3 {url}/readyz from this node's network"
                )
            )
    if found.trouble:
        findings.append(wrong("disk", f"the store cannot be used: {found.trouble}", "free or mend its disk"))
    if not found.trackers:
        findings.append(note("tracker", "the agent has no tracker, and so works alone"))
    elif found.member and not findings:
        findings.append(ok("tracker", f"a member at {', '.join(found.trackers)}"))
    elif not found.member and not findings:
        findings.append(wrong("tracker", "the agent is no member yet", "look for tracker-silent in its log"))
    return findings


async def tracker(session: aiohttp.ClientSession, url: str, how: Mapping[str, Any] | None = None) -> list[Finding]:
    """Whether the tracker at *url* is reached and ready, and whether its clock agrees with ours.

    *how*: to connect to one that speaks by TLS; without it, such a one is not asked.
    """
    if url.startswith("https://") and not how:
        return [note("tracker", f"{url} speaks by TLS: name its authority with --tls-ca to have it asked from here")]
    mend = f"kubectl -n shoal get pods,endpoints, or curl -m 3 {url}/readyz; a NetworkPolicy or firewall may be between"
    try:
        async with session.get(
            f"{url}/readyz", timeout=aiohttp.ClientTimeout(total=WITHIN), **dict(how or {})
        ) as answer:
            status, date = answer.status, answer.headers.get("Date", "")
    except TimeoutError:
        return [wrong("tracker", f"{url} does not answer within {WITHIN:g} s", mend)]
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError):
        return [
            wrong(
                "tracker",
                f"{url} shows a certificate that --tls-ca did not sign",
                "see that agents and trackers have one authority: the chart's Secret, or the directory of shoal ca",
            )
        ]
    except (aiohttp.ClientError, OSError) as problem:
        said = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        return [wrong("tracker", f"{url} cannot be reached ({said})", mend)]
    findings = []
    if status != 200:
        mend = "look for discovery-failing in the tracker's log; it needs to list and watch pods"
        findings.append(wrong("tracker", f"{url} is not ready: it does not know the members", mend))
    try:
        theirs = email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return findings
    return findings + node.skewed(time.time(), theirs, url)


async def image(session: aiohttp.ClientSession, settings: MirrorSettings, url: str, wanted: Image) -> list[Finding]:
    """Whether the agent gives the manifest of *wanted*; if not, why, as far as this process can find out."""
    place = f"{url}/v2/{wanted.repository}/manifests/{wanted.reference}"
    try:
        async with session.get(
            place, params={"ns": wanted.registry}, timeout=aiohttp.ClientTimeout(total=PULL_WITHIN)
        ) as answer:
            status = answer.status
    except (aiohttp.ClientError, OSError, TimeoutError):
        return []  # that the agent does not answer is told already
    if status == 200:
        return [ok("credentials", f"the agent may pull {wanted}")]
    reason = await _upstream_says(settings, wanted)
    mend = (
        f"give the agent a --docker-config (chart: agent.pullSecret) that opens {wanted.registry}/{wanted.repository}, "
        f"and see that --allow and --deny let it through"
    )
    return [wrong("credentials", f"the agent answers {status} for {wanted} ({reason}): it is pulled past Shoal", mend)]


async def _upstream_says(settings: MirrorSettings, wanted: Image) -> str:
    try:
        async with await upstream_of(settings, CollectorRegistry()) as upstream:
            await upstream.head_manifest(wanted.registry, wanted.repository, wanted.reference)
    except (SwarmError, SettingsInvalid, DockerConfigInvalid, RegistriesInvalid, OSError) as problem:
        return " ".join(str(problem).split()) or type(problem).__name__
    return "with the settings that this command has, upstream gives it: the agent has others"


async def counters(session: aiohttp.ClientSession, url: str) -> dict[str, float] | None:
    """Bytes that the agent sent by origin, and "requests" for manifests and blobs; None if it cannot be asked."""
    try:
        async with session.get(f"{url}/metrics", timeout=aiohttp.ClientTimeout(total=WITHIN)) as answer:
            text = (await answer.content.read(MOST)).decode()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    return counted(text)


def counted(text: str) -> dict[str, float]:
    """The counters that a canary is judged by, from a page of metrics. Pure."""
    found = {"requests": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "shoal_front_sent_bytes_total":
                origin = sample.labels.get("origin", "")
                found[origin] = found.get(origin, 0.0) + sample.value
            elif sample.name == "shoal_front_requests_total" and sample.labels.get("kind") in ("manifest", "blob"):
                found["requests"] += sample.value
    return found


def host_of(url: str) -> str:
    """The host in a tracker's URL."""
    return urlsplit(url.removeprefix("dns+")).hostname or ""
