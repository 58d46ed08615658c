"""What an error of the operating system means for the store: one list per kind, used by everybody who writes."""

from __future__ import annotations

import errno
import os

from swarm.blob.errors import StoreFull

CANNOT_STORE = frozenset(
    {
        # No room.
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM),
        # No descriptor.
        *(errno.EMFILE, errno.ENFILE),
        # The disk, or the way to it, is broken or closed to us.
        *(errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.EUCLEAN, errno.EBADMSG),
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EACCES, errno.EPERM),
        # The directory was taken away, or something else stands in its place.
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP),
    }
)
"""The blob cannot be kept on this node now, and may still be passed through. What is missing here is a defect."""

SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})
"""This process or host lacks something for a moment: that says nothing about the file that was to be read."""


def translate(error: OSError) -> Exception:
    """StoreFull for an error that means "this cannot be stored now", else *error* itself."""
    if error.errno in CANNOT_STORE:
        return StoreFull(f"cannot store: {os.strerror(error.errno or 0)}")
    return error


def is_scarcity(error: OSError) -> bool:
    """Whether *error* says nothing about the file that was to be read."""
    return error.errno in SCARCE
