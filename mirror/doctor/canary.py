"""A pull through the node's real runtime, and who served its bytes by the agent's own counters."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

from mirror.doctor.finding import Finding, note, ok, wrong

WITHIN = 300.0
"""Seconds for the pull: an image for this purpose is small."""

RUNTIMES = ("crictl", "ctr", "nerdctl", "docker", "podman")
"""Clients in the order in which they are taken: the first is what kubelet does."""


def command(client: str, image: str, certs: Path) -> list[str]:
    """How *client* pulls *image*. Pure."""
    match client:
        case "ctr":
            return ["ctr", "images", "pull", "--hosts-dir", str(certs), image]
        case "nerdctl":
            return ["nerdctl", "pull", "--hosts-dir", str(certs), image]
        case _:
            return [client, "pull", image]


def client_here() -> str:
    """The client that this machine has; "" for none."""
    return next((name for name in RUNTIMES if shutil.which(name)), "")


async def pull(client: str, image: str, certs: Path) -> str:
    """Pulls; why it failed, as one line, or "" if it did not."""
    process = await asyncio.create_subprocess_exec(
        *command(client, image, certs),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(WITHIN):
            _, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"it did not end within {WITHIN:g} s"
    if process.returncode == 0:
        return ""
    last = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return (last[-1] if last else f"exit status {process.returncode}").strip()[:300]


def judge(
    client: str, image: str, failure: str, before: Mapping[str, float] | None, after: Mapping[str, float] | None
) -> Finding:
    """What the pull of *image* by *client* showed, by the agent's counters before and after it. Pure."""
    if failure:
        return wrong(
            "canary", f"{client} could not pull {image}: {failure}", f"{client} pull {image}, with its log open"
        )
    if before is None or after is None:
        return note("canary", f"{client} pulled {image}; the agent's counters are not reached from here")
    grown = {key: after[key] - before.get(key, 0.0) for key in after if after[key] > before.get(key, 0.0)}
    if not grown.get("requests"):
        return wrong(
            "canary",
            f"{client} pulled {image} and never asked the agent",
            "shoal containerd install (or docs/clients.md for CRI-O and Docker), then shoal doctor again",
        )
    served = ", ".join(f"{amount:.0f} bytes from {origin}" for origin, amount in grown.items() if origin != "requests")
    if not served:
        return note("canary", f"{client} asked the agent for {image}, and had its layers already: remove it, try again")
    return ok("canary", f"{client} pulled {image} through the agent: {served}")
