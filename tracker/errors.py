"""What can go wrong in a tracker: what it refuses, with how that is said on the wire, and what it is refused.

TrackerError
├── DiscoveryError      the members cannot be found as configured
├── ApiError            the Kubernetes API did not do what was asked
├── NameUnresolved      a name has no address now, or no server said so
└── Refused             what was asked is not given; one line says why
    ├── Malformed       400: the request makes no sense
    ├── Locked          401: a token is needed
    ├── Closed          403: this is not answered here, or not to whoever asks
    ├── NotAMember      403: whoever asks is no member
    ├── Forbidden       403: whoever asks has not the token
    ├── Unknown         404: there is no such blob, torrent or page of them
    ├── Outdated        409: meant for another incarnation of this tracker, or of the agent
    ├── NoJson          415: the body is not declared to be JSON
    └── Unready         503: stopping, not ready yet, or full: ask another tracker
"""

from __future__ import annotations


class TrackerError(Exception):
    """Base of everything that this package raises on purpose."""


class DiscoveryError(TrackerError):
    """The members cannot be found as configured; one line that says why, without secrets."""


class ApiError(TrackerError):
    """The API did not do what was asked. *status*: HTTP status, or 0 if there was no answer."""

    def __init__(self, reason: str, *, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after = retry_after
        """Seconds that the server asked us to wait."""


class NameUnresolved(TrackerError):
    """The name has no address now, or no server said so. The text is one line."""


class Refused(TrackerError):
    """The answer is a refusal. *status*: of the HTTP answer; *code*: of wire.Problem."""

    status = 400
    code = "refused"


class Malformed(Refused):
    """The request makes no sense."""

    status = 400
    code = "malformed"


class NotAMember(Refused):
    """Whoever asks is no member."""

    status = 403
    code = "not-a-member"


class Forbidden(Refused):
    """Whoever asks has not the token."""

    status = 403
    code = "forbidden"


class Unknown(Refused):
    """There is no such thing."""

    status = 404
    code = "unknown"


class Outdated(Refused):
    """Meant for another incarnation."""

    status = 409
    code = "join-again"


class Unready(Refused):
    """Ask another tracker."""

    status = 503
    code = "unready"


class Closed(Refused):
    """This is not answered here, or not to whoever asks."""

    status = 403
    code = "closed"


class Locked(Refused):
    """A token is needed."""

    status = 401
    code = "locked"


class NoJson(Refused):
    """The body is not declared to be JSON."""

    status = 415
    code = "no-json"
