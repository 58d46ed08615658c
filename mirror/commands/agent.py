"""`shoal agent`: the mirror front end and the swarm engine of one node."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import click

from mirror.settings import MirrorSettings
from swarm.base import logs
from swarm.base.flags import options


@click.command()
@options(MirrorSettings)
def agent(**values: Any) -> Coroutine[Any, Any, None]:
    """Serve this node's image pulls, from its disk, from other nodes, and from upstream."""
    settings = MirrorSettings(**values)
    logs.configure(settings.log_level, settings.log_format)
    from mirror.serve import serve  # libtorrent and aiohttp: loaded when the flags are right

    return serve(settings)
