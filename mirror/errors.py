"""What can go wrong on the agent's own side of a request, or of its set-up.

MirrorError
├── Refusal              an answer that is no content, in the registry's own form
├── BodyAborted          the body could not be completed, and the connection is cut
├── RangeUnsatisfiable   the range lies outside the blob (416)
├── NotAsAsked           a thread was answered something else than just the range that it asked for
├── FormInvalid          what somebody sent or wrote is in no form that can be read
│   ├── UrlInvalid       what stands behind a streaming prefix is no URL
│   ├── LinkInvalid      a Link header does not say which page is next
│   ├── CodingInvalid    a content coding that cannot be undone
│   ├── HostsInvalid     a hosts.toml that nothing can be added to safely
│   └── ConfigInvalid    containerd's config.toml cannot be read as containerd would
├── SettingsInvalid      a file or variable that the settings name cannot be used
│   ├── RegistriesInvalid    the registries file, or a certificate that it names
│   ├── DockerConfigInvalid  a Docker config.json
│   ├── ProvidersInvalid     kubelet's credential provider configuration
│   └── ProxyInvalid         HTTP_PROXY and its kin
└── SetupError           containerd's files cannot be changed as asked

Upstream's failures are the swarm's (swarm/blob/errors.py: SourceError), so that it can tell them apart. Three are ours:

SourceRefused
└── Forbidden            our own rules say no, before upstream is asked
SourceBroken
└── TimedOut             nothing came in time
SourceSilent
└── Unreachable          the host answers nothing at all
"""

from __future__ import annotations

import json

from swarm.blob.errors import SourceBroken, SourceRefused, SourceSilent

_STATUS = {
    "BLOB_UNKNOWN": 404,
    "MANIFEST_UNKNOWN": 404,
    "NAME_UNKNOWN": 404,
    "MANIFEST_INVALID": 502,
    "NAME_INVALID": 400,
    "DIGEST_INVALID": 400,
    "TAG_INVALID": 400,
    "UNAUTHORIZED": 401,
    "DENIED": 403,
    "UNSUPPORTED": 405,
    "TOOMANYREQUESTS": 503,
    "UNAVAILABLE": 503,
    "RANGE_INVALID": 416,
}


class MirrorError(Exception):
    """Base of everything that this package raises on purpose, but for what upstream does."""


class NotAsAsked(MirrorError):
    """A thread's way does not lead to the range any more, or not to it alone. Nothing of it was used.

    *status*: that of the answer; 0: there was none.
    """

    def __init__(self, status: int = 0) -> None:
        super().__init__(status)
        self.status = status


class Refusal(MirrorError):
    """An answer that is no content, as the specification wants it (distribution-spec, "Error Codes")."""

    def __init__(
        self, code: str, message: str, *, status: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = _STATUS[code] if status is None else status
        self.headers = headers or {}

    def body(self) -> bytes:
        """The JSON document `{"errors": [{"code", "message", "detail"}]}`."""
        return json.dumps({"errors": [{"code": self.code, "message": str(self), "detail": None}]}).encode()


class BodyAborted(MirrorError):
    """The body could not be completed, and the connection is cut."""


class RangeUnsatisfiable(MirrorError):
    """The range lies outside the blob: 416 with `Content-Range: bytes */size`."""


class FormInvalid(MirrorError, ValueError):
    """What somebody sent or wrote is in no form that can be read; one line that says why, and quotes no secret."""


class UrlInvalid(FormInvalid):
    """What stands behind the prefix is no absolute http or https URL. The text never holds the URL."""


class LinkInvalid(FormInvalid):
    """The header does not say which page is next in a way that can be followed: a list must not end there."""


class CodingInvalid(FormInvalid):
    """The coding is not known here, or the bytes are not in it."""


class HostsInvalid(FormInvalid):
    """The file is none that we can add to safely; one line that says why."""


class ConfigInvalid(FormInvalid):
    """The file cannot be read as containerd would; one line that says why."""


class SettingsInvalid(MirrorError, ValueError):
    """A file or variable that the settings name cannot be used; one line that says which and why, without secrets."""


class RegistriesInvalid(SettingsInvalid):
    """The registries file cannot be used; the text is one line that says where and why."""


class DockerConfigInvalid(SettingsInvalid):
    """The file cannot be used; the text is one line that says where and why, and holds no secret."""


class ProvidersInvalid(SettingsInvalid):
    """The configuration of credential providers cannot be used; one line that says where and why."""


class ProxyInvalid(SettingsInvalid):
    """The environment names something that is no proxy; one line, without user and password."""


class SetupError(MirrorError):
    """containerd's files cannot be changed as asked; nothing was changed. One line."""


class Forbidden(SourceRefused):
    """Our own rules say no, before upstream is asked. Always has status 403."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=403)


class Unreachable(SourceSilent):
    """The host answers nothing at all: no connection, or no byte on one, and none on another."""


class TimedOut(SourceBroken):
    """Nothing came in time."""
