"""Any batch: hypothesis draws cells, options, sizes, lengths and how arrays lie in memory.

A layer gives what the oracle gives on tidy arrays, or an error that names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pynlm.layers import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    Context,
    Parameters,
    Recurrent,
    RecurrentOptions,
    Reversed,
)
from pynlm.testing import DTYPES, assert_close, assert_same_bits
from pynlm.testing.tolerances import kernel_tolerance

# As in tests/kernels/test_random_shapes.py.
FUZZ = int(os.environ.get("PYNLM_FUZZ", "0"))
quick = settings(
    max_examples=FUZZ or 40, deadline=None, derandomize=not FUZZ, database=None, print_blob=True
)

CELLS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
WAYS = ["forward", "reversed", "concat", "sum"]


@dataclass
class Drawn:
    """A layer to be made, and a batch for it."""

    cell: str
    way: str
    options: RecurrentOptions
    dims: tuple[int, int, int, int]
    lengths: list[int] | None
    ctx: dict[str, int]

    def layer(self, dtype: str) -> tuple[Recurrent | Reversed | Bidirectional, Parameters]:
        """The weights are the same numbers, float32's, in any dtype."""
        kind, (_, _, I, H) = CELLS[self.cell], self.dims
        specs = [s for way in "ab" for s in kind.specs(way, I, H, options=self.options)]
        parameters = Parameters(specs, dtype)
        rng = np.random.default_rng(I * 100 + H)
        for p in parameters.values():
            scale = 2 * np.sqrt(p.data.shape[-1])  # contracting: rounding errors do not grow
            p.data[...] = (rng.standard_normal(p.data.shape) / scale).astype(np.float32)
        a, b = (
            kind(parameters, way, options=self.options, index=index)
            for index, way in enumerate("ab")
        )
        if self.way in ("concat", "sum"):
            return Bidirectional(a, b, self.way), parameters
        return (Reversed(a) if self.way == "reversed" else a), parameters

    @property
    def dtypes(self) -> list[str]:
        """Those in which rounding cannot become large.

        Next to a bound it flips a derivative, which is likely enough in float32; layer norm divides
        by the deviation of numbers that, if few, may nearly be equal.
        """
        clipped = self.options.cell_clip or self.options.state_clip
        exact = clipped or (self.options.layer_norm and self.dims[3] < 16)
        return ["float64"] if exact else DTYPES

    def arrays(self, layer: Any, dtype: str) -> list[np.ndarray]:
        """x, dy, state and dstate."""
        T, B, I, _ = self.dims
        rng = np.random.default_rng(T * 100 + B)
        states = [s.shape for s in layer.initial_state(B)]
        shapes = [(T, B, I), (T, B, layer.output_size), *states, *states]
        return [rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in shapes]


@st.composite
def batches(draw: st.DrawFn) -> Drawn:
    cell = draw(st.sampled_from(sorted(CELLS)))
    possible: dict[str, Any] = {
        name: st.sampled_from([0.1, 0.5])
        for name in ("recurrent_dropout", "weight_drop", "zoneout")
    }
    possible |= {"layer_norm": st.just(True), "state_clip": st.sampled_from([0.125, 0.5])}
    if cell == "lstm":
        possible |= {"zoneout_cell": st.sampled_from([0.1, 0.5]), "peephole": st.just(True)}
        possible |= {"coupled_gates": st.just(True), "projection": st.integers(1, 9)}
        possible["cell_clip"] = st.sampled_from([0.125, 0.5])
    if cell == "gru":
        possible["reset_before"] = st.just(True)
    chosen = draw(st.fixed_dictionaries({}, optional=possible))
    if "reset_before" in chosen:
        chosen.pop("layer_norm", None)  # not defined together
    if cell == "lstm" and "layer_norm" in chosen:
        chosen["layer_norm_state"] = draw(st.booleans())
    options = RecurrentOptions(**chosen)
    T, B = draw(st.integers(0, 6)), draw(st.integers(0, 7))
    # Layer norm divides by the deviation of numbers that, if few, may nearly be equal.
    dims = (T, B, draw(st.integers(1, 9)), draw(st.integers(8 if options.layer_norm else 1, 20)))
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    ctx = {name: draw(st.integers(0, 9)) for name in ("seed", "step", "time0")}
    return Drawn(cell, draw(st.sampled_from(WAYS)), options, dims, lengths, ctx)


def compute(
    layer: Any, parameters: Parameters, arrays: list[Any], ctx: Context, lengths: object
) -> list[np.ndarray]:
    """Outputs and all gradients."""
    x, dy, *rest = arrays
    (y, last), backprop = layer(x, rest[: layer.states], ctx, lengths)
    y = y.copy()
    dx = backprop(dy, rest[layer.states :])
    gradients = [p.densify() for name, p in parameters.items()]
    return [y, *last, dx, *backprop.dstart, *gradients]


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "contiguous": lambda x: x,
    "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "every other row": lambda x: np.repeat(x, 2, axis=-2)[..., ::2, :],
    "backward": lambda x: np.flip(np.flip(x, 0).copy(), 0),
    "in Fortran order": np.asfortranarray,
    "batch first": lambda x: np.ascontiguousarray(x.swapaxes(0, -2)).swapaxes(0, -2),
    "read-only": lambda x: np.lib.stride_tricks.as_strided(x, x.shape, x.strides, writeable=False),
    "a list": lambda x: x.tolist() if x.size else x,
}
LENGTHS: dict[str, Callable[[list[int]], Any]] = {
    "list": lambda n: n,
    "tuple": tuple,
    **{name: lambda n, name=name: np.array(n, name) for name in ("i1", "u2", "i4", "i8", ">i8")},
    "every second": lambda n: np.repeat(np.array(n, np.int64), 2)[::2],
}


@quick
@given(batches(), st.data())
def test_agrees_with_the_oracle_on_tidy_arrays(batch: Drawn, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(batch.dtypes), "dtype")
    layer, parameters = batch.layer(dtype)
    arrays = [
        LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))](a) for a in batch.arrays(layer, dtype)
    ]
    lengths: Any = batch.lengths
    if lengths is not None:
        lengths = LENGTHS[data.draw(st.sampled_from(sorted(LENGTHS)))](lengths)
    got = compute(layer, parameters, arrays, Context(train=True, **batch.ctx), lengths)

    oracle, exact = batch.layer("float64")
    tidy = batch.arrays(oracle, "float64")
    T, B, I, H = batch.dims
    slow = Context(train=True, backend="reference", **batch.ctx)
    sorted_lengths = None if batch.lengths is None else np.array(batch.lengths, np.int32)
    want = compute(oracle, exact, tidy, slow, sorted_lengths)
    for k, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert mine.dtype == np.dtype(dtype)
        case = "random norm" if batch.options.layer_norm else "random"
        tolerance = kernel_tolerance(batch.cell, dtype, case)
        assert_close(mine, theirs, tolerance, what=f"result {k}", terms=max(T * B, I + H))


@quick
@given(batches(), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_rows_do_not_see_each_other(batch: Drawn, value: float, data: st.DataObject) -> None:
    layer, parameters = batch.layer("float64")
    T, B, _, _ = batch.dims
    if not T * B:
        return
    arrays, ctx = batch.arrays(layer, "float64"), Context(train=True, **batch.ctx)
    results = 2 + 2 * layer.states
    clean = [a.copy() for a in compute(layer, parameters, arrays, ctx, batch.lengths)[:results]]
    row = data.draw(st.integers(0, B - 1))
    n = T if batch.lengths is None else batch.lengths[row]
    spoiled = arrays[data.draw(st.integers(0, len(arrays) - 1))]
    if spoiled.ndim == 3:
        spoiled[:n, row, 0] = value
    elif n:
        spoiled[row, 0] = value
    others = [b for b in range(B) if b != row]
    with np.errstate(invalid="ignore"):  # inf - inf where directions are added
        got = compute(layer, parameters, arrays, ctx, batch.lengths)[:results]
    for k, (mine, before) in enumerate(zip(got, clean, strict=True)):
        assert_same_bits(mine[..., others, :], before[..., others, :], what=f"result {k}")


def wrong_dtype(x: np.ndarray, draw: Callable[..., Any]) -> np.ndarray:
    return x.astype(draw(st.sampled_from(["f2", "f4", "i8", "c16", "O"])))


def wrong_size(x: np.ndarray, draw: Callable[..., Any]) -> np.ndarray:
    axis = draw(st.integers(0, x.ndim - 1))
    return np.concatenate([x, np.ones((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)], axis)


FAULTS: dict[str, Callable[..., Any]] = {
    "dtype": wrong_dtype,
    "size": wrong_size,
    "dimensions": lambda x, draw: x[..., None],
    "flat": lambda x, draw: x.reshape(-1),
    "a word": lambda x, draw: "x",
    "None": lambda x, draw: None,
}


@quick
@given(batches(), st.sampled_from(sorted(FAULTS)), st.data())
def test_what_is_wrong_is_named(batch: Drawn, fault: str, data: st.DataObject) -> None:
    layer, parameters = batch.layer("float64")
    arrays = batch.arrays(layer, "float64")
    place = data.draw(st.integers(0, len(arrays) - 1), "array")
    if place == 0 and fault == "size":
        # A step or a row more is another batch; the others would be wrong.
        arrays[0] = np.concatenate([arrays[0], arrays[0][..., :1]], axis=-1)
    else:
        arrays[place] = FAULTS[fault](arrays[place], data.draw)
    try:
        compute(layer, parameters, arrays, Context(train=True, **batch.ctx), batch.lengths)
    except (TypeError, ValueError) as error:
        assert re.match(r"(\w+ \(.*\)|(Reversed )?\w+ \w|\w+_(for|back)ward): \w", str(error)), (
            error
        )
    else:
        raise AssertionError(f"array {place} was taken")


@quick
@given(batches(), st.data())
def test_wrong_lengths_are_named(batch: Drawn, data: st.DataObject) -> None:
    layer, parameters = batch.layer("float64")
    T, B, _, _ = batch.dims
    arrays = batch.arrays(layer, "float64")
    size = data.draw(st.integers(0, B + 1))
    lengths: list[Any] = data.draw(
        st.lists(st.integers(-(2**40), 2**40), min_size=size, max_size=size)
    )
    if size == B:
        if not B:
            return
        lengths = [0] * (B - 1) + [data.draw(st.sampled_from([-1, T + 1, 2**31, 0.5, None]))]
    try:
        compute(layer, parameters, arrays, Context(train=True, **batch.ctx), lengths)
    except (TypeError, ValueError, IndexError) as error:
        assert re.match(r"[\w (),]+: lengths must ", str(error)), error
    else:
        raise AssertionError(f"lengths {lengths} were taken")
