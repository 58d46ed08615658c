"""`shoal up`: a tracker and one agent on this machine, as child processes that live and die together."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import click

from mirror.settings import MirrorSettings
from swarm.base import logs
from swarm.base.flags import ENDPOINT, ENVIRONMENT, NETWORK, Endpoint, options, setting, settings_of

STOP_WITHIN = 8.0
"""Seconds in which the children must have ended after SIGTERM; then SIGKILL, still inside our own 10 s."""

log = logging.getLogger("shoal.up")


@dataclass(frozen=True)
class UpSettings:
    """What `shoal up` is told beside the flags of an agent."""

    tracker_listen: Endpoint = setting(
        Endpoint("127.0.0.1", 6969),
        ENDPOINT,
        "Where the tracker listens.",
        unit="host and TCP port",
        reason="This machine only; 0.0.0.0:6969 and --member let other machines' agents join.",
    )
    member: tuple[str, ...] = setting(
        ("127.0.0.0/8", "::1/128"),
        NETWORK,
        "A network whose agents may join the swarm. Repeatable.",
        unit="CIDR",
        reason="This machine only.",
    )


@click.command()
@options(UpSettings)
@options(MirrorSettings)
def up(**values: Any) -> Coroutine[Any, Any, None]:
    """Run a tracker and one agent on this machine: everything in one command."""
    own = UpSettings(**{field.name: values.pop(field.name) for field in fields(UpSettings)})
    mirror = MirrorSettings(**values)
    logs.configure(mirror.log_level, mirror.log_format)
    host, port = own.tracker_listen
    near = Endpoint({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)
    mirror = replace(mirror, tracker=(f"http://{near}", *mirror.tracker))
    tracker = [
        f"--listen={own.tracker_listen}",
        "--discovery=static",
        *(f"--member={network}" for network in own.member),
        f"--log-level={mirror.log_level}",
        f"--log-format={mirror.log_format}",
    ]
    agent = [word for item in settings_of(MirrorSettings) for word in item.arguments(getattr(mirror, item.field))]
    return supervise({"tracker": tracker, "agent": agent})


async def supervise(commands: dict[str, Sequence[str]]) -> None:
    """Runs `shoal NAME ARGUMENTS...` for each; ends all of them when one ends or this task is cancelled.

    Raises click.ClickException (exit 1) if a child ended by itself.
    """
    # Every setting was read from our environment already; a child must not read SHOAL_LISTEN as its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(f"{ENVIRONMENT}_")}
    children: dict[str, asyncio.subprocess.Process] = {}
    waiting: dict[asyncio.Task[int], str] = {}
    try:
        for name, arguments in commands.items():
            children[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mirror", name, *arguments, env=environment, stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C reaches us alone; we pass it on in order
            )  # fmt: skip
            waiting[asyncio.create_task(children[name].wait())] = name
            log.info("started", extra={"fields": {"part": name, "pid": children[name].pid}})
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        task = next(iter(done))
        raise click.ClickException(f"the {waiting[task]} ended (exit status {task.result()}); everything is stopped")
    finally:
        await _stop(list(children.values()))
        for waiter in waiting:
            waiter.cancel()


async def _stop(children: Sequence[asyncio.subprocess.Process]) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            child.terminate()
    try:
        async with asyncio.timeout(STOP_WITHIN):
            await asyncio.gather(*(child.wait() for child in children))
    except TimeoutError:
        for child in children:
            if child.returncode is None:
                log.warning("killed", extra={"fields": {"pid": child.pid}})
                with suppress(ProcessLookupError):
                    child.kill()
        await asyncio.gather(*(child.wait() for child in children))
