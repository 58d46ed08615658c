"""skopeo: the other client library (containers/image), which finds mirrors by registries.conf."""

from __future__ import annotations

import json
from pathlib import Path

from tests.parts.procs import run


async def copy(source: str, to: Path, *, registries: str = "", deadline: float = 60.0) -> dict[str, object]:
    """`skopeo copy docker://source dir:to`; the manifest as written. *registries*: content of registries.conf."""
    to.mkdir(parents=True, exist_ok=True)
    configuration = to.parent / f"{to.name}.registries.conf"
    configuration.write_text(registries)
    await run(
        [
            "skopeo", "--registries-conf", str(configuration), "--insecure-policy",
            "copy", "--src-tls-verify=false", "--preserve-digests", f"docker://{source}", f"dir:{to}",
        ],
        env={"HOME": str(to.parent)},
        deadline=deadline,
    )  # fmt: skip
    manifest: dict[str, object] = json.loads((to / "manifest.json").read_text())
    return manifest


def mirrored(registry: str, agent: str) -> str:
    """A registries.conf in which *agent* (host:port) is asked before *registry* (host:port)."""
    lines = ["[[registry]]", f'location = "{registry}"', "insecure = true"]
    lines += ["[[registry.mirror]]", f'location = "{agent}"', "insecure = true"]
    return "\n".join(lines) + "\n"


def through(agent: str, registry: str) -> str:
    """What *registry* (host:port) is called at *agent* (host:port): for clients that send no `ns`."""
    return f"{agent}/{registry.replace(':', '_')}"
