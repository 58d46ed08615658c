"""Gives verified pieces to other agents: a few threads of their own, each with many non-blocking connections.

Bytes go from the file to the socket by sendfile and never pass Python, nor the event loop. The loop is asked only
where a blob is not among the offers: whether it is complete in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from swarm.base.mailbox import Mailbox
from swarm.blob.digest import Digest
from swarm.peer.lane.offers import Offer
from swarm.peer.lane.serving import Counts, Phase, Serving, Want
from swarm.peer.lane.throttle import Throttle

log = logging.getLogger("shoal.swarm")

THREADS = 2
"""Threads that send. One fills 10 Gbit/s by sendfile; the second is there when a cold disk stops the first."""

MOST_CONNECTIONS = 512
"""Connections at once in all; the one that was idle for longest goes for a new one."""

MOST_OF_ONE = 128
"""Connections at once from one address. An agent has twelve at most; several may share an address."""

MOST_SENDING_TO_ONE = 6
"""Bodies on their way at once to one address."""

LINGER = 20.0
"""Seconds for which a complete blob stays open after it was last asked for."""

FIND_DEADLINE = 2.0
"""Seconds in which the event loop says whether a blob is here."""

_TICK = 0.5
"""Seconds between two looks at who is late."""

_BUFFER = 128 * 1024


class Sender:
    """See the module. Made and closed on the event loop.

    *find*: the offer of a blob that is complete in the store, its first use the caller's; None: it is not here.
    """

    def __init__(
        self,
        find: Callable[[Digest], Awaitable[Offer | None]],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._find, self._tls = find, tls
        self._offers: dict[Digest, Offer] = {}
        self._kept: dict[Digest, float] = {}
        """Of the offers, those that were found in the store: when they were asked for last."""
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._sock: socket.socket | None = None
        self._mailbox: Mailbox | None = None
        self.throttle = Throttle()
        """How fast bodies go out. Who asks for one more than it lets through is told "busy", and asks another."""
        self._finding: dict[Digest, list[tuple[_Worker, Serving]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def counts(self) -> Counts:
        """What was sent, refused and dropped so far."""
        found = [worker.counts for worker in self._workers]
        refused: Counter[str] = Counter()
        for counts in found:
            refused.update(counts.refused.copy())
        return Counts(sum(c.sent for c in found), refused, sum(c.dropped for c in found))

    # -- for the event loop -----------------------------------------------------------------------

    def start(self, ip: str, port: int = 0) -> int:
        """Listen on *ip*; the port. Raises OSError."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self._mailbox = Mailbox(asyncio.get_running_loop())
        self._sock = socket.create_server((ip, port), family=family, backlog=256)
        self._sock.setblocking(False)
        self._workers = [_Worker(self, number) for number in range(THREADS)]
        self._workers[0].listen(self._sock)
        for worker in self._workers:
            worker.start()
        self._tidy()
        return int(self._sock.getsockname()[1])

    async def close(self) -> None:
        """End every connection and the threads."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            worker.stop()
        await asyncio.gather(*(asyncio.to_thread(worker.join) for worker in self._workers))
        if self._sock is not None:
            self._sock.close()
        for digest in list(self._offers):
            self.withdraw(digest)

    def offer(self, offer: Offer) -> None:
        """Give *offer*, a blob on its way in, to who asks; its use becomes the sender's."""
        with self._lock:
            old = self._offers.get(offer.digest)
            self._offers[offer.digest] = offer
            self._kept.pop(offer.digest, None)
        if old is not None:
            old.leave()

    def withdraw(self, digest: Digest, offer: Offer | None = None, *, lost: bool = False) -> None:
        """Give nothing more of *digest* (if it is that *offer*). *lost*: what is being sent of it breaks off."""
        with self._lock:
            known = self._offers.get(digest)
            if known is None or (offer is not None and known is not offer):
                return
            del self._offers[digest]
            self._kept.pop(digest, None)
        known.lost = known.lost or lost
        known.leave()

    def _tidy(self) -> None:
        now = time.monotonic()
        with self._lock:
            idle = [digest for digest, used in self._kept.items() if now - used > LINGER]
        for digest in idle:
            self.withdraw(digest)
        self._timer = asyncio.get_running_loop().call_later(LINGER / 4, self._tidy)

    def _look_up(self, digest: Digest) -> None:
        task = asyncio.ensure_future(self._answer(digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, digest: Digest) -> None:
        offer = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIND_DEADLINE):
                    offer = await self._find(digest)
        finally:
            with self._lock:
                if offer is not None and digest not in self._offers:
                    self._offers[digest], self._kept[digest] = offer, time.monotonic()
                elif offer is not None:
                    offer.leave()  # a fetch of it came in between
                    offer = self._offers[digest]
                waiting = self._finding.pop(digest, [])
                entered = [offer if offer is not None and offer.enter() else None for _ in waiting]
            for (worker, serving), found in zip(waiting, entered, strict=True):
                worker.tell(partial(serving.found, found), serving)

    # -- for the threads --------------------------------------------------------------------------

    def find(self, worker: _Worker, serving: Serving, digest: Digest) -> Offer | None:
        """The offer, entered; None: *serving* is told later."""
        with self._lock:
            offer = self._offers.get(digest)
            if offer is not None and offer.enter():
                if digest in self._kept:
                    self._kept[digest] = time.monotonic()
                return offer
            waiting = self._finding.setdefault(digest, [])
            waiting.append((worker, serving))
            first = len(waiting) == 1
        if first and self._mailbox is not None:
            self._mailbox.put(partial(self._look_up, digest))
        return None

    def may_send(self, serving: Serving) -> bool:
        """Whether one more body may go out."""
        mine = total = 0
        for worker in self._workers:
            for other in worker.snapshot():
                if other.sending:
                    total += 1
                    mine += other.address == serving.address
        return total < self.throttle.bodies(serving.length, urgent=serving.urgent) and mine < MOST_SENDING_TO_ONE

    def accepted(self, sock: socket.socket, address: str) -> None:
        """A connection came: to the worker that has fewest."""
        every = [serving for worker in self._workers for serving in worker.snapshot()]
        of_one = [serving for serving in every if serving.address == address]
        full = of_one if len(of_one) >= MOST_OF_ONE else every if len(every) >= MOST_CONNECTIONS else []
        if full and not self._make_room(full):
            log.debug("lane-full", extra={"fields": {"peer": address, "connections": len(full)}})
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            # The handshake is made later, step by step, by the thread that serves the connection.
            sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        worker = min(self._workers, key=lambda worker: len(worker.snapshot()))
        worker.tell(partial(worker.take, sock, address))

    def _make_room(self, among: Sequence[Serving]) -> bool:
        """Close the connection *among* these that was idle for longest; whether there was one."""
        idle = min((serving for serving in among if serving.idle), key=lambda serving: serving.since, default=None)
        for worker in self._workers:
            if idle is not None and idle in worker.snapshot():
                worker.tell(partial(worker.let_go, idle))
        return idle is not None


def _who(ip: str, port: int) -> str:
    """Whose connection it is, for what one may have at once. On this machine itself several agents share an address."""
    return f"{ip}:{port}" if ip in ("127.0.0.1", "::1") else ip


class _Worker(threading.Thread):
    """One thread and its connections."""

    def __init__(self, sender: Sender, number: int) -> None:
        super().__init__(name=f"shoal-lane-send-{number}", daemon=True)
        self.counts = Counts()
        self._sender = sender
        self._selector = selectors.DefaultSelector()
        self._servings: tuple[Serving, ...] = ()
        """Replaced whole: other threads look at it."""
        self._turns: deque[Serving] = deque()
        """Those that wait for their turn to send, first come first."""
        self._said: deque[Callable[[float], None]] = deque()
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self._stopped = False

    def listen(self, sock: socket.socket) -> None:
        """This worker accepts connections from *sock*."""
        self._listener = sock
        self._selector.register(sock, selectors.EVENT_READ)

    def snapshot(self) -> tuple[Serving, ...]:
        """Its connections now."""
        return self._servings

    def tell(self, act: Callable[[float], None], serving: Serving | None = None) -> None:
        """Have *act*(now) done in this thread, and then *serving* go on."""
        self._said.append(act if serving is None else partial(self._go_on, act, serving))
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_in, b"x")

    def stop(self) -> None:
        """End soon."""
        self._stopped = True
        self.tell(lambda _now: None)

    def take(self, sock: socket.socket, address: str, now: float) -> None:
        """A new connection of this worker."""
        serving = Serving(
            sock, address, now, counts=self.counts,
            find=partial(self._sender.find, self), may_send=self._sender.may_send, throttle=self._sender.throttle,
        )  # fmt: skip
        self._servings = (*self._servings, serving)
        self._selector.register(sock, selectors.EVENT_READ, serving)

    def let_go(self, serving: Serving, _now: float) -> None:
        """Close *serving* if nothing was asked on it meanwhile."""
        if serving.idle:
            self._drop(serving)

    def _go_on(self, act: Callable[[float], None], serving: Serving, now: float) -> None:
        act(now)
        self._arm(serving)

    def run(self) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        looked = 0.0
        while not self._stopped:
            try:
                pause = self._sender.throttle.wait(time.monotonic()) if self._turns else _TICK
                events = self._selector.select(min(pause, _TICK))
            except OSError:
                continue
            now = time.monotonic()
            self._take_turns(now, buffer)
            for key, _ in events:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._wake_out:
                    self._hear(now)
                elif isinstance(key.data, Serving) and key.data.phase is not Phase.CLOSED:
                    key.data.step(now, buffer)
                    self._arm(key.data)
            if now - looked > _TICK:
                looked = now
                self._look(now)
        for serving in self._servings:
            self._drop(serving)
        self._hear(time.monotonic())  # nobody may be left with an offer that was found too late
        self._selector.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    def _take_turns(self, now: float, buffer: memoryview) -> None:
        for _ in range(len(self._turns)):
            if self._sender.throttle.wait(now):
                return
            serving = self._turns.popleft()
            if serving.phase is not Phase.CLOSED:
                serving.step(now, buffer)
                self._arm(serving)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(16):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("lane-accept-failed", extra={"fields": {"error": error.strerror}})
                self._selector.unregister(self._listener)  # no descriptor is left: who waits is looked at a tick later
                return
            self._sender.accepted(sock, _who(str(address[0]), int(address[1])))

    def _hear(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_out, 4096)
        while self._said:
            self._said.popleft()(now)

    def _arm(self, serving: Serving) -> None:
        """Watch for what *serving* waits for, or let go of it."""
        if serving.phase is Phase.CLOSED:
            self._drop(serving)
            return
        if serving.want is Want.TURN:
            self._turns.append(serving)
        events = {Want.READ: selectors.EVENT_READ, Want.WRITE: selectors.EVENT_WRITE}.get(serving.want, 0)
        known = self._selector.get_map().get(serving.sock)
        if known is not None and known.events == events:
            return
        if not events and known is not None:
            self._selector.unregister(serving.sock)
        elif known is None and events:
            self._selector.register(serving.sock, events, serving)
        elif known is not None:
            self._selector.modify(serving.sock, events, serving)

    def _look(self, now: float) -> None:
        if self._listener is not None and self._listener not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ)
        for serving in self._servings:
            if serving.phase is Phase.CLOSED:
                self._drop(serving)
            elif serving.late(now):
                self.counts.dropped += not serving.idle
                self._drop(serving)

    def _drop(self, serving: Serving) -> None:
        for key in [k for k in self._selector.get_map().values() if k.data is serving]:
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._selector.unregister(key.fileobj)
        serving.close()
        with contextlib.suppress(ValueError):
            self._turns.remove(serving)
        self._servings = tuple(other for other in self._servings if other is not serving)
