"""What cannot be stored is passed through: every writer reads the same errors of the disk in the same way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.front.opaque import _write as write_opaque
from swarm.blob.errors import StoreFull
from swarm.storage.disk import create
from swarm.storage.errnos import CANNOT_STORE, is_scarcity, translate
from swarm.upstream.download import write_pieces

KINDS = ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EMFILE", "ENOENT"]


def write_as_download(fd: int) -> None:
    write_pieces(fd, [[memoryview(b"x")]], 0)


def write_as_opaque(fd: int) -> None:
    write_opaque(fd, b"x", 0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_says_the_disk_does_not_take_it_means_pass_through(kind: str) -> None:
    error = OSError(getattr(errno, kind), "of the disk")
    assert isinstance(translate(error), StoreFull)


def test_an_error_that_says_our_own_call_is_wrong_stays_what_it_is() -> None:
    error = OSError(errno.EINVAL, "a defect")
    assert translate(error) is error


@pytest.mark.parametrize("write", [write_as_download, write_as_opaque])
def test_a_device_that_takes_no_byte_means_pass_through_to_every_writer(write: Callable[[int], None]) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(StoreFull):
            write(fd)
    finally:
        os.close(fd)


def test_a_file_in_the_place_of_a_directory_means_pass_through(tmp_path: Path) -> None:
    (tmp_path / "staging").write_text("no directory")
    with pytest.raises(StoreFull):
        create(tmp_path / "staging" / "blob", tmp_path / "staging" / "blob.log", 10, "")


def test_lack_of_descriptors_says_nothing_about_a_file_and_a_bad_sector_does() -> None:
    assert is_scarcity(OSError(errno.EMFILE, ""))
    assert not is_scarcity(OSError(errno.EIO, ""))
    assert errno.EIO in CANNOT_STORE
