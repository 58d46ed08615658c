"""Fixtures and rules of all tests: tools that must be there, output of processes on failure, a calm event loop."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from tests.parts import procs, skips
from tests.parts.counter import Counter, counter
from tests.parts.kubecluster import binaries
from tests.parts.kubecluster.cluster import BINARIES, enough_watches
from tests.parts.kubecluster.cluster import missing as lacks_of_a_cluster
from tests.parts.kubecluster.supply import CLUSTER, HELM, Supply
from tests.parts.registry import Registry, registry

TOOLS = {
    "registry": ("docker-registry",),
    "containerd": ("containerd", "ctr"),
    "skopeo": ("skopeo",),
    "podman": ("podman",),
    "nginx": ("nginx",),
    "aria2": ("aria2c",),
    "chromium": ("chromium", "chromedriver"),
    "helm": ("helm",),
    "ip": ("ip", "tc"),
    "lazy": ("httpdirfs", "mke2fs", "mount", "umount"),
    "nbd": ("nbdkit", "nbdcopy", "mke2fs"),
    "promtool": ("promtool",),
    "prometheus": ("prometheus",),
    "tcpdump": ("tcpdump",),
}
"""Marker `needs_<key>`: the commands without which a test cannot be run."""

FILES = 16 * 1024
"""Files that a test run may have open, where the system allows it: 2,000 agents, or a flood of strangers."""

WIDTH = 300
"""Characters of a line of a process that are shown when a test failed; the file has them all."""

BLOCKED = 0.1
"""Seconds of processor time in one callback above which the loop counts as blocked. Processor time of the loop's
own thread, not the clock's: a busy machine of CI takes the processor away for longer than that."""


# No timed assertions, Hypothesis's own included: on two busy cores they speak of the machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


BLOCKED_BY_TESTS = 0.5
"""The same for every other test on a loop: its own code runs there, too, and two busy cores make it slower."""

LAST_SECONDS = 2.0
"""Seconds in which what was begun last may end by itself."""


WITHOUT_CLUSTER = os.environ.get("SHOAL_CLUSTER") == "0"
"""The tests on a real Kubernetes are left out: for a run that is to be short."""

PATIENCE = os.environ.get("SHOAL_CLUSTER_WITHIN", "")
"""Minutes after which a run does not wait for the build any more, and says so; "": the build has failed then."""

ENDS = float(os.environ.get("SHOAL_CLUSTER_UNTIL") or "inf")
"""Minutes of a run after which no further test on a real Kubernetes is begun."""

BEGUN = time.monotonic()

supply = Supply(
    Path(tempfile.gettempdir()) / f"shoal-cluster-build-{os.getpid()}.log",
    *([60 * float(PATIENCE)] if PATIENCE else []),
)
unbuilt: dict[str, str] = {}
"""What could not be built, and why."""


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and let an ordinary user find what is for root, and open as many files as may be."""
    for_root = [path for path in ("/usr/sbin", "/sbin") if path not in os.get_exec_path()]
    os.environ["PATH"] = os.pathsep.join([*os.get_exec_path(), *for_root])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if shutil.which("helm") is None:
        os.environ["PATH"] += os.pathsep + str(binaries.directory())
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            enough_watches()
    for name, commands in TOOLS.items():
        config.addinivalue_line("markers", f"needs_{name}: is run only where {' and '.join(commands)} can be found")
    config.addinivalue_line("markers", "busy_loop(reason): the test keeps the loop busy itself")
    config.addinivalue_line("markers", "needs_root: is run only as root")
    config.addinivalue_line("markers", "needs_cluster: is run only where a real Kubernetes can be brought up")


def _needs(item: pytest.Item) -> str:
    """What has to be built for *item*: CLUSTER, HELM, or nothing ("")."""
    if item.get_closest_marker("needs_cluster"):
        return "" if WITHOUT_CLUSTER else CLUSTER
    return HELM if item.get_closest_marker("needs_helm") and shutil.which("helm") is None else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need what is being built come last."""
    items.sort(key=lambda item: ["", HELM, CLUSTER].index(_needs(item)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to build what the chosen tests need; the others are run meanwhile."""
    wanted = {_needs(item) for item in session.items} - {""}
    if CLUSTER in wanted and set(lacks_of_a_cluster()) - {BINARIES}:
        wanted.remove(CLUSTER)  # its tests are skipped
    if not session.config.option.collectonly:
        supply.begin(wanted)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for what the test needs before any clock of the test's own runs."""
    if (what := _needs(item)) and (why := supply.wait(what)):
        unbuilt[what] = why
    return (yield)


def pytest_sessionfinish() -> None:
    """A build that nobody waits for any more ends."""
    supply.end()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run; in CI that is a failure, since nothing may be skipped there."""
    procs.recent[:] = procs.running
    if item.get_closest_marker("needs_cluster"):
        if WITHOUT_CLUSTER:
            pytest.skip("SHOAL_CLUSTER=0: no real Kubernetes")
        if (time.monotonic() - BEGUN) / 60 > ENDS:
            pytest.skip("SHOAL_CLUSTER_UNTIL: this run may not take longer")
        # A cluster takes minutes; these tests never enter libtorrent, and pytest-timeout ends them.
        faulthandler.cancel_dump_traceback_later()
    if why := unbuilt.get(_needs(item)):
        if supply.late and PATIENCE:
            pytest.skip("SHOAL_CLUSTER_WITHIN: the build of Kubernetes took longer than this run may")
        pytest.fail(why, pytrace=False)
    missing = [tool for name, tools in TOOLS.items() if item.get_closest_marker(f"needs_{name}") for tool in tools]
    missing = [tool for tool in missing if shutil.which(tool) is None]
    # containerd gives its sockets to root, and ends where it may not.
    as_root = item.get_closest_marker("needs_root") or item.get_closest_marker("needs_containerd")
    if as_root and os.geteuid() != 0:
        missing.append("root's rights")
    if item.get_closest_marker("needs_cluster"):
        missing += lacks_of_a_cluster()
    if missing:
        reason = skips.lacking(missing)
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with what the cluster cost, and one line per kind of skip, that says how to have those tests run."""
    if told := supply.summary():
        terminalreporter.write_line(told)
    parts = [part for parts in terminalreporter.stats.values() for part in parts if isinstance(part, pytest.TestReport)]
    on_cluster = [part for part in parts if "needs_cluster" in part.keywords]
    if ran := {part.nodeid for part in on_cluster if part.when == "call" and not part.skipped}:
        spent = sum(part.duration for part in on_cluster)
        terminalreporter.write_line(f"{len(ran)} tests on a real Kubernetes took {spent / 60:.1f} min")
        for part in on_cluster:
            for name, value in part.user_properties if part.when == "call" else ():
                terminalreporter.write_line(f"  {part.head_line}: {name} {value}")
    reports = [report for report in terminalreporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    for line in skips.summary(report.longrepr[2] for report in reports):
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the processes of a failed test printed last."""
    report = yield
    if report.failed:
        for part in procs.recent:
            lines = (line[:WIDTH] for line in part.output(40).splitlines())
            report.sections.append((f"{part.name}: {part.log}", "\n".join(lines)))
    return report


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def origin(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Registry]:
    """One docker-registry for the whole run. Push under a repository of your own; do not stop it."""
    async with registry(tmp_path_factory.mktemp("origin")) as running:
        yield running


@pytest_asyncio.fixture
async def upstream(origin: Registry, tmp_path: Path) -> AsyncIterator[Counter]:
    """A counter of this test in front of the shared registry: what agents take for the registry."""
    async with counter(origin.url, tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def _in_process_rules(request: pytest.FixtureRequest) -> None:
    """Every test that runs on a loop keeps it calm, and leaves no task behind; `busy_loop` says why one may not."""
    if asyncio.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_leaked_tasks")
        apart = request.node.path.name.startswith("test_e2e")  # all parts are processes: the loop is the test's alone
        watched = "calm_loop" in request.fixturenames
        if not (apart or watched or request.node.get_closest_marker("busy_loop")):
            request.getfixturevalue("fairly_calm_loop")


@pytest_asyncio.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Fails the test if tasks that it started still run after all its parts were stopped."""
    yield
    if not (tasks := asyncio.all_tasks() - {asyncio.current_task()}):
        return
    if not (left := (await asyncio.wait(tasks, timeout=LAST_SECONDS))[1]):
        return  # a last write, or a connection that says goodbye
    pytest.fail("tasks outlive the test:\n" + "\n".join(repr(task) for task in left), pytrace=False)


@pytest.fixture
def calm_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test if a callback keeps the loop's thread busy for more than BLOCKED seconds, or sleeps in it."""
    with _watched_loop(monkeypatch, BLOCKED):
        yield


@pytest.fixture
def fairly_calm_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As `calm_loop`, with room for what the test itself does between two awaits: keys, layers, JSON."""
    with _watched_loop(monkeypatch, BLOCKED_BY_TESTS):
        yield


@contextlib.contextmanager
def _watched_loop(monkeypatch: pytest.MonkeyPatch, bound: float) -> Iterator[None]:
    blocked: list[str] = []
    run, sleep = asyncio.Handle._run, time.sleep

    def timed_run(handle: asyncio.Handle) -> None:
        begun = time.thread_time()
        run(handle)
        if (spent := time.thread_time() - begun) > bound:
            blocked.append(f"{spent * 1000:.0f} ms in {handle!r}")

    def told_sleep(seconds: float) -> None:
        if asyncio._get_running_loop() is not None:
            caller = sys._getframe(1)
            blocked.append(f"time.sleep({seconds}) at {caller.f_code.co_filename}:{caller.f_lineno}")
        sleep(seconds)

    monkeypatch.setattr(asyncio.Handle, "_run", timed_run)
    monkeypatch.setattr(time, "sleep", told_sleep)
    yield
    monkeypatch.undo()
    if blocked:
        pytest.fail("the event loop was blocked:\n" + "\n".join(blocked), pytrace=False)
