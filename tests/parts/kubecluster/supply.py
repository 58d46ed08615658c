"""What a cluster is made of, made in a process of its own while other tests run.

`python -m tests.parts.kubecluster.supply helm cluster` is that process: it compiles the binaries, builds Shoal's image
beside them, and prints a line for each thing that is there, with the seconds since it began. It has the lowest
priority: tests wait a lot.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests.parts.kubecluster import binaries, images
from tests.parts.procs import PartFailed, guard, ready, weigh

HELM, CLUSTER = "helm", "cluster"
"""What can be asked for: helm alone, or every binary and the image."""

WITHIN = 45 * 60.0
"""Seconds from the beginning after which a build has failed: an idle machine of two cores takes a third of it."""

TOLD = 12
"""Lines of a failed build that its tests show."""


class Supply:
    """A build in the background. `begin` it once, `wait` for what a test needs; `end` it with the tests."""

    def __init__(self, log: Path, within: float = WITHIN) -> None:
        """*log*: where the compiler's own words go. *within*: seconds from the beginning after which it has failed."""
        self.log = log
        self.late = False
        """Whether it ended for want of time, not by an error."""
        self._within = within
        self._child: subprocess.Popen[bytes] | None = None
        self._begun = time.monotonic()
        self._unread = b""
        self._asked: set[str] = set()
        self._made: dict[str, float] = {}
        """What is there -> seconds from the beginning."""
        self._waited = 0.0
        self._why = "it was ended"

    def begin(self, wanted: Iterable[str]) -> None:
        """Start to make *wanted* (HELM, CLUSTER), unless it is there already, or has to be compiled without Go."""
        asked = {what for what in wanted if not there(what) and (binaries.go() or _compiled(what))}
        if not asked or self._child is not None:
            return
        self._begun, self._asked = time.monotonic(), asked
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                [*guard(), "nice", "-n", "19", sys.executable, "-m", __name__, *sorted(asked)],
                cwd=images.ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self, what: str) -> str:
        """Until *what* is there, or cannot be. Why it cannot; "": it is there, or it was not asked for."""
        if what not in self._asked:
            return ""
        begun = time.monotonic()
        try:
            return self._wait(what)
        finally:
            self._waited += time.monotonic() - begun

    def _wait(self, what: str) -> str:
        while what not in self._made and self._child is not None and self._child.stdout is not None:
            left = self._begun + self._within - time.monotonic()
            if left <= 0 or not ready(self._child.stdout.fileno(), select.POLLIN, left):
                self._why = f"no end in {self._within / 60:.0f} minutes"
                self.late = True
                self.end()
            elif chunk := os.read(self._child.stdout.fileno(), 4096):
                *lines, self._unread = (self._unread + chunk).split(b"\n")
                for name, seconds in (line.decode().split() for line in lines):
                    self._made[name] = float(seconds)
            else:
                self._why = f"exit status {self._child.wait()}"
                self.end()
        return "" if what in self._made else self._told()

    def summary(self) -> str:
        """What was built, how long after the beginning each was there, and for how long a test waited; "": nothing."""
        if not self._asked:
            return ""
        made = ", ".join(f"{name} after {seconds / 60:.1f} min" for name, seconds in self._made.items()) or "nothing"
        return f"built beside the tests: {made}; tests waited {self._waited / 60:.1f} min for it"

    def end(self) -> None:
        """Stop what still runs, with all that it began. A second call does nothing."""
        if self._child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._child = None
        if CLUSTER in self._asked:
            images.forget()

    def _told(self) -> str:
        """What went wrong, with the last lines of the compiler's."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([f"the build of Kubernetes failed: {self._why}", *text.splitlines()[-TOLD:]])


def there(what: str) -> bool:
    """Whether HELM or CLUSTER needs no more making."""
    return _compiled(what) and (what == HELM or images.built())


def _compiled(what: str) -> bool:
    return binaries.built(*(["helm"] if what == HELM else []))


def make(*wanted: str) -> None:
    """Make what is missing. For each thing that is there, print its name and seconds. Raises what the builds raise."""
    begun = time.monotonic()

    def told(name: str) -> None:
        print(name, round(time.monotonic() - begun), flush=True)

    failed: list[BaseException] = []
    image = threading.Thread(target=_image, args=(failed,))
    if CLUSTER in wanted:
        image.start()  # it waits for downloads, mostly
    for name in ("helm", *binaries.PACKAGES) if CLUSTER in wanted else ("helm",):
        binaries.build(name)
        told(name)
    if CLUSTER in wanted:
        image.join()
        if failed:
            raise failed[0]
        told(CLUSTER)


def _image(failed: list[BaseException]) -> None:
    try:
        asyncio.run(images.shoal_image())
    except Exception as problem:  # noqa: BLE001 - told by the other thread
        failed.append(problem)


if __name__ == "__main__":
    weigh(os.getpid(), 19)
    try:
        make(*sys.argv[1:])
    except (RuntimeError, OSError, subprocess.CalledProcessError, PartFailed) as problem:
        sys.exit(str(problem))
