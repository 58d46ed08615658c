"""podman with a store of its own: containers/image as CRI-O has it too, down to unpacked layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.parts.procs import run

# vfs needs no kernel feature
STORAGE = """\
[storage]
driver = "vfs"
graphroot = "{base}/root"
runroot = "{base}/run"
"""


@dataclass
class Podman:
    """Everything it keeps is under *base*. *registries*: content of its registries.conf."""

    base: Path
    registries: str = ""

    async def _run(self, *words: str, deadline: float = 60.0) -> str:
        self.base.mkdir(parents=True, exist_ok=True)
        (self.base / "registries.conf").write_text(self.registries)
        (self.base / "storage.conf").write_text(STORAGE.format(base=self.base))
        (self.base / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        environment = {
            "HOME": str(self.base),
            "XDG_RUNTIME_DIR": str(self.base),
            "CONTAINERS_REGISTRIES_CONF": str(self.base / "registries.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.base / "storage.conf"),
        }
        own = ["--cgroup-manager", "cgroupfs", "--events-backend", "none", "--tmpdir", str(self.base / "tmp")]
        return await run(["podman", *own, *words], env=environment, deadline=deadline)

    async def pull(self, name: str) -> str:
        """`podman pull`; the image's id, which is the digest of its config without `sha256:`."""
        words = ["pull", "--quiet", "--tls-verify=false", "--signature-policy", str(self.base / "policy.json")]
        return (await self._run(*words, name)).strip()

    async def digest(self, name: str) -> str:
        """The manifest's digest that it keeps for *name*."""
        return (await self._run("image", "inspect", "--format", "{{.Digest}}", name)).strip()
