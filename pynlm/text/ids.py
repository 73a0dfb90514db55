"""Token ids as arrays: what counts as one, which are in range, where sentences lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pynlm.text._text import first_outside
from pynlm.text.files import PathLike

IntArray = NDArray[np.int32]

_BLOCK = 1 << 22


def as_ids(ids: Any, function: str) -> IntArray:
    """`ids` as a C-contiguous int32 array [n], without a copy where it is one already.

    Raises
    ------
    TypeError
        They are not integers.
    ValueError
        They have more than one dimension.
    IndexError
        They do not fit int32.
    """
    array = np.asarray(ids)
    if array.size == 0 and array.dtype == np.float64:  # what numpy makes of an empty list
        array = array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: ids must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{function}: ids must have one dimension, got {list(array.shape)}")
    return narrow(array, function, 0)


def check_ids(ids: IntArray, vocab_size: int, function: str, start: int = 0) -> None:
    """Raise IndexError for the first id outside [0, vocab_size); `start` is where `ids` begins."""
    at = first_outside(ids, vocab_size)
    if at >= 0:
        raise IndexError(
            f"{function}: id {ids[at]} at position {start + at} is not in [0, {vocab_size})"
        )


def narrow(array: NDArray[Any], name: str, start: int = 0) -> IntArray:
    """An integer array as int32 (IndexError if one does not fit; `start` is where it begins)."""
    result: IntArray = np.ascontiguousarray(array, np.int32)
    if array.dtype.itemsize >= 4 and array.dtype != np.int32:
        changed = result != array
        if changed.any():
            at = int(np.argmax(changed))
            raise IndexError(f"{name}: id {array[at]} at position {start + at} is too large")
    return result


def sentence_spans(ids: NDArray[Any], eos_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each sentence of `ids` starts, and its length with its `eos_id`; int64 [n] both.

    What stands behind the last `eos_id` is a sentence too.
    """
    # Block by block: a mask of the whole would not fit in memory where the ids do not.
    ends = [
        start + 1 + np.flatnonzero(ids[start : start + _BLOCK] == eos_id)
        for start in range(0, len(ids), _BLOCK)
    ]
    if len(ids) and ids[-1] != eos_id:
        ends.append(np.array([len(ids)]))
    end = np.concatenate([np.zeros(1, np.int64), *ends]).astype(np.int64)
    return end[:-1], np.diff(end)


def is_array(path: PathLike) -> bool:
    """Whether a path names a saved array rather than a text."""
    return Path(path).suffix == ".npy"


def load_array(path: PathLike) -> NDArray[Any]:
    """Memory-map a ``.npy`` file of integers [n].

    Raises
    ------
    FileNotFoundError, ValueError
        It is missing, damaged, empty, or something else than one-dimensional integers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such array file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an array that can be read ({error})") from None
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(
            f"{path}: expected a one-dimensional integer array, "
            f"got {array.dtype} {list(array.shape)}"
        )
    if not len(array):
        raise ValueError(f"{path}: the array is empty")
    return cast("NDArray[Any]", array)
