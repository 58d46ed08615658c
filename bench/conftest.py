"""Ratios within one run, printed after pytest-benchmark's table: what the absolute figures are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bench import net, stage

Say = Callable[[str], None]
_LINES = pytest.StashKey[list[str]]()
_MOST = 8


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Say:
    """Print a line at the end of the run."""
    return request.config.stash.setdefault(_LINES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The lines that tests said."""
    for line in config.stash.get(_LINES, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Stage]:
    """An upstream on loopback, with room for eight nodes."""
    network = net.loopback(["upstream", "central", *(f"n{i}" for i in range(_MOST))])
    with stage.upstream(network, tmp_path_factory.mktemp("stage"), _MOST, None) as made:
        yield made
