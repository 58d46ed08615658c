"""The best possible time of a pull by a group (docs/design.md, "The best possible time"). Pure.

Units are the caller's, but consistent: bytes and bytes per second give seconds. All bounds are
fluid: bytes flow like water, every node knows everything, headers weigh nothing. Nothing real
reaches them exactly: a plain TCP pull over a 200 Mbit/s link carries 4.5 % of headers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Rate = float


def cold(size: float, nodes: int, upload: Rate, download: Rate, upstream: Rate, piece: float = 0.0) -> float:
    """All *nodes* ask at once, nobody has it. `max(F/R, F/d, N*F/(R+N*u)) + floor(log2 N)*p/u`."""
    _check(size, nodes, upload, download, upstream)
    flow = max(size / upstream, size / download, nodes * size / (upstream + nodes * upload))
    return flow + math.floor(math.log2(nodes)) * piece / upload


def warm(size: float, nodes: int, seeds: int, upload: Rate, download: Rate) -> float:
    """*seeds* have it, *nodes* others ask at once: `max(F/(S*u), F/d, N*F/(S*u+N*u))`.

    With several seeds all of them together must send each byte once.
    """
    _check(size, nodes, upload, download)
    if seeds < 1:
        raise ValueError("warm needs a seed")
    return max(size / (seeds * upload), size / download, nodes * size / ((seeds + nodes) * upload))


def alone(size: float, download: Rate, connection: Rate, upstream: Rate) -> float:
    """One node by itself over one connection that upstream limits to *connection*."""
    _check(size, 1, download, connection, upstream)
    return size / min(download, connection, upstream)


def staggered(size: float, starts: Sequence[float], upload: Rate, download: Rate, upstream: Rate) -> float:
    """Nodes ask at the *starts* (seconds, any order): from the first start until the last has it.

    No sooner than one node after the last start, nor than the group if all had asked at the first.
    """
    if not starts:
        raise ValueError("nobody asks")
    last = max(starts) - min(starts)
    return max(last + size / download, cold(size, len(starts), upload, download, upstream))


def waves(
    size: float, groups: Sequence[int], upload: Rate, download: Rate, upstream: Rate
) -> tuple[float, ...]:  # fmt: skip
    """Seconds of each wave: *groups* nodes at a time, each wave begins when the last has ended.

    In later waves those before are seeds, and upstream is not asked.
    """
    if not groups:
        raise ValueError("no waves")
    times = [cold(size, groups[0], upload, download, upstream)]
    done = groups[0]
    for nodes in groups[1:]:
        times.append(warm(size, nodes, done, upload, download))
        done += nodes
    return tuple(times)


def _check(size: float, nodes: int, *rates: Rate) -> None:
    if size < 0 or nodes < 1 or any(rate <= 0 for rate in rates):
        raise ValueError(f"not a transfer: size {size}, {nodes} nodes, rates {rates}")
