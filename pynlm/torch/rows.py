"""Batches whose rows end at different steps: packed as torch packs them, padded as kernels read."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pynlm.torch.tensors import Array, Memory


class Rows:
    """Lengths of a batch's rows, of which none is longer than the one before.

    Parameters
    ----------
    sizes
        int64 [T], non-increasing: rows that take part in each step (a PackedSequence's
        `batch_sizes`).

    Attributes
    ----------
    lengths
        int32 [B]: steps that each row takes part in; None if it is all steps for all.

    Examples
    --------
    >>> rows = Rows(np.array([3, 2, 2]))
    >>> rows.lengths
    array([3, 3, 1], dtype=int32)
    >>> rows.pad(np.arange(7.0)[:, None], Memory())[:, :2, 0]
    array([[0., 1.],
           [3., 4.],
           [5., 6.]])
    """

    def __init__(self, sizes: npt.NDArray[np.int64]) -> None:
        self.steps, self.batch, self.total = len(sizes), int(sizes[0]), int(sizes.sum())
        self.lengths: npt.NDArray[np.int32] | None = None
        if sizes[-1] != self.batch:
            found = np.searchsorted(-sizes, -np.arange(self.batch), side="left")
            self.lengths = found.astype(np.int32)
        # runs of steps with the same rows: first step, end, rows
        ends = [*(np.flatnonzero(sizes[1:] != sizes[:-1]) + 1).tolist(), self.steps]
        self._runs = [
            (first, end, int(sizes[first])) for first, end in zip([0, *ends], ends, strict=False)
        ]

    def pad(self, packed: Array, memory: Memory) -> Array:
        """[N, W] as [T, B, W], a view if it can be; beyond a row's length nothing is set."""
        if self.lengths is None:
            return packed.reshape(self.steps, self.batch, -1)
        padded = memory.array((self.steps, self.batch, packed.shape[1]), packed.dtype)
        at = 0
        for first, end, rows in self._runs:
            upto = at + (end - first) * rows
            padded[first:end, :rows] = packed[at:upto].reshape(end - first, rows, -1)
            at = upto
        return padded

    def pack(self, padded: Array, packed: Array) -> None:
        """[T, B, W] into [N, W]."""
        at = 0
        for first, end, rows in self._runs:
            upto = at + (end - first) * rows
            packed[at:upto].reshape(end - first, rows, -1)[...] = padded[first:end, :rows]
            at = upto

    @cached_property
    def turn(self) -> npt.NDArray[np.intp]:
        """Where each of the T·B entries comes from, if each row is reversed within its length."""
        t, n = np.arange(self.steps)[:, None], self.lengths
        assert n is not None
        step = np.where(t < n, n - 1 - t, t)
        return (step * self.batch + np.arange(self.batch)).reshape(-1)


def is_sound(sizes: Tensor, batch: int, total: int) -> bool:
    """Whether `sizes` are those of a batch whose entries `Rows` can read, `total` in all."""
    if sizes.dtype is not torch.int64 or len(sizes) == 0:
        return False
    a = sizes.numpy()
    falls = bool((a[1:] <= a[:-1]).all())
    return falls and a[-1] > 0 and a[0] == batch and int(a.sum()) == total


def reversed_in_time(x: Array, rows: Rows | None, memory: Memory) -> Array:
    """[T, B, W] with each row reversed within its length: a copy, or `x` itself of one step."""
    if len(x) == 1:
        return x
    out = memory.array(x.shape, x.dtype)
    if rows is None or rows.lengths is None:
        out[...] = x[::-1]
    else:
        # mode="clip" spares the buffered output that "raise" makes; nothing is clipped
        flat = np.ascontiguousarray(x).reshape(-1, x.shape[2])
        np.take(flat, rows.turn, axis=0, out=out.reshape(flat.shape), mode="clip")
    return out
