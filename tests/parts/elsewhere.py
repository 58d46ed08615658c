"""`python -m tests.parts.elsewhere IP <arguments of shoal>`: an agent that trackers see at an address of its own.

On one machine all agents would have the address 127.0.0.1 for the tracker; nodes of a cluster differ by theirs.
"""

from __future__ import annotations

import runpy
import socket
import sys
from typing import Any

from swarm.tracking import trackers


def main() -> None:
    """Bind connections to trackers to the address, then be `shoal`."""
    ip, make = sys.argv.pop(1), trackers._socket

    def made(address: Any) -> socket.socket:
        bound = make(address)
        bound.bind((ip, 0))
        return bound

    trackers._socket = made
    runpy.run_module("mirror", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
