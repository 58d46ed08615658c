"""Finds out when holders that were given up are well again, on threads of its own: no errand has to wait for that.

Without it each was tried anew after five seconds, by several errands, each of which waited for seconds once more; and
for so long a holder that was well again gave nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from swarm.base.link import Link
from swarm.blob.digest import Digest
from swarm.blob.errors import Malformed
from swarm.peer.lane import message
from swarm.peer.lane.holders import Address

PAUSE = 0.25
"""Seconds between two tries of one holder."""

DIALS = 0.5
"""Seconds for the connection of a try: a lost SYN is sent again by the next one."""

ANSWERS = 2.0
"""Seconds for the head of its answer, as for an errand's."""

SAMPLE = 16 * 1024
"""Bytes that are asked for: more than one packet, since a path may let only short ones pass."""

MOST = 8
"""Holders that are looked after at once, each by a thread. Others are tried by errands after a while."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a holder has failed to give: bytes [start, stop) of a blob. *connected*: it could be connected to."""

    digest: Digest
    start: int
    stop: int
    connected: bool


class Scout:
    """See the module. For any thread.

    *dial* blocks, and raises OSError. *found* is told whether a holder is well; it answers whether to go on trying.
    """

    def __init__(self, dial: Callable[[Address], Link], found: Callable[[Address, bool], bool]) -> None:
        self._dial, self._found = dial, found
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads: dict[Address, threading.Thread] = {}

    def look_after(self, holder: Address, question: Question) -> None:
        """Try *holder* until it gives, or nobody wants it any more."""
        with self._lock:
            if self._stopped.is_set() or holder in self._threads or len(self._threads) >= MOST:
                return
            thread = threading.Thread(
                target=self._work, args=(holder, question), name=f"shoal-lane-scout-{holder[0]}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                return  # no further thread may start: errands try it again after a while
            self._threads[holder] = thread

    def close(self) -> None:
        """End the threads. Blocks until they have ended."""
        with self._lock:
            self._stopped.set()
            threads = list(self._threads.values())
        for thread in threads:
            thread.join()

    def _work(self, holder: Address, question: Question) -> None:
        buffer = memoryview(bytearray(SAMPLE))
        while not self._stopped.wait(PAUSE):
            gives = self._gives(holder, question, buffer)
            if gives is None or not self._found(holder, gives):
                break
        with self._lock:
            del self._threads[holder]

    def _gives(self, holder: Address, question: Question, buffer: memoryview) -> bool | None:
        """Whether what was asked of *holder* comes now, or an answer at all where not even a connection came before.

        None: it refuses, which proves nothing. Errands try it again after a while.
        """
        try:
            link = self._dial(holder)
        except OSError:
            return False
        try:
            stop = min(question.stop, question.start + SAMPLE)
            link.send(message.request(holder[0], question.digest, question.start, stop))
            answer = message.read_answer(link.head(buffer, ANSWERS, message.MOST_HEAD))
            if answer.status != 206:
                return True if answer.why == "unknown" or not question.connected else None
            left = min(answer.length, SAMPLE)
            while left and (count := link.fill(buffer[:left], left, fast=False)):
                left -= count
            return not left
        except (OSError, Malformed):
            return False
        finally:
            link.close()
