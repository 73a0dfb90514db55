"""Weights packed once, for many products with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pynlm.arrays import Array, Dims, check, describe


class Packed(np.ndarray):
    """A weight matrix, read-only, that carries a packed copy for the compiled kernels.

    Made by `pack`. It is the array that it was made of, wherever an array does; forward kernels
    read the copy. What is computed from it, or cut out of it, has no packed copy.

    Attributes
    ----------
    panels
        The copy, in an order that depends on the machine; None: there is none.
    gates
        As given to `pack`.
    packed_shape
        Of the array when it was packed.
    """

    panels: npt.NDArray[Any] | None
    gates: tuple[int, int]
    packed_shape: tuple[int, int]

    def __array_finalize__(self, obj: object) -> None:
        """A new array has no packed copy."""
        self.panels, self.gates, self.packed_shape = None, (0, 0), (0, 0)

    def __array_wrap__(self, array: Any, *args: Any) -> Any:
        """Results are plain."""
        return np.asarray(array)[()]


def pack(w: Array, *, gates: int | tuple[int, int] = 0) -> Packed:
    """Pack weights for calls that follow: products of 5 to 64 rows become 1.3 to 2.2 times as fast.

    Without it, every call of a forward kernel packs the weights it is given, which costs as much
    as a product of about ten rows. Products of up to four rows (recurrent ones on older processors:
    of up to two) do not read the packed copy. The result is the same, to the bit.

    Parameters
    ----------
    w : [O, I]
        Kept, not copied: it must not change as long as the result is used. The copy takes as much
        memory again.
    gates
        0 for `w_ih` of a recurrent kernel, `w` of `linear_forward` and of the `xent` functions but
        `xent_gradients`. For `w_hh` the cell's number of gates: 4 for an LSTM (3 if coupled), 3 for
        a GRU ((2, 1) for one that resets before), 1 for an RNN and for `w_hr`.

    Returns
    -------
    Packed
        Give it to a forward kernel in place of `w`.

    Raises
    ------
    TypeError
        `w` is no NumPy array or has another dtype; `gates` is not of integers.
    ValueError
        Shape or layout; `gates` negative or no divisor of O; given to a kernel with other gates.

    Examples
    --------
    >>> from pynlm.kernels import linear_forward
    >>> w = pack(np.array([[3.0, 4.0], [5.0, 6.0]]))
    >>> y = np.empty((1, 2))
    >>> linear_forward(y=y, x=np.array([[1.0, 2.0]]), w=w)
    >>> y
    array([[11., 17.]])
    """
    from pynlm import _kernels

    dims: Dims = {}
    check(w, "O I", dims, func="pack", name="w")
    if "device" in dims:
        raise TypeError(f"pack: w must be a NumPy array, got {describe(w)}")
    both = gates if isinstance(gates, tuple) else (gates, 0)
    if len(both) != 2 or not all(type(n) is int for n in both):
        raise TypeError(f"pack: gates must be an int or two, got {gates!r}")
    if min(both) < 0 or both[0] < bool(both[1]) or (both[0] and len(w) % sum(both)):
        raise ValueError(
            f"pack: gates must be 0 or more and divide the rows of w [O={len(w)}], got {gates}"
        )
    plain = np.asarray(w)
    packed = plain.view(Packed)
    packed.flags.writeable = False
    packed.panels, packed.gates = _kernels.pack_weights(w=plain, gates=both), both
    packed.packed_shape = (len(w), w.shape[1])
    return packed
