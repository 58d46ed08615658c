"""The board of one blob, followed wherever it is: at the tracker that is responsible, or on this node.

Owns the link, what the board has told (swarm/fetch/news.py), and the publications under way. Every
answer of the board enters one queue. One task applies them, each whole, in the order of arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from swarm.blob.digest import Digest
from swarm.blob.errors import BlobCorrupt, NotAMember, TrackerError, TrackerRefused
from swarm.fetch.demand import Demand
from swarm.fetch.events import PeerAddress, Poisoned
from swarm.fetch.news import Asked, News
from swarm.fetch.others import Others
from swarm.fetch.standing import Node
from swarm.protocol import wire
from swarm.protocol.board import Failure
from swarm.tracking.boards import BoardLink, LocalBoard, RemoteBoard
from swarm.tracking.trackers import Link, Trackers

log = logging.getLogger("shoal.swarm")

LONGEST_PAUSE = 2.0
"""Seconds between two tries to join a board whose tracker refuses what this agent tells."""

UNHEARD = 4.0
"""Seconds after which a board that does not act on a rejection is left: one node's word may not be enough for it."""

PUBLISHING = 8
"""Publications on their way at once: after a restart a blob may have hundreds of windows to tell."""


@dataclass(slots=True)
class _Heard:
    """An answer on its way through the queue."""

    board: BoardLink
    answer: wire.BoardAnswer
    asked: Asked
    done: asyncio.Future[None]


class Follower:
    """See the module. *spawn* starts a task that ends with the fetch.

    Above the bound of methods: what the board says is asked of it alone, each question a method of one line or two.
    """

    def __init__(
        self,
        digest: Digest,
        trackers: Trackers,
        node: Node,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._digest = digest
        self._trackers = trackers
        self._node = node
        self._spawn = spawn
        self._news = News(node.sums)
        self._board: BoardLink = LocalBoard(digest)
        self._link: Link | None = None
        self._shunned: set[Link] = set()
        self._alone = False
        self._tried: asyncio.Task[None] | None = None
        """Asks a tracker that has failed about the blob, while another board is followed."""
        self._trusted: Link | None = None
        """It has answered that."""
        self._lost = False
        """A tracker has failed since this began."""
        self._forsaken: BoardLink | None = None
        """A tracker's board that was given up for one of our own, and has not been told so."""
        self._told: Demand | None = None
        self._nudge = asyncio.Event()
        self._others = Others()
        self._at_once = False
        """The next poll is not to be held back."""
        self._unheard = False
        """The last poll was given up before its answer came."""
        self._heard: asyncio.Queue[_Heard] = asyncio.Queue()
        self._publishing: set[int] = set()
        self._sending = asyncio.Semaphore(PUBLISHING)
        self._all_told = asyncio.Event()
        self._all_told.set()
        self._rejection: tuple[int, str, float] | None = None
        """Generation, reason and time of a rejection that the board has not acted on."""

    # -- what is known ----------------------------------------------------------------------------

    @property
    def hashes(self) -> Mapping[int, bytes]:
        """Window -> piece hashes, of all windows that are published."""
        return self._news.hashes

    @property
    def origins(self) -> Mapping[int, str]:
        """Window -> of which origin its bytes are, of the published windows that are of one."""
        return self._news.origins

    @property
    def sealed(self) -> bool:
        """Whether somebody has seen the sha256 of what the board says."""
        return self._news.sealed or self._news.sole is not None

    @property
    def vouched(self) -> bool:
        """Whether two members have."""
        return self._news.vouched

    @property
    def peers(self) -> tuple[PeerAddress, ...]:
        """Other agents that take part."""
        return self._news.peers

    @property
    def generation(self) -> int:
        """Of the board."""
        return self._news.generation

    @property
    def hope(self) -> bool:
        """Whether the board knows who may bring in what is missing."""
        return self._news.hope

    @property
    def shared(self) -> bool:
        """Whether others see the same board."""
        return self._board.shared

    @property
    def tracker(self) -> str | None:
        """URL of the tracker whose board is followed; None: the board is this node's own."""
        return self._link.url if self._link is not None else None

    @property
    def publishing(self) -> frozenset[int]:
        """Windows whose hashes are on their way to the board."""
        return frozenset(self._publishing)

    @property
    def others(self) -> Others:
        """What others bring in from upstream."""
        return self._others

    def ask_of_others(self) -> None:
        """Ask the board who brings what in, if it has not said so lately."""
        if self._others.is_stale(time.monotonic()) and self._board.shared and not self._at_once:
            self._at_once = True
            self._nudge.set()

    # -- what the node decides --------------------------------------------------------------------

    def sized(self, size: int) -> None:
        """This node knows the size. The others wait for it: a board that does not know it is told at once."""
        if self._news.size is None and self._news.incarnation:
            self._nudge.set()
        self._news.sized(size)

    def tell(self) -> None:
        """Poll the board if it does not know what the readers want: a read of what is here costs no question."""
        if not self._news.hope or self._node.standing().demand != self._told:
            self._nudge.set()

    def poll(self) -> None:
        """Poll the board now."""
        self._nudge.set()

    def again(self) -> None:
        """Have the board tell everything once more: something may have been missed."""
        self._news.again()
        self._nudge.set()

    def ban(self, peer: PeerAddress) -> None:
        """*peer* sent wrong bytes."""
        self._news.ban(peer)

    def prefer_all_peers(self) -> None:
        """From now on the blob is fetched from everybody, whatever the board says of a sole seed."""
        self._news.prefer_all_peers()
        self._nudge.set()

    # -- what the board is told -------------------------------------------------------------------

    def publish(self, window: int, *, again: bool = False) -> bool:
        """Tell the board the hashes of *window*, which is here. Whether it did not know them, or (*again*) may."""
        if window in self._publishing or (self._news.knows(window) and not again):
            return False
        hashes = self._node.sums(window)
        if hashes is None:
            return False
        origin = self._node.origin()
        self._news.tell(window, hashes, origin)
        self._publishing.add(window)
        self._all_told.clear()
        self._spawn(self._publish(window, hashes, origin, self._news.generation))
        return True

    async def release(self, windows: tuple[int, ...], failure: Failure, retry_after: float | None = None) -> bool:
        """Give claims back; whether there is still hope. A board that does not answer leaves it."""
        board = self._board
        message = wire.Release(
            **self._me(),
            incarnation=self._news.incarnation,
            windows=windows,
            failure=failure.value,
            retry_after=retry_after,
        )
        try:
            answer = await board.release(message)
        except TrackerError:
            return True
        finally:
            self._nudge.set()
        await self._hear(board, answer, Asked(None))
        return answer.hope

    async def progress(self, done: dict[int, int], waiting: dict[int, float], upstream_timeout: float) -> None:
        """Keep claims alive. *done*: window -> bytes that have arrived. *waiting*: window -> seconds without one.

        *upstream_timeout*: seconds that upstream has for its first byte.
        """
        board = self._board
        message = wire.Progress(
            **self._me(),
            incarnation=self._news.incarnation,
            generation=self._news.generation,
            done=done,
            waiting=waiting,
            upstream_timeout=upstream_timeout,
            have=wire.bitmap(self._node.standing().have),
        )
        with contextlib.suppress(TrackerError):
            await self._hear(board, await board.progress(message), Asked(None))

    async def seal(self) -> None:
        """The sha256 matched. Told after every publication was answered: an incomplete board cannot be sealed."""
        with contextlib.suppress(TrackerError):
            await self._all_told.wait()
            news = self._news
            seal = wire.Seal(**self._me(), incarnation=news.incarnation, generation=news.generation)
            await self._board.seal(seal)

    async def reject(self, reason: str, *, leave: bool = False) -> None:
        """What the board describes is wrong. Told again until the board begins anew; *leave*: it is left at once."""
        self._news.reject()
        self._rejection = self._news.generation, reason, time.monotonic() - (UNHEARD if leave else 0.0)
        await self._tell_rejection()
        self._nudge.set()
        asyncio.get_running_loop().call_later(UNHEARD, self._nudge.set)

    async def leave(self, claims: tuple[int, ...]) -> None:
        """The fetch ends: hand its claims over. Raises TrackerError."""
        if claims:
            message = wire.Release(
                **self._me(),
                incarnation=self._news.incarnation,
                windows=claims,
                failure=Failure.HANDED_OVER.value,
            )
            await self._board.release(message)
        await self._board.leave(wire.Leave(**self._me()))
        await self._leave_forsaken()

    # -- tasks ------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Follow the board at whichever tracker is responsible, or one of our own. Runs until it is cancelled."""
        trackers = self._trackers
        unsubscribe = trackers.on_change(self._nudge.set)
        refusals = 0
        try:
            while True:
                link = None if self._alone else trackers.pick(self._digest)
                if link in self._shunned or (self._lost and self._is_doubted(link)):
                    link = None
                self._trusted = None
                self._link = link
                self._board = RemoteBoard(link) if link is not None else self._own_board()
                self._news.moved()
                joined = time.monotonic()
                try:
                    await self._use(link)
                    self._forsake()
                except NotAMember as error:
                    assert link is not None
                    log.warning("not-a-member", extra={"fields": {"tracker": link.url, "error": str(error)}})
                    self._shunned.add(link)
                except TrackerRefused as error:
                    # It is there: join again, at once at first, as after its restart.
                    refusals = refusals + 1 if time.monotonic() - joined < LONGEST_PAUSE else 0
                    log.info("board-refused", extra={"fields": {"digest": self._digest, "error": str(error)}})
                    await asyncio.sleep(min(LONGEST_PAUSE, 0.05 * (2**refusals - 1)))
                except TrackerError as error:
                    log.info("board-lost", extra={"fields": {"digest": self._digest, "error": str(error)}})
                    self._lost = True
                    if link is not None:
                        trackers.failed(link)
        finally:
            unsubscribe()

    async def apply(self) -> None:
        """Apply every answer that was heard, one after the other. Runs until it is cancelled."""
        while True:
            heard = await self._heard.get()
            try:
                if heard.board is self._board:
                    await self._apply(heard.answer, heard.asked)
            except TrackerError as error:
                if not heard.done.done():
                    heard.done.set_exception(error)
                    heard.done.exception()
            finally:
                if not heard.done.done():
                    heard.done.set_result(None)
            await asyncio.sleep(0)  # hundreds may be waiting: others on this loop come in between

    async def _apply(self, answer: wire.BoardAnswer, asked: Asked) -> None:
        for event in self._news.apply(answer, asked):
            if isinstance(event, Poisoned):
                log.error("board-poisoned", extra={"fields": {"digest": self._digest}})
                if not self._board.shared:
                    raise BlobCorrupt(f"the bytes do not match {self._digest}, however often they are fetched")
                self._alone = True
                self._nudge.set()
            await self._node.handle(event)
        self._others.hear(self._news.incarnation, self._news.coming, time.monotonic())
        await self._node.applied()

    async def _hear(self, board: BoardLink, answer: wire.BoardAnswer, asked: Asked) -> None:
        """Have *answer* applied, after all that was heard before it. Raises TrackerError if it makes no sense."""
        heard = _Heard(board, answer, asked, asyncio.get_running_loop().create_future())
        self._heard.put_nowait(heard)
        await heard.done

    def _forsake(self) -> None:
        """Alone from now on: claims at the tracker's board go to others at once, not after a lease."""
        if self._alone and self._board.shared:
            self._forsaken = self._board
            self._spawn(self._leave_forsaken())

    async def _leave_forsaken(self) -> None:
        board = self._forsaken
        if board is not None:
            with contextlib.suppress(TrackerError):
                await board.leave(wire.Leave(**self._me()))
                self._forsaken = None

    async def _use(self, link: Link | None) -> None:
        """Poll one board until another one is responsible."""
        while True:
            await self._tell_rejection()
            if self._is_elsewhere(link):
                return
            self._nudge.clear()
            asked, message = self._question()
            answer = await self._polled(link, message)
            self._unheard = answer is None
            if answer is not None:
                await self._hear(self._board, answer, asked)

    async def _polled(self, link: Link | None, message: wire.BoardPoll) -> wire.BoardAnswer | None:
        """What the board answers; None: something changed, and it is asked again, or another board is."""
        poll = asyncio.ensure_future(self._board.poll(message))
        nudge = asyncio.ensure_future(self._nudge.wait())
        try:
            while True:
                await asyncio.wait((poll, nudge), return_when=asyncio.FIRST_COMPLETED)
                # What is answered at once is waited for: a nudge would cost its answer, and the connection.
                if poll.done() or message.wait or self._is_elsewhere(link):
                    return poll.result() if poll.done() else None
                self._nudge.clear()
                nudge = asyncio.ensure_future(self._nudge.wait())
        finally:
            for task in (poll, nudge):
                task.cancel()
            await asyncio.gather(poll, nudge, return_exceptions=True)

    def _is_elsewhere(self, link: Link | None) -> bool:
        """Whether another board than that at *link* is to be followed from now on.

        A tracker that has failed about the blob is asked first: what works meanwhile is not left for a mere hope.
        """
        trackers, picked = self._trackers, None if self._alone else self._trackers.pick(self._digest)
        if picked is link or (picked is not None and picked in self._shunned):
            return False
        works = link is None or trackers.may_ask(link, self._digest)
        if picked is None or not works or not self._is_doubted(picked):
            return True
        if self._tried is None or self._tried.done():
            self._tried = self._spawn(self._try(picked))
        return False

    def _is_doubted(self, link: Link | None) -> bool:
        """Whether it is to be seen whether *link* answers about the blob."""
        return link is not None and link is not self._trusted and self._trackers.is_doubted(link, self._digest)

    async def _try(self, link: Link) -> None:
        """Ask whether *link* answers about the blob; what else it says is asked again."""
        try:
            with contextlib.suppress(TrackerRefused):  # an answer: whoever follows the board there acts on it
                await RemoteBoard(link).poll(wire.BoardPoll(**self._me()))
        except TrackerError:
            return
        self._trusted = link
        self._nudge.set()

    def _question(self) -> tuple[Asked, wire.BoardPoll]:
        now, news = self._node.standing(), self._news
        self._told = now.demand
        # The last answer may have been on its way when its poll was given up, and who holds a window is told once.
        missed = self._unheard and bool(now.demand.prefer)
        wait = now.wait if news.incarnation and not self._at_once and not missed else 0.0
        self._at_once = False
        message = wire.BoardPoll(
            **self._me(),
            incarnation=news.incarnation,
            generation=news.generation,
            since=news.since,
            wait=wait,
            size=now.size,
            want=now.demand.want,
            prefer=now.demand.prefer,
            only_preferred=now.demand.only_preferred,
            claims=now.claims,
            have=wire.bitmap(now.have),
            stalled=now.stalled,
            turns=now.demand.turns,
            direct=now.direct,
            concurrent=now.demand.concurrent,
        )
        return Asked(news.since), message

    def _own_board(self) -> LocalBoard:
        """A board of our own; windows that peers are sending us need not come from upstream."""
        board, now, known = LocalBoard(self._digest), self._node.standing(), self._news.hashes
        if now.size is not None and not self._alone:
            board.others_hold(now.size, {w: known[w] for w in now.coming if w in known}, self._news.origins)
        return board

    async def _publish(self, window: int, hashes: bytes, origin: str, generation: int) -> None:
        board, news = self._board, self._news
        try:
            async with self._sending:
                if board.shared:
                    await self._node.offer(window)
                if board is not self._board or generation != news.generation or news.size is None:
                    return  # these hashes are another board's, or another generation's
                asked = Asked(news.since)
                answer = await board.publish(
                    wire.Publish(
                        **self._me(),
                        incarnation=news.incarnation,
                        generation=generation,
                        size=news.size,
                        window=window,
                        hashes=hashes,
                        origin=origin,
                        since=news.since,
                    )
                )
        except TrackerError:
            if board is self._board and generation == news.generation:
                news.untell(window)  # it is told again after the next answer
            return
        finally:
            self._publishing.discard(window)
            if not self._publishing:
                self._all_told.set()
        with contextlib.suppress(TrackerError):
            await self._hear(board, answer, asked)

    async def _tell_rejection(self) -> None:
        """Tell the board of a rejection that it has not acted on: the first telling may have been lost."""
        if self._rejection is None:
            return
        generation, reason, since = self._rejection
        news = self._news
        if not news.rejected:
            self._rejection = None
            return
        if self._board.shared and time.monotonic() - since >= UNHEARD:
            log.warning("board-left", extra={"fields": {"digest": self._digest, "why": reason}})
            self._alone = True
            return
        message = wire.Reject(**self._me(), incarnation=news.incarnation, generation=generation, reason=reason)
        with contextlib.suppress(TrackerError):
            await self._board.reject(message)

    def _me(self) -> dict[str, Any]:
        return {**self._trackers.me(), "digest": self._digest}
