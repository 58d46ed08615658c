"""Points containerd at this agent and takes it back: certs.d/<host>/hosts.toml, with what was there kept aside.

Planned first (`Change` values, no file touched), then done: copies of what was there, then a record of
what is about to be written, then each file by rename. A run that was cut off at any point is completed by
`install` and undone by `uninstall`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from mirror.errors import ConfigInvalid, HostsInvalid, SetupError
from mirror.setup import criconfig, hoststoml

DEFAULT_CERTS = Path("/etc/containerd/certs.d")
DEFAULT_CONFIG = Path("/etc/containerd/config.toml")
EVERY = "_default"
"""The directory that counts for every registry without one of its own."""

_ASIDE = ".shoal"
"""Directory under certs.d with the copies and the record; containerd opens only directories named like a registry."""

_TEMPORARY = ".shoal-"
"""How the names of files begin that are not yet renamed into place."""

REACH_WITHIN = 2.0
"""Seconds for the agent to answer: it is on this machine."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What one `install` did to one directory of certs.d."""

    before: str | None
    """sha256 of the hosts.toml that was there; None: there was none."""

    after: str
    """sha256 of what was written."""

    directory: bool
    """The directory was made, too."""


class Record(msgspec.Struct, kw_only=True):
    """What there is to undo."""

    version: int = 1
    root: bool = False
    """certs.d itself was made."""

    made: dict[str, Made] = {}
    """By directory name."""


class Change(NamedTuple):
    """One hosts.toml as it should become. Planning makes it, `_apply` does it."""

    host: str
    """Directory name under certs.d."""

    before: bytes | None
    after: bytes | None
    """None: no file."""


# --------------------------------------------------------------------------- install


def install(
    certs: Path, url: str, hosts: Sequence[str] = (), *, later: Sequence[Path] = (), host_root: Path = Path("/")
) -> list[Path]:
    """Makes *url* the first host of *hosts* (default: every registry). Returns the files changed; raises SetupError.

    Every registry means `_default` and each directory that is there, which would win over `_default`.
    *later*: directories that `config_path` names after *certs*. containerd stops at the first one that knows a
    registry, and with `_default` ours knows every registry: certificates there are named in ours.
    """
    with _locked(certs, host_root, make=True) as record:
        everything = [EVERY, *_directories(certs), *(name for other in later for name in _directories(other))]
        names = [_directory(certs, host) for host in hosts] or everything
        changes = [_plan_install(certs, name, url, later, host_root) for name in dict.fromkeys(names)]
        changes = [change for change in changes if change.after != change.before]
        for change in changes:
            _note(certs, record, change)
        if changes:
            _save(certs, record)
        for change in changes:
            _apply(certs, change)
        return [certs / change.host / "hosts.toml" for change in changes]


def _plan_install(certs: Path, name: str, url: str, later: Sequence[Path], host_root: Path) -> Change:
    before = _read(certs / name / "hosts.toml")
    own = certs / name
    directory = next((place for place in (own, *(other / name for other in later)) if place.is_dir()), own)
    if directory != own and _read(directory / "hosts.toml"):
        raise SetupError(f"{directory} would be hidden by {certs}; move it there first; nothing was changed")
    found = hoststoml.certificates([path.name for path in directory.iterdir()] if directory.is_dir() else [])
    if directory != own:
        found = found.below(f"{seen_by_containerd(directory, host_root)}/")
    try:
        text = hoststoml.with_mirror((before or b"").decode(), url, found)
    except (HostsInvalid, UnicodeDecodeError) as problem:
        why = "is no UTF-8" if isinstance(problem, UnicodeDecodeError) else problem
        raise SetupError(f"{own / 'hosts.toml'} {why}; nothing was changed") from None
    return Change(name, before, text.encode())


def later_directories(certs: Path, config: Path, host_root: Path) -> list[Path]:
    """What containerd's config_path names after *certs*; nothing where that cannot be known."""
    try:
        paths = [os.path.normpath(path) for path in criconfig.read(config_files(config, host_root)).config_path]
    except (ConfigInvalid, OSError):
        return []
    own = os.path.normpath(seen_by_containerd(certs, host_root))
    after = paths[paths.index(own) + 1 :] if own in paths else []
    return [host_root / path.lstrip("/") for path in after]


def seen_by_containerd(path: Path, host_root: Path) -> str:
    """*path* without the mount under which this process sees the node's files."""
    return "/" + str(path.relative_to(host_root)) if path.is_relative_to(host_root) else str(path)


def _note(certs: Path, record: Record, change: Change) -> None:
    """Puts aside what is there, unless it is our own work of an earlier run on what was put aside then."""
    assert change.after is not None
    known = record.made.get(change.host)
    ours = change.before is not None and hoststoml.has_block(change.before.decode())
    if known is not None and ours:
        record.made[change.host] = msgspec.structs.replace(known, after=_sha(change.after))
        return
    original = change.before
    if original is not None:
        aside = certs / _ASIDE / change.host
        aside.mkdir(parents=True, exist_ok=True)
        _replace(aside / "hosts.toml", original, like=certs / change.host / "hosts.toml", keep_times=True)
    made = known.directory if known is not None and original is None else not (certs / change.host).is_dir()
    record.made[change.host] = Made(
        before=None if original is None else _sha(original), after=_sha(change.after), directory=made
    )


# --------------------------------------------------------------------------- uninstall


def uninstall(certs: Path, host_root: Path = Path("/")) -> list[Path]:
    """Takes back what `install` did, byte for byte. Returns the files changed; raises SetupError.

    A file that somebody edited since keeps the edits and loses our block only.
    """
    if not certs.is_dir():
        return []
    with _locked(certs, host_root, make=False) as record:
        names = sorted({*record.made, *_directories(certs)})
        changes = [_plan_uninstall(certs, name, record.made.get(name)) for name in names]
        changes = [change for change in changes if change.after != change.before]
        for change in changes:
            _apply(certs, change, like=certs / _ASIDE / change.host / "hosts.toml")
        for name, made in record.made.items():
            if made.directory:
                _remove_if_empty(certs / name)
        record.made.clear()
        return [certs / change.host / "hosts.toml" for change in changes]


def _plan_uninstall(certs: Path, name: str, made: Made | None) -> Change:
    now = _read(certs / name / "hosts.toml")
    if now is None:
        return Change(name, None, None)  # somebody took it away: nothing of ours is left
    aside = _read(certs / _ASIDE / name / "hosts.toml") if made is not None else None
    if made is not None and _sha(now) == made.after and (made.before is None or aside is not None):
        return Change(name, now, aside)
    try:
        bare = hoststoml.without_mirror(now.decode()).encode()
    except UnicodeDecodeError:
        bare = now
    gone = made is not None and made.before is None and not bare
    return Change(name, now, None if gone else bare)


# --------------------------------------------------------------------------- show and checks


class Shown(NamedTuple):
    """One registry's hosts, in the order in which containerd asks them."""

    host: str
    hosts: tuple[str, ...]
    ours: bool
    problem: str


def show(certs: Path) -> list[Shown]:
    """What every directory of certs.d says now."""
    shown = []
    for name in _directories(certs):
        content = _read(certs / name / "hosts.toml")
        if content is None:
            continue
        try:
            text = content.decode()
            shown.append(Shown(name, tuple(hoststoml.hosts_of(text)), hoststoml.has_block(text), ""))
        except (HostsInvalid, UnicodeDecodeError) as problem:
            shown.append(Shown(name, (), False, " ".join(str(problem).split())))
    return shown


def problems(certs: Path, config: Path, url: str, host_root: Path) -> Iterator[str]:
    """One line for each prerequisite that is not met."""
    yield from _config_problems(certs, config, host_root)
    # Where the node's files are a mount, this is a container: the node's loopback address is not its own.
    if host_root == Path("/") and (why := _unreachable(url)):
        yield f"the agent does not answer at {url} ({why}): containerd will go upstream until it does"


def notes(config: Path, host_root: Path) -> Iterator[str]:
    """One line for each thing worth knowing that is no fault."""
    try:
        found = criconfig.read(config_files(config, host_root))
    except (ConfigInvalid, OSError):
        return
    if len(found.config_path) > 1:
        yield (
            "config_path names several directories: containerd from 2.2 on reads them as one name when the transfer "
            "service pulls; name one, if pulls do not come here"
        )
    if found.discards_layers:
        yield (
            "containerd has discard_unpacked_layers on: layers are offered from Shoal's store, "
            "so let --store-budget hold the images in use"
        )
    content = f"{found.root}/io.containerd.content.v1.content"
    yield f"to offer what containerd already has: shoal agent --containerd-content {content}"


def _config_problems(certs: Path, config: Path, host_root: Path) -> Iterator[str]:
    wanted = seen_by_containerd(certs, host_root)
    try:
        found = criconfig.read(config_files(config, host_root))
    except FileNotFoundError:
        yield f'{config} is not there: containerd needs one with registry config_path = "{wanted}" (then restart it)'
        return
    except OSError as problem:
        yield f"{config} cannot be read: {problem.strerror}"
        return
    except ConfigInvalid as problem:
        yield f"{problem}"
        return
    if not found.config_path:
        yield f'{config} sets no registry config_path, which containerd 1.x needs: "{wanted}" (then restart it once)'
    elif os.path.normpath(wanted) not in [os.path.normpath(path) for path in found.config_path]:
        yield f"{config} has config_path {':'.join(found.config_path)}, not {wanted}: use --containerd-certs, or set it"
    if found.old_mirrors:
        yield f"{config} still has registry.mirrors, which containerd refuses beside config_path: move them to {wanted}"


def config_files(config: Path, host_root: Path) -> list[dict[str, object]]:
    """The parsed file and its imports, in the order in which they win. Raises OSError, ConfigInvalid."""
    parsed = _parse_config(config)
    files = [parsed]
    for pattern in criconfig.imports_of(parsed):
        absolute = host_root / pattern.lstrip("/") if pattern.startswith("/") else config.parent / pattern
        found = sorted(Path("/").glob(str(absolute.absolute()).lstrip("/")))
        files.extend(_parse_config(path) for path in found if path != config)
    return files


def _parse_config(path: Path) -> dict[str, object]:
    try:
        return criconfig.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{path} is no UTF-8") from None
    except ConfigInvalid as problem:
        raise ConfigInvalid(f"{path} {problem}") from None


def _unreachable(url: str) -> str:
    """Why nothing answers 200 to `GET /v2/` at *url*; empty if something does."""
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=REACH_WITHIN)
    try:
        connection.request("GET", "/v2/")
        status = connection.getresponse().status
    except (OSError, HTTPException) as problem:
        return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
    finally:
        connection.close()
    return "" if status == 200 else f"HTTP {status}"


# --------------------------------------------------------------------------- files


@contextmanager
def _locked(certs: Path, host_root: Path, *, make: bool) -> Iterator[Record]:
    """The record, while no other process changes the same directory. Raises SetupError."""
    _stay_inside(certs, host_root)
    try:
        root_made = not certs.is_dir()
        if make:
            (certs / _ASIDE).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(certs, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as problem:
        raise SetupError(f"{certs}: {problem.strerror}") from None
    record = Record(root=root_made)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        record = _load(certs)
        record.root = record.root or root_made
        for rubbish in (*certs.glob(f"*/{_TEMPORARY}*"), *certs.glob(f"{_ASIDE}/*/{_TEMPORARY}*")):
            rubbish.unlink(missing_ok=True)  # of a run that was cut off: nobody else is at work while we hold the lock
        yield record
    except OSError as problem:
        raise SetupError(f"{problem.filename or certs}: {problem.strerror}") from None
    finally:
        if not record.made:  # nothing of ours is there, so nothing of ours stays
            shutil.rmtree(certs / _ASIDE, ignore_errors=True)
            if record.root:
                _remove_if_empty(certs)
        os.close(descriptor)


def _stay_inside(certs: Path, host_root: Path) -> None:
    """Raises SetupError where a link leads out of *certs*, and the node's files are a mount (a container).

    Its target would be looked for among the container's own files: another file than on the node, written as root.
    On the node itself a link is followed, as containerd follows it.
    """
    if host_root == Path("/"):
        return
    inside = Path(os.path.realpath(certs))
    for place in sorted((*certs.glob("*"), *certs.glob("*/hosts.toml"), *certs.glob(f"{_ASIDE}/**/*"))):
        if place.is_symlink() and not Path(os.path.realpath(place)).is_relative_to(inside):
            raise SetupError(f"{place} is a link that leads out of {certs}; nothing was changed")


def _load(certs: Path) -> Record:
    content = _read(certs / _ASIDE / "record.json")
    try:
        return msgspec.json.decode(content, type=Record) if content else Record()
    except msgspec.MsgspecError:
        raise SetupError(f"{certs / _ASIDE / 'record.json'} is damaged; take {certs / _ASIDE} away by hand") from None


def _save(certs: Path, record: Record) -> None:
    _replace(certs / _ASIDE / "record.json", msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def _apply(certs: Path, change: Change, like: Path | None = None) -> None:
    target = certs / change.host / "hosts.toml"
    if change.after is None:
        target.unlink(missing_ok=True)
        _sync(target.parent)
        return
    target.parent.mkdir(exist_ok=True)
    restoring = like is not None and like.exists()
    _replace(target, change.after, like=like if restoring else target, keep_times=restoring)


def _replace(target: Path, content: bytes, *, like: Path | None = None, keep_times: bool = False) -> None:
    """*target* holds *content* whole or is as it was, at any instant; mode, owner and labels as those of *like*."""
    target = Path(os.path.realpath(target))  # a link stays a link
    descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if like is not None and like.exists():
                status = like.stat()
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
                shutil.copystat(like, temporary)
                if not keep_times:
                    os.utime(temporary)
            else:
                os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return  # somebody put something there: it stays


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _directories(certs: Path) -> list[str]:
    if not certs.is_dir():
        return []
    return sorted(path.name for path in certs.iterdir() if path.is_dir() and not path.name.startswith("."))


def _directory(certs: Path, host: str) -> str:
    """The directory of *host*: with a port containerd looks for `host_port_` first (docs/hosts.md)."""
    name, colon, port = host.rpartition(":")
    other = f"{name}_{port}_"
    return other if colon and port.isdigit() and (certs / other).is_dir() else host


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
