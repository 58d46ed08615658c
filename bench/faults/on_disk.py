"""Faults of one node's disk: full, slow, read-only, unreadable, rotten, emptied, damaged."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from bench.faults.case import Case, Deed
from bench.faults.disks import drop_caches
from bench.faults.scene import Scene, Shape
from bench.faults.upstream import MIB

INJECTED = Shape(agents=2, rate=12, inject="store")
SMALL = Shape(agents=2, rate=8, disk=420)
PLAIN = Shape(agents=2, rate=8)


def errors(**switches: int | str) -> Deed:
    """The first agent's disk fails so."""

    def deed(stage: Scene) -> None:
        assert stage.injector is not None
        stage.injector.set(**switches)

    return deed


def fill(stage: Scene) -> None:
    """Somebody else takes all room."""
    assert stage.disk is not None
    stage.disk.fill()


def fill_and_away(stage: Scene) -> None:
    """The same, and upstream is gone."""
    fill(stage)
    stage.up.down = True


def make_room(stage: Scene) -> None:
    """The room is given back."""
    assert stage.disk is not None
    for path in stage.disk.path.glob("somebody-else*"):
        path.unlink()
    stage.mend()


def no_inodes(stage: Scene) -> None:
    """Somebody else takes all inodes."""
    assert stage.disk is not None
    try:
        for number in range(2000):
            (stage.disk.path / f"somebody-else-{number}").touch()
    except OSError:
        return


def read_only(stage: Scene) -> None:
    """The file system fails, and becomes read-only by itself."""
    assert stage.disk is not None
    stage.disk.fail()


def repair(stage: Scene) -> None:
    """The agent is restarted on a repaired disk."""
    assert stage.disk is not None
    stage.agents[0].kill()
    stage.disk.take_out()
    subprocess.run(["e2fsck", "-fy", str(stage.disk.image)], capture_output=True, check=False)
    stage.disk.mount()
    stage.mend()


def rot_while_down(stage: Scene) -> None:
    """Bits of what the first agent holds flip below its file system while it is stopped."""
    assert stage.disk is not None
    agent = stage.agents[0]
    agent.kill(signal.SIGTERM)
    marks = [_mark(path) for path in (agent.store / "blobs/sha256").iterdir()]
    os.sync()
    stage.disk.take_out()
    flips = sum(stage.disk.rot(mark) for mark in marks)
    stage.disk.mount()
    agent.start()
    agent.ready()
    if not flips:
        raise RuntimeError("no bit was flipped")


def rot_under_way(stage: Scene) -> None:
    """A byte of each blob that the first agent holds changes, and nothing else of its file."""
    for path in (stage.agents[0].store / "blobs/sha256").iterdir():
        stat = path.stat()
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"rotten!", stat.st_size * 2 // 3)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    drop_caches()


def rot_coming_in(stage: Scene) -> None:
    """A byte of what is just coming in changes."""
    for path in (stage.agents[0].store / "staging").iterdir():
        if not path.suffix:
            stat = path.stat()
            with path.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), b"rotten!", 3 * MIB)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def bad_sectors(stage: Scene) -> None:
    """The device cannot be read from the middle of the first agent's blob on."""
    assert stage.disk is not None
    (path,) = (stage.agents[0].store / "blobs/sha256").iterdir()
    stage.disk.break_after(path, 4 * MIB)


def good_sectors(stage: Scene) -> None:
    """A new disk, and a restart."""
    assert stage.disk is not None
    stage.agents[0].kill()
    shutil.rmtree(stage.agents[0].store, ignore_errors=True)
    stage.disk.unmount()
    stage.agents[0].store.mkdir(parents=True)  # below the mount point: the disk was taken out
    stage.mend()


def emptied(stage: Scene) -> None:
    """Somebody deletes the content of the first agent's store."""
    for path in list(stage.agents[0].store.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def removed(stage: Scene) -> None:
    """The directory itself goes as well."""
    shutil.rmtree(stage.agents[0].store)


def damage(how: str) -> Deed:
    """Every small file of the first agent's store is damaged while it is stopped."""

    def deed(stage: Scene) -> None:
        agent, dice = stage.agents[0], random.Random(1)
        agent.kill(signal.SIGTERM)
        for path in [path for path in agent.store.rglob("*") if path.is_file() and path.name != "lock"]:
            _spoil(path, how, dice)
        agent.start()
        agent.ready()

    return deed


def _spoil(path: Path, how: str, dice: random.Random) -> None:
    size = path.stat().st_size
    if how == "emptied":
        path.write_bytes(b"")
    elif how == "cut":
        os.truncate(path, size // 2)
    elif how == "random":
        with path.open("r+b") as file:
            file.seek(size // 3)
            file.write(dice.randbytes(max(1, min(4096, size // 3))))
    else:
        path.unlink()
        (path / "inside").mkdir(parents=True)


def directories(stage: Scene) -> None:
    """A directory lies where the first agent wants to bring the next blob in; its digest is known."""
    digest = stage.blob(2)
    name = digest.removeprefix("sha256:")
    for path in ("staging/" + name, f"staging/{name}.log", "blobs/sha256/" + name, f"meta/sha256/{name}.json"):
        (stage.agents[0].store / path / "inside").mkdir(parents=True)
    answer = stage.pull(digest, 0, 20)
    if not answer.right(digest):
        raise RuntimeError(f"with directories in its place: {answer}")
    stage.agents[0].keep(digest)


def _mark(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return file.read(64)


def quick_health(stage: Scene) -> list[str]:
    """The probe of the node with the slow disk."""
    answer = stage.agents[0].ask(5004, "/healthz", seconds=10)
    return [] if answer.status == 200 and answer.seconds < 1 else [f"/healthz {answer}"]


def again_held(stage: Scene) -> list[str]:
    """The first agent answers what it was asked for once more, from its disk."""
    time.sleep(1)
    digest = next(digest for digest, _ in reversed(stage.answers))
    answers = [stage.pull(digest, 0, 20) for _ in range(3)]
    return [f"again: {answer}" for answer in answers if not answer.right(digest)]


CASES = [
    Case("D1 full in mid-pull", "disk", "somebody fills the disk in mid-pull", fill, SMALL, 32, after=1.5, seconds=12, copies=3, mend=make_room, quick=True),
    Case("D2 full, a peer has it", "disk", "the disk is full, a peer has the blob, upstream there", fill, SMALL, 16, holders=[1], ask=[0], seconds=6, copies=1.1, mend=make_room),
    Case("D2 full, only a peer has it", "disk", "the same, upstream gone", fill_and_away, SMALL, 8, holders=[1], ask=[0], resume=True, seconds=8, copies=0.0, mend=make_room, quick=True),
    Case("D3 write EIO", "disk", "writes fail with EIO in mid-pull", errors(write="EIO"), INJECTED, 24, after=0.8, seconds=8, copies=2.6, quick=True),
    Case("D3 write EROFS", "disk", "the same with EROFS", errors(write="EROFS"), INJECTED, 24, after=0.8, seconds=8, copies=2.6),
    Case("D3 write EDQUOT", "disk", "the same with EDQUOT", errors(write="EDQUOT"), INJECTED, 24, after=0.8, seconds=8, copies=2.6),
    Case("D4 create ENOSPC", "disk", "no file can be created: ENOSPC", errors(create="ENOSPC"), INJECTED, 16, seconds=6, copies=2.6),
    Case("D4 create EMFILE", "disk", "the same with EMFILE", errors(create="EMFILE"), INJECTED, 16, seconds=6, copies=2.6),
    Case("D4 fsync EIO", "disk", "fsync fails", errors(sync="EIO"), INJECTED, 16, seconds=6, copies=2.1),
    Case("D5 read EIO, peer has it", "disk", "a finished blob cannot be read, a peer has it", errors(read="EIO"), INJECTED, 16, holders=[0, 1], ask=[0], answer="told", seconds=8, copies=2.1),
    Case("D5 bad sectors", "disk", "the device fails from the middle of a finished blob on", bad_sectors, Shape(agents=2, rate=12, disk=420), 32, holders=[0], ask=[0], seconds=12, copies=2.1, mend=good_sectors, quick=True),
    Case("D6 read-only", "disk", "the file system becomes read-only in mid-pull", read_only, Shape(agents=2, rate=8, disk=480, mount="errors=remount-ro"), 32, after=1.5, seconds=12, copies=2.6, mend=repair),
    Case("D7 slow disk, the others", "disk", "one of three has a disk of 1 MB/s: the others do not wait", errors(write_us_per_mib=1_000_000, read_us_per_mib=1_000_000), Shape(agents=3, rate=12, inject="store"), 16, ask=[1, 2], seconds=6, copies=1.6, more=quick_health),
    Case("D7 slow disk, itself", "disk", "and it itself has its bytes, like the others", errors(write_us_per_mib=1_000_000), Shape(agents=3, rate=12, inject="store"), 16, seconds=34, copies=2.1, more=quick_health),
    Case("D8 rot while down", "disk", "bits of a finished blob flip below the file system while the agent is stopped", rot_while_down, SMALL, 16, holders=[0], ask=[0], seconds=8, copies=1.1, more=again_held),
    Case("D8 rot under way", "disk", "bytes of a finished blob change while the agent runs", rot_under_way, PLAIN, 16, holders=[0], ask=[0], seconds=8, copies=1.1, more=again_held, quick=True),
    Case("D8 rot, a peer reads", "disk", "the same, and a peer reads it", rot_under_way, PLAIN, 16, holders=[0], ask=[1], seconds=8, copies=1.1),
    Case("D9 rot while it comes in", "disk", "a byte changes in the file of a blob just coming in", rot_coming_in, Shape(agents=2, rate=6), 24, after=2.0, ask=[0], resume=True, seconds=25, copies=2.3, more=again_held),
    Case("D10 store emptied", "disk", "the store's content is deleted in mid-pull", emptied, PLAIN, 24, after=1.0, ask=[0], resume=True, seconds=12, copies=2.3, quick=True),
    Case("D10 store removed", "disk", "the directory itself is deleted", removed, PLAIN, 16, holders=[0], ask=[0], seconds=8, copies=1.1),
    Case("D11 no inodes", "disk", "somebody takes all inodes in mid-pull", no_inodes, Shape(agents=2, rate=8, disk=480, inodes=96), 24, after=1.0, seconds=10, copies=2.6, mend=make_room),
    Case("D12 files emptied", "disk", "every file of the store is emptied while the agent is stopped", damage("emptied"), PLAIN, 8, holders=[0, 1], ask=[0], seconds=8, copies=1.1),
    Case("D12 files cut", "disk", "the same, cut in half", damage("cut"), PLAIN, 8, holders=[0, 1], ask=[0], seconds=8, copies=1.1),
    Case("D12 files random", "disk", "the same, random bytes", damage("random"), PLAIN, 8, holders=[0, 1], ask=[0], seconds=8, copies=1.1),
    Case("D12 directories for files", "disk", "the same, a directory in the place of each", damage("directory"), PLAIN, 8, holders=[0, 1], ask=[0], seconds=8, copies=1.1, quick=True),
    Case("D12 directories in staging", "disk", "directories where the next blob comes in", directories, PLAIN, 8, ask=[0], seconds=6, copies=1.1),
]  # fmt: skip
