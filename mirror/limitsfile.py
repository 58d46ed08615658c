"""How fast this agent may be: the flags, and a file that is followed, so that it changes without a restart."""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mirror.errors import SettingsInvalid
from swarm.base.flags import parse_size
from swarm.storage.watch import Watch

log = logging.getLogger("shoal.mirror")

LARGEST = 64 * 1024
"""Bytes of the file that are read."""


class Limits(NamedTuple):
    """Bytes per second; 0: no bound. *upload*: to all peers; *download*: from all upstreams."""

    upload: int = 0
    download: int = 0


def parse(text: str, flags: Limits) -> Limits:
    """What the file says, and *flags* where it says nothing. Raises SettingsInvalid with one line.

    ```toml
    upload-limit = "50MiB"      # per second, or a number of bytes; 0: no bound
    download-limit = "20MiB"
    ```
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid(str(error)) from None
    unknown = sorted(document.keys() - {"upload-limit", "download-limit"})
    if unknown:
        raise SettingsInvalid(f"{unknown[0]!r} is no setting; upload-limit and download-limit are")
    found = []
    for name, value in (("upload-limit", flags.upload), ("download-limit", flags.download)):
        said = document.get(name, value)
        try:
            count = parse_size(said) if isinstance(said, str) else said
        except ValueError as error:
            raise SettingsInvalid(f"{name}: {error}") from None
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise SettingsInvalid(f"{name}: write a size, as 50MiB, or a number of bytes")
        found.append(count)
    return Limits(*found)


class LimitsFile:
    """The limits of the file at *path*, told to *apply* at `open` and whenever they change."""

    def __init__(self, path: Path | None, flags: Limits, apply: Callable[[Limits], None]) -> None:
        self._path, self._flags, self._apply = path, flags, apply
        self._now: Limits | None = None
        self._watch: Watch | None = None
        self._reading: asyncio.Task[None] | None = None
        self._again = False

    async def open(self) -> None:
        """Apply what is there, and follow it. Raises SettingsInvalid."""
        if self._path is None:
            self._set(self._flags)
            return
        self._set(await asyncio.to_thread(self._read))
        self._watch = Watch(self._path.parent, self._changed)
        self._watch.open()

    async def close(self) -> None:
        """Follow it no longer."""
        if self._watch is not None:
            self._watch.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _changed(self, _names: set[str] | None) -> None:
        self._again = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while self._again:
            self._again = False
            try:
                self._set(await asyncio.to_thread(self._read))
            except SettingsInvalid as error:
                log.warning("limits-not-changed", extra={"fields": {"reason": str(error)}})

    def _set(self, limits: Limits) -> None:
        if limits != self._now:
            self._now = limits
            log.info("limits", extra={"fields": {"upload": limits.upload, "download": limits.download}})
            self._apply(limits)

    def _read(self) -> Limits:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                text = file.read(LARGEST).decode()
        except FileNotFoundError:
            return self._flags
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsInvalid(f"{self._path}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
        try:
            return parse(text, self._flags)
        except SettingsInvalid as error:
            raise SettingsInvalid(f"{self._path}: {error}") from None
