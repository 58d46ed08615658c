"""How fast this machine is just now. Where the processor decides, runs compare only between machines alike."""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path

from swarm.blob.geometry import MIB

_LOOPS = 3_000_000
_HASHED = 64 * MIB
_WRITTEN = 128 * MIB


def speed(directory: Path | None = None) -> dict[str, float]:
    """Python loops and SHA-1 on one core, and what a new file in *directory* takes without touching the disk.

    The last is slow on virtual machines whose host takes free memory back: each page of a blob that comes in is a
    fault there. Half a second in all.
    """
    data = bytes(_HASHED)
    start = time.perf_counter()
    for _ in range(_LOOPS):
        pass
    looped = time.perf_counter()
    hashlib.sha1(data, usedforsecurity=False).digest()
    hashed = time.perf_counter()
    block = bytes(MIB)
    with tempfile.TemporaryFile(dir=directory) as file:
        began = time.perf_counter()
        for _ in range(_WRITTEN // MIB):
            file.write(block)
        file.flush()
        written = time.perf_counter()
    return {
        "python_loops_per_second": round(_LOOPS / (looped - start)),
        "sha1_mib_per_second": round(_HASHED / MIB / (hashed - looped)),
        "new_file_mib_per_second": round(_WRITTEN / MIB / (written - began)),
    }
