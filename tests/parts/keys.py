"""An authority made by `shoal ca`, and certificates of it: what a cluster outside Kubernetes is given."""

from __future__ import annotations

from pathlib import Path

from tests.parts.procs import python, run


class Keys:
    """An authority in *directory*. `make` first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def make(self) -> Keys:
        """Make the authority."""
        await run(python("mirror", "ca", "init", str(self._directory / "ca")))
        return self

    async def of(self, role: str, name: str) -> tuple[str, str, str]:
        """The flags with which a process is *role*/*name*."""
        where = self._directory / f"{role}-{name}"
        await run(python("mirror", "ca", "issue", "--ca", str(self._directory / "ca"), role, name, str(where)))
        return f"--tls-ca={where}/ca.crt", f"--tls-cert={where}/tls.crt", f"--tls-key={where}/tls.key"
