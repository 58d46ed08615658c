"""What stands on the board of one blob, and what each agent is told of it. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarm.blob.digest import Digest
from swarm.blob.geometry import Geometry, geometry
from swarm.protocol.assign import Assignment
from swarm.protocol.availability import Availability
from swarm.protocol.blame import Evidence, Published
from swarm.protocol.leases import Claim, Leases, Scene
from swarm.protocol.participants import Participant, Participants


@dataclass(frozen=True, slots=True)
class Trust:
    """What a board asks of others about its agents. None: it does not matter there.

    *zone_of*: given where each zone brings in a copy of its own. *member_of*: the member that an agent is a process of.
    *may_claim*: whether an agent is trusted to bring windows in; *doubted*: whether there is anybody who is not.
    *proven*: whether an agent has delivered before. *direct*: whether an agent fetches windows from another at once,
    and need not be told apart from the next who asks the same one.
    *alone*: one agent keeps the board for itself, and its word is enough.
    """

    alone: bool = False

    zone_of: Callable[[str], str] | None = None
    member_of: Callable[[str], str] | None = None
    may_claim: Callable[[str], bool] | None = None
    doubted: Callable[[], bool] | None = None
    proven: Callable[[str], bool] | None = None
    direct: Callable[[str, str], bool] | None = None


NOBODY_ELSE = Trust()
"""Of a board that one agent keeps for itself."""


@dataclass(frozen=True, slots=True)
class View:
    """What one agent is told of a board."""

    version: int
    generation: int
    size: int | None
    sealed: bool
    published: dict[int, bytes]
    """Window -> hashes, of the windows that changed since the version that the agent knew."""
    origins: dict[str, int]
    """Origin -> those of them whose bytes are of it (bit w: window w)."""
    claims: tuple[int, ...]
    """All windows that this agent holds a claim on now."""
    hope: bool
    """False: whoever waits for this blob waits in vain."""
    poisoned: bool
    """True: too many wrong copies; go upstream alone."""
    sole: str = ""
    """The only holder of the blob, if *claims* are on windows to fetch from it."""
    available: int | None = None
    """Bit w is set if somebody else holds window w. None: whatever is published is there."""


class Standing:
    """One blob: its record, and the owners of what follows from it. *size* is None until some agent has learned it."""

    def __init__(self, digest: Digest, max_claims: int, trust: Trust) -> None:
        self.digest = digest
        self.size: int | None = None
        self.generation = 0
        self.version = 1
        self.sealed = False
        self.poisoned = False
        self.windows: dict[int, Published] = {}
        self.sole = ""
        """The only holder of this sealed blob, while claims are on windows to fetch from it."""
        self.orphaned = False
        """Sealed, but nobody who delivers holds it whole: its windows come from upstream again, or from each other."""
        self.who = Participants(trust.may_claim, trust.doubted)
        self.available = Availability(self.who, trust.zone_of)
        self.evidence = Evidence(digest, trust.member_of)
        self.leases = Leases(self.who)
        self.tasks = Assignment(self.who, self.available, self.evidence, self.leases, max_claims, trust.proven)
        self._trust = trust
        self._layout: Geometry | None = None
        self._sole_at = 0.0
        """No sole seed before."""
        self._outcasts: set[str] = set()
        """Members whose word against this board counts for themselves alone: they go upstream by themselves."""

    @property
    def participants(self) -> dict[str, Participant]:
        """Who takes part."""
        return self.who.everybody

    @property
    def holders(self) -> set[str]:
        """Agents that hold the whole blob."""
        return self.available.holders

    @property
    def claims(self) -> dict[int, Claim]:
        """Window -> claim."""
        return self.leases.out

    @property
    def complete(self) -> bool:
        """Whether the hashes of all windows are published."""
        return self._layout is not None and len(self.windows) == len(self._layout.windows)

    @property
    def hashes(self) -> bytes:
        """The hashes of all pieces, in order; only when `complete`."""
        return b"".join(self.windows[w].hashes for w in range(len(self.windows)))

    def coming_for(self, agent: str, now: float) -> dict[int, float]:
        """The windows that others than *agent* bring in from upstream, and are alive -> bytes per second so far."""
        if self.sole:
            return {}
        others = {w: claim for w, claim in self.claims.items() if claim.agent != agent and claim.alive(now)}
        return {window: claim.pace(now) for window, claim in others.items()}

    def claims_of(self, agent: str) -> tuple[int, ...]:
        """The windows that *agent* holds a claim on, in order."""
        return self.leases.of(agent)

    def published_since(self, version: int) -> dict[int, bytes]:
        """Window -> hashes, of the windows published after *version* in this generation."""
        newer: dict[int, bytes] = {}
        for window, published in reversed(self.windows.items()):
            if published.version <= version:
                break
            newer[window] = published.hashes
        return newer

    def origins_since(self, version: int) -> dict[str, int]:
        """Origin -> the windows of it (bit w: window w) among those published after *version* in this generation."""
        newer: dict[str, int] = {}
        for window, published in reversed(self.windows.items()):
            if published.version <= version:
                break
            if published.origin:
                newer[published.origin] = newer.get(published.origin, 0) | 1 << window
        return newer

    @property
    def vouched(self) -> bool:
        """Whether two members have seen the sha256 of what stands here."""
        return self.sealed and self.evidence.confirmed

    @property
    def window_count(self) -> int:
        """How many windows the blob has; 0 while the size is unknown."""
        return len(self._layout.windows) if self._layout is not None else 0

    def window_length(self, window: int) -> int:
        """Bytes of *window*; only once the size is known."""
        assert self._layout is not None
        return self._layout.windows[window].length

    def copies(self, window: int) -> int:
        """How many participants hold *window*."""
        return self.available.copies(window)

    @property
    def share(self) -> int:
        """Claims that may be out at once, but for readers of ranges."""
        return self.tasks.share

    def view(self, agent: str, since: int = 0, generation: int | None = None) -> View:
        """What *agent* is told, who last heard version *since* of *generation*."""
        if generation is not None and generation != self.generation:
            since = 0
        return View(
            version=self.version,
            generation=self.generation,
            size=self.size,
            sealed=self.sealed_for(agent),
            published=self.published_since(since),
            origins=self.origins_since(since),
            claims=self.claims_of(agent),
            hope=self.hope(),
            poisoned=self.alone(agent),
            sole=self.sole if self.has_turn(agent) else "",
            available=self.available_for(agent),
        )

    def has_turn(self, agent: str) -> bool:
        """Whether *agent* is to fetch from the sole seed by claims."""
        who = self.who.get(agent)
        return bool(self.sole) and agent != self.sole and who is not None and who.turns > 0

    def sealed_for(self, agent: str) -> bool:
        """Whether *agent* is to fetch the blob whole, from whom it likes."""
        return self.sealed and not self.orphaned and not self.has_turn(agent)

    def available_for(self, agent: str) -> int | None:
        """`elsewhere`, where *agent* must know it: not all that is published is there for it to take."""
        return self.elsewhere if self.orphaned or self.has_turn(agent) else None

    @property
    def elsewhere(self) -> int:
        """Bit w is set if somebody holds window w who is not the sole seed."""
        return self.available.elsewhere(self.sole)

    def alone(self, agent: str) -> bool:
        """Whether *agent* is to go upstream by itself: the board is poisoned, or nobody waits for this agent's word.

        An agent that may claim nothing is told so where nobody else brings in what it needs.
        """
        if self.poisoned or self.evidence.member(agent) in self._outcasts:
            return True
        return not self.who.trusts(agent) and not self.hope()

    def hope(self) -> bool:
        """Whether somebody holds what is missing, brings it in, or may yet try to."""
        if self.holders or self.claims or self.who.hope():
            return True
        return self.complete and self.available.held == self.available.published

    def has(self, zone: str) -> bool:
        """Whether somebody in *zone* holds the whole blob."""
        return self.available.whole_in(zone)

    def can_bring(self, zone: str) -> bool:
        """Whether somebody in *zone* can bring the blob in."""
        return any(self._zone(agent) == zone for agent in self.who.hopeful)

    def next_deadline(self) -> float | None:
        """When `assign` should be called although nothing happened; None: no need."""
        return min([*self.leases.deadlines(), *self.who.deadlines()], default=None)

    # -- for those who write it ------------------------------------------------------------------

    def _scene(self) -> Scene:
        return Scene(self._layout, self.sole, trial=not self.evidence.confirmed and not self._proven(self.sole))

    def _proven(self, agent: str) -> bool:
        return self._trust.proven is None or self._trust.proven(agent)

    def _zone(self, agent: str) -> str:
        return self._trust.zone_of(agent) if self._trust.zone_of is not None else ""

    def _learn(self, size: int) -> None:
        self._layout = geometry(size)
        self.size = size
        self.version += 1
