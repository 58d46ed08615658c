"""The `shoal` command: finds its commands by entry point, runs what they return, and says what went wrong in one line.

A command that serves returns a coroutine; this file gives it an event loop, turns SIGTERM and SIGINT
into its cancellation, and sees to it that the process is gone within 10 s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, NoReturn

import click

from mirror.errors import MirrorError
from swarm.base.logs import configure, redact
from swarm.blob.errors import SwarmError

STOP_WITHIN = 9.0
"""Seconds after SIGTERM at which the process ends whatever is still under way: inside the 10 s that are promised."""

FILES = 65536
"""Open files that a service asks for: a shell's or systemd's usual 1024 is fewer than the connections of one busy node
or of the agents of one tracker, and whoever comes then is not even refused."""

FAILED, WRONG_USAGE = 1, 2

log = logging.getLogger("shoal")


class Commands(click.Group):
    """Commands by entry point `shoal.commands`: the agent never loads what only the tracker needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every installed command, agent and tracker alike."""
        return sorted(_installed())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command *cmd_name*, loaded now."""
        found = _installed().get(cmd_name)
        command = found.load() if found else None
        return command if isinstance(command, click.Command) else None


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="shoal.commands")}


@click.group(cls=Commands, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("shoal"), prog_name="shoal")
def shoal() -> None:
    """The nodes of a cluster fetch container images and streamable layers from each other."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs `shoal` and exits: 0 done or stopped by a signal, 1 failed, 2 wrong usage. Errors are one line on stderr."""
    configure("warning", "text")  # until a command knows better
    # Until an event loop handles it, SIGTERM ends the process as it would end a loop: with 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        outcome = shoal.main(args=arguments, prog_name="shoal", standalone_mode=False)
        if asyncio.iscoroutine(outcome):
            run(outcome)
        sys.exit(outcome if isinstance(outcome, int) else 0)
    except click.ClickException as problem:
        _fail(problem.format_message(), problem.exit_code, getattr(problem, "ctx", None))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`shoal status | head`): nothing is wrong, nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, SwarmError, MirrorError) as problem:
        _fail(_why(problem), FAILED)
    except Exception:
        log.critical("crashed", exc_info=True)  # a defect; one line with the traceback as a field, once logs are set up
        _fail("a defect in shoal; please report it (the log line above has the details)", FAILED)


def run(service: Coroutine[Any, Any, None]) -> None:
    """Runs *service* until it ends or a signal cancels it; the process ends within `STOP_WITHIN` s of the signal."""

    async def supervised() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(service)

        def stop() -> None:
            deadline = threading.Timer(STOP_WITHIN, os._exit, [0])
            deadline.daemon = True
            deadline.start()
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        with suppress(asyncio.CancelledError):
            await task

    _allow_files()
    asyncio.run(supervised())


def _allow_files() -> None:
    """As many open files as FILES, or as the system allows. RLIMIT_NOFILE of getrlimit(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _why(problem: Exception) -> str:
    """What a person needs of *problem*: never empty, never a traceback."""
    if isinstance(problem, OSError) and problem.filename is not None:
        return f"{problem.filename}: {problem.strerror}"
    return str(problem) or type(problem).__name__


def _fail(message: str, code: int, ctx: click.Context | None = None) -> NoReturn:
    command = ctx.command_path if ctx is not None else "shoal"
    hint = f" (see {command} --help)" if code == WRONG_USAGE else ""
    click.echo(f"{command}: {' '.join(redact(message).split())}{hint}", err=True)
    sys.exit(code)
