"""The list of all faults."""

from __future__ import annotations

from bench.faults import on_disk, on_network, on_parts, on_upstream

CASES = [*on_network.CASES, *on_upstream.CASES, *on_disk.CASES, *on_parts.CASES]
