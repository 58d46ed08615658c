"""`shoal ca`: an authority of one's own, and certificates of it for agents and trackers outside Kubernetes."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from swarm.identity.authority import Authority, make_authority
from swarm.identity.name import Role

AUTHORITY = ("ca.crt", "ca.key")
"""Files that `shoal ca init` makes."""

YEARS = 10
"""Life of an authority: renewing one means to visit every node."""


@click.group()
def ca() -> None:
    """Make an authority and certificates, so that agents and trackers know each other by key.

    \b
    shoal ca init /etc/shoal/ca
    shoal ca issue --ca /etc/shoal/ca agent node-1 /tmp/node-1
    shoal agent --tls-ca ca.crt --tls-cert tls.crt --tls-key tls.key ...
    """


@ca.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def init(directory: Path) -> None:
    """Make an authority in DIRECTORY: ca.crt, which everybody gets, and ca.key, which stays there."""
    certificate, key = make_authority(datetime.now(UTC), timedelta(days=365 * YEARS))
    _write(directory, dict(zip(AUTHORITY, (certificate, key), strict=True)))
    click.echo(f"{directory}: {' '.join(AUTHORITY)}")


@ca.command()
@click.option("--ca", "authority", required=True, type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--days", default=90, show_default=True, type=click.IntRange(1, 3650), help="Life of the certificate.")
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def issue(authority: Path, days: int, role: str, name: str, directory: Path) -> None:
    """Make a certificate of NAME in DIRECTORY: tls.crt, tls.key, and a copy of ca.crt. A node has a name of its own.

    Run it again before it ends: the files are replaced one by one, and read again by the process that uses them.
    """
    trusted = (authority / AUTHORITY[0]).read_bytes()
    signer = Authority(trusted, (authority / AUTHORITY[1]).read_bytes())
    try:
        certificate, key = signer.issue(Role(role), name, datetime.now(UTC), timedelta(days=days))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    _write(directory, {AUTHORITY[0]: trusted, "tls.crt": certificate, "tls.key": key}, replace=True)
    click.echo(f"{directory}: {role}/{name}, {days} days")


def _write(directory: Path, files: dict[str, bytes], *, replace: bool = False) -> None:
    """Each file whole or not at all; keys for their owner alone. Raises click.ClickException, OSError."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in files:
        if not replace and (directory / name).exists():
            raise click.ClickException(f"{directory / name} exists: an authority is not replaced by chance")
    for name, text in files.items():
        fresh = directory / f".{name}.new"
        mode = 0o600 if name.endswith(".key") else 0o644
        fresh.unlink(missing_ok=True)
        number = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(number, "wb") as file:
            file.write(text)
        fresh.rename(directory / name)
