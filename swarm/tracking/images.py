"""The images that went by on this node, as trackers are told them. Pure."""

from __future__ import annotations

from collections import OrderedDict

from msgspec.structs import replace

from swarm.protocol import wire


class Images:
    """The latest *most* images, by manifest. A tracker that forgot is told all of them."""

    def __init__(self, most: int = wire.MAX_IMAGES) -> None:
        self._most = most
        self._seen: OrderedDict[str, wire.Image] = OrderedDict()

    def saw(self, image: wire.Image) -> bool:
        """*image* went by. Returns whether that is news: it was not known so, or a pull of it begins."""
        known = self._seen.pop(image.manifest, None)
        found = replace(image, pulled=False)
        if known is not None and known.index and not found.index:  # asked for by its digest this time
            found = replace(found, index=known.index, platform=known.platform)
        self._seen[image.manifest] = found
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
        return image.pulled or known != found

    def all(self) -> tuple[wire.Image, ...]:
        """All of them, the latest last."""
        return tuple(self._seen.values())
