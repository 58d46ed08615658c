"""What a tracker refuses, and how each refusal is said on the wire.

TrackerError
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
