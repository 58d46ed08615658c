"""Which windows others bring in from upstream, as the board said last. Pure; time is passed in."""

from __future__ import annotations

from collections.abc import Mapping

FRESH = 2.0
"""Seconds between two questions of who else brings a window in, while a reader waits for that."""


class Others:
    """See the module. Boards are told apart by their incarnation."""

    def __init__(self) -> None:
        self._heard_at = float("-inf")
        self._coming: dict[int, tuple[float, float, str]] = {}
        """Window -> bytes per second of who else brings it in, when the board said so, and which board."""

    @property
    def heard(self) -> bool:
        """Whether any board has answered yet."""
        return self._heard_at > float("-inf")

    def hear(self, board: str, coming: Mapping[int, float], now: float) -> None:
        """*board* answered. Another one than before has yet to hear of those who come to it as well."""
        self._heard_at = now
        self._coming = {w: known for w, known in self._coming.items() if known[2] != board and self._is_new(known, now)}
        for window, pace in coming.items():
            self._coming[window] = pace, now, board

    def is_stale(self, now: float) -> bool:
        """Whether the board is to be asked once more before it is relied upon what it said."""
        return now - self._heard_at > FRESH

    def pace(self, window: int, now: float) -> float | None:
        """Bytes per second of who else brings *window* in; 0: upstream has sent it nothing; None: nobody does."""
        known = self._coming.get(window)
        return known[0] if known is not None and self._is_new(known, now) else None

    def windows(self, now: float) -> list[int]:
        """The windows that others bring in."""
        return [window for window, known in self._coming.items() if self._is_new(known, now)]

    @staticmethod
    def _is_new(known: tuple[float, float, str], now: float) -> bool:
        return now - known[1] < 3 * FRESH
