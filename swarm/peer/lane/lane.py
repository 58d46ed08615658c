"""The window lane of this node: what it gives to other agents, and what it fetches from them."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import partial

from swarm.base.link import Link, dial
from swarm.blob.digest import Digest
from swarm.blob.errors import SessionError
from swarm.identity.name import Role
from swarm.identity.tls import Identity
from swarm.peer.lane.errand import Errand
from swarm.peer.lane.holders import Address
from swarm.peer.lane.offers import Offer
from swarm.peer.lane.receiver import Receiver
from swarm.peer.lane.scout import DIALS
from swarm.peer.lane.sender import Sender
from swarm.peer.lane.serving import Counts


class Lane:
    """See the module. Made on the event loop. *find*: see Sender. *identity*: both ends show a certificate, then."""

    def __init__(self, find: Callable[[Digest], Awaitable[Offer | None]], identity: Identity | None = None) -> None:
        self._identity = identity
        self._source: str | None = None
        self._sender = Sender(find, tls=identity.server_context() if identity is not None else None)
        self._receiver: Receiver | None = None
        self._listeners: list[Callable[[Address], None]] = []
        self.port = 0
        """TCP port that is listened on; 0: none yet."""

    @property
    def counts(self) -> Counts:
        """What was sent and refused so far."""
        return self._sender.counts

    @property
    def refusals(self) -> dict[tuple[str, str], int]:
        """Requests refused so far: (by, reason) -> count. By "this" node, or by "others"."""
        others = self._receiver.refusals.copy() if self._receiver is not None else {}
        found = {("this", why): count for why, count in self._sender.counts.refused.items()}
        return found | {("others", why): count for why, count in others.items()}

    def start(self, ip: str, port: int) -> int:
        """Listen on *ip*, at *port* if it is free and not 0, else at any; the port. Raises SessionError."""
        self._receiver = Receiver(self._dial, look=partial(self._dial, patience=DIALS))
        self._receiver.well = self._well
        if ip not in ("0.0.0.0", "::", ""):
            self._source = ip  # who is asked knows this node by its swarm address
        with contextlib.suppress(OSError):
            self.port = self._sender.start(ip, port)
        if not self.port:
            try:
                self.port = self._sender.start(ip)
            except OSError as error:
                raise SessionError(f"cannot listen on {ip}: {error.strerror}") from None
        return self.port

    def limit(self, upload: int) -> None:
        """Send *upload* bytes per second at most; 0: no bound."""
        self._sender.throttle.set(upload, time.monotonic())

    def spent(self, count: int) -> None:
        """*count* bytes went to other agents by another way: they count as sent."""
        self._sender.throttle.took(count, time.monotonic())

    async def close(self) -> None:
        """End every connection and every thread."""
        if self._receiver is not None:
            await self._receiver.close()
        await self._sender.close()

    def offer(self, offer: Offer) -> None:
        """Give a blob on its way in to who asks; the offer's use becomes the lane's."""
        self._sender.offer(offer)

    def withdraw(self, digest: Digest, offer: Offer | None = None, *, lost: bool = False) -> None:
        """Give nothing more of it. *lost*: it was found wrong: what is being sent of it breaks off."""
        self._sender.withdraw(digest, offer, lost=lost)

    def submit(self, errand: Errand) -> None:
        """Fetch what *errand* says."""
        assert self._receiver is not None, "start() first"
        self._receiver.submit(errand)

    def dead(self, *, gone: bool = True) -> frozenset[Address]:
        """Agents that are not asked, because they could not be connected to, or were silent: for whichever blob.

        *gone*: with those that have ended, of which the tracker hears as well.
        """
        return self._receiver.dead(gone=gone) if self._receiver is not None else frozenset()

    def on_well(self, listener: Callable[[Address], None]) -> Callable[[], None]:
        """Call *listener* with who gives again after it was given up; returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _well(self, holder: Address) -> None:
        for listener in list(self._listeners):
            listener(holder)

    def cancel(self, errand: Errand) -> None:
        """*errand* is not wanted any more."""
        assert self._receiver is not None, "start() first"
        self._receiver.cancel(errand)

    def _dial(self, address: Address, patience: float = 2.0) -> Link:
        context: ssl.SSLContext | None = None
        if self._identity is not None:
            context = self._identity.client_context()
        return dial(address, source=self._source, tls=context, host=Role.AGENT.host, patience=patience)
