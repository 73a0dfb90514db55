"""Ctrl-C in a run: the first ends it after the work in hand, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interruption:
    """Listens for Ctrl-C.

    Attributes
    ----------
    pressed : whether it was pressed, so that the run is to end.
    """

    def __init__(self) -> None:
        self.pressed = self._told = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block the first Ctrl-C only sets `pressed`; the second is as ever."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def press(signum: int, frame: object) -> None:
            # Nothing is printed here: what this interrupts may be a half printed line.
            self.pressed = True
            signal.signal(signal.SIGINT, previous)

        previous = signal.signal(signal.SIGINT, press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def tell(self, say: Callable[[str], None]) -> None:
        """Say once that it was pressed; called wherever the work has come to a rest."""
        if self.pressed and not self._told:
            self._told = True
            say("Ctrl-C: saving and evaluating, then the end (again: stop at once)")
