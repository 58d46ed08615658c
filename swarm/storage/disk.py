"""Where the store keeps things, and the blocking file operations on them: each is safe to be killed in.

    lock                  held by the process that uses the directory (flock)
    blobs/sha256/<hex>    complete, verified blobs
    meta/sha256/<hex>.json  what was verified (swarm.storage.sidecar.Meta); its mtime is the time of last use
    staging/<hex>         a blob on its way in: sparse, of its full size
    staging/<hex>.log     the pieces that it has; its mtime is the time of last use
    trash/                renamed here to vanish from its name at once, deleted a moment later

A blob enters in the order data, meta, name: a name without a meta, or a meta that does not fit the
file, only costs another read of the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from swarm.blob.digest import Digest, from_hex, hex_of
from swarm.blob.errors import DigestInvalid, ShortFile, StoreUnusable
from swarm.blob.geometry import geometry
from swarm.storage.errnos import is_scarcity, translate
from swarm.storage.hashing import Sums, piece_hashes, sums
from swarm.storage.sidecar import (
    Meta,
    Stamp,
    decode_meta,
    encode_meta,
    log_header,
    log_owner,
    log_records,
    parse_log,
    stamp_of,
    take_owner,
)

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>
_NO_PUNCH = {errno.EOPNOTSUPP, errno.ENOSYS}
_libc = ctypes.CDLL(None, use_errno=True)


class Directory:
    """The paths under one store directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.metas = root / "meta" / "sha256"
        self.stagings = root / "staging"
        self.trash = root / "trash"
        self.rooms = (self.blobs, self.metas, self.stagings, self.trash)

    def blob(self, digest: Digest) -> Path:
        """The complete blob."""
        return self.blobs / hex_of(digest)

    def meta(self, digest: Digest) -> Path:
        """What was verified about it."""
        return self.metas / f"{hex_of(digest)}.json"

    def staging(self, digest: Digest) -> Path:
        """The blob while it comes in."""
        return self.stagings / hex_of(digest)

    def log(self, digest: Digest) -> Path:
        """Its piece log."""
        return self.stagings / f"{hex_of(digest)}.log"


@dataclass(frozen=True, slots=True)
class FoundBlob:
    """A complete blob found on disk. *meta*: None if it is missing, or speaks of another file."""

    digest: Digest
    stamp: Stamp
    meta: Meta | None
    used: float


@dataclass(frozen=True, slots=True)
class FoundPartial:
    """A partial blob found on disk. *pieces*: what its log claims, not checked."""

    digest: Digest
    size: int
    allocated: int
    pieces: dict[int, bytes]
    used: float
    origin: str


def make(directory: Directory) -> bool:
    """Make those directories that are not there; whether any was missing. Raises OSError."""
    missing = [path for path in directory.rooms if not path.is_dir()]
    for path in missing:
        path.mkdir(parents=True, exist_ok=True)
    return bool(missing)


def prepare(directory: Directory) -> int:
    """Make the directories and take the lock: its descriptor. Raises StoreUnusable."""
    try:
        make(directory)
        fd = os.open(directory.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnusable(f"store directory {directory.root}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StoreUnusable(f"store directory {directory.root} is in use by another process") from None
    return fd


def scan(directory: Directory) -> tuple[list[FoundBlob], list[FoundPartial]]:
    """What a former process left. Deletes what it had begun and cannot be used."""
    for path in directory.trash.iterdir():
        clear(path)
    blobs = _scan_blobs(directory)
    partials = _scan_stagings(directory, {blob.digest for blob in blobs})
    return blobs, partials


def _scan_blobs(directory: Directory) -> list[FoundBlob]:
    found = []
    for path in directory.blobs.iterdir():
        digest = _named(path.name)
        if digest is None or not path.is_file() or path.is_symlink():
            _discard(path)
            continue
        stamp = stamp_of(path.stat())
        meta, used = None, stamp.mtime_ns / 1e9
        with contextlib.suppress(OSError):
            meta = decode_meta(directory.meta(digest).read_bytes())
            used = directory.meta(digest).stat().st_mtime
        if meta is not None and len(meta.hashes) != 20 * geometry(stamp.size).pieces:
            meta = None
        found.append(FoundBlob(digest, stamp, meta if meta and meta.stamp == stamp else None, used))
    known = {directory.meta(blob.digest).name for blob in found}
    for path in directory.metas.iterdir():
        if path.name not in known:
            _discard(path)
    return found


def _scan_stagings(directory: Directory, complete: set[Digest]) -> list[FoundPartial]:
    found = []
    kept: set[str] = set()
    for path in directory.stagings.iterdir():
        digest = _named(path.name)
        if digest is None or digest in complete or not path.is_file() or path.is_symlink():
            continue
        log = directory.log(digest)
        with contextlib.suppress(OSError):
            stat = path.stat()
            parsed = parse_log(log.read_bytes())
            origin = take_owner(parsed[1]) if parsed else ""
            if parsed and parsed[0] == stat.st_size and parsed[1]:
                pieces = {i: sha1 for i, sha1 in parsed[1].items() if i < geometry(stat.st_size).pieces}
                used = log.stat().st_mtime
                found.append(FoundPartial(digest, stat.st_size, stat.st_blocks * 512, pieces, used, origin))
                kept |= {path.name, log.name}
    for path in directory.stagings.iterdir():
        if path.name not in kept:
            _discard(path)
    return found


def create(path: Path, log: Path, size: int, origin: str) -> tuple[int, int]:
    """Begin a blob: descriptors of the sparse file and of its log. Leaves nothing behind if it fails."""
    fd = log_fd = -1
    try:
        for old in (path, log):
            clear(old)
        log_fd = os.open(log, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        write_at(log_fd, log_header(size) + log_records(log_owner(origin)), 0)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, size)
    except OSError as error:
        for opened in (fd, log_fd):
            if opened >= 0:
                os.close(opened)
        for half in (path, log):
            with contextlib.suppress(OSError):
                half.unlink(missing_ok=True)
        raise translate(error) from None
    return fd, log_fd


def verify(
    path: Path, size: int, pieces: Mapping[int, bytes], trusted: Stamp | None, stop: threading.Event
) -> dict[int, bytes]:
    """Those of *pieces* that the partial blob at *path* really has; empty if it is not of *size* bytes.

    If the file still has the stamp *trusted* they are taken as they are. Raises Stopped, StoreFull.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise translate(error) from None
    try:
        stamp = stamp_of(os.fstat(fd))
        if stamp == trusted:
            return dict(pieces)
        if stamp.size != size:
            return {}
        real = piece_hashes(fd, geometry(size), sorted(pieces), stop)
        return {piece: sha1 for piece, sha1 in real.items() if pieces[piece] == sha1}
    except OSError as error:
        if is_scarcity(error):
            raise translate(error) from None
        return {}  # it cannot be read: brought in again, into another file
    finally:
        os.close(fd)


def reopen(path: Path, log: Path, size: int, pieces: Mapping[int, bytes], origin: str) -> tuple[int, int]:
    """Go on with a partial blob that has *pieces*: descriptors of the file and of its log. Raises StoreFull."""
    fd = log_fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        log_fd = os.open(log, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        rewrite_log(log_fd, size, pieces, origin)
    except OSError as error:
        for opened in (fd, log_fd):
            if opened >= 0:
                os.close(opened)
        raise translate(error) from None
    return fd, log_fd


def rewrite_log(fd: int, size: int, pieces: Mapping[int, bytes], origin: str) -> int:
    """Make the log say just *pieces*, of *origin*; its length in bytes. Killed in between, only hints are lost."""
    data = log_header(size) + log_records(log_owner(origin)) + log_records(pieces)
    write_at(fd, data, 0)
    os.ftruncate(fd, len(data))
    return len(data)


def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of *data*. Raises OSError."""
    view = memoryview(data).cast("B")
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def write_whole(path: Path, data: bytes) -> None:
    """Put *data* at *path* at once: old or new, never half. Raises OSError, and leaves nothing behind then."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        clear(temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_at(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        _take_name(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def commit(directory: Directory, digest: Digest, fd: int, hashes: bytes) -> Stamp:
    """Give the staged file its name among the complete blobs: its stamp. Raises StoreFull; undone then."""
    final, temporary = directory.blob(digest), directory.blobs / f".{hex_of(digest)}.new"
    try:
        os.fdatasync(fd)
        stamp = stamp_of(os.fstat(fd))
        write_whole(directory.meta(digest), encode_meta(stamp, hashes))
        _sync_directory(directory.metas)
        clear(temporary)
        temporary.hardlink_to(directory.staging(digest))
        _take_name(temporary, final)
        _sync_directory(directory.blobs)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise translate(error) from None
    return stamp


def read_sums(path: Path, stop: threading.Event) -> tuple[Stamp, Sums] | None:
    """Both kinds of hashes of the file, and its stamp; None if it changed while it was read.

    Raises OSError, Stopped.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = stamp_of(os.fstat(fd))
        try:
            found = sums(fd, geometry(before.size), stop)
        except ShortFile:
            return None
        return (before, found) if stamp_of(os.fstat(fd)) == before else None
    finally:
        os.close(fd)


def punch(fd: int, spans: Iterable[tuple[int, int]]) -> bool:
    """Give back the blocks of each (offset, length); False if this file system cannot. Raises OSError."""
    for offset, length in spans:
        mode = ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE)
        while _libc.fallocate(ctypes.c_int(fd), mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            code = ctypes.get_errno()
            if code in _NO_PUNCH:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
    return True


def thin(
    directory: Directory,
    digest: Digest,
    size: int,
    pieces: Mapping[int, bytes],
    origin: str,
    spans: Iterable[tuple[int, int]],
) -> tuple[int, Stamp, bool]:
    """Punch *spans* out of a partial blob that keeps *pieces*, of *origin*.

    (Bytes it takes then, its stamp, could it be done.) Raises OSError.
    """
    log_fd = os.open(directory.log(digest), os.O_RDWR | os.O_CLOEXEC)
    try:
        rewrite_log(log_fd, size, pieces, origin)
    finally:
        os.close(log_fd)
    fd = os.open(directory.staging(digest), os.O_RDWR | os.O_CLOEXEC)
    try:
        punched = punch(fd, spans)
        stat = os.fstat(fd)
        return stat.st_blocks * 512, stamp_of(stat), punched
    finally:
        os.close(fd)


def delete(paths: Iterable[Path]) -> None:
    """Delete files; those that are gone already are fine, and so are directories in their place. Raises OSError."""
    for path in paths:
        clear(path)


def clear(path: Path) -> None:
    """Make the name free, whatever bears it: a file, nothing, or a directory that somebody put there. Raises OSError.

    Stays on the file system of *path*: what is mounted below is left alone, and then the name cannot be freed.
    """
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        _remove_tree(path, path.lstat().st_dev)


def _remove_tree(path: Path, device: int) -> None:
    for entry in list(os.scandir(path)):
        if not entry.is_dir(follow_symlinks=False):
            Path(entry).unlink(missing_ok=True)
        elif entry.stat(follow_symlinks=False).st_dev == device:
            _remove_tree(Path(entry), device)
    path.rmdir()


def _take_name(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except IsADirectoryError:
        clear(path)
        temporary.replace(path)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _named(name: str) -> Digest | None:
    try:
        return from_hex(name)
    except DigestInvalid:
        return None


def _discard(path: Path) -> None:
    # A directory whose name is not one of ours is nobody's we know: it stays.
    ours = _named(path.name.removesuffix(".log").removesuffix(".json")) is not None
    with contextlib.suppress(OSError):
        clear(path) if ours else path.unlink()
