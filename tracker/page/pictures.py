"""Views of images: what a person pulls, made of blobs that each have a swarm. No I/O, changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from msgspec import UNSET
from msgspec.structs import replace

from tracker.errors import Unknown
from tracker.page import views
from tracker.page.ask import Ask
from tracker.state.agents import Agent
from tracker.state.cluster import Cluster
from tracker.state.images import Image
from tracker.state.swarms import Swarm

FETCHERS = 5
"""Nodes named beside an image that they pull."""

NAMED = 3
"""Images named beside a blob, and names beside an image."""

SURE = 0.02
"""Of what is to come, the share that must be there before an end is guessed."""

_RANK = {"fetching": 0, "part": 1, "whole": 2}


class Pictures:
    """One look at the images of *cluster*. *tags*: digest -> names that mean it."""

    def __init__(
        self,
        cluster: Cluster,
        tags: Mapping[str, Sequence[str]],
        at: float,
        line: Callable[[Swarm], views.SwarmLine],
    ) -> None:
        self._cluster, self._tags, self._at, self._line = cluster, tags, at, line
        self._fetching: dict[str, dict[str, int]] = {}
        self._masks: dict[str, dict[int, int]] = {}
        """Digest -> length of a window -> bitmap of the windows that are so long."""

    def list(self, ask: Ask) -> views.ImageList:
        """Images by name, digest or node: those that are pulled first, then those seen last."""
        found = [image for image in self._cluster.images if self._fits(image, ask)]
        found.sort(key=lambda image: (not self._fetchers(image), -image.seen, image.manifest))
        rows = {image.manifest: self._image(image) for image in found[ask.offset : ask.offset + ask.limit]}
        return views.ImageList(total=len(found), offset=ask.offset, order=tuple(rows), rows=rows)

    def one(self, ask: Ask, now: float) -> views.ImageView:
        """One image with its layers and nodes. Raises Unknown."""
        image = self._cluster.images.get(ask.name)
        if image is None:
            raise Unknown("no such image")
        fetchers = self._fetchers(image)
        rows: dict[str, views.ImageNode] = {}
        for agent in self._cluster.agents.all():
            held = sum(size for digest, size in image.blobs.items() if digest in agent.held)
            if (held or agent.key in fetchers) and ask.q in f"{agent.name} {agent.key} {agent.zone}".lower():
                rows[agent.key] = self._node(image, agent, held, fetchers)
        order = sorted(rows, key=lambda key: node_rank(key, rows[key]))
        shown = order[ask.offset : ask.offset + ask.limit]
        return views.ImageView(
            now=now,
            image=self._image(image),
            index=image.index,
            layers={digest: self._layer(digest, size) for digest, size in image.blobs.items()},
            total=len(order),
            offset=ask.offset,
            order=tuple(shown),
            rows={key: rows[key] for key in shown},
        )

    def naming(self, digest: str) -> tuple[str, ...]:
        """The images that a blob belongs to, as names."""
        names = {self._names(image)[0] for image in self._cluster.images.of(digest)[: 4 * NAMED]}
        return tuple(sorted(names)[:NAMED])

    def blobs(self, q: str) -> set[str]:
        """The blobs of images whose name holds *q*."""
        return {
            digest
            for image in self._cluster.images
            if any(q in name.lower() for name in self._names(image))
            for digest in image.blobs
        }

    # -- inside -----------------------------------------------------------------------------------

    def _fits(self, image: Image, ask: Ask) -> bool:
        if ask.state == "fetching" and not self._fetchers(image):
            return False
        if not ask.q or ask.q in image.manifest or ask.q in image.index:
            return True
        if any(ask.q in name.lower() for name in self._names(image)) or any(ask.q in digest for digest in image.blobs):
            return True
        return any(ask.q in f"{self._name(key)} {key}".lower() for key in self._fetchers(image))

    def _names(self, image: Image) -> tuple[str, ...]:
        """registry/repository:tag where a tag is known, else registry/repository."""
        known = image.names
        tagged = [
            name
            for digest in (image.manifest, image.index)
            for name in self._tags.get(digest, ())
            if name.rpartition(":")[0] in known
        ]
        repositories = {name.rpartition(":")[0] for name in tagged}
        names = [*sorted(tagged), *(name for name in known if name not in repositories)]
        return tuple(names[:NAMED])

    def _fetchers(self, image: Image) -> dict[str, int]:
        """Agents that pull it -> bytes of its blobs that are on their way to them, as this tracker knows."""
        found = self._fetching.get(image.manifest)
        if found is None:
            found = self._fetching[image.manifest] = {}
            for digest in image.blobs:
                swarm = self._cluster.swarms.get(digest)
                if swarm is None:
                    continue
                board = swarm.board
                for key, who in board.participants.items():
                    if key in board.holders or key not in image.pulls:
                        continue
                    agent = self._cluster.agents.get(key)
                    if agent is not None and digest not in agent.held:
                        found[key] = found.get(key, 0) + self._bytes_of(swarm, who.have)
        return found

    def _image(self, image: Image) -> views.ImageLine:
        cluster, fetchers = self._cluster, self._fetchers(image)
        blobs = image.blobs.keys()
        upstream, peers = 0, 0
        for digest in blobs:
            came, got = self._moved(digest)
            upstream, peers = upstream + came, peers + got
        agents = cluster.agents.by_key
        held = sum(
            size for key in fetchers for digest, size in image.blobs.items() if digest in agents[key].held
        )  # fmt: skip
        line = views.ImageLine(
            manifest=image.manifest,
            names=self._names(image),
            platform=image.platform,
            size=image.size,
            blobs=len(blobs),
            nodes=sum(blobs <= agent.held for agent in agents.values()),
            of=len(agents),
            fetching=len(fetchers),
            fetchers={key: self._name(key) for key in sorted(fetchers)[:FETCHERS]},
            began=self._wall(min((image.pulls[key] for key in fetchers), default=None)),
            held=held,
            arriving=sum(fetchers.values()),
            moved=(upstream, peers),
            seen=int(self._wall(image.seen)),
        )
        return replace(line, ends=ends(line, round(cluster.epoch + self._at, 1)))

    def _moved(self, digest: str) -> tuple[int, int]:
        """Bytes of one blob that came from upstream, and from peers."""
        upstream, peers = self._cluster.images.moved(digest)
        swarm = self._cluster.swarms.get(digest)
        if swarm is None:
            return upstream, peers
        there = sum(
            max(0, self._bytes_of(swarm, who.have) - swarm.brought(key))
            for key, who in swarm.board.participants.items()
            if key in swarm.joined
        )
        return upstream + swarm.arrived, peers + swarm.received + there

    def _node(self, image: Image, agent: Agent, held: int, fetchers: Mapping[str, int]) -> views.ImageNode:
        fetching = agent.key in fetchers
        state: Literal["whole", "fetching", "part"] = "fetching" if fetching else "part"
        if image.blobs.keys() <= agent.held:
            state = "whole"
        return views.ImageNode(
            name=agent.name,
            zone=agent.zone,
            state=state,
            held=held,
            arriving=fetchers.get(agent.key, 0),
            began=self._wall(image.pulls.get(agent.key) if fetching else None),
        )

    def _layer(self, digest: str, size: int) -> views.Layer:
        swarm = self._cluster.swarms.get(digest)
        return views.Layer(
            size=size,
            nodes=sum(digest in agent.held for agent in self._cluster.agents.by_key.values()),
            swarm=self._line(swarm) if swarm is not None else UNSET,
        )

    def _bytes_of(self, swarm: Swarm, have: int) -> int:
        """Bytes of the windows in the bitmap *have*. Windows have few lengths: bits are counted for each."""
        if not have or swarm.board.size is None:
            return 0
        masks = self._masks.get(swarm.digest)
        if masks is None:
            masks = self._masks[swarm.digest] = {}
            for window in range(swarm.board.window_count):
                length = swarm.board.window_length(window)
                masks[length] = masks.get(length, 0) | 1 << window
        return sum(length * (have & mask).bit_count() for length, mask in masks.items())

    def _name(self, key: str) -> str:
        agent = self._cluster.agents.get(key)
        return agent.name if agent is not None else key

    def _wall(self, at: float | None) -> float:
        return 0.0 if at is None else round(self._cluster.epoch + at, 1)


def ordered(lines: Iterable[views.ImageLine]) -> Sequence[views.ImageLine]:
    """Lines in the order in which a list shows them."""
    return sorted(lines, key=lambda line: (not line.fetching, -line.seen, line.manifest))


def node_rank(key: str, row: views.ImageNode) -> tuple[int, str, str]:
    """Where an image's node stands in the list: those that fetch come first."""
    return _RANK[row.state], row.name, key


def ends(line: views.ImageLine, now: float) -> float:
    """When those who pull have it, if it goes on as fast as since it began; 0: not known."""
    wanted, there = line.fetching * line.size, line.held + line.arriving
    if not line.began or not wanted or there < SURE * wanted or now <= line.began:
        return 0.0
    left = (now - line.began) * max(0, wanted - there) / there
    return round(now + left)
