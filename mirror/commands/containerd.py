"""`shoal containerd install|uninstall|show`: containerd's registry configuration on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from mirror.errors import SetupError
from mirror.settings import parse_registry
from mirror.setup import containerd as setup
from swarm.base.flags import PATH, Flag, options, setting


def parse_mirror(text: str) -> str:
    """`http://host:port` of an agent. Raises ValueError."""
    plain = text.strip().rstrip("/")
    try:
        url = urlsplit(plain)
        fits = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        fits = False
    if not fits or url.path or url.query or url.fragment or "@" in plain or '"' in plain:
        raise ValueError(f"{text!r} is no mirror; write http://HOST:PORT")
    return plain


def parse_host(text: str) -> str:
    """A registry, or `_default` for all that have no directory of their own. Raises ValueError."""
    return text if text == setup.EVERY else parse_registry(text)


Done = TypeVar("Done")

MIRROR = Flag("URL", parse_mirror)
HOST = Flag("HOST[:PORT]", parse_host)


@dataclass(frozen=True)
class ContainerdSettings:
    """Every flag of `shoal containerd ...`."""

    mirror: str = setting(
        "http://127.0.0.1:30000",
        MIRROR,
        "The agent that containerd shall ask first.",
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
        reason="In an init container the node's files are under a mount.",
    )


def _settings(values: dict[str, Any]) -> ContainerdSettings:
    """The settings with both paths below the host's root."""
    given = ContainerdSettings(**values)
    root = given.host_root
    return ContainerdSettings(
        mirror=given.mirror,
        containerd_certs=root / str(given.containerd_certs).lstrip("/")
        if root != Path("/")
        else given.containerd_certs,
        containerd_config=root / str(given.containerd_config).lstrip("/")
        if root != Path("/")
        else given.containerd_config,
        host_root=root,
    )


@click.group(no_args_is_help=False)
def containerd() -> None:
    """Point containerd at the agent, take it back, or show how it stands."""


@containerd.command()
@click.argument("hosts", nargs=-1, type=HOST, metavar="[HOST[:PORT]]...")
@options(ContainerdSettings)
def install(hosts: tuple[str, ...], **values: Any) -> None:
    """Make the agent the first host of HOSTs, or of every registry. What was there is kept behind it and put aside."""
    settings = _settings(values)
    certs, root = settings.containerd_certs, settings.host_root
    later = setup.later_directories(certs, settings.containerd_config, root)
    changed = _do(lambda: setup.install(certs, settings.mirror, hosts, later=later, host_root=root))
    for path in changed:
        click.echo(f"wrote {path}")
    if not changed:
        click.echo("nothing to change: containerd asks the agent already")
    _say(settings)


@containerd.command()
@options(ContainerdSettings)
def uninstall(**values: Any) -> None:
    """Put back what was there before, byte for byte."""
    settings = _settings(values)
    changed = _do(lambda: setup.uninstall(settings.containerd_certs, settings.host_root))
    for path in changed:
        click.echo(f"restored {path}" if path.exists() else f"removed {path}")
    if not changed:
        click.echo("nothing to take back")


@containerd.command()
@options(ContainerdSettings)
def show(**values: Any) -> int:
    """Show which hosts containerd asks, and what is missing. Exits 1 if something is."""
    settings = _settings(values)
    shown = _do(lambda: setup.show(settings.containerd_certs))
    for item in shown:
        hosts = item.problem or " -> ".join([*item.hosts, "the registry itself"])
        click.echo(f"{item.host}: {hosts}{' (shoal)' if item.ours else ''}")
    if not any(item.ours for item in shown):
        click.echo("containerd does not ask this agent: shoal containerd install")
    return 1 if _say(settings) or not any(item.ours for item in shown) else 0


def _say(settings: ContainerdSettings) -> int:
    """Prints the notes, and on stderr every prerequisite that is missing; returns how many are."""
    config, root = settings.containerd_config, settings.host_root
    for note in setup.notes(config, root):
        click.echo(f"note: {note}")
    missing = list(setup.problems(settings.containerd_certs, config, settings.mirror, root))
    for line in missing:
        click.echo(f"missing: {line}", err=True)
    return len(missing)


def _do(action: Callable[[], Done]) -> Done:
    try:
        return action()
    except SetupError as problem:
        raise click.ClickException(str(problem)) from None
