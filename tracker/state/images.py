"""Which blobs make up which image, as agents saw manifests go by. Pure.

This is for people: it names what the page shows, and nothing that moves depends on it. A member that lies
mislabels at most. What most members say of a manifest is shown, and each member has a budget of its own, so that
the images that one makes up push out nobody else's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from swarm.blob.digest import parse
from swarm.protocol import wire

MOST = 4096
"""Images remembered at once; those told least recently go first."""

MOST_BYTES = 16 * 1024 * 1024
"""Of all that is remembered, estimated."""

PER_MEMBER = 256
"""Images that one member vouches for; its oldest go first."""

VERSIONS = 3
"""Different contents of one manifest that are weighed against each other: all but one are lies."""

NAMES = 8
"""Repositories remembered per image."""

VOICES = 16
"""Members remembered that say the same: more prove no more."""

PULLS = 5000
"""Agents of which it is known when they began to pull an image."""

_ENTRY, _BLOB = 500, 200
"""Bytes that an image, and one of its blobs, take."""


@dataclass(slots=True)
class _Version:
    blobs: dict[str, int]
    index: str
    platform: str
    voices: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class Image:
    """An image, by its manifest's digest. *seen*: when it was told last, on the caller's clock."""

    manifest: str
    seen: float
    pulls: dict[str, float] = field(default_factory=dict)
    """Agent -> when it began to pull."""
    _names: dict[str, dict[str, None]] = field(default_factory=dict)
    _versions: list[_Version] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """registry/repository, those that most members told first."""
        return tuple(sorted(self._names, key=lambda name: -len(self._names[name])))

    @property
    def blobs(self) -> Mapping[str, int]:
        """Config and layers: digest -> bytes."""
        return self._best.blobs

    @property
    def index(self) -> str:
        """The index that names it, or ""."""
        return self._best.index

    @property
    def platform(self) -> str:
        """os/architecture, or ""."""
        return self._best.platform

    @property
    def size(self) -> int:
        """Bytes of config and layers."""
        return sum(self._best.blobs.values())

    @property
    def cost(self) -> int:
        """Bytes that remembering it takes."""
        return _ENTRY + sum(_BLOB * len(version.blobs) for version in self._versions)

    def says(self, name: str, blobs: dict[str, int], index: str, platform: str, member: str) -> None:
        """*member* says that this is *name*, and what it consists of."""
        self._forget(member)
        voices = self._names.setdefault(name, {})
        if len(voices) < VOICES:
            voices[member] = None
        while len(self._names) > NAMES:
            del self._names[min(self._names, key=lambda known: (known == name, len(self._names[known])))]
        version = next((one for one in self._versions if one.blobs == blobs), None)
        if version is None:
            version = _Version(blobs, index, platform)
            self._versions.append(version)
        if index and not version.index:
            version.index, version.platform = index, platform
        if len(version.voices) < VOICES:
            version.voices[member] = None
        if len(self._versions) > VERSIONS:
            weakest = min(self._versions, key=lambda one: (one is version, len(one.voices)))
            self._versions.remove(weakest)

    def _forget(self, member: str) -> None:
        """What *member* said of the content before does not count any more; a member has one voice."""
        for version in self._versions:
            version.voices.pop(member, None)

    @property
    def _best(self) -> _Version:
        return max(self._versions, key=lambda one: len(one.voices))


class Images:
    """All images that are known."""

    def __init__(self) -> None:
        self._images: OrderedDict[str, Image] = OrderedDict()
        self._of: dict[str, dict[str, None]] = {}
        """Blob -> manifests."""
        self._by_member: dict[str, OrderedDict[str, None]] = {}
        self._moved: dict[str, tuple[int, int]] = {}
        """Blob -> bytes from [upstream, peers] on boards that are gone."""
        self._cost = 0

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Image]:
        """Those told last come first."""
        return reversed(self._images.values())

    def get(self, manifest: str) -> Image | None:
        """The image of that manifest."""
        return self._images.get(manifest)

    def of(self, digest: str) -> list[Image]:
        """The images that the blob *digest* belongs to."""
        return [self._images[manifest] for manifest in self._of.get(digest, ())]

    def told(self, said: Iterable[wire.Image], key: str, member: str, now: float) -> None:
        """The agent *key*, a process of *member*, saw these go by. Raises DigestInvalid."""
        for one in said:
            self._told(one, key, member, now)

    def moved(self, digest: str) -> tuple[int, int]:
        """Bytes of a blob that came from [upstream, peers] on boards that are gone."""
        return self._moved.get(digest, (0, 0))

    def keep(self, digest: str, upstream: int, peers: int) -> None:
        """The board of *digest* goes: so many bytes had come from upstream and from peers."""
        if digest in self._of and (upstream or peers):
            before = self.moved(digest)
            self._moved[digest] = (before[0] + upstream, before[1] + peers)

    def left(self, key: str) -> None:
        """The agent *key* is gone."""
        for image in self._images.values():
            image.pulls.pop(key, None)

    # -- inside -----------------------------------------------------------------------------------

    def _told(self, said: wire.Image, key: str, member: str, now: float) -> None:
        manifest = parse(said.manifest)
        blobs = {str(parse(blob.digest)): blob.size for blob in said.blobs}
        if not blobs or not said.name:
            return
        index = parse(said.index) if said.index else ""
        image = self._images.pop(manifest, None)
        if image is None:
            image = Image(manifest, now)
        else:
            self._unlink(image)
        image.says(said.name[:512], blobs, index, said.platform[:64], member)
        image.seen = now
        if said.pulled and (key in image.pulls or len(image.pulls) < PULLS):
            image.pulls[key] = now
        elif len(image.pulls) < PULLS:
            image.pulls.setdefault(key, now)
        self._images[manifest] = image
        self._link(image)
        own = self._by_member.setdefault(member, OrderedDict())
        own[manifest] = None
        own.move_to_end(manifest)
        if len(own) > PER_MEMBER:
            self._unvouched(member, next(iter(own)))
        while len(self._images) > MOST or (self._cost > MOST_BYTES and len(self._images) > 1):
            self._drop(next(iter(self._images)))

    def _unvouched(self, member: str, manifest: str) -> None:
        """*member* does not vouch for an image any more; it stays while somebody else does."""
        own = self._by_member[member]
        own.pop(manifest, None)
        if not own:
            del self._by_member[member]
        if not any(manifest in others for others in self._by_member.values()):
            self._drop(manifest)

    def _drop(self, manifest: str) -> None:
        image = self._images.pop(manifest, None)
        if image is None:
            return
        self._unlink(image)
        for member in [name for name, own in self._by_member.items() if manifest in own]:
            own = self._by_member[member]
            del own[manifest]
            if not own:
                del self._by_member[member]
        for digest in image.blobs:
            if digest not in self._of:
                self._moved.pop(digest, None)

    def _link(self, image: Image) -> None:
        self._cost += image.cost
        for digest in image.blobs:
            self._of.setdefault(digest, {})[image.manifest] = None

    def _unlink(self, image: Image) -> None:
        self._cost -= image.cost
        for digest in image.blobs:
            manifests = self._of.get(digest)
            if manifests is not None:
                manifests.pop(image.manifest, None)
                if not manifests:
                    del self._of[digest]
