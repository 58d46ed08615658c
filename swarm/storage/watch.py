"""Which files of one directory come and go, from inotify, whether or not the directory exists yet.

inotify-simple rather than watchfiles or watchdog: its descriptor goes straight into the event loop
(no thread, no debounce), and a directory that is missing can be waited for at its nearest ancestor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from inotify_simple import INotify, flags

log = logging.getLogger("shoal.swarm")

_FILES = flags.MOVED_TO | flags.CLOSE_WRITE | flags.DELETE | flags.MOVED_FROM | flags.DELETE_SELF | flags.MOVE_SELF
_CHAIN = (
    flags.CREATE | flags.MOVED_TO | flags.DELETE | flags.MOVED_FROM | flags.DELETE_SELF | flags.MOVE_SELF | flags.ATTRIB
)
_ATTEMPTS = 8  # the chain of directories may change while it is looked at

LEVELS = 3
"""Directories above the watched one whose loss or renewal is noticed: blobs, the content store, containerd's root."""


class Watch:
    """Calls *changed* with the names that came, changed or went; with None: anything may have changed.

    *changed* is called on the event loop, once (None) from within `open`.
    """

    def __init__(self, directory: Path, changed: Callable[[set[str] | None], None]) -> None:
        self._directory = directory.absolute()
        self._changed = changed
        self._inotify: INotify | None = None
        self._chain: dict[int, str] = {}
        """Watch -> the name below it that leads to the directory."""
        self._target = -1

    def open(self) -> None:
        """Begin. Where the system gives no inotify, a log line says so, and nothing more is heard."""
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            log.warning("watch-unavailable", extra={"fields": {"error": error.strerror}})
            self._changed(None)
            return
        asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._ready)
        self._follow()
        self._changed(None)

    def close(self) -> None:
        """End. May be called again."""
        if self._inotify:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    def _ready(self) -> None:
        if self._inotify is None:
            return
        names: set[str] = set()
        again = False
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                again = True
            elif event.wd == self._target:
                if event.mask & (flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED | flags.UNMOUNT):
                    again = True
                elif event.name:
                    names.add(event.name)
            elif event.wd in self._chain and event.name in ("", self._chain[event.wd]):
                again = True
        if again:
            self._follow()
            self._changed(None)
        elif names:
            self._changed(names)

    def _follow(self) -> None:
        """Watch the directory, and what is above it; or the nearest directory above it that exists."""
        assert self._inotify is not None
        for wd in {self._target, *self._chain} - {-1}:
            try:
                self._inotify.rm_watch(wd)
            except OSError:
                continue  # it went with its directory
        self._target, self._chain = -1, {}
        for _ in range(_ATTEMPTS):
            denied = False
            try:
                self._target = self._inotify.add_watch(self._directory, _FILES | flags.ONLYDIR)
            except FileNotFoundError:
                pass
            except OSError as error:
                denied = True
                fields = {"directory": str(self._directory), "error": error.strerror}
                log.warning("cannot-watch", extra={"fields": fields})
            above = self._watch_above()
            # Otherwise it was made, or went, between the two steps, unheard.
            if denied or not above or (self._target >= 0) == _is_there(self._directory):
                return

    def _watch_above(self) -> bool:
        """Watch up to LEVELS existing directories above; whether there is any."""
        assert self._inotify is not None
        found = 0
        child = self._directory
        while found < LEVELS and child != child.parent:
            parent = child.parent
            try:
                self._chain[self._inotify.add_watch(parent, _CHAIN | flags.ONLYDIR)] = child.name
                found += 1
                if self._target < 0:
                    break
            except OSError:
                pass  # not there, or not ours to see: the next above
            child = parent
        return bool(found)


def _is_there(directory: Path) -> bool:
    try:
        return directory.is_dir()
    except OSError:
        return False
