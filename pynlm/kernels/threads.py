"""Number of threads of the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable

from pynlm.arrays import check_integer

from ._backend import function

chosen = False
"""Whether `set_num_threads` has been called."""
listeners: list[Callable[[], None]] = []
"""Called after each `set_num_threads`."""


def set_num_threads(n: int) -> None:
    """Let the compiled kernels use `n` threads from now on.

    The results have the same bits whatever the number.

    Parameters
    ----------
    n
        1 to 1024.

    Raises
    ------
    TypeError, ValueError
        Not an integer, or out of range.

    Examples
    --------
    >>> before = get_num_threads()
    >>> set_num_threads(1)
    >>> set_num_threads(before)
    """
    global chosen
    check_integer(n, func="set_num_threads", name="n", low=1, high=1024)
    function("set_num_threads", "cpu", {})(int(n))
    chosen = True
    for listener in listeners:
        listener()


def get_num_threads() -> int:
    """Return the number of threads that the compiled kernels use.

    The first value comes from PYNLM_NUM_THREADS, else OMP_NUM_THREADS, else the number of
    processors that this process may use.

    Raises
    ------
    ValueError
        PYNLM_NUM_THREADS is no positive integer.

    Examples
    --------
    >>> get_num_threads() >= 1
    True
    """
    return int(function("get_num_threads", "cpu", {})())
