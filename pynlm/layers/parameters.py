"""Named parameters over one flat buffer, and the states of their gradients."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pynlm.arrays import describe
from pynlm.kernels.pack import Packed, pack
from pynlm.layers.convert import take
from pynlm.layers.pool import ALIGN, Pool

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int32]

FEW_ROWS = 4  # a product of so few reads weights as they stand
UNSET, DENSE, ROWS = "unset", "dense", "rows"


class Spec(NamedTuple):
    """What `Parameters` makes one parameter from; a group is a name, or says its treatment."""

    name: str
    shape: tuple[int, ...]
    group: str | Group
    sparse: bool = False


@dataclass
class Group:
    """Parameters that the optimiser treats alike.

    Attributes
    ----------
    name
        Unique within a `Parameters`.
    lr
        Multiplies the learning rate.
    decay
        Whether weight decay applies.
    frozen
        No update, and no part in the gradient's norm.
    """

    name: str
    lr: float = 1.0
    decay: bool = True
    frozen: bool = False

    def alike(self, other: Group) -> bool:
        """Whether the two differ in name only."""
        return (self.lr, self.decay, self.frozen) == (other.lr, other.decay, other.frozen)


class Block(NamedTuple):
    """A stretch of the flat buffers with dense gradients and one treatment."""

    start: int
    stop: int
    group: Group


class _Clock:
    """Counts calls of `zero_grad`; a gradient set at an earlier time is unset."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0


class Parameter:
    """A weight, its gradient, and whether that gradient is unset, dense or a set of rows.

    Layers add into gradients without a pass that zeroes them first: the first contribution is
    written into the unset gradient (`target`, `claim`), later ones are added. An unset gradient
    counts as zero; its memory holds leftovers. Can be built over arrays that others own.

    Parameters
    ----------
    name
        For example "recurrent.0.w_ih".
    data, grad
        float32 or float64, same shape, C-contiguous.
    group
        How the optimiser treats it.
    sparse
        A table [V, D] whose gradient comes as rows.
    pool
        Lends temporary buffers; its own by default.

    Attributes
    ----------
    start
        Offset of the parameter in the flat buffers (elements).
    """

    __slots__ = (
        "_claim", "_clock", "_packed", "_rows", "_stamp", "_state",
        "data", "grad", "group", "name", "pool", "sparse", "start",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        data: Array,
        grad: Array,
        group: Group,
        *,
        sparse: bool = False,
        pool: Pool | None = None,
        start: int = 0,
        clock: _Clock | None = None,
    ) -> None:
        if sparse and data.ndim != 2:
            raise ValueError(
                f"Parameter: {name} is sparse and must be [V, D], got {list(data.shape)}"
            )
        self.name, self.data, self.grad, self.group = name, data, grad, group
        self.sparse, self.start = sparse, start
        self.pool = Pool() if pool is None else pool
        self._clock = _Clock() if clock is None else clock
        self._stamp, self._state = -1, UNSET
        self._rows: list[tuple[IntArray, Array]] = []
        self._claim: weakref.ref[Claim] | None = None
        self._packed: dict[int | tuple[int, int], Packed] | None = None

    def __repr__(self) -> str:
        shape = list(self.data.shape)
        return f"Parameter({self.name}, {self.data.dtype} {shape}, gradient {self.state})"

    @property
    def state(self) -> str:
        """ "unset" (counts as zero), "dense" (in `grad`) or "rows" (in `rows`)."""
        return self._state if self._stamp == self._clock.now else UNSET

    @property
    def rows(self) -> tuple[IntArray, Array]:
        """The row gradient: rising unique ids int32 [n] and their sums [n, D].

        Empty for an unset gradient.

        Raises
        ------
        RuntimeError
            The gradient is dense.
        """
        state = self.state
        if state == DENSE:
            raise RuntimeError(f"Parameter.rows: the gradient of {self.name} is dense")
        if state == UNSET:
            return np.empty(0, np.int32), self.data[:0]
        if len(self._rows) > 1:
            ids = np.unique(np.concatenate([rows for rows, _ in self._rows]))
            sums = self.pool.lease((len(ids), self.data.shape[1]), self.data.dtype)
            sums.fill(0)
            for rows, drows in self._rows:
                sums[np.searchsorted(ids, rows)] += drows
            self._rows = [(ids, sums)]
        return self._rows[0]

    def for_product(self, rows: int, gates: int | tuple[int, int] = 0) -> Array:
        """The weights for forward products of `rows` rows.

        After `Parameters.pack` they come packed (`pynlm.kernels.pack`, with its `gates`), if there
        are more than a few rows.
        """
        if self._packed is None or rows <= FEW_ROWS:
            return self.data
        if gates not in self._packed:
            self._packed[gates] = pack(self.data, gates=gates)
        return self._packed[gates]

    def zero_grad(self) -> None:
        """Mark the gradient unset."""
        self._stamp = -1
        self._rows.clear()

    def target(self) -> Target:
        """Context manager that gives an array to overwrite with a contribution to the gradient.

        It is the gradient itself if unset, else a lease that is added to it on leaving. After an
        exception the gradient is as it was.
        """
        return Target(self)

    def claim(self) -> Claim:
        """An array to overwrite now with a contribution that counts only once it is committed.

        It is the gradient itself if unset and unclaimed, else a lease. A claim that is dropped
        leaves no trace.
        """
        return Claim(self)

    def add(self, contribution: Array) -> None:
        """Add a dense contribution (shape of the parameter), which the caller keeps."""
        if self._prepare():
            self.grad[...] = contribution
            self._set(DENSE)
        else:
            np.add(self.grad, contribution, out=self.grad)

    def add_rows(self, rows: IntArray, drows: Array) -> None:
        """Add a row contribution: unique ids int32 [n], sums [n, D].

        The arrays are kept until `zero_grad` if the parameter is sparse and its gradient not
        dense, so the caller lets go of them. On a GPU `rows` are there, too.
        """
        if self.sparse and self.state != DENSE:
            if self.state == UNSET:
                self._rows.clear()
                self._set(ROWS)
            self._rows.append((rows, drows))
            return
        self.densify()
        # Rows are unique, so gather, add, scatter is an exact sum; np.add.at is far slower.
        sums = take(self.grad, rows.astype(np.intp), self.pool)
        sums += drows
        self.grad[rows] = sums

    def densify(self) -> Array:
        """Make the gradient dense (zeros if unset) and return it: exactly what it counts as."""
        state = self.state
        if state == DENSE:
            return self.grad
        rows = self.rows if state == ROWS else None
        self._evict()
        self.grad.fill(0)
        if rows is not None:
            self.grad[rows[0]] = rows[1]
            self._rows.clear()
        self._set(DENSE)
        return self.grad

    def _set(self, state: str) -> None:
        self._stamp, self._state = self._clock.now, state

    def _prepare(self) -> bool:
        """Before a dense contribution: True if `grad` may be overwritten, else it is dense."""
        state = self.state
        if state == UNSET:
            self._evict()
            return True
        if state == ROWS:
            self.densify()
        return False

    def _claimant(self) -> Claim | None:
        return None if self._claim is None else self._claim()

    def _evict(self) -> None:
        """Move a contribution that waits in the unset gradient out of the way."""
        claim = self._claimant()
        if claim is not None:
            claim.array = self.pool.like(self.grad)
            claim.array[...] = self.grad
        self._claim = None


class Target:
    """See `Parameter.target`."""

    __slots__ = ("_array", "_parameter", "_writes_grad")

    def __init__(self, parameter: Parameter) -> None:
        self._parameter = parameter
        self._array: Array | None = None

    def __enter__(self) -> Array:
        p = self._parameter
        self._writes_grad = p._prepare()
        self._array = p.grad if self._writes_grad else p.pool.like(p.grad)
        return self._array

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        array, self._array = self._array, None
        if kind is None and array is not None:
            if self._writes_grad:
                self._parameter._set(DENSE)
            else:
                self._parameter.add(array)


class Claim:
    """See `Parameter.claim`.

    Attributes
    ----------
    array
        Overwrite it before anything else is done with the parameter. Read it anew each time: it
        moves when another contribution needs the gradient first.
    """

    __slots__ = ("__weakref__", "array", "parameter")

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter
        if parameter.state == UNSET and parameter._claimant() is None:
            parameter._claim = weakref.ref(self)
            self.array = parameter.grad
        else:
            self.array = parameter.pool.like(parameter.grad)

    def commit(self, scale: float = 1.0) -> None:
        """Add `scale` times the array to the gradient; once.

        A scale other than 1 costs one more pass over the array.
        """
        p, array = self.parameter, self.array
        if scale != 1.0:
            np.multiply(array, scale, out=array)
        # An owned claim means an unset gradient: whatever sets it evicts the claim first.
        if p._claimant() is self:
            p._claim = None
            p._set(DENSE)
        else:
            p.add(array)
        del self.array


class Parameters(Mapping[str, Parameter]):
    """Named parameters over one flat weight buffer and one flat gradient buffer.

    Views start at multiples of 64 bytes; the padding between them is zero and stays zero, so the
    optimiser and the norm run over stretches of the flat buffers (`blocks`) in one pass.

    Parameters
    ----------
    specs
        Name, shape, group and whether the gradient is row-sparse (never on a GPU), in order. Sparse
        tables first or last leave one stretch for all others.
    dtype
        float32 or float64.
    pool
        Lends temporary buffers, and says where everything is.

    Raises
    ------
    TypeError
        Another dtype.
    ValueError
        A name given twice.

    Examples
    --------
    >>> p = Parameters([("w", (3, 5), "all"), ("b", (3,), "all")], np.float32)
    >>> p["w"].data.shape, p["w"].state, p.data.size
    ((3, 5), 'unset', 32)
    """

    def __init__(
        self,
        specs: Sequence[Spec | tuple[str, tuple[int, ...], str] | tuple[Any, ...]],
        dtype: npt.DTypeLike = np.float32,
        pool: Pool | None = None,
    ) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"Parameters: dtype must be float32 or float64, got {self.dtype}")
        self.pool = Pool() if pool is None else pool
        self.groups: dict[str, Group] = {}
        self._clock = _Clock()
        self._parameters: dict[str, Parameter] = {}
        unit, end = ALIGN // self.dtype.itemsize, 0
        places: list[tuple[Spec, int, int]] = []
        for spec in (Spec(*s) for s in specs):
            start, size = end, prod(spec.shape)
            end = start + -(-size // unit) * unit
            places.append((spec, start, size))
        self.data = self.pool.flat_zeros(end, self.dtype)
        """Flat weights, padding included."""
        self.grad = self.pool.flat_zeros(end, self.dtype)
        """Flat gradients; only where `blocks` says so do they mean anything."""
        for spec, start, size in places:
            if spec.name in self._parameters:
                raise ValueError(f"Parameters: name {spec.name!r} is given twice")
            group = spec.group if isinstance(spec.group, Group) else Group(spec.group)
            self._parameters[spec.name] = Parameter(
                spec.name,
                self.data[start : start + size].reshape(spec.shape),
                self.grad[start : start + size].reshape(spec.shape),
                self.groups.setdefault(group.name, replace(group)),
                sparse=spec.sparse and self.pool.device is None,
                pool=self.pool,
                start=start,
                clock=self._clock,
            )
        self._sparse = [p for p in self._parameters.values() if p.sparse]

    def __getitem__(self, name: str) -> Parameter:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def count(self) -> int:
        """How many weights there are (padding excluded)."""
        return sum(p.data.size for p in self._parameters.values())

    @property
    def packed(self) -> bool:
        """Whether `pack` has been called, and `unpack` not since."""
        return self.pool.device is None and not self.data.flags.writeable

    def pack(self) -> None:
        """Make the weights read-only, and let layers keep packed copies (as much memory again).

        For models that only score: a step of 5 to 64 histories becomes 1.3 to 2.2 times as fast.
        """
        if self.pool.device is None:
            self._set_packed(True)

    def unpack(self) -> None:
        """Drop packed copies; the weights may change again."""
        if self.packed:
            self._set_packed(False)

    def _set_packed(self, packed: bool) -> None:
        self.data.flags.writeable = not packed
        for p in self._parameters.values():
            p.data.flags.writeable = not packed
            p._packed = {} if packed else None

    def zero_grad(self) -> None:
        """Mark all gradients unset; touches no gradient memory."""
        self._clock.now += 1
        for p in self._sparse:
            p._rows.clear()

    def blocks(self) -> list[Block]:
        """The stretches of `data` and `grad` with dense gradients, frozen ones included.

        Neighbours whose groups are treated alike share a stretch. Unset gradients of parameters
        that are not sparse are zeroed here, so that the stretches are what they count as.
        """
        blocks: list[Block] = []
        unit = ALIGN // self.dtype.itemsize
        for p in self._parameters.values():
            if p.sparse and p.state != DENSE:
                continue
            p.densify()
            stop = p.start + -(-p.data.size // unit) * unit
            if blocks and blocks[-1].stop == p.start and blocks[-1].group.alike(p.group):
                blocks[-1] = blocks[-1]._replace(stop=stop)
            else:
                blocks.append(Block(p.start, stop, p.group))
        return blocks

    def tables(self) -> list[Parameter]:
        """What `blocks` leaves out, if it has any weight: take `rows` (empty where unset)."""
        return [p for p in self._sparse if p.state != DENSE and p.data.size]

    def state_dict(self) -> dict[str, Array]:
        """Name -> weights, as views: they change with the parameters and are where these are."""
        return {name: p.data for name, p in self._parameters.items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy weights in, NumPy's in any case. Nothing is written unless all of them fit.

        Raises
        ------
        KeyError
            Names missing or unknown.
        TypeError, ValueError
            Another dtype; another shape.
        RuntimeError
            The weights are packed.
        """
        func = "load_state_dict"
        if self.packed:
            raise RuntimeError(f"{func}: the weights are packed and read-only; call unpack() first")
        missing = [name for name in self._parameters if name not in state]
        unknown = [name for name in state if name not in self._parameters]
        if missing or unknown:
            raise KeyError(f"{func}: missing {missing or 'none'}, unknown {unknown or 'none'}")
        for name, p in self._parameters.items():
            a = state[name]
            want = f"{p.data.dtype} {list(p.data.shape)}"
            if not isinstance(a, np.ndarray) or a.dtype != p.data.dtype:
                raise TypeError(f"{func}: {name} must be {want}, got {describe(a)}")
            if a.shape != p.data.shape:
                raise ValueError(f"{func}: {name} must be {want}, got {describe(a)}")
        for name, p in self._parameters.items():
            self.pool.load(p.data, state[name])
