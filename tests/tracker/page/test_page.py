"""The tracker's page in real Chromium, while a swarm runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from swarm.blob.geometry import MIB, geometry
from swarm.protocol import wire
from tests.parts.browser import Browser, browser
from tests.parts.cluster import cluster
from tests.parts.counter import Counter
from tests.parts.fleet import Puller, Zoned, pullers
from tests.parts.registry import Registry
from tests.parts.talk import Town, digest_of, town, until

pytestmark = pytest.mark.needs_chromium

SIZE = 12 * MIB
WINDOWS = len(geometry(SIZE).windows)

STRIP = "document.querySelector('tr[data-key=\"{key}\"] svg.strip')"
TEXT = "document.querySelector('main').innerText"
TAB, ENTER, ESCAPE = "\ue004", "\ue007", "\ue00c"


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[Browser]:
    async with browser(tmp_path) as running:
        await running.size(1280, 800)
        yield running


@pytest.fixture
async def here() -> AsyncIterator[Town]:
    async with town(Zoned(), away=600.0) as running:
        yield running


def key(puller: Puller) -> str:
    """How the page names an agent."""
    index = int(puller.talker.me["node"].removeprefix("node-"))
    return f"127.0.{1 + index // 200}.{1 + index % 200}:6881"


async def cells(web: Browser, puller: Puller, wanted: str) -> None:
    """Wait until the agent's strip is *wanted*."""
    await web.until(f"{STRIP.format(key=key(puller))}.dataset.cells === '{wanted}'")


async def stayed_home(web: Browser, url: str) -> None:
    """Everything that was asked for came from the tracker, and the console is silent."""
    asked = await web.requests()
    assert len(asked) > 5
    assert {urlsplit(one).netloc for one in asked if not one.startswith(("chrome", "data:"))} == {urlsplit(url).netloc}
    assert [entry["message"] for entry in await web.log("browser")] == []


async def test_the_strip_fills_while_the_swarm_runs(web: Browser, here: Town) -> None:
    """From nobody to sealed, without a reload; claims with age; where each window came from."""
    await web.open(here.server.url)
    await web.until(f"{TEXT}.includes('No agent yet.') && {TEXT}.includes('shoal agent --tracker')")
    one, two = await pullers(here, 2, "layer")
    await one.board(want=2, size=SIZE)
    async with one.moving():
        await two.board(size=SIZE)
        await web.until(f"{TEXT}.includes('2 agents in 2 zones, 1 tracker')")
        await web.until("document.querySelector('a[href*=sha256]')")
        await web.click("a[href*=sha256]")

        await cells(web, one, "cc" + "." * (WINDOWS - 2))
        await cells(web, two, "." * WINDOWS)
        assert one.talker.seen[one.digest].claims == (0, 1)
        await one.arrive(0, 500_000)  # 488 KiB
        await web.until("document.querySelector('[aria-label=Claims] tbody').innerText.includes('488 KiB')")
        age = await web.until("/(\\d+) s\\s+\\d+ s left/.exec(document.querySelector('[aria-label=Claims]').innerText)")
        assert age is not None

        await one.bring(SIZE, 0)
        await cells(web, one, "ucc" + "." * (WINDOWS - 3))
        await cells(web, two, "w" + "." * (WINDOWS - 1))
        await two.get(SIZE, [0])
        await cells(web, two, "p" + "." * (WINDOWS - 1))
        label = await web.run(f"return {STRIP.format(key=key(two))}.getAttribute('aria-label')")
        assert label == f"1 of {WINDOWS} windows: 1 from peers, {WINDOWS - 1} not in the cluster yet"

        for window in range(1, WINDOWS):
            await one.bring(SIZE, window)
        await two.get(SIZE, range(WINDOWS))
        await cells(web, one, "u" * WINDOWS)
        await cells(web, two, "p" * WINDOWS)
    await one.talker.seal(one.digest)
    await web.until("document.querySelector('.head .tag').innerText === 'sealed'")
    await web.until(f"{TEXT}.includes('sha256 proven')")
    await web.until("document.querySelector('a[href$=\".torrent\"]')")

    await web.click("[data-nav=cluster]")
    await web.until(f"{TEXT}.includes('1.00') && {TEXT}.includes('50 % came from peers')")
    label = await web.run("return document.querySelector('svg.plot').getAttribute('aria-label')")
    assert label.startswith("Last hour: 12.0 MiB from upstream, 12.0 MiB from peers")
    await stayed_home(web, here.server.url)


async def test_images_come_first_then_their_layers_and_nodes(web: Browser, here: Town) -> None:
    """An image that is being pulled, by name; its layer names it again. What others wrote stays text."""
    one, two = await pullers(here, 2, "layer")
    evil = "registry.example/<img src=x onerror=alert(1)>"
    held = (wire.CompleteBlob(digest=one.digest, size=SIZE), wire.CompleteBlob(digest=digest_of("config"), size=1000))
    image = wire.Image(name=evil, manifest=digest_of("m"), blobs=held, platform="linux/amd64", pulled=True)
    await one.talker.poll(full=True, images=(image,))
    await one.board(want=2, size=SIZE)
    async with one.moving():
        await one.bring(SIZE, 0)
        await web.open(here.server.url)
        await web.until("document.querySelector('main section h2').innerText === 'Images'")
        row = "document.querySelector('[aria-label=Images] tbody tr').innerText"
        await web.until(f"{row}.includes('<img src=x') && {row}.includes('node-') && {row}.includes('1.00 MiB')")
        assert await web.run("return document.querySelector('main img')") is None
        await web.click("[aria-label=Images] tbody a")
        await web.until(f"{TEXT}.includes('linux/amd64') && {TEXT}.includes('pulling')")
        await web.until("document.querySelectorAll('[aria-label=Layers] tbody tr').length === 2")
        await web.click("[aria-label=Layers] tbody a")
        await web.until(f"{TEXT}.includes('Belongs to registry.example/<img src=x')")
    await two.tell()
    await stayed_home(web, here.server.url)


async def test_it_filters_pages_and_finds_by_image_digest_and_node(web: Browser, here: Town) -> None:
    """60 agents, a tag, two blobs: the lists narrow as one types, and the address keeps the filter."""
    agents = await pullers(here, 60, "layer")
    await agents[7].board(size=SIZE)
    tagged = Puller(agents[3].talker, "manifest")
    await tagged.talker.bring_in(tagged.digest, 5000)
    await tagged.talker.seal(tagged.digest)
    await tell_name(tagged, "registry.example/shop/checkout:1.2")

    await web.open(f"{here.server.url}/#/agents")
    rows = "document.querySelectorAll('[aria-label=Agents] tbody tr').length"
    await web.until(f"{rows} === 50 && {TEXT}.includes('1 to 50 of 60 agents')")
    await web.run("[...document.querySelectorAll('button')].find(b => b.innerText === 'Next').click()")
    await web.until(f"{rows} === 10 && {TEXT}.includes('51 to 60 of 60 agents')")
    await web.click("input[name=q]")
    await web.keys(*"node-004")
    await web.until(f"{rows} === 10 && {TEXT}.includes('10 match')")
    assert "q=node-004" in await web.run("return location.hash")
    assert await web.run("return document.activeElement.name") == "q"
    choose = "const box = document.querySelector('select[name=zone]'); box.value = arguments[0];"
    await web.run(choose + "box.dispatchEvent(new Event('change'))", "eu-west-1a")
    await web.until(f"{rows} === 3")

    await web.open(f"{here.server.url}/#/swarms?q=checkout")
    await web.until(f"{TEXT}.includes('registry.example/shop/checkout:1.2') && {TEXT}.includes('1 match')")
    await web.open(f"{here.server.url}/#/swarms?q=node-0007")
    await web.until(f"{TEXT}.includes('{agents[0].digest[:19]}') && {TEXT}.includes('1 match')")
    for words, found in (
        ("checkout", "registry.example/shop/checkout:1.2"),
        (tagged.digest[7:20], "registry.example/shop/checkout:1.2"),
        ("node-0042", "127.0.1.43:6881"),
    ):
        await web.keys(ESCAPE, "/", *words, ENTER)
        await web.until(f"document.title.startsWith('Search: {words}') && {TEXT}.includes('{found}')")
    await web.keys("/", *"nothing-like-this", ENTER)
    await web.until(f"{TEXT}.includes('Nothing matches.')")
    await stayed_home(web, here.server.url)


async def test_an_agent_in_detail(web: Browser, here: Town) -> None:
    """Store, downloads, peers, errors; and why an agent is in quarantine."""
    one, two = await pullers(here, 2, "layer")
    await one.board(want=2, size=SIZE)
    await two.board(size=SIZE)
    await one.tell(store_bytes=5 * 2.0**30, fetches=1.0, bad_pieces=3.0)
    await web.open(f"{here.server.url}/#/agents/{quote(key(one), safe='')}")
    await web.until(f"{TEXT}.includes('node-0000') && {TEXT}.includes('5.00') && {TEXT}.includes('of 20.0 GiB')")
    await web.until(f"{TEXT}.includes('3 pieces from peers with a wrong hash')")
    await web.until("document.querySelector('[aria-label=Peers] tbody').innerText.includes('node-0001')")
    await web.until("document.querySelector('[aria-label=Downloads] svg.strip').dataset.cells.startsWith('cc')")
    blob = "sealed blob"
    await two.talker.bring_in(digest_of(blob), 3000)
    await two.talker.seal(digest_of(blob))
    await one.talker.board(digest_of(blob), size=3000)
    await one.talker.publish(digest_of(blob), 3000, 0, "liar")
    await web.until("document.querySelector('.notice').innerText.includes('In quarantine for 10 min')")
    await web.until(f"{TEXT}.includes('published wrong hashes for window 0')")
    await web.open(f"{here.server.url}/#/agents/nobody")
    await web.until(f"{TEXT}.includes('No tracker knows an agent nobody')")


async def test_keyboard_screen_reader_dark_and_narrow(web: Browser, here: Town) -> None:
    """Landmarks, names of all controls, a skip link, headers of tables; both schemes; no wider than a telephone."""
    (one,) = await pullers(here, 1, "layer")
    await one.board(want=2, size=SIZE)
    await web.open(here.server.url)
    await web.until("document.querySelector('svg.plot')")
    await web.keys(TAB)
    assert await web.run("return document.activeElement.className") == "skip"
    await web.keys(ENTER)
    assert await web.run("return document.activeElement.id") == "view"
    await web.run("document.querySelector('svg.plot').focus()")
    await web.keys("\ue012")  # arrow left
    await web.until("document.querySelector('.read').innerText.includes('from peers')")

    nodes = (await web.devtools("Accessibility.getFullAXTree"))["nodes"]
    shown = [node for node in nodes if not node["ignored"]]
    roles = {node["role"]["value"] for node in shown}
    assert {"main", "banner", "navigation", "search", "table", "columnheader", "rowheader", "region"} <= roles
    for node in shown:
        if node["role"]["value"] in ("link", "button", "searchbox", "combobox", "image", "img", "region", "table"):
            assert node["name"]["value"].strip(), node
    assert await web.run("return document.querySelectorAll('[aria-live=polite]').length") >= 2

    colours = []
    for scheme in ("light", "dark"):
        await web.scheme(scheme)
        colours.append(await web.run("return getComputedStyle(document.body).backgroundColor"))
    light, dark = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
    assert light > 600 > 150 > dark

    await web.size(400, 800)
    for view in ("#/", "#/swarms", f"#/swarms/{one.digest}", "#/agents", f"#/agents/{key(one)}"):
        await web.open(f"{here.server.url}/{view}")
        await web.until("document.querySelector('h1')")
        assert await web.run("return document.documentElement.scrollWidth") <= 400, view


async def test_pages_that_nobody_looks_at_hold_no_stream(web: Browser, here: Town) -> None:
    """A browser keeps pages that one left, and has six connections per host: the eighth is shown."""
    for _ in range(8):
        await web.open(here.server.url)
        await web.until(f"{TEXT}.includes('No agent yet.')")
        await web.open("about:blank")
    await until(lambda: here.server._live.listeners == 0)
    await web.run("history.back()")
    await web.until(f"{TEXT}.includes('No agent yet.')")
    await pullers(here, 1, "layer")
    await web.until(f"{TEXT}.includes('1 agent in 1 zone')")


async def test_two_trackers_are_one_page_and_a_lost_one_is_named(web: Browser) -> None:
    """What only the other tracker knows is shown too; when it goes, the page says what is missing."""
    async with town(Zoned(), away=600.0) as other, town(Zoned(), away=600.0, replicas=(other.server.url,)) as here:
        for place in (here, other):  # an agent has a channel to each tracker
            (puller,) = await pullers(place, 1, "layer")
        await puller.board(want=1, size=SIZE)
        await web.open(f"{here.server.url}/#/swarms")
        await web.until(f"{TEXT}.includes('{puller.digest[:19]}')")
        await web.open(f"{here.server.url}/#/swarms/{puller.digest}")
        await cells(web, puller, "c" + "." * (WINDOWS - 1))
        await web.click("[data-nav=cluster]")
        await web.until(f"{TEXT}.includes('1 agent in 1 zone, 2 trackers')")
        await other.server.close()
        await web.until("document.querySelector('.notice')?.innerText.includes('1 tracker does not answer')")
        await web.until(f"!{TEXT}.includes('{puller.digest[:19]}')")


@pytest.mark.needs_registry
async def test_real_agents_on_the_page(web: Browser, origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Three real agents pull one blob: the page shows it sealed, whole on all of them, one copy from upstream."""
    blob = origin.plant("page/real", 24 * MIB, 5)
    async with cluster(tmp_path / "cluster", agents=3) as shoal:
        await web.open(f"{shoal.tracker.url}/#/swarms/{blob.digest}")
        await web.until(f"{TEXT}.includes('No tracker knows a swarm')")
        for got in await shoal.pull(blob, upstream.host):
            assert got.digest == blob.digest
        strips = "[...document.querySelectorAll('[aria-label^=Agents] svg.strip')].map(s => s.dataset.cells)"
        await web.until(f"{strips}.length === 3 && {strips}.every(cells => /^[uph]+$/.test(cells))")
        await web.until(f"{TEXT}.includes('3 whole, 0 fetching') && {TEXT}.includes('sealed: sha256 proven')")
        sent = (await shoal.tracker.state(f"/api/v1/cluster/swarms/{blob.digest}"))["swarm"]
        assert sent["arrived"] <= 1.02 * sent["entered"]
        await web.click("[data-nav=cluster]")
        await web.until("/[1-9][0-9.]* % came from peers/.test(document.querySelector('main').innerText)")
        await stayed_home(web, shoal.tracker.url)


async def tell_name(puller: Puller, name: str) -> None:
    """Upstream says that *name* means this blob."""
    me = puller.talker.me
    await puller.talker.say("name", wire.NameLookup(**me, name=name, ttl=60.0), wire.NameAnswer)
    told = wire.NameTold(**me, name=name, digest=puller.digest, media_type="application/json", size=5000)
    await puller.talker.say("name/told", told, wire.Ok)
