"""The closure that a forward pass returns."""

from __future__ import annotations

from typing import Any


class Once:
    """Base of all backprops: holds what was saved, gives it out once.

    The arrays it holds are pool leases: they are free again after the call, or when the object is
    dropped without one.
    """

    __slots__ = ("_name", "_saved")

    def __init__(self, name: str, *saved: Any) -> None:
        self._name = name
        self._saved: tuple[Any, ...] | None = saved

    def _take(self) -> tuple[Any, ...]:
        saved, self._saved = self._saved, None
        if saved is None:
            raise RuntimeError(f"{self._name}: backprop may be called once, this is another call")
        return saved
