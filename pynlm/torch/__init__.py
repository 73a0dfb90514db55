"""Drop-in modules for PyTorch, on pynlm's kernels: one changed import, or `replace(model)`."""

from __future__ import annotations

__all__: list[str] = []
