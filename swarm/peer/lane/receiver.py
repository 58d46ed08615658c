"""Brings pieces from other agents: threads that block on sockets, hash and write from one buffer, and report pieces.

The event loop hears of pieces only. A holder that is silent, slow, busy or wrong is left for another one within
seconds, in mid-piece if need be: what came of a piece stays, and its hash decides.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from swarm.base.kept import Kept
from swarm.base.link import TICK, Link, Silent
from swarm.base.mailbox import Mailbox
from swarm.blob.errors import Cancelled, Malformed, StoreFull, Unserved, Unwritable
from swarm.peer.lane import message
from swarm.peer.lane.errand import Errand, Left
from swarm.peer.lane.holders import Address, Holders
from swarm.peer.lane.scout import Question, Scout
from swarm.storage.intake import scratch

log = logging.getLogger("shoal.swarm")

THREADS = 10
"""Threads for whoever comes first. Eight nodes on links of 200 Mbit/s: four take 1.6 x the bound, 24 take 1.5."""

URGENT_THREADS = 2
"""Threads that work for errands with a rank below 0 alone: a read of 64 KiB does not queue behind windows."""

SILENT = 2.0
"""Seconds without a byte after which another holder is asked, if there is one."""

PATIENCE = 6.0
"""Seconds without a byte after which the only holder is left, too, unless it has been silent before."""

SLOW = 3.0
"""Seconds over which a holder's speed is looked at."""

SLOW_RATE = 32 * 1024
"""Bytes per second below which another holder is asked, if one is free."""

BUSY_FOR = (0.03, 0.15)
"""Seconds, at least and at most, until a holder that is busy is asked again."""

MOST_TRIES = 6
"""Failures in a row, without a byte between them, after which an errand ends."""

MOST_KEPT = 64
"""Connections that are kept for the next errand."""

KEPT_FOR = 45.0
"""Seconds for which one is kept. The other end keeps it for a minute."""

Dial = Callable[[Address], Link]


class Receiver:
    """See the module. `submit` and `close` are for the event loop. *dial* blocks, and raises OSError."""

    def __init__(
        self, dial: Dial, *, threads: int = THREADS, urgent: int = URGENT_THREADS, look: Dial | None = None
    ) -> None:
        """*look*: the same, to see whether somebody is well again; None: *dial*."""
        self._dial = dial
        self._scout = Scout(look or dial, self._looked)
        self.well: Callable[[Address], None] = lambda _holder: None
        """Told, on the event loop, who gives again after it was given up. For its owner to set."""
        self._mailbox = Mailbox(asyncio.get_running_loop())
        self._changed = threading.Lock()
        self._any = threading.Condition(self._changed)
        self._urgent = threading.Condition(self._changed)
        """On which the threads for urgent errands wait."""
        self._waiting: list[Errand] = []
        """Most urgent first."""
        self._running: set[Errand] = set()
        self._holders = Holders()
        self._kept = Kept(MOST_KEPT, KEPT_FOR)
        self._stopped = False
        self._limits = (threads, urgent)
        self._threads: list[threading.Thread] = []
        self.refusals: Counter[str] = Counter()
        """Requests that others refused, by reason (`message.REFUSALS`, or "other")."""

    def submit(self, errand: Errand) -> None:
        """Work on *errand* as soon as its turn comes; `Errand.ended` tells when no thread touches its file."""
        errand.tell = self._mailbox.put
        with self._changed:
            self._put(errand)
            self._any.notify()
            if errand.rank < 0:
                self._urgent.notify()
        if len(self._threads) < sum(self._limits):
            only_urgent = len(self._threads) % 5 == 1 and len(self._threads) // 5 < self._limits[1]
            thread = threading.Thread(
                target=self._work, args=(only_urgent,), name=f"shoal-lane-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def cancel(self, errand: Errand) -> None:
        """*errand* is not wanted any more: it ends at once."""
        errand.cancel()
        with self._changed:
            waited = errand in self._waiting
            if waited:
                self._waiting.remove(errand)
        if waited:
            errand.end(Cancelled("not wanted any more"))

    def dead(self, *, gone: bool = True) -> frozenset[Address]:
        """Holders that are not asked: see Holders.dead."""
        with self._changed:
            return self._holders.dead(time.monotonic(), gone=gone)

    async def close(self) -> None:
        """Cancel everything, and end the threads."""
        with self._changed:
            self._stopped = True
            every = [*self._waiting, *self._running]
            self._any.notify_all()
            self._urgent.notify_all()
        for errand in every:
            self.cancel(errand)
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in self._threads))
        await asyncio.to_thread(self._scout.close)
        self._kept.close()

    # -- the threads ------------------------------------------------------------------------------

    def _put(self, errand: Errand) -> None:
        bisect.insort(self._waiting, errand, key=lambda other: other.rank)

    def _work(self, only_urgent: bool) -> None:
        buffer = scratch()
        while (taken := self._take(only_urgent)) is not None:
            errand, holder = taken
            error: BaseException | None = None
            again = False
            try:
                again = not self._serve(errand, holder, buffer)
            except (Unserved, Cancelled, StoreFull, Unwritable) as failure:
                error = failure
            except Exception as failure:
                log.exception("lane-thread-failed", extra={"fields": {"digest": errand.digest}})
                error = Unserved(repr(failure))
            finally:
                with self._changed:
                    if holder is not None:
                        self._holders.ended(holder)
                    self._running.discard(errand)
                    again = again and not self._stopped
                    if again:
                        self._put(errand)
                    if self._waiting:
                        self._any.notify()
            if not again:
                errand.end(error if error is not None or errand.intake.done else Cancelled("the agent stops"))

    def _take(self, only_urgent: bool) -> tuple[Errand, Address | None] | None:
        """The next errand and whom to ask; None: stop."""
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                wait: float | None = None
                for place, errand in enumerate(self._waiting):
                    if only_urgent and errand.rank >= 0:
                        break
                    candidates = errand.candidates
                    holder = self._holders.pick(candidates, now, named=errand.named)
                    if holder is None and not errand.cancelled and not self._holders.hopeless(candidates, now):
                        # Requests of ours that end bring their thread here; who said "busy" is asked when it said.
                        free = self._holders.free_at(candidates, now)
                        wait = wait if free is None else min(free - now, free - now if wait is None else wait)
                        continue
                    del self._waiting[place]
                    self._running.add(errand)
                    if holder is not None:
                        self._holders.began(holder)
                    return errand, holder
                (self._urgent if only_urgent else self._any).wait(wait)
            return None

    def _serve(self, errand: Errand, holder: Address | None, buffer: memoryview) -> bool:
        """Ask *holder* for the rest of *errand*. False: somebody else is to be asked. Raises as `Errand.ended`."""
        if errand.cancelled:
            raise Cancelled("not wanted any more")
        if holder is None:
            errand.unanswered = errand.unanswered or bool(errand.candidates)
            raise Unserved(f"nobody gives {errand.digest}")
        before = errand.moved
        errand.heard = time.monotonic()
        try:
            left = self._ask(errand, holder, buffer)
        except (Malformed, OSError) as error:
            if errand.cancelled:
                raise Cancelled("not wanted any more") from None
            log.debug("lane-left", extra={"fields": {"holder": holder[0], "why": str(error) or type(error).__name__}})
            left = Left.FAILED
        finally:
            errand.use(None)
            errand.muted, errand.heard = errand.silence(time.monotonic()), None
        if errand.moved > before:
            errand.tries = 0
            with self._changed:
                self._holders.gave(holder)
        if left is None:
            return errand.intake.done
        self._leave(errand, holder, left)
        return False

    def _leave(self, errand: Errand, holder: Address, why: Left) -> None:
        now = time.monotonic()
        with self._changed:
            if why is Left.BUSY:
                self._holders.said_busy(holder, now + random.uniform(*BUSY_FOR))
                return
            if why in (Left.LACKING, Left.WRONG):
                errand.useless[holder] = why
            failed = why in (Left.FAILED, Left.UNREACHED, Left.WRONG)
            given_up = failed and self._holders.failed(
                holder, now, unreached=why is Left.UNREACHED, gone=why is Left.UNREACHED and errand.gone
            )
        if given_up and why is not Left.WRONG:
            intake = errand.intake
            self._scout.look_after(
                holder, Question(errand.digest, intake.at, intake.stop, connected=why is not Left.UNREACHED)
            )
        if why in (Left.FAILED, Left.UNREACHED):
            errand.tries += 1
            again = why is Left.FAILED and errand.tries < 2
            if errand.tries >= MOST_TRIES or (len(errand.candidates) == 1 and not again):
                errand.unanswered = True
                raise Unserved(f"no holder of {errand.digest} answers")

    def _looked(self, holder: Address, well: bool) -> bool:
        """*holder*, which was given up, was tried; whether to go on."""
        with self._changed:
            if not well:
                return self._holders.still_fails(holder, time.monotonic())
            self._holders.well(holder)
            self._any.notify_all()
            self._urgent.notify_all()
        log.info("lane-well-again", extra={"fields": {"holder": holder[0]}})
        self._mailbox.put(lambda: self.well(holder))
        return False

    def _ask(self, errand: Errand, holder: Address, buffer: memoryview) -> Left | None:
        """One request. None: what it gave is here; there may be more to ask for."""
        intake = errand.intake
        try:
            link = self._kept.take(holder) or self._dial(holder)
        except OSError as error:
            log.debug("lane-unreached", extra={"fields": {"holder": holder[0], "why": str(error)}})
            errand.gone = isinstance(error, ConnectionRefusedError)
            return Left.UNREACHED
        keep = False
        try:
            errand.use(link)
            urgent = errand.rank < 0
            link.send(message.request(holder[0], errand.digest, intake.at, intake.stop, urgent=urgent))
            answer = message.read_answer(self._head(errand, holder, link, buffer))
            if answer.status != 206:
                said = self._short(link, answer.length, buffer)
                keep = answer.keep and said is not None
                return self._refused(errand, holder, answer, said)
            if answer.start != intake.at or answer.start + answer.length > intake.stop:
                return Left.WRONG
            wrong = self._body(errand, holder, link, answer.length, buffer)
            keep = answer.keep and wrong is None
            return wrong
        finally:
            errand.use(None)
            if keep:
                self._kept.put(holder, link)
            else:
                link.close()

    def _head(self, errand: Errand, holder: Address, link: Link, buffer: memoryview) -> bytes:
        """The head of the answer. Raises Silent when *holder* is to be left: others may come to have it meanwhile."""
        asked = time.monotonic()
        while True:
            try:
                return link.head(buffer, TICK, message.MOST_HEAD)
            except Silent:
                now = time.monotonic()
                with self._changed:
                    doubted = self._holders.doubted(holder, now)
                if now - asked >= (SILENT if doubted or len(errand.candidates) > 1 else PATIENCE):
                    raise

    def _body(self, errand: Errand, holder: Address, link: Link, left: int, buffer: memoryview) -> Left | None:
        intake = errand.intake
        heard = looked = time.monotonic()
        since = 0
        while left:
            if errand.cancelled:
                raise Cancelled("not wanted any more")
            now = time.monotonic()
            if now - looked > SLOW:
                if since < SLOW_RATE * SLOW and self._better(errand, holder, now):
                    return Left.FAILED
                looked, since = now, 0
            try:
                count = link.fill(buffer[: min(len(buffer), left, intake.room)], left)
            except Silent:
                quiet = time.monotonic() - heard
                if quiet > PATIENCE or (quiet > SILENT and self._better(errand, holder, now)):
                    return Left.FAILED
                continue
            if not count:
                return Left.FAILED
            heard, left, since = now, left - count, since + count
            errand.moved, errand.heard, errand.muted = errand.moved + count, now, 0.0
            errand.givers.add(holder)
            if intake.put(buffer[:count]) is not None:
                return self._wrong(errand, holder)
        return None

    def _wrong(self, errand: Errand, holder: Address) -> Left:
        """A piece did not match. Who sent all of it is to blame; where several did, it comes again from one."""
        givers, errand.givers = errand.givers, set()
        if givers == {holder}:
            errand.tell(partial(errand.owner.blamed, holder))
            return Left.WRONG
        return Left.MIXED

    def _better(self, errand: Errand, holder: Address, now: float) -> bool:
        with self._changed:
            return self._holders.better(holder, errand.candidates, now)

    def _refused(self, errand: Errand, holder: Address, answer: message.Answer, said: bytes | None) -> Left:
        """It gives nothing of this now; *said*: the body of its answer."""
        why = answer.why if answer.why in message.REFUSALS else "other"
        log.debug("lane-refused-here", extra={"fields": {"holder": holder[0], "digest": errand.digest, "why": why}})
        with self._changed:
            self.refusals[why] += 1
        if why == "busy":
            return Left.BUSY
        if why != "other" and said is not None:
            errand.tell(partial(errand.owner.refused, holder, int.from_bytes(said, "little")))
        return Left.LACKING

    def _short(self, link: Link, length: int, buffer: memoryview) -> bytes | None:
        """The body of a refusal, if it is short and comes: then the connection can be used again."""
        if length > len(buffer):
            return None
        come = 0
        with contextlib.suppress(OSError):
            while come < length:
                if not (count := link.fill(buffer[come:length], length - come)):
                    return None
                come += count
            return bytes(buffer[:length])
        return None
