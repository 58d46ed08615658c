"""Disks that fail: a small real file system on a loop device, and an injector preloaded into one agent."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
import time
from pathlib import Path

from bench.faults.hosts import run
from bench.net import NetError

MIB = 1024 * 1024
SWITCHES = ("write", "read", "create", "sync", "write_us_per_mib", "read_us_per_mib", "clock", "calls")
"""In the order of inject.c."""


def kit() -> str | None:
    """None if disks can be made to fail here; else why not."""
    for tool in ("cc", "mkfs.ext4", "mount"):
        if subprocess.run(["which", tool], capture_output=True, check=False).returncode:
            return f"no `{tool}` command"
    return None


class Injector:
    """Switches of the faults of one process, whose environment has *env*. *root*: the files that suffer."""

    def __init__(self, work: Path, root: Path, name: str) -> None:
        library = work / "inject.so"
        if not library.exists():
            source = Path(__file__).with_name("inject.c")
            run("cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl")
        path = work / f"{name}.switches"
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)
        self.env = {"LD_PRELOAD": str(library), "FAULT_SWITCHES": str(path), "FAULT_ROOT": str(root)}

    def set(self, **values: int | str) -> None:
        """Each by its name in SWITCHES: a number, or the name of an errno."""
        for name, value in values.items():
            number = getattr(errno, value) if isinstance(value, str) else value
            at = SWITCHES.index(name) * 8
            self._map[at : at + 8] = struct.pack("q", number)

    def clear(self) -> None:
        """No fault any more."""
        self._map[: 8 * len(SWITCHES)] = bytes(8 * len(SWITCHES))


class Disk:
    """An ext4 of *mib* MiB in a file below *work*, mounted at `path`. *inodes*: how many it has."""

    def __init__(self, work: Path, name: str, mib: int, *, inodes: int | None = None, options: str = "") -> None:
        self.image, self.path = work / f"{name}.img", work / f"{name}.mnt"
        self._options = ",".join(filter(None, ("loop", options)))
        with self.image.open("wb") as file:
            file.truncate(mib * MIB)
        extra = ["-N", str(inodes)] if inodes else []
        run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", *extra, str(self.image))
        self.path.mkdir()
        self.mount()

    def mount(self) -> None:
        """Attach it (again)."""
        run("mount", "-o", self._options, str(self.image), str(self.path))
        self.device = Path(run("findmnt", "-n", "-o", "SOURCE", str(self.path)).strip()).name

    def unmount(self) -> None:
        """Detach it. Waits a moment for whoever still holds it."""
        for _ in range(20):
            if subprocess.run(["umount", str(self.path)], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.2)
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)

    def take_out(self) -> None:
        """Detach it, and go on with a copy of its image.

        A process elsewhere may hold a copy of the mount: the kernel would then give the old state back.
        """
        self.unmount()
        copy = self.image.with_suffix(f"{self.image.suffix}+")
        run("cp", "--sparse=always", str(self.image), str(copy))
        self.image.unlink()
        self.image = copy

    def fill(self) -> Path:
        """Take every block that is left; the file to remove for having them back."""
        path = self.path / "somebody-else"
        with path.open("wb", buffering=0) as file:
            for size in (MIB, 512):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
        return path

    def rot(self, mark: bytes) -> int:
        """Flip a bit of each place in the image that holds *mark*: below the file system. Take it out before."""
        flips, at = 0, 0
        with self.image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            while (at := content.find(mark, at)) >= 0:
                content[at + 7] ^= 1
                flips, at = flips + 1, at + len(mark)
        return flips

    def break_after(self, file: Path, offset: int) -> None:
        """The device ends at byte *offset* of *file*: what lies behind cannot be read any more."""
        run("sync")
        listed = run("filefrag", "-v", str(file))
        firsts = [int(line.split()[3].rstrip(".")) for line in listed.splitlines() if line.strip()[:1].isdigit()]
        if not firsts:
            raise NetError(f"no extents of {file}")
        drop_caches()
        os.truncate(self.image, min(firsts) * 4096 + offset)
        drop_caches()

    def fail(self) -> None:
        """An error of the file system: with errors=remount-ro it becomes read-only by itself."""
        Path(f"/sys/fs/ext4/{self.device}/trigger_fs_error").write_text("1")


def drop_caches() -> None:
    """The page cache forgets what is on disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
