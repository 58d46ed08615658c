"""What can go wrong with a blob on this node.

SwarmError
├── DigestInvalid        a name that is no sha256 digest
├── BadHashes            piece hashes that cannot belong to the blob (count, length)
├── SourceError          upstream, as the swarm sees it
│   ├── SourceRefused    upstream will not give this blob to this agent (401, 403, 404, 451)
│   ├── SourceBusy       upstream asks us to come back later (429, 503 with Retry-After)
│   ├── SourceBroken     network error, 5xx, short body: another try may work
│   │   └── SourceSilent it had all the time that upstream is given: asking again at once is useless
│   └── SizeChanged      upstream says another size than the board
├── BlobUnavailable      nobody can bring the blob in: the client should go upstream itself
├── BlobCorrupt          the bytes do not match the digest, after every retry
├── BlobUnreadable       the copy on this node rotted or cannot be read: the rest must come from elsewhere
├── Unproven             what is here, or with others, is not of the reader's origin: pass upstream's bytes through
├── StoreFull            the blob does not fit (budget or disk): pass it through instead
├── StoreUnusable        the store directory cannot be used: another process has it, or no permission
├── Stopped              nobody wants the hash any more that was being computed
├── ShortFile            a file ends before the bytes that were to be hashed
├── SessionError         libtorrent could not do what was asked
├── Malformed            what the other end of a lane said is no HTTP, or too long
├── Unserved             none of the holders gave what was asked over the lane
├── Cancelled            nobody wants any more what was asked of another agent
├── Unwritable           the file cannot be written, and that is no lack of room
├── IdentityError        certificates that cannot be used, or a peer without one
└── TrackerError         a tracker did not answer
    └── TrackerRefused   it answered, and does not take what it was told: another incarnation, a quarantine
        └── NotAMember   it does not count this agent among the members
"""

from __future__ import annotations


class SwarmError(Exception):
    """Base of everything that this package raises on purpose."""


class DigestInvalid(SwarmError, ValueError):
    """The text is no sha256 digest."""


class BadHashes(SwarmError, ValueError):
    """The piece hashes cannot belong to the blob."""


class SourceError(SwarmError):
    """Upstream did not give the bytes. *status*: the HTTP status if there was one."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        """Seconds that upstream asked us to wait."""


class SourceRefused(SourceError):
    """Upstream will not give this blob to this agent, and asking again does not help."""


class SourceBusy(SourceError):
    """Upstream asks us to come back later."""


class SourceBroken(SourceError):
    """Upstream failed in a way that another try may mend."""


class SourceSilent(SourceBroken):
    """Upstream sent no first byte in all the time that it is given; another try at once is useless."""


class SizeChanged(SourceError):
    """Upstream says another size than the board."""


class BlobUnavailable(SwarmError):
    """Nobody can bring the blob in. *cause* is what upstream said to this agent, if it was asked."""

    def __init__(self, message: str, *, cause: SourceError | None = None) -> None:
        super().__init__(message)
        self.cause = cause


class BlobCorrupt(SwarmError):
    """The bytes do not match the digest, after every retry."""


class BlobUnreadable(SwarmError):
    """A complete copy on this node's disk rotted or cannot be read. It was given up; what was sent of it is right."""


class Unproven(SwarmError):
    """What is here of the blob, or with others, is the word of somebody who may have asked another place for it."""


class StoreFull(SwarmError):
    """The blob does not fit into the budget or onto the disk."""


class StoreUnusable(SwarmError):
    """The store directory cannot be used: another process has it, or permission is missing."""


class Stopped(SwarmError):
    """Nobody wants the hash any more that was being computed."""


class ShortFile(SwarmError):
    """The file ends before the bytes that were to be hashed."""


class SessionError(SwarmError):
    """libtorrent could not do what was asked."""


class Malformed(SwarmError, ValueError):
    """What the other end of a lane said is no HTTP, or too long."""


class Unserved(SwarmError):
    """None of the holders gave what was asked over the lane."""


class Cancelled(SwarmError):
    """Nobody wants any more what was asked of another agent."""


class Unwritable(SwarmError):
    """The file cannot be written, and that is no lack of room."""


class IdentityError(SwarmError):
    """Certificates that cannot be used, or a peer without one. One line, never a key."""


class TrackerError(SwarmError):
    """A tracker did not answer in time, or nothing that can be understood."""


class TrackerRefused(TrackerError):
    """The tracker is there, and does not take what it was told."""


class NotAMember(TrackerRefused):
    """The tracker does not count this agent among the members."""
