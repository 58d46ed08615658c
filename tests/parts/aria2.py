"""aria2: a BitTorrent client that knows nothing of us, and so says whether our torrents are real ones."""

from __future__ import annotations

from pathlib import Path

from tests.parts.procs import free_port, run


async def download(torrent: Path, to: Path, *, deadline: float = 60.0) -> str:
    """Fetch the content of a .torrent file into directory *to* from the peers its tracker names; aria2's output."""
    to.mkdir(parents=True, exist_ok=True)
    return await run(
        [
            "aria2c", "--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false",
            "--enable-peer-exchange=false", "--disable-ipv6=true", "--interface=127.0.0.1", "--seed-time=0",
            f"--listen-port={free_port()}", "--file-allocation=none", "--follow-torrent=mem",
            "--summary-interval=0", "--bt-tracker-connect-timeout=5", f"--dir={to}", str(torrent),
        ],
        deadline=deadline,
    )  # fmt: skip
